"""What both formats check before a hypernetwork is built from them: settings and tensors."""

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attention.context_network import derived_dropout
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork, Key
from hyperbrush.hypernetworks.files.torch_files import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_LAYERS = 100
_PIECE = 32_704  # numbers; from 32,768 on torch shares a reduction among threads
_SHORT = reprlib.Repr()  # of values from files, which can be nested without end
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 2, 8, 8, 4
_SHORT.maxstring, _SHORT.maxlong = 60, 40
# key → (test, what is expected); the webui's names, in both formats.
_TESTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step": (lambda v: _is_whole(v) and 0 <= v < 2**63, "a whole number from 0"),
    "name": (lambda v: _is_line(v, 1000), "a line of at most 1000 characters"),
    "layer_structure": (lambda v: _are_numbers(v), f"a list of numbers, at most {MAX_LAYERS + 1}"),
    "activation_func": (lambda v: v is None or _is_line(v, 100), "a name"),
    "is_layer_norm": (lambda v: isinstance(v, bool), "true or false"),
    "weight_initialization": (lambda v: _is_line(v, 100), "a name"),
    "activate_output": (lambda v: isinstance(v, bool), "true or false"),
    "use_dropout": (lambda v: isinstance(v, bool), "true or false"),
    "last_layer_dropout": (lambda v: isinstance(v, bool), "true or false"),
    "dropout_structure": (
        lambda v: v is None or _are_numbers(v),
        f"a list of numbers, at most {MAX_LAYERS + 1}",
    ),
    "skip_connection": (lambda v: isinstance(v, bool), "true or false"),
    "upsample_linear": (lambda v: v is None or _is_line(v, 100), "a name"),
}
_NONE_IS_ABSENT = (
    "step",
    "name",
    "weight_initialization",
    "use_dropout",
    "last_layer_dropout",
    "skip_connection",
)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _is_line(value: Any, longest: int) -> bool:
    """A text that can be shown: control characters could rewrite a terminal."""
    return (
        isinstance(value, str)
        and len(value) <= longest
        and not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in value)
    )


def _are_numbers(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) <= MAX_LAYERS + 1
        and all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in value)
    )


class _Unfilled(TorchFunctionMode):
    """Modules are built without drawing their first weights, which the file's replace."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _DRAWING:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **kwargs or {})


_DRAWING = ("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "uniform_", "normal_")


def build(
    path: Any, stem: str, settings: Mapping[str, Any], widths: Mapping[Key, int], tensors: int
) -> AttentionHypernetwork:
    """A hypernetwork without tensors (on the meta device) from a file's settings.

    settings: by the webui's keys, its defaults for what is absent; other keys become ``metadata``
    where they are texts, numbers, booleans or None. tensors: how many the file has; settings that need
    far more are refused before anything is built.

    Raises:
        UserError: a setting or width is wrong; all wrong settings are named at once.
    """
    given = {k: v for k, v in settings.items() if not (v is None and k in _NONE_IS_ABSENT)}
    wrong = [
        f"{key} is {_SHORT.repr(given[key]):.60}, expected {expected}"
        for key, (test, expected) in _TESTS.items()
        if key in given and not test(given[key])
    ]
    if wrong:
        raise UserError(f"{path} is no sound hypernetwork: {'; '.join(wrong)}")
    structure = given.get("layer_structure", (1, 2, 1))
    needed = 4 * len(widths) * (len(structure) - 1)  # keys and values, weight and bias
    if needed > 2 * tensors + 16:
        raise UserError(
            f"{path} is not whole: {len(structure) - 1} layers for {len(widths)} widths or sites need {needed} "
            f"tensors or more, but the file has {tensors}"
        )
    rates = given.get("dropout_structure")
    use_dropout = given.get("use_dropout", False)
    last_layer_dropout = given.get("last_layer_dropout", False)
    if rates is None and use_dropout:
        rates = derived_dropout(structure, last_layer_dropout)
    elif rates is not None:
        rates = rates[: len(structure)]  # the webui writes three for [1, 1] and never looks at more
    metadata = {k: v for k, v in settings.items() if k not in _TESTS and _is_plain(v)}
    try:
        with torch.device("meta"), _Unfilled():
            hypernetwork = AttentionHypernetwork(
                widths,
                layer_structure=structure,
                activation=given.get("activation_func"),
                layer_norm=given.get("is_layer_norm", False),
                dropout_structure=rates,
                use_dropout=use_dropout,
                last_layer_dropout=last_layer_dropout,
                activate_output=given.get("activate_output", True),
                skip_connection=given.get("skip_connection", False),
                upsample_linear=given.get("upsample_linear"),
                weight_init="Normal",
                name=given.get("name", stem),
                step=given.get("step", 0),
                metadata=metadata,
            )
    except UserError as error:
        raise UserError(f"{path} is no sound hypernetwork: {error}") from error
    # Files name initialisations we do not know; it no longer matters, but is kept.
    hypernetwork.weight_init = given.get("weight_initialization", "Normal")
    return hypernetwork


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | bool) or _is_finite(value)


def check_tensors(
    path: Any, where: str, network: torch.nn.Module, tensors: Sequence[tuple[str, Any]]
) -> None:
    """Look at the number, shapes and types of a file's tensors, before or after they are read.

    where: the network in words, "width 768, keys". tensors: (the file's name, tensor or
        `torch_files.Tensor`), in layer order.

    Raises:
        UserError: they do not fit the settings, or are no plain tensors of numbers.
    """
    want = [tuple(p.shape) for p in network.parameters()]
    got = [_shape_or_type(t) for _, t in tensors]
    if got != want:
        raise UserError(
            f"{path}, {where}: tensors of shapes {_short(got)}, but the file's settings "
            f"mean {_short(want)}: the file is damaged, or its settings are of another one"
        )
    for name, tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise UserError(
                f"{path}, {where}: {name} is a tensor of {str(tensor.dtype).removeprefix('torch.')}: "
                "expected one of float16, bfloat16, float32 or float64"
            )


def check_apart(path: Any, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """See that no tensors are the same numbers of a file: read, they would outgrow it and change together.

    tensors: (name, outline).

    Raises:
        UserError: two overlap.
    """
    before, seen = "", ("", 0)
    for name, tensor in sorted(tensors, key=lambda item: (item[1].storage.key, item[1].span)):
        begin, end = tensor.span
        if tensor.storage.key == seen[0] and begin < seen[1] and end > begin:
            raise UserError(
                f"{path}: {before} and {name} are the same numbers of the file: expected tensors of their own; "
                "the file is damaged, or was written by hand"
            )
        before, seen = name, (tensor.storage.key, end)


def fill(
    path: Any, where: str, network: torch.nn.Module, tensors: Sequence[tuple[str, torch.Tensor]]
) -> None:
    """Put a file's tensors, in order, into a network on the meta device, after looking at each one.

    where, tensors: as `check_tensors`.

    Raises:
        UserError: number, shape, type or content of the tensors does not fit the settings.
    """
    check_tensors(path, where, network, tensors)
    state = {}
    for (name, _), (file_name, tensor) in zip(network.named_parameters(), tensors, strict=True):
        state[name] = tensor.detach().contiguous()
        if not all_finite(state[name]):
            raise UserError(
                f"{path}, {where}: {file_name} holds NaN or infinite numbers: "
                "its training diverged or the file is damaged; take an earlier save"
            )
    network.load_state_dict(state, assign=True)
    network.requires_grad_(True)


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no number is NaN or infinite; reads a contiguous tensor once and copies nothing.

    >>> all_finite(torch.ones(3)), all_finite(torch.tensor([1.0, float("nan")]))
    (True, False)

    A sum hands NaN and infinities on, so a finite one proves the rest; another may only have overflowed,
    which the extremes tell. Summed in pieces too small for torch to share among threads: where the other
    cores are busy, waiting for them took 30 times as long as the sum.
    """
    for piece in torch.split(tensor.reshape(-1), _PIECE):
        if piece.numel() and not math.isfinite(piece.sum().item()):
            low, high = torch.aminmax(piece)
            if not (math.isfinite(low.item()) and math.isfinite(high.item())):
                return False
    return True


