"""What the webui's own check lets through: everything we write for it, under whatever name files were saved.

The rules are those of the facts (shared/FACTS.md, shared/reference/era), written anew: which members a zip may
have, and which classes a pickle may name; of autumn 2022 and of 2023.
"""

import io
import json
import logging
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork, load, save
from hyperbrush.hypernetworks.convert.convert import convert
from hyperbrush.hypernetworks.files.optimizer import read_optimizer, sidecar_of, write_optimizer

MEMBERS = re.compile(r"^([^/]+)/((data/\d+)|version|(data\.pkl))$")
FIRST_MEMBERS = re.compile(r"^archive/((data/\d+)|version|(data\.pkl))$")
STORAGES = {f"{kind}Storage" for kind in ("Float", "Half", "Int", "Long", "Double")}
FIRST = {("torch", kind) for kind in STORAGES} | {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
}
LATER = FIRST | {("torch", "ByteStorage"), ("torch", "BFloat16Storage"), ("torch", "float32")}
SHARED = Path(os.environ.get("HYPERBRUSH_REFERENCE", Path(__file__).parents[3] / "shared" / "reference"))
ERA = SHARED / "era"


class WebuiUnpickler(pickle.Unpickler):
    """Its rule for classes: a short list, no other."""

    def __init__(self, file: Any, allowed: set[tuple[str, str]]) -> None:
        super().__init__(file)
        self.allowed = allowed

    def persistent_load(self, pid: Any) -> Any:
        assert pid[0] == "storage"

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise ValueError(f"global {module}/{name} is forbidden")
        return OrderedDict if name == "OrderedDict" else lambda *_: None  # the tensors do not matter here


