"""Optimizers by name: each learns, resumes to the bit, and refuses what it does not know."""

import builtins
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toys import Regression, train, trainer, weights

from hyperbrush.errors import UserError
from hyperbrush.training import Interrupted
from hyperbrush.training.loop.checkpoint import flatten_optimizer, group_values, restore_optimizer
from hyperbrush.training.loop.clipping import Clipping, clip_schedule
from hyperbrush.training.loop.optimizers import (
    METHODS,
    advice,
    begin_training,
    default_learning_rate,
    evaluation_weights,
    make_optimizer,
    names,
    resolve,
    use_evaluation_weights,
)

EIGHT_BIT = pytest.param(
    "adamw-8bit",
    marks=pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs hyperbrush[8bit]"),
)
OURS = [EIGHT_BIT if name == "adamw-8bit" else name for name in METHODS]
TORCH = [name for name in names() if name not in METHODS and name != "Muon"]


class Wide(Regression):
    """Large enough for 8-bit moments, which start at 4,096 numbers; one weight begins at zero."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        torch.manual_seed(1)
        self.network = nn.Sequential(
            nn.Linear(6, 96), nn.GELU(), nn.Linear(96, 64), nn.GELU(), nn.Linear(64, 3)
        )
        nn.init.zeros_(self.network[4].weight)


def loss_of(objective: Regression) -> float:
    with torch.no_grad():
        return objective.validate()["loss"]


def steps(objective: Regression, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    begin_training(optimizer)
    for step in range(first, last):
        for group in optimizer.param_groups:
            group["lr"] = group["initial"] / (1 + 0.01 * step)  # as the Trainer: set at each step
        optimizer.zero_grad()
        objective(objective.batch(step, 8))["loss"].backward()
        optimizer.step()


def make(name: str, objective: Regression, **settings: Any) -> torch.optim.Optimizer:
    optimizer = make_optimizer(name, objective.parameter_groups(), **settings)
    for group in optimizer.param_groups:
        group["initial"] = group["lr"]
    return optimizer


@pytest.mark.parametrize("name", [*OURS, *TORCH])
def test_resume_is_exact(name: str, tmp_path: Path) -> None:
    whole = Wide()
    optimizer = make(name, whole)
    steps(whole, optimizer, 0, 12)
    part = Wide()
    optimizer = make(name, part)
    settings = group_values(optimizer)
    steps(part, optimizer, 0, 5)
    tensors, rest = flatten_optimizer(optimizer, settings)
    tensors |= {f"weights.{k}": v.detach() for k, v in part.state_dict().items()}
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, tmp_path / "state.safetensors")
    text = json.dumps(rest)

    again = Wide()
    optimizer = make(name, again)
    saved = load_file(tmp_path / "state.safetensors")
    again.load_state_dict({k[8:]: v for k, v in saved.items() if k.startswith("weights.")})
    state = {k: v for k, v in saved.items() if not k.startswith("weights.")}
    restore_optimizer(optimizer, state, json.loads(text), group_values(optimizer))
    steps(again, optimizer, 5, 12)
    assert not torch.equal(weights(part), weights(again))
    assert torch.equal(weights(whole), weights(again))


def test_state_that_checkpoints_do_not_hold_is_refused() -> None:
    objective = Wide()
    optimizer = make("adamw", objective)
    steps(objective, optimizer, 0, 1)
    next(iter(optimizer.state.values()))["factors"] = [torch.eye(2)]  # as SOAP keeps them
    with pytest.raises(UserError, match="AdamW keeps 'factors' as a list"):
        flatten_optimizer(optimizer)


@pytest.mark.parametrize("name", ["prodigy", EIGHT_BIT, "adafactor"])
def test_a_training_with_it_resumes_exactly(name: str, tmp_path: Path) -> None:
    def factory(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        options = {"min_8bit_size": 1} if name == "adamw-8bit" else {}
        return make_optimizer(name, groups, **options)

    rate = {"learning_rate": default_learning_rate(name)}
    settings: dict[str, Any] = {"optimizer_factory": factory, "optimizer": rate}
    whole = train(Regression(), tmp_path / "whole", **settings)
    with pytest.raises(Interrupted):
        train(Regression(), tmp_path / "parts", stop_at=3, **settings)
    again = train(Regression(), tmp_path / "parts", resume=True, **settings)
    assert torch.equal(weights(whole), weights(again))
    assert not torch.equal(weights(whole), weights(Regression()))


@pytest.mark.parametrize("name", OURS)
def test_each_learns_at_its_own_default_rate(name: str) -> None:
    objective = Wide()
    optimizer = make(name, objective)
    before = loss_of(objective)
    steps(objective, optimizer, 0, 120)
    use_evaluation_weights(optimizer)
    assert loss_of(objective) < 0.985 * before
    rates = [(group["initial"], group.get("rate_scale", 1.0)) for group in optimizer.param_groups]
    assert all(rate == default_learning_rate(name) * scale for rate, scale in rates)


def test_the_default_is_the_fused_adamw_and_settings_reach_it() -> None:
    objective = Regression()
    group = make_optimizer("adamw", objective.parameter_groups()).param_groups[0]
    assert (group["fused"], group["betas"], group["weight_decay"], group["eps"]) == (
        True,
        (0.9, 0.99),
        0.01,
        1e-8,
    )
    group = make_optimizer(
        "adamw",
        objective.parameter_groups(),
        learning_rate=2e-3,
        weight_decay=0.3,
        betas=(0.5, 0.6),
        eps=1e-4,
        amsgrad=True,
        fused=False,
    ).param_groups[0]
    found = [group[k] for k in ("lr", "weight_decay", "betas", "eps", "amsgrad", "fused")]
    assert found == [2e-3, 0.3, (0.5, 0.6), 1e-4, True, False]


CLASSES = {
    "adamw": "AdamW",
    "adamw-8bit": "AdamW8bit",
    "prodigy": "Prodigy",
    "d-adaptation": "DAdaptAdam",
    "schedule-free": "AdamWScheduleFree",
    "adafactor": "Adafactor",
    "lion": "Lion",
    "muon": "Muon",
}


@pytest.mark.parametrize("name", OURS)
def test_each_packages_class_is_the_one_meant(name: str) -> None:
    assert type(make_optimizer(name, Regression().parameter_groups())).__name__ == CLASSES[name]
    assert CLASSES.keys() == METHODS.keys()


@pytest.mark.parametrize("name", [EIGHT_BIT])
def test_moments_have_eight_bits(name: str) -> None:
    objective = Wide()
    optimizer = make(name, objective)
    steps(objective, optimizer, 0, 1)
    moments = optimizer.state[objective.network[2].weight]["state1"]
    assert moments.dtype == torch.uint8


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("prodigy", {"d_coef": 0.5}),
        ("prodigy", {"weight_decay": 0.5}),
        ("schedule-free", {"warmup_steps": 5}),
        ("adafactor", {"eps": (None, 1e-3)}),
        pytest.param("adamw-8bit", {"min_8bit_size": 1}, marks=EIGHT_BIT.marks),
        ("lion", {"betas": (0.5, 0.5)}),
        ("d-adaptation", {"growth_rate": 1.02}),
    ],
    ids=str,
)
def test_options_make_a_difference(name: str, settings: dict, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = Wide(), Wide()
    steps(one, make(name, one), 0, 8)
    steps(other, make(name, other, **settings), 0, 8)
    assert not torch.equal(weights(one), weights(other))
    assert not capsys.readouterr().out


def test_names() -> None:
    assert resolve("sgd") == "SGD"
    assert resolve("Prodigy") == "prodigy"
    assert resolve("schedule_free") == "schedule-free"
    assert (resolve("AdamW"), resolve("ADAMW")) == ("AdamW", "adamw")
    for wrong, message in (
        ("prodgy", "unknown optimizer 'prodgy'; did you mean 'prodigy'"),
        ("RMSpro", "did you mean 'RMSprop'"),
        ("lbfgs", "'LBFGS' cannot be used here: it computes the loss several times"),
        ("SparseAdam", "'SparseAdam' cannot be used here: it takes sparse"),
        ("Optimizer", "unknown optimizer 'Optimizer'"),
    ):
        with pytest.raises(UserError, match=message):
            make_optimizer(wrong, Regression().parameter_groups())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("adamw", {"beta": (0.9, 0.9)}, "unknown setting of optimizer 'adamw' 'beta'; did you mean 'betas'"),
        ("SGD", {"betas": (0.9, 0.9)}, "unknown setting of optimizer 'SGD' 'betas'.*momentum"),
        ("adamw", {"betas": (1.5, 0.9)}, r"'adamw' refuses its settings .*betas=\(1.5, 0.9\).*Invalid beta"),
        ("prodigy", {"learning_rate": -1.0}, "'prodigy' refuses its settings .*Invalid learning rate"),
        ("adamw", {"lr": 1.0}, "'lr' is written 'learning_rate'"),
        ("adamw", {"weight_decay": float("nan")}, "weight_decay of optimizer 'adamw' is NaN"),
        ("SGD", {"nesterov": True}, "'SGD' refuses its settings .*momentum"),
        ("prodigy", {"scales": (1.0, 0.5)}, "'prodigy' finds one learning rate.*scaled by 1, 0.5"),
    ],
    ids=str,
)
def test_wrong_settings(name: str, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_optimizer(name, Regression().parameter_groups(), **settings)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("adamw-8bit", "bitsandbytes"),
        ("prodigy", "prodigyopt"),
        ("schedule-free", "schedulefree"),
        ("lion", "pytorch-optimizer"),
        ("d-adaptation", "pytorch-optimizer"),
    ],
)
def test_a_missing_package_is_told(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__
    module = METHODS[name].module
    for loaded in [m for m in list(__import__("sys").modules) if m == module]:
        monkeypatch.delitem(__import__("sys").modules, loaded)

    def find(wanted: str, *more: Any, **keys: Any) -> Any:
        if wanted == module:
            raise ImportError(f"No module named {wanted!r}")
        return real(wanted, *more, **keys)

    monkeypatch.setattr("hyperbrush.training.loop.optimizers.importlib.import_module", find)
    message = rf"optimizer '{name}' needs the package {package}, .*pip install {package}, or 'hyperbrush\[(8bit|optimizers)\]'"
    with pytest.raises(UserError, match=message):
        make_optimizer(name, Regression().parameter_groups())


def test_schedule_free_weights_come_back_to_the_bit() -> None:
    objective = Wide()
    optimizer = make("schedule-free", objective)
    steps(objective, optimizer, 0, 20)
    trained = weights(objective)
    with evaluation_weights(optimizer):
        averaged = weights(objective)
        with torch.no_grad():
            objective.network[0].weight.zero_()  # as a moving average that is put in
    assert not torch.equal(trained, averaged)
    assert torch.equal(trained, weights(objective))
    with pytest.raises(RuntimeError, match="inside"), evaluation_weights(optimizer):
        raise RuntimeError("inside")
    assert torch.equal(trained, weights(objective))
    steps(objective, optimizer, 20, 24)
    other = Wide()
    optimizer_2 = make("schedule-free", other)
    steps(other, optimizer_2, 0, 24)
    assert torch.equal(weights(other), weights(objective))
    use_evaluation_weights(optimizer)
    assert not torch.equal(weights(other), weights(objective))
    used = weights(objective)
    with evaluation_weights(optimizer):  # after the end: nothing more to change
        assert torch.equal(used, weights(objective))
    assert torch.equal(used, weights(objective))


def test_other_optimizers_are_left_alone() -> None:
    objective = Wide()
    optimizer = make("adamw", objective)
    steps(objective, optimizer, 0, 3)
    trained = weights(objective)
    with evaluation_weights(optimizer):
        assert torch.equal(trained, weights(objective))
    use_evaluation_weights(optimizer)
    assert torch.equal(trained, weights(objective))


def test_advice() -> None:
    assert (
        advice("prodigy")
        == advice("prodigy", 1.0)
        == advice("adamw", 1e-5, "cosine")
        == advice("SGD", 9)
        == []
    )
    assert "takes yours as a factor: 0.0001" in advice("Prodigy", 1e-4)[0]
    assert (
        "averages its weights instead of following a schedule" in advice("schedule-free", None, "cosine")[0]
    )


def gradients(*values: list[float]) -> list[Tensor]:
    found = [nn.Parameter(torch.zeros(len(v))) for v in values]
    for parameter, value in zip(found, values, strict=True):
        parameter.grad = torch.tensor(value)
    return [*found, nn.Parameter(torch.zeros(2))]  # one without a gradient


def grads(parameters: list[Tensor]) -> list[list[float]]:
    return [[round(x, 4) for x in p.grad.tolist()] for p in parameters if p.grad is not None]


@pytest.mark.parametrize(
    ("clipping", "step", "after"),
    [
        (Clipping("norm", 2.5), 0, [[1.5], [0.0, 2.0]]),
        (Clipping("norm", 50), 0, [[3.0], [0.0, 4.0]]),
        (Clipping("value", 3.5), 0, [[3.0], [0.0, 3.5]]),
        (Clipping("norm", None), 0, [[3.0], [0.0, 4.0]]),
        (Clipping("value", "3.5:10, 0.5"), 9, [[3.0], [0.0, 3.5]]),
        (Clipping("value", "3.5:10, 0.5"), 10, [[0.5], [0.0, 0.5]]),
    ],
    ids=str,
)
def test_clipping(clipping: Callable[..., Tensor], step: int, after: list) -> None:
    parameters = gradients([3.0], [0.0, 4.0])
    assert float(clipping(parameters, step)) == 5.0
    assert grads(parameters) == after


def test_a_clip_limit_of_other_keyboards() -> None:
    limit = clip_schedule("３．５：１０，０．５")
    assert [limit(step) for step in (0, 9, 10)] == [3.5, 3.5, 0.5]


def test_clipping_tells_of_gradients_that_are_not_finite() -> None:
    parameters = gradients([float("nan")], [1.0])
    assert clip_schedule(None)(3) is None
    assert not torch.isfinite(Clipping("value", 0.5)(parameters, 0))
    assert parameters[1].grad.tolist() == [1.0]


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("1.0:x", "part '1.0:x' of clip schedule .*write LIMIT:STEP, as '1.0:100'"),
        ("a", "'a' is not a number"),
        ("", "clip schedule '' is empty; write one like '1.0:100, 0.5'"),
        ("0:10, 1", "clip limit '0:10, 1' holds a 0"),
        ("1.0:100; 0.5", "clip schedule '1.0:100; 0.5' holds a ';'.*did you mean '1.0:100, 0.5'"),
        ("0,5:100", "write LIMIT:STEP, as '1.0:100', and decimals with a point; did you mean '0.5:100'"),
        ("1.0:200, 0.5:100", "part '0.5:100' ends before it begins"),
        (-1.0, "a limit must be finite"),
        (float("nan"), "a limit must be finite"),
    ],
)
def test_wrong_clip_limits(limit: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Clipping("norm", limit)
    with pytest.raises(UserError, match="unknown way to clip 'norms'; did you mean 'norm'"):
        Clipping("norms", 1.0)


def test_muon_steps_convolutions_and_leaves_the_rest_to_adamw(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_optimizer")

    class Convolved(Regression):
        def __init__(self) -> None:
            super().__init__(dropout=0.0)
            self.network = nn.Sequential(
                nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 8, 2), nn.Flatten(), nn.GELU(), nn.Linear(16, 3)
            )

    for name in ("muon", "Muon"):
        objective = Convolved()
        before = [p.detach().clone() for p in objective.network.parameters()]
        made = trainer(
            objective, tmp_path / name, optimizer={"name": name, "learning_rate": 1e-2, "warmup_steps": 0}
        )
        groups = made.optimizer.param_groups
        assert [[p.ndim for p in group["params"]] for group in groups] == [[4, 2], [1, 1]]
        made.train()
        assert [group["lr"] for group in groups] == [1e-2, 5e-4]
        step = objective.network[1].weight.detach() - before[0]
        assert all(not torch.equal(a, b) for a, b in zip(before, objective.network.parameters(), strict=True))
        assert step.abs().max() > 1e-3
    assert loss_of(
        train(Convolved(), tmp_path / "more", steps=60, optimizer={"name": "muon"})
    ) < 0.8 * loss_of(Convolved())
