"""Optimizer sidecars in the webui's layout."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.files import sha256
from hyperbrush.hypernetworks import AttentionHypernetwork
from hyperbrush.hypernetworks.files.optimizer import check_fits, read_optimizer, sidecar_of, write_optimizer


def network(**settings: Any) -> AttentionHypernetwork:
    torch.manual_seed(0)
    return AttentionHypernetwork(
        **{"widths": [12, 8], "weight_init": "Normal", "layer_norm": True} | settings
    )


def trained(hn: AttentionHypernetwork) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW(hn.parameters(), lr=1e-3)
    _step(hn, optimizer)
    return optimizer


def _step(hn: AttentionHypernetwork, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    for width in hn.widths:
        key, value = hn.transform(torch.ones(1, 3, width))
        (key.square().sum() + value.square().sum()).backward()
    optimizer.step()


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    from hyperbrush.hypernetworks import load

    hn = network()
    optimizer = trained(hn)
    path = hn.save(tmp_path / "w.pt")
    assert write_optimizer(path, "AdamW", optimizer.state_dict()) == tmp_path / "w.pt.optim"
    state = read_optimizer(path)
    assert state is not None
    assert state.warning is None
    assert state.optimizer_name == "AdamW"
    other = load(path)
    check_fits(state, other)
    resumed = torch.optim.AdamW(other.parameters(), lr=1e-3)
    resumed.load_state_dict(state.state_dict)
    _step(hn, optimizer)
    _step(other, resumed)
    for a, b in zip(hn.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    fresh = load(path)
    _step(fresh, torch.optim.AdamW(fresh.parameters(), lr=1e-3))
    assert any(not torch.equal(a, b) for a, b in zip(hn.parameters(), fresh.parameters(), strict=True))


def test_the_layout_is_the_webuis(tmp_path: Path) -> None:
    """Numbered by the webui's own list: widths as in the file, keys first, modules in order."""
    hn = network(activation="prelu")
    path = hn.save(tmp_path / "w.pt")
    content = torch.load(path, weights_only=True)
    listed = [t for w in (k for k in content if isinstance(k, int)) for s in content[w] for t in s.values()]
    assert [k for k in content if isinstance(k, int)] == [12, 8]
    write_optimizer(path, "AdamW", trained(hn).state_dict())
    raw = torch.load(sidecar_of(path), weights_only=True)
    assert list(raw) == ["optimizer_name", "hash", "optimizer_state_dict"]
    assert raw["hash"] == sha256(path)[:10]
    shapes = [raw["optimizer_state_dict"]["state"][i]["exp_avg"].shape for i in range(len(listed))]
    assert shapes == [t.shape for t in listed]


def test_no_sidecar_and_another_network(tmp_path: Path) -> None:
    hn = network()
    path = hn.save(tmp_path / "w.pt")
    assert read_optimizer(path) is None
    write_optimizer(path, "AdamW", trained(hn).state_dict())
    network(step=9).save(path)
    state = read_optimizer(path)
    assert state is not None
    assert state.warning is not None
    assert state.warning.startswith("w.pt.optim was saved beside another state of w.pt (hash '")
    with pytest.raises(UserError, match="is of 32 parameters, but 'hypernetwork' has 16"):
        check_fits(state, network(widths=[8]))
    with pytest.raises(UserError, match=r"exp_avg of parameter 0 has the shape \(24, 12\)"):
        check_fits(state, network(widths=[8, 16]))
    with pytest.raises(UserError, match="save the network first"):
        write_optimizer(tmp_path / "none.pt", "AdamW", {})
    with pytest.raises(UserError, match="is no optimizer state"):
        write_optimizer(path, "AdamW", {"state": {}})


def _sound() -> dict[str, Any]:
    return {"optimizer_name": "AdamW", "hash": "0" * 10, "optimizer_state_dict": _state()}


def _state(**entries: Any) -> dict[str, Any]:
    return {
        "state": {0: {"exp_avg": torch.ones(3), **entries}},
        "param_groups": [{"lr": 1e-3, "params": [0]}],
    }


