"""Optimizers by name: the house's own choices, those of other packages, and all of torch.optim."""

import contextlib
import importlib
import inspect
import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch.optim import Optimizer

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.ldm.piecewise import is_piecewise, parse_piecewise
from hyperbrush.training.loop.config import OptimizerConfig

log = logging.getLogger(__name__)

EXTRAS = {"bitsandbytes": "8bit"}  # of ours, by the package they bring; all others are in "optimizers"


@dataclass(frozen=True)
class Method:
    """One optimizer that has a name of ours.

    about: one line with its source; learning_rate: where it is well left to begin; settings: what differs
    from the class's own defaults; finds_rate: the rate is a factor of one that it finds itself, and 1.0
    leaves that alone; one_rate: it refuses groups with rates of their own; averages: it trains other weights
    than it means to be used, see `evaluation_weights`; matrices: it is for weights of two and more dimensions, and
    has AdamW for the others.
    """

    about: str
    module: str
    name: str
    package: str = "torch"
    learning_rate: float = 1e-3
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    finds_rate: bool = False
    one_rate: bool = False
    averages: bool = False
    matrices: bool = False


def _settings(**values: Any) -> Mapping[str, Any]:
    return MappingProxyType(values)


ADAM = {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.01}

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "adamw": Method(
            "Adam with decoupled weight decay, in one fused kernel (Loshchilov & Hutter 2019, 1711.05101)",
            "torch.optim",
            "AdamW",
            settings=_settings(**ADAM, fused=True),
        ),
        "adamw-8bit": Method(
            "AdamW with moments in 8 bits, a quarter of the memory (Dettmers et al. 2022, 2110.02861)",
            "bitsandbytes.optim",
            "AdamW8bit",
            "bitsandbytes",
            settings=_settings(**ADAM),
        ),
        "prodigy": Method(
            "Adam that finds its own learning rate (Mishchenko & Defazio 2024, 2306.06101)",
            "prodigyopt",
            "Prodigy",
            "prodigyopt",
            1.0,
            _settings(**ADAM),
            finds_rate=True,
            one_rate=True,
        ),
        "d-adaptation": Method(
            "Adam that finds its own learning rate, before Prodigy (Defazio & Mishchenko 2023, 2301.07733)",
            "pytorch_optimizer",
            "DAdaptAdam",
            "pytorch-optimizer",
            1.0,
            _settings(**ADAM, weight_decouple=True, bias_correction=True),
            finds_rate=True,
            one_rate=True,
        ),
        "schedule-free": Method(
            "AdamW that averages its weights instead of lowering its rate (Defazio et al. 2024, 2405.15682)",
            "schedulefree",
            "AdamWScheduleFree",
            "schedulefree",
            2.5e-3,
            _settings(**ADAM),
            averages=True,
        ),
        "adafactor": Method(
            "moments kept as rows and columns, hardly any memory (Shazeer & Stern 2018, 1804.04235)",
            "torch.optim",
            "Adafactor",
            learning_rate=1e-2,
            # Steps are rate · max(0.1, size of the weights): with torch's 0.001, a network whose last layer
            # starts at zero, as ours do, hardly leaves it.
            settings=_settings(eps=(None, 0.1)),
        ),
        "lion": Method(
            "steps by the sign of the momentum; a tenth of AdamW's rate (Chen et al. 2023, 2302.06675)",
            "pytorch_optimizer",
            "Lion",
            "pytorch-optimizer",
            1e-4,
            _settings(betas=(0.9, 0.99), weight_decay=0.1),
        ),
        "muon": Method(
            "orthogonal steps for matrices, convolutions flattened; AdamW for the rest (Jordan 2024; 2502.16982)",
            "pytorch_optimizer",
            "Muon",
            "pytorch-optimizer",
            2e-2,
            matrices=True,
        ),
    }
)
REST = 0.05  # of Muon's rate, for what AdamW trains beside it: 1e-3 for 2e-2

UNFIT = {
    "LBFGS": "it computes the loss several times a step, on batches that change here",
    "SparseAdam": "it takes sparse gradients alone, and these are dense",
}
OURS = ("Muon",)  # torch's takes matrices alone: no bias, no convolution


def names() -> list[str]:
    """Every name that `make_optimizer` knows: ours first, then torch's classes."""
    return [*METHODS, *sorted(_torch_classes())]


def peak_rate(settings: OptimizerConfig) -> float:
    """The peak learning rate that a config means, also where its schedule says the rates.

    Raises:
        UserError: an unknown optimizer.
    """
    if is_piecewise(settings.schedule):
        return max(rate for rate, _ in parse_piecewise(settings.schedule))
    return default_learning_rate(settings.name) if settings.learning_rate is None else settings.learning_rate


def default_learning_rate(name: str) -> float:
    """The rate that an optimizer is well left to begin with: 1.0 for those that find theirs.

    Raises:
        UserError: an unknown name.
    """
    name = resolve(name)
    if name in METHODS:
        return METHODS[name].learning_rate
    return float(inspect.signature(_torch_classes()[name]).parameters["lr"].default)


