"""Checkpoints know whether they are intact, and restore an optimizer exactly."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from toys import Regression, train, trainer, weights

from hyperbrush.errors import UserError
from hyperbrush.training import Interrupted
from hyperbrush.training.loop import checkpoint as c
from hyperbrush.training.loop.metrics import read


def example(step: int = 4) -> c.Checkpoint:
    return c.Checkpoint(
        step, {"model.w": torch.arange(6.0).view(2, 3), "none": torch.zeros(0)}, {"seconds": 1.5}
    )


def rewrite(path: Path, **changes: str | None) -> None:
    """Change a file's header and nothing else."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | changes
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={k: v for k, v in metadata.items() if v is not None})


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = c.save(tmp_path, example(), keep=2)
    found = c.load(path)
    assert (found.step, found.extra) == (4, {"seconds": 1.5})
    assert torch.equal(found.tensors["model.w"], example().tensors["model.w"])
    assert c.latest(tmp_path / "nothing") is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        c.save(tmp_path, example(step), keep=2)
    assert [p.stem for p in sorted(tmp_path.iterdir())] == ["step-00000004", "step-00000006"]


def test_a_spared_one_stays_and_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "step-x.safetensors").write_text("a copy of someone's")
    for step in (2, 4, 6, 8):
        c.save(tmp_path, example(step), keep=1, spare=4)
    assert c.steps(tmp_path) == [4, 8]
    assert (tmp_path / "step-x.safetensors").exists()
    found = c.latest(tmp_path)
    assert found is not None
    assert found.step == 8


def test_what_is_beside_the_tensors_is_read_alone(tmp_path: Path) -> None:
    path = c.save(tmp_path, example(), keep=2)
    assert c.extra_of(path) == {"seconds": 1.5}
    path.write_bytes(path.read_bytes()[:20])
    assert c.extra_of(path) == {}
    assert c.extra_of(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "5"}, "is damaged: its content"),
        ({"extra": json.dumps({"seconds": 2.5})}, "is damaged: its content"),
        ({"sha256": "0"}, "is damaged: its content"),
        ({"extra": "{", "sha256_about": None}, "header does not say where it stood"),
        ({"step": None, "sha256_about": None}, "header does not say where it stood"),
        ({"hyperbrush": None}, "is not a hyperbrush checkpoint"),
        (
            {"hyperbrush": "2"},
            "has format 2, this hyperbrush reads format 1; go on with the version that wrote",
        ),
    ],
    ids=str,
)
def test_an_altered_header_is_seen_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict, message: str
) -> None:
    c.save(tmp_path, example(2), keep=2)
    newest = c.save(tmp_path, example(4), keep=2)
    rewrite(newest, **changes)
    with pytest.raises(UserError, match=message):
        c.load(newest)
    with caplog.at_level(logging.WARNING):
        found = c.latest(tmp_path)
    assert found is not None
    assert found.step == 2
    assert "step-00000004" in caplog.text
    assert "taking an older one" in caplog.text


def test_missing_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        c.load(tmp_path / "step-00000001.safetensors")
    with pytest.raises(UserError, match="no checkpoint at step 3 in .*there are: none"):
        c.latest(tmp_path, 3)