SHARED = torch.ones(3)
BROKEN: dict[str, tuple[Any, str]] = {
    "list": ([1], "is no optimizer state"),
    "network": ({8: ({}, {})}, "is no optimizer state"),
    "no groups": (_sound() | {"optimizer_state_dict": {"state": {}}}, "is no optimizer state"),
    "empty groups": (
        _sound() | {"optimizer_state_dict": {"state": {}, "param_groups": []}},
        "is no optimizer state",
    ),
    "groups of text": (
        _sound() | {"optimizer_state_dict": {"state": {}, "param_groups": [{"params": "0"}]}},
        "is no optimizer state",
    ),
    "name": (_sound() | {"optimizer_name": 5}, "is no optimizer state"),
    "state by text": (
        _sound() | {"optimizer_state_dict": {"state": {"a": {}}, "param_groups": [{"params": [0]}]}},
        "is no optimizer state",
    ),
    "nan": (
        _sound() | {"optimizer_state_dict": _state(exp_avg_sq=torch.tensor([1, torch.nan]))},
        "exp_avg_sq of parameter 0 holds NaN",
    ),
    "shared": (
        _sound() | {"optimizer_state_dict": _state(a=SHARED, b=SHARED)},
        "a of parameter 0 and b of parameter 0 are the same numbers",
    ),
    "expanded": (_sound() | {"optimizer_state_dict": _state(a=torch.ones(1).expand(10**9))}, "repeats"),
    "sparse": (_sound() | {"optimizer_state_dict": _state(a=torch.ones(3).to_sparse())}, "holds a tensor layout|sparse"),
    "set": (_sound() | {"optimizer_state_dict": _state(a={1, 2})}, "holds a set"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_sidecars_are_one_clear_line(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    path = network().save(tmp_path / "w.pt")
    torch.save(content, sidecar_of(path))
    with pytest.raises(UserError, match=message) as error:
        read_optimizer(path)
    assert "w.pt.optim" in str(error.value)
    assert "\n" not in str(error.value)


def go_on(hn: AttentionHypernetwork, path: Path) -> torch.optim.AdamW:
    """The optimizer that a training which goes on from a file begins with."""
    from hyperbrush.training.attention.trainer import HypernetworkTrainer

    state = read_optimizer(path)
    assert state is not None
    optimizer = torch.optim.AdamW(hn.parameters(), lr=1e-3)
    HypernetworkTrainer(hn, optimizer_state=state)._begin_with(optimizer, state)
    return optimizer


def test_a_stale_sidecar_is_used_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hn = network()
    path = hn.save(tmp_path / "w.pt")
    write_optimizer(path, "AdamW", trained(hn).state_dict())
    with caplog.at_level("WARNING", "hyperbrush"):
        assert go_on(network(), path).state_dict()["state"]
    assert not caplog.text
    hn.save(path)  # after the step
    with caplog.at_level("WARNING", "hyperbrush"):
        assert go_on(network(), path).state_dict()["state"]
    assert "w.pt.optim was saved beside another state of w.pt" in caplog.text
    assert "its moments are used all the same" in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"activation": "prelu"},
        {"activation": "prelu", "skip_connection": True},
        {"skip_connection": True, "upsample_linear": "Linear"},
    ],
)
def test_an_extensions_sidecar_begins_a_new_one(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The extension trains Linear and LayerNorm alone, and numbers these."""
    hn = network(**settings)
    path = hn.save(tmp_path / "w.pt")
    trained_by_it = [
        p for n, p in hn.named_parameters() if not n.endswith(("activation.weight", "skip.weight"))
    ]
    assert len(trained_by_it) < len(list(hn.parameters()))
    optimizer = torch.optim.AdamW(trained_by_it, lr=1e-3)
    _step(hn, optimizer)
    write_optimizer(path, "AdamW", optimizer.state_dict())
    with caplog.at_level("WARNING", "hyperbrush"):
        assert not go_on(network(**settings), path).state_dict()["state"]
    assert "the optimizer begins anew: the optimizer's state is of" in caplog.text


def test_a_sidecar_without_its_network(tmp_path: Path) -> None:
    torch.save(_sound(), tmp_path / "w.pt.optim")
    with pytest.raises(UserError, match=r"cannot read .*w\.pt: No such file"):
        read_optimizer(tmp_path / "w.pt")
    (tmp_path / "f.pt.optim").mkdir()
    with pytest.raises(UserError, match="no regular file"):
        read_optimizer(tmp_path / "f.pt")