def make_optimizer(
    name: str,
    groups: Sequence[Mapping[str, Any]],
    *,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    betas: tuple[float, ...] | None = None,
    eps: float | tuple[float | None, float] | None = None,
    scales: Sequence[float] = (),
    **options: Any,
) -> Optimizer:
    """An optimizer of parameter groups by its name; None leaves a setting at the optimizer's default.

    Args:
        name: one of `METHODS`, or any class of torch.optim ("SGD", "RMSprop"), which has torch's defaults.
        groups: mappings with "params".
        learning_rate: see `default_learning_rate`.
        weight_decay, betas, eps, options: as its class takes them; those it does not take are refused.
        scales: factors of the rate that the caller will give to each group; different ones are refused
            where the optimizer cannot have them. An optimizer that splits groups has each one's factor in
            the group, as "rate_scale".

    Raises:
        UserError: an unknown name or setting, a value that the class refuses, a package that is missing.
    """
    name = resolve(name)
    method = METHODS.get(name)
    cls = _torch_classes()[name] if method is None else _load(name, method)
    given = {"weight_decay": weight_decay, "betas": betas, "eps": eps}
    wanted = {key: value for key, value in given.items() if value is not None} | options
    _check_settings(name, cls, wanted)
    if method is not None and method.one_rate and len(set(scales)) > 1:
        raise UserError(
            f"optimizer {name!r} finds one learning rate for all weights, but the groups want rates scaled by "
            f"{', '.join(f'{s:g}' for s in scales)}; make them equal, or take 'adamw'"
        )
    rate = default_learning_rate(name) if learning_rate is None else learning_rate
    settings = {**(method.settings if method else {}), **wanted}
    if method is not None and method.matrices:
        groups = _by_dimensions(groups, scales or [1.0] * len(groups), rate)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Prodigy greets
            make: Any = cls  # each class has a signature of its own
            made: Optimizer = make([dict(group) for group in groups], lr=rate, **settings)
            return made
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in {"learning_rate": rate, **settings}.items())
        raise UserError(f"optimizer {name!r} refuses its settings ({shown}): {error}") from error


def _by_dimensions(
    groups: Sequence[Mapping[str, Any]], scales: Sequence[float], rate: float
) -> list[dict[str, Any]]:
    """Each group in two, the weights that `pytorch_optimizer.Muon` steps orthogonally and the others."""
    found = []
    for group, scale in zip(groups, scales, strict=True):
        for is_matrix, factor in ((True, scale), (False, scale * REST)):
            own = [p for p in group["params"] if (p.ndim > 1) == is_matrix]
            about = {"use_muon": is_matrix, "rate_scale": factor, "lr": rate * factor}
            found += [{**group, "params": own, **about}] if own else []
    return found


def rate_scales(optimizer: Optimizer, scales: list[float]) -> list[float]:
    """The rate's factor for each of an optimizer's groups: those given, but where it has split the groups."""
    groups = optimizer.param_groups
    return [float(group["rate_scale"]) for group in groups] if "rate_scale" in groups[0] else scales


def configured(
    settings: OptimizerConfig, groups: Sequence[Mapping[str, Any]], scales: Sequence[float] = ()
) -> Optimizer:
    """`make_optimizer` of a config's settings."""
    return make_optimizer(
        settings.name,
        groups,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        betas=settings.betas,
        eps=settings.eps,
        scales=scales,
        **settings.options,
    )


def advice(name: str, learning_rate: float | None = None, schedule: str = "constant") -> list[str]:
    """What is legal but rarely meant about an optimizer's rate, in words for a person.

    Raises:
        UserError: an unknown name.
    """
    name = resolve(name)
    method = METHODS.get(name)
    if method is None:
        return []
    said = []
    if method.finds_rate and learning_rate is not None and not 0.1 <= learning_rate <= 10:
        said.append(
            f"optimizer {name!r} finds its own learning rate and takes yours as a factor: {learning_rate:g} "
            "will make it that much slower or faster; leave learning_rate out, which means 1.0"
        )
    if method.averages and not schedule.startswith("constant"):
        said.append(
            f"optimizer {name!r} averages its weights instead of following a schedule: with {schedule!r} it "
            "does both; schedule 'constant' is meant for it (a warm-up is well with it)"
        )
    return said


def resolve(name: str) -> str:
    """A name as `METHODS` or torch.optim writes it; small and large letters are one where that is clear.

    Raises:
        UserError: an unknown name, with the closest ones; a class that cannot train here.
    """
    classes = _torch_classes()
    if name in METHODS or name in classes:
        return name
    folded = {known.casefold(): known for known in [*classes, *UNFIT, *METHODS]}
    found = folded.get(name.casefold().replace("_", "-").replace(" ", "-"))
    if found is None:
        raise unknown_name("optimizer", name, names())
    if found in UNFIT:
        raise UserError(f"optimizer {found!r} cannot be used here: {UNFIT[found]}; take 'adamw'")
    return found