def test_the_digest_sees_names_types_shapes_and_values() -> None:
    x = torch.arange(6.0)
    same = c.digest({"a": x, "b": x})
    assert same == c.digest({"b": x.clone(), "a": x})
    others = [
        {"a": x},
        {"a": x, "c": x},
        {"a": x, "b": x.view(2, 3)},
        {"a": x, "b": x.long()},
        {"a": x, "b": x + 1},
    ]
    assert same not in {c.digest(o) for o in others}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizer_goes_on_to_the_bit(
    tmp_path: Path, memory_format: torch.memory_format, fused: bool
) -> None:
    """Fused kernels walk through memory: moments in another layout than their weight would be shuffled."""

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = nn.Conv2d(4, 6, 3).to(memory_format=memory_format)
        return layer, torch.optim.AdamW(layer.parameters(), 1e-2, fused=fused)

    def step(layer: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(number))
        layer(x.to(memory_format=memory_format)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    whole, its_optimizer = fresh()
    for number in range(3):
        step(whole, its_optimizer, number)
    tensors, rest = c.flatten_optimizer(its_optimizer)
    state = {k: v.detach().clone() for k, v in whole.state_dict().items()}
    saved = c.save(tmp_path, c.Checkpoint(3, tensors | {f"w.{k}": v for k, v in state.items()}, rest), keep=1)
    found = c.load(saved)

    again, optimizer = fresh()
    with torch.no_grad():
        for name, parameter in again.named_parameters():
            parameter.copy_(found.tensors.pop(f"w.{name}"))
    c.restore_optimizer(optimizer, found.tensors, found.extra, c.group_values(optimizer))
    for number in range(3, 5):
        step(whole, its_optimizer, number)
        step(again, optimizer, number)
    assert torch.equal(whole.weight, again.weight)
    assert torch.equal(whole.bias, again.bias)


class Estimating(torch.optim.SGD):
    """Keeps state in its groups, as Prodigy and the schedule-free optimizers do."""

    def __init__(self, groups: list) -> None:
        super().__init__(groups, lr=1e-3)
        for group in self.param_groups:
            group |= {"d": 1.0, "k": 0, "seen": torch.zeros(2)}

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["d"] *= 1.5
            group["k"] += 1
            group["seen"] += group["k"]
            for parameter in group["params"]:
                parameter.data -= group["lr"] * group["d"] * float(group["seen"].sum()) * parameter.grad


def test_state_in_groups_is_kept_too(tmp_path: Path) -> None:
    objective = train(Regression(), tmp_path / "whole", optimizer_factory=Estimating)
    with pytest.raises(Interrupted):
        train(Regression(), tmp_path / "parts", optimizer_factory=Estimating, stop_at=3)
    again = train(Regression(), tmp_path / "parts", optimizer_factory=Estimating, resume=True)
    assert torch.equal(weights(objective), weights(again))
    found = c.load(c.path_of(tmp_path / "parts/checkpoints", 6))
    assert found.extra["optimizer"] == {"group.0.d": 1.5**6, "group.0.k": 6}
    assert "optimizer.group.0.seen" in found.tensors
    plain = train(Regression(), tmp_path / "plain")
    assert not torch.equal(weights(plain), weights(objective))


def test_going_back_to_the_start_takes_back_what_an_optimizer_keeps_in_its_groups(tmp_path: Path) -> None:
    """At the start nothing has changed, so that nothing of it is in the checkpoint."""
    optimizer = Estimating([{"params": [nn.Parameter(torch.ones(2))]}])
    start = c.group_values(optimizer)
    tensors, rest = c.flatten_optimizer(optimizer, start)
    optimizer.param_groups[0] |= {"d": 1e9, "k": 40, "found": 3.0}
    c.restore_optimizer(optimizer, tensors, rest, start)
    group = optimizer.param_groups[0]
    assert (group["d"], group["k"], "found" in group) == (1.0, 0, False)


class TwoWeights(torch.optim.SGD):
    """Trains other weights than it means to be used, as the schedule-free optimizers do."""

    def __init__(self, groups: list) -> None:
        super().__init__(groups, lr=1e-2)
        for group in self.param_groups:
            group["train_mode"] = True

    def _shift(self, by: float, mode: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] != mode:
                group["train_mode"] = mode
                for parameter in group["params"]:
                    parameter.data += by

    def train(self) -> None:
        self._shift(-0.1, True)

    def eval(self) -> None:
        self._shift(0.1, False)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_weights_to_use_are_judged_and_kept(tmp_path: Path, ema: float | None) -> None:
    def learn(run: Path, factory: type[torch.optim.Optimizer], **change: object) -> torch.Tensor:
        return weights(train(Regression(), run, optimizer_factory=factory, ema_decay=ema, **change))

    def plain(groups: list) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=1e-2)

    two = learn(tmp_path / "two", TwoWeights)
    one = weights(train(Regression(), tmp_path / "one", optimizer_factory=plain, ema_decay=None))
    torch.testing.assert_close(two, one + 0.1, atol=1e-6, rtol=0)  # its own average, and none beside it
    with pytest.raises(Interrupted):
        learn(tmp_path / "parts", TwoWeights, stop_at=4)
    assert torch.equal(learn(tmp_path / "parts", TwoWeights, resume=True), two)
    assert torch.equal(learn(tmp_path / "parts", TwoWeights, resume=True), two), "and once more"
    kept = [
        [
            row["validation_loss"]
            for row in read(tmp_path / name / "metrics.jsonl")
            if "validation_loss" in row
        ]
        for name in ("two", "one")
    ]
    assert kept[0] != kept[1]


def test_settings_of_a_resumed_run_may_change(tmp_path: Path) -> None:
    """What is a setting comes from the config of now, not from the checkpoint."""
    with pytest.raises(Interrupted):
        train(Regression(), tmp_path, stop_at=3)
    made = trainer(Regression(), tmp_path, optimizer={"learning_rate": 1e-2, "weight_decay": 0.5})
    made.train(resume=True)
    assert made.optimizer.param_groups[0]["weight_decay"] == 0.5


def test_a_checkpoint_of_the_first_version_goes_on(tmp_path: Path) -> None:
    """It knows no verdicts, no returns and no micro-batches."""
    whole = train(Regression(), tmp_path / "whole", keep_checkpoints=9)
    found = c.load(c.path_of(tmp_path / "whole/checkpoints", 4))
    found.extra = {k: found.extra[k] for k in ("optimizer", "seconds")}
    c.save(tmp_path / "run/checkpoints", found, keep=2)
    assert torch.equal(weights(train(Regression(), tmp_path / "run", resume=True)), weights(whole))