def webui_opens(path: Path, members: re.Pattern[str] = MEMBERS, classes: Any = LATER) -> Any:
    """Raise as the webui's check does, else return what it then reads."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if bad := [name for name in names if not members.match(name)]:
                raise ValueError(f"bad file inside: {bad}")
            [pickled] = [name for name in names if name.endswith("/data.pkl")]
            WebuiUnpickler(io.BytesIO(archive.read(pickled)), classes).load()
            assert archive.testzip() is None
    else:
        with path.open("rb") as file:
            for _ in range(5):
                WebuiUnpickler(file, classes).load()
    return torch.load(path, weights_only=True)


def opens_everywhere(path: Path) -> Any:
    webui_opens(path)
    return webui_opens(path, FIRST_MEMBERS, FIRST)


def network(**settings: Any) -> AttentionHypernetwork:
    torch.manual_seed(0)
    return AttentionHypernetwork(**{"widths": [8, 12], "weight_init": "Normal"} | settings)


def test_the_check_refuses_what_torch_writes_today(tmp_path: Path) -> None:
    torch.save({8: torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="bad file inside"):
        webui_opens(tmp_path / "w.pt")


@pytest.mark.parametrize("legacy_zip", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activation": "prelu", "layer_norm": True, "dropout_structure": [0, 0.25, 0], "name": "먹그림"},
        {"skip_connection": True, "upsample_linear": "Linear", "metadata": {"sd_checkpoint": "a", "x": 1.5}},
        {"widths": [320, 640, 768, 1280], "layer_structure": (1, 0.05, 1)},
    ],
)
def test_every_network_opens(
    settings: dict[str, Any], dtype: torch.dtype, legacy_zip: bool, tmp_path: Path
) -> None:
    hn = network(**settings).to(dtype)
    for suffix in (".pt", ".bin", ".ckpt"):
        path = save(hn, tmp_path / f"먹그림{suffix}", legacy_zip=legacy_zip)
        content = opens_everywhere(path)
        assert torch.equal(next(iter(content[hn.widths[0]][0].values())), next(iter(load(path).parameters())))


def test_every_way_to_write_one(tmp_path: Path) -> None:
    hn = network(use_dropout=True, layer_structure=(1, 2, 2, 1))
    opens_everywhere(hn.save(tmp_path / "method.pt"))
    opens_everywhere(convert(hn, tmp_path / "guessed.pt").path)
    opens_everywhere(convert(hn, tmp_path / "webui.pt", "webui", dtype=torch.float16).path)
    opens_everywhere(convert(hn, tmp_path / "comfyui.pt", "comfyui").path)


def test_numbers_lie_where_a_mapped_file_wants_them(tmp_path: Path) -> None:
    path = network().save(tmp_path / "w.pt")
    content = torch.load(path, weights_only=True, mmap=True)
    plain = torch.load(path, weights_only=True)
    for width in (8, 12):
        for mapped, read in zip(content[width], plain[width], strict=True):
            assert all(tensor.data_ptr() % 64 == 0 for tensor in mapped.values())
            assert all(torch.equal(mapped[name], read[name]) for name in read)


@pytest.mark.parametrize(
    "factory",
    [
        lambda p: torch.optim.AdamW(p, lr=1e-3),
        lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-3), amsgrad=True, foreach=False),
        lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
        lambda p: torch.optim.Adafactor(p),
        lambda p: torch.optim.Rprop(p),
        lambda p: torch.optim.ASGD(p),
    ],
)
def test_every_sidecar_opens(factory: Any, tmp_path: Path) -> None:
    hn = network()
    optimizer = factory(list(hn.parameters()))
    loss: Any = hn.transform(torch.ones(1, 3, 8))[0].sum() + hn.transform(torch.ones(1, 3, 12))[1].sum()
    loss.backward()
    optimizer.step()
    path = hn.save(tmp_path / "w.pt")
    content = opens_everywhere(write_optimizer(path, type(optimizer).__name__, optimizer.state_dict()))
    assert content["optimizer_state_dict"]["param_groups"][0]["params"] == list(range(16))


def test_what_only_later_webuis_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hyperbrush"):
        path = network().to(torch.bfloat16).save(tmp_path / "w.pt")
    assert "w.pt holds bfloat16, which the webuis of 2022 refuse to read: float16 or" in caplog.text
    webui_opens(path)
    with pytest.raises(ValueError, match="BFloat16Storage is forbidden"):
        webui_opens(path, classes=FIRST)
    caplog.clear()
    state = {"state": {0: {"state1": torch.ones(3, dtype=torch.uint8)}}, "param_groups": [{"params": [0]}]}
    with caplog.at_level(logging.WARNING, "hyperbrush"):
        webui_opens(write_optimizer(path, "AdamW8bit", state))
    assert "w.pt.optim holds 8-bit numbers, which the webuis of 2022 refuse" in caplog.text
    caplog.clear()
    network().save(path)
    assert not caplog.text


@pytest.mark.parametrize(
    ("value", "name"),
    [(torch.ones(2, dtype=torch.bool), "torch.BoolStorage"), (torch.Size([2]), "torch.Size"), ({1}, "set")],
)
@pytest.mark.parametrize("legacy_zip", [False, True])
def test_what_no_webui_reads_is_refused(value: Any, name: str, legacy_zip: bool, tmp_path: Path) -> None:
    hn = network(metadata={"x": value})
    with pytest.raises(UserError, match="cannot write 'hypernetwork': metadata 'x'"):
        save(hn, tmp_path / "w.pt", legacy_zip=legacy_zip)
    assert not list(tmp_path.iterdir())
    path = network().save(tmp_path / "v.pt")
    with pytest.raises(UserError, match="the webui refuses to read"):
        write_optimizer(path, "AdamW", {"state": {0: {"x": value}}, "param_groups": [{"params": [0]}]})
    assert not sidecar_of(
        path
    ).exists()  # where one lay that the webui refuses, it would not open the network


FOLDERS = ["먹그림", "水墨画", "水彩", "Café", "Щука", "water [v2] (1)", "rock & roll", "l'eau", "🐱", "name.v2",
           "a:b*?<>|", "x%20y", "a\\b", "100€", " water "]  # fmt: skip


def in_folder(path: Path, folder: str | bytes) -> bytes:
    """A zip as torch writes it to a file of that name."""
    name = folder if isinstance(folder, str) else "X" * len(folder)
    out = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as archive:
        for member in source.namelist():
            info = zipfile.ZipInfo("x")
            info.filename = name + "/" + member.partition("/")[2]
            archive.writestr(info, source.read(member))
    return out.getvalue() if isinstance(folder, str) else out.getvalue().replace(name.encode(), folder)


@pytest.mark.parametrize(
    "folder",
    [*FOLDERS, "먹그림".encode("cp949"), "表".encode("cp932"), "Щука".encode("cp1251")],  # by older zips
)
def test_files_saved_under_any_name_load(folder: str | bytes, tmp_path: Path) -> None:
    plain = network(layer_norm=True).save(tmp_path / "w.pt")
    path = tmp_path / "renamed.pt"
    path.write_bytes(in_folder(plain, folder))
    for own, other in zip(load(path).parameters(), load(plain).parameters(), strict=True):
        assert torch.equal(own, other)
    write_optimizer(path, "AdamW", torch.optim.AdamW(network().parameters()).state_dict())
    sidecar_of(path).write_bytes(in_folder(sidecar_of(path), folder))
    state = read_optimizer(path)
    assert state is not None
    assert state.warning is None


@pytest.mark.parametrize("folder", ["", ".", ".."])
def test_folders_that_are_none_are_refused(folder: str, tmp_path: Path) -> None:
    plain = network().save(tmp_path / "w.pt")
    (tmp_path / "x.pt").write_bytes(in_folder(plain, folder))
    with pytest.raises(UserError, match="its zip has a member named"):
        load(tmp_path / "x.pt")


@pytest.mark.skipif(not ERA.is_dir(), reason="the reference files are not here")
def test_files_of_the_webui_under_torch_1_13() -> None:
    expected = json.loads((ERA / "expected.json").read_text())
    assert len(expected) == len(list(ERA.glob("*.pt"))) == 5
    for name, widths in expected.items():
        hn = load(ERA / f"{name}.pt")
        for width, (context, key, value) in widths.items():
            context = torch.tensor(context).reshape(-1, *torch.tensor(context).shape[-2:])
            for ours, theirs in zip(hn.transform(context), (key, value), strict=True):
                assert torch.allclose(ours, torch.tensor(theirs).reshape(ours.shape), rtol=1e-5, atol=1e-6)
            assert int(width) in hn.widths
    state = read_optimizer(ERA / "먹그림.pt")
    assert state is not None
    assert (state.optimizer_name, state.warning) == ("AdamW", None)