def converted(path: Any, hypernetwork: AttentionHypernetwork, dtype: torch.dtype) -> AttentionHypernetwork:
    """The hypernetwork in another precision.

    Raises:
        UserError: not one of `DTYPES`, or a number is too large for it.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype} is impossible: expected {', '.join(map(str, DTYPES))}")
    hypernetwork.to(dtype)
    for name, parameter in hypernetwork.named_parameters():
        if not all_finite(parameter.detach()):
            raise UserError(f"{path}: {name} has numbers too large for {dtype}: load it in a wider type")
    return hypernetwork


def _shape_or_type(tensor: Any) -> Any:
    shape = getattr(tensor, "shape", None)
    return type(tensor).__name__ if shape is None else tuple(shape)


def _short(items: Sequence[Any]) -> str:
    shown = ", ".join(str(i)[:60] for i in items[:8])
    return f"[{shown}{', …' if len(items) > 8 else ''}] ({len(items)})"


def refuse_deltas(hypernetwork: AttentionHypernetwork) -> None:
    """Refuse a hypernetwork of `with_deltas`, whose parameters are the bare one's.

    Raises:
        UserError: it is one.
    """
    pairs = (pair for _, pair in hypernetwork.pairs())
    if any(hasattr(layer, "factors") for p in pairs for n in (p.key, p.value) for layer in n.layers):
        raise UserError(
            f"{hypernetwork.name!r} has deltas attached, which would be left out: use "
            "hyperbrush.hypernetworks.generator.merge_deltas"
        )


def settings_of(hypernetwork: AttentionHypernetwork) -> dict[str, Any]:
    """The settings of a hypernetwork under the webui's keys, as both formats write them.

    Raises:
        UserError: something that no file would give back: deltas, a name or metadata that a reader refuses or drops.
    """
    refuse_deltas(hypernetwork)
    s = hypernetwork.settings
    settings = {
        "step": hypernetwork.step,
        "name": hypernetwork.name,
        "layer_structure": list(s.layer_structure),
        "activation_func": s.activation,
        "is_layer_norm": s.layer_norm,
        "weight_initialization": hypernetwork.weight_init,
        "activate_output": s.activate_output,
        "use_dropout": hypernetwork.use_dropout,
        "dropout_structure": list(s.dropout_structure or [0] * len(s.layer_structure)),
        "last_layer_dropout": hypernetwork.last_layer_dropout,
        "skip_connection": s.skip_connection,
        "upsample_linear": s.upsample_linear,
    }
    wrong = [
        f"{key} is {_SHORT.repr(settings[key]):.60}, expected {expected}"
        for key, (test, expected) in _TESTS.items()
        if key in settings and settings[key] is not None and not test(settings[key])
    ]
    wrong += [
        f"metadata {key!r:.60} is {'the name of a setting' if key in settings else _SHORT.repr(value)}"
        for key, value in hypernetwork.metadata.items()
        if key in settings or not _is_plain(value)
    ]
    if wrong:
        raise UserError(
            f"cannot write {hypernetwork.name!r:.80}: {'; '.join(wrong)}; metadata must be texts, finite numbers, booleans or None"
        )
    return settings | hypernetwork.metadata


def alone(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter's numbers on the CPU, in a storage that holds nothing else.

    A view would take the whole storage it looks at into a file.
    """
    tensor = parameter.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