def _torch_classes() -> dict[str, type[Optimizer]]:
    found = {key: value for key, value in vars(torch.optim).items() if inspect.isclass(value)}
    kept = {key: value for key, value in found.items() if issubclass(value, Optimizer)}
    left_out = (*UNFIT, *OURS)
    return {key: value for key, value in kept.items() if key not in left_out and value is not Optimizer}


def _load(name: str, method: Method) -> type[Optimizer]:
    """The class, from a package that may be missing."""
    chatter = logging.getLogger(method.module.split(".")[0])
    level = chatter.level
    chatter.setLevel(logging.ERROR)  # bitsandbytes tells of kernels that no optimizer needs
    try:
        cls: type[Optimizer] = getattr(importlib.import_module(method.module), method.name)
    except ImportError as error:
        raise UserError(
            f"optimizer {name!r} needs the package {method.package}, which cannot be imported ({error}); "
            f"pip install {method.package}, or 'hyperbrush[{EXTRAS.get(method.package, 'optimizers')}]'"
        ) from error
    finally:
        chatter.setLevel(level)
    return _with_flat_state(cls) if method.package == "bitsandbytes" else cls


def _with_flat_state(cls: type[Optimizer]) -> type[Optimizer]:
    """The same class; its state is what checkpoints want: tensors by name, none of them shared.

    bitsandbytes nests the 8-bit moments in a mapping, which helps FSDP alone (it reads both), and has one
    table of its 256 values for all parameters, which safetensors refuses.
    """

    def state_dict(self: Optimizer) -> dict[str, Any]:
        found = Optimizer.state_dict(self)
        flat = {
            index: {k: v.clone() if k.startswith("qmap") else v for k, v in entries.items()}
            for index, entries in found["state"].items()
        }
        return found | {"state": flat}

    return type(cls.__name__, (cls,), {"state_dict": state_dict, "__doc__": cls.__doc__})


def _check_settings(name: str, cls: type[Optimizer], wanted: Mapping[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    known = [key for key in named if key not in ("params", "lr")]
    for key, value in wanted.items():
        if key == "lr":
            raise UserError("'lr' is written 'learning_rate' here")
        if key not in known:
            raise unknown_name(f"setting of optimizer {name!r}", key, known)
        if isinstance(value, float) and math.isnan(value):
            raise UserError(f"{key} of optimizer {name!r} is NaN; expected a number")


def _inner(optimizer: Optimizer) -> Any:
    """The optimizer itself, where Accelerate has wrapped it."""
    return getattr(optimizer, "optimizer", optimizer)


def restore_moments(optimizer: Optimizer, name: str, state_dict: Mapping[str, Any]) -> bool:
    """Begin with the moments of an earlier training, such as a ``.optim`` file holds; False: none were taken.

    The settings (rate, betas, …) stay those of this training. name: torch's class that the state is of;
    moments of another one mean nothing here, which is said in a warning.
    """
    inner = _inner(optimizer)
    own = type(inner).__name__
    if own != name:
        log.warning("the optimizer's saved state is of %s and this one is %s: it begins anew", name, own)
        return False
    groups = inner.state_dict()["param_groups"]
    inner.load_state_dict({"state": state_dict["state"], "param_groups": groups})
    return True


def averages(optimizer: Optimizer) -> bool:
    """Whether an optimizer keeps averaged weights itself (schedule-free): a moving average beside them would be of others."""
    return callable(getattr(_inner(optimizer), "eval", None))


def begin_training(optimizer: Optimizer) -> None:
    """Tell an optimizer that trains other weights than are used (schedule-free) that steps come now.

    Call it before the first step, before or after restoring its state. Others pass through.
    """
    if callable(switch := getattr(_inner(optimizer), "train", None)):
        switch()


def use_evaluation_weights(optimizer: Optimizer) -> None:
    """Leave the weights as the optimizer means them to be used, for good: the end of a training."""
    if callable(switch := getattr(_inner(optimizer), "eval", None)):
        switch()


@contextlib.contextmanager
def evaluation_weights(optimizer: Optimizer) -> Iterator[None]:
    """Within, the weights are those to validate, preview and keep; afterwards the training's, to the bit.

    Of schedule-free optimizers these are the averaged weights; for others nothing happens. Its own `eval`
    and `train` would come back rounded, so that a validation would change the training. Checkpoints are
    written outside, of the training's weights.
    """
    inner = _inner(optimizer)
    if not callable(getattr(inner, "eval", None)):
        yield
        return
    trained = [p for group in inner.param_groups for p in group["params"]]
    kept = [p.detach().clone() for p in trained]
    was_training = [group.get("train_mode") for group in inner.param_groups]
    inner.eval()
    try:
        yield
    finally:
        inner.train()
        for group, mode in zip(inner.param_groups, was_training, strict=True):
            group["train_mode"] = mode
        with torch.no_grad():
            for parameter, value in zip(trained, kept, strict=True):
                parameter.copy_(value)
