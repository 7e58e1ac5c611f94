"""The library of hypernetworks over REST: import, notes, files, merging, the bin."""

import io
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hyperbrush.app.requests import ExportRequest, checked
from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork, load

REFERENCE = Path(__file__).parents[1] / "hypernetworks" / "reference"


def network(path: Path, seed: int = 0, **settings: Any) -> Path:
    """A small file; widths of the embedded model where ``widths`` says so."""
    torch.manual_seed(seed)
    widths = settings.pop("widths", (8,))
    settings = {"activation": "relu", "weight_init": "XavierNormal", "name": path.stem} | settings
    path.parent.mkdir(parents=True, exist_ok=True)
    return AttentionHypernetwork(widths, **settings).save(path)


def send(app: Any, path: str, method: str, name: str, content: bytes, *, key: str = "file") -> Any:
    """A multipart form with one file; (status, JSON)."""
    edge = uuid.uuid4().hex
    head = f'--{edge}\r\nContent-Disposition: form-data; name="{key}"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={edge}"}
    request = urllib.request.Request(app.url + path, body, kind, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.fixture
def folder(app: Any) -> Path:
    path = Path(app.root) / "models" / "hypernetworks"
    path.mkdir(parents=True, exist_ok=True)
    return path


def incoming(app: Any) -> list[Path]:
    return list((app.root / ".hyperbrush" / "incoming").glob("*"))


def test_the_list_says_what_there_is(app: Any, folder: Path) -> None:
    network(folder / "api" / "listed.pt", step=7)
    (folder / "api" / "listed.json").write_text('{"activation text": "ripples", "preferred weight": 0.7}')
    (folder / "api-broken.pt").write_bytes(b"<script>alert(1)</script>")
    found = {card["name"]: card for card in app.call("/api/v1/hypernetworks")}
    assert found["listed"]["widths"] == [8]
    assert found["listed"]["file"] == "listed.pt"
    assert found["listed"]["prompt"] == "<hypernet:listed:0.7> ripples"
    assert found["listed"]["preview"] is False
    assert "no torch file" in found["api-broken"]["error"]
    by_id = app.call(f"/api/v1/hypernetworks/{found['listed']['id']}")
    assert by_id == app.call("/api/v1/hypernetworks/listed") == app.call("/api/v1/hypernetworks/api/listed")
    assert app.call("/api/v1/hypernetworks/listed/file") == (folder / "api" / "listed.pt").read_bytes()
    said = app.call("/api/v1/hypernetworks/listed/inspection")
    assert said["step"] == 7
    assert said["networks"][0]["layers"] == [[8, 16], [16, 8]]
    assert str(app.root) not in json.dumps(said)
    (folder / "api-broken.pt").unlink()


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "..%2f..%2fpreferences", "%00", "x" * 3000, "é", "0" * 16]
)
def test_nothing_else_is_reached(app: Any, name: str) -> None:
    for rest in ("", "/file", "/preview", "/inspection"):
        assert app.call(f"/api/v1/hypernetworks/{urllib.parse.quote(name, safe='%')}{rest}")["status"] in (
            400,
            404,
        )


@pytest.mark.parametrize("file", ["webui-003-relu.pt", "bare-0.pt", "residual-0.pt"])
def test_import_of_an_old_file_and_a_taken_name(app: Any, folder: Path, file: str) -> None:
    content = (REFERENCE / file).read_bytes()
    stem = Path(file).stem
    status, card = send(app, "/api/v1/hypernetworks", "POST", f"C:\\old\\{file}".replace("\\", "/"), content)
    assert status == 201
    assert card["name"] == stem
    assert (folder / file).read_bytes() == content
    status, second = send(app, "/api/v1/hypernetworks", "POST", file, content)
    assert (status, second["name"]) == (201, f"{stem}-2")
    assert incoming(app) == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("import-broken.pt", b"PK nothing", "damaged"),
        ("import-broken.safetensors", b"\x00" * 30, "import-broken.safetensors"),
        ("import-picture.png", b"\x89PNG", "no hypernetwork's file"),
        (".pt", b"", "no hypernetwork's file"),
        ("import-empty.ckpt", b"", "import-empty.ckpt"),
    ],
)
def test_what_is_broken_is_refused_and_nothing_stays(
    app: Any, folder: Path, name: str, content: bytes, reason: str
) -> None:
    before = sorted(folder.rglob("*"))
    status, said = send(app, "/api/v1/hypernetworks", "POST", name, content)
    assert status == 400
    assert reason in said["detail"]
    assert ".hyperbrush" not in said["detail"]
    assert sorted(folder.rglob("*")) == before
    assert incoming(app) == []


def test_a_lora_is_refused_with_what_it_is(app: Any, folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(2, 2)}, path)
    status, said = send(app, "/api/v1/hypernetworks", "POST", path.name, path.read_bytes())
    assert status == 400
    assert "LoRA" in said["detail"]


def test_an_imported_name_is_made_harmless(app: Any, folder: Path) -> None:
    content = (REFERENCE / "bare-1.pt").read_bytes()
    status, card = send(app, "/api/v1/hypernetworks", "POST", "../up/<b>a:b.pt", content)
    assert status == 201
    assert card["name"] == "_b_a_b"
    assert (folder / "_b_a_b.pt").is_file()


def test_notes_are_kept_beside_the_file(app: Any, folder: Path) -> None:
    network(folder / "noted.pt")
    (folder / "noted.json").write_text('{"sd version": "SD1"}')
    card = app.call(
        "/api/v1/hypernetworks/noted", {"activation_text": "oil", "preferred_weight": 0.5}, "PATCH"
    )
    assert (card["activation_text"], card["preferred_weight"]) == ("oil", 0.5)
    card = app.call("/api/v1/hypernetworks/noted", {"notes": "n"}, "PATCH")
    assert (card["activation_text"], card["notes"]) == ("oil", "n")
    said = json.loads((folder / "noted.json").read_text())
    assert said["sd version"] == "SD1"
    assert (
        app.call("/api/v1/hypernetworks/noted", {"preferred_weight": None}, "PATCH")["preferred_weight"]
        is None
    )
    assert app.call("/api/v1/hypernetworks/noted", {"color": "x"}, "PATCH")["status"] == 422
    assert app.call("/api/v1/hypernetworks/unknown", {"notes": "n"}, "PATCH")["status"] == 404


def test_rename_takes_side_files_along(app: Any, folder: Path) -> None:
    network(folder / "before.pt")
    network(folder / "other-name.pt")
    (folder / "before.json").write_text('{"notes": "mine"}')
    card = app.call("/api/v1/hypernetworks/before/rename", {"name": "after"})
    assert (card["name"], card["notes"]) == ("after", "mine")
    assert not list(folder.glob("before*"))
    taken = app.call("/api/v1/hypernetworks/after/rename", {"name": "Other-Name"})
    assert "already" in taken["detail"]
    for bad in ("../up", "a/b", "a:b", ".hidden", " "):
        assert app.call("/api/v1/hypernetworks/after/rename", {"name": bad})["status"] == 400
    assert (folder / "after.pt").is_file()


def test_several_are_moved_all_or_none_and_tagged(app: Any, folder: Path) -> None:
    for name in ("bulk-a", "bulk-b", "bulk-c"):
        network(folder / f"{name}.pt")
    (folder / "bulk-a.json").write_text('{"notes": "mine", "odd": 1}')
    asked = {"networks": ["bulk-a", "bulk-b"], "folder": " styles / ink "}
    moved = app.call("/api/v1/hypernetworks/move", asked)
    assert [one["name"] for one in moved] == ["bulk-a", "bulk-b"]
    there = folder / "styles" / "ink"
    assert sorted(path.name for path in there.iterdir()) == ["bulk-a.json", "bulk-a.pt", "bulk-b.pt"]
    assert not list(folder.glob("bulk-[ab].*"))
    network(folder / "bulk-b.pt", seed=1)  # stands in the way of the one that comes back
    asked = {"networks": ["bulk-a", "styles/ink/bulk-b"], "folder": ""}
    assert "bulk-b.pt is in the top folder already" in app.call("/api/v1/hypernetworks/move", asked)["detail"]
    assert len(list(there.iterdir())) == 3, "none was moved"
    (folder / "bulk-b.pt").unlink()
    for bad in ("../up", "a:b", "/.hidden"):
        asked = {"networks": ["bulk-c"], "folder": bad}
        assert app.call("/api/v1/hypernetworks/move", asked)["status"] == 400
    asked = {"networks": ["bulk-a", "bulk-c"], "add": ["flat", "ink"]}
    app.call("/api/v1/hypernetworks/tag", asked)
    asked = {"networks": ["bulk-a"], "add": ["flat", "old"], "remove": ["ink"]}
    [card] = app.call("/api/v1/hypernetworks/tag", asked)
    assert card["tags"] == ["flat", "old"]
    kept = json.loads((there / "bulk-a.json").read_text())
    assert (kept["tags"], kept["notes"], kept["odd"]) == (["flat", "old"], "mine", 1)
    assert json.loads((folder / "bulk-c.json").read_text())["tags"] == ["flat", "ink"]


def test_the_bin_gives_back(app: Any, folder: Path) -> None:
    path = network(folder / "binned" / "gone.pt")
    (folder / "binned" / "gone.json").write_text('{"notes": "kept"}')
    content = path.read_bytes()
    item = app.call("/api/v1/hypernetworks/gone", method="DELETE")
    assert not list((folder / "binned").iterdir())
    assert item["id"] in [i["id"] for i in app.call("/api/v1/bin")]
    network(path, seed=1)  # somebody was there meanwhile
    card = app.call(f"/api/v1/bin/{item['id']}/restore", {})
    assert (card["name"], card["notes"]) == ("gone-2", "kept")
    assert (folder / "binned" / "gone-2.pt").read_bytes() == content
    assert app.call(f"/api/v1/bin/{item['id']}/restore", {})["status"] == 404
    item = app.call("/api/v1/hypernetworks/gone-2", method="DELETE")
    assert app.call(f"/api/v1/bin/{item['id']}", method="DELETE")["name"] == "gone-2"
    assert item["id"] not in [i["id"] for i in app.call("/api/v1/bin")]
    assert app.call("/api/v1/bin/..%2f..", method="DELETE")["status"] in (404, 405)


def test_merge_makes_a_new_file(app: Any, folder: Path) -> None:
    a, b = load(network(folder / "ma.pt", 1)), load(network(folder / "mb.pt", 2))
    parts = [{"name": "ma", "weight": 0.25}, {"name": "mb", "weight": 0.75}]
    card = app.call("/api/v1/hypernetworks/merge", {"parts": parts, "how": "average", "name": "ma"})
    assert card["name"] == "ma-2"
    merged = load(folder / "ma-2.safetensors").state_dict()
    for key, value in a.state_dict().items():
        torch.testing.assert_close(merged[key], 0.25 * value + 0.75 * b.state_dict()[key])
    refused = app.call("/api/v1/hypernetworks/merge", {"parts": parts, "how": "compose"})
    assert "activation" in refused["detail"]
    assert app.call("/api/v1/hypernetworks/merge", {"parts": parts[:1]})["status"] == 422


def test_previews_are_set_from_files_and_drawings(app: Any, folder: Path) -> None:
    network(folder / "seen.pt")
    content = io.BytesIO()
    Image.new("RGB", (2000, 1000), "red").save(content, "PNG")
    status, card = send(
        app, "/api/v1/hypernetworks/seen/preview", "PUT", "p.png", content.getvalue(), key="image"
    )
    assert (status, card["preview"]) == (200, True)
    picture = Image.open(io.BytesIO(app.call("/api/v1/hypernetworks/seen/preview")))
    assert (picture.size, picture.getpixel((5, 5))) == ((1024, 512), (255, 0, 0))
    status, said = send(app, "/api/v1/hypernetworks/seen/preview", "PUT", "p.png", b"<svg/>", key="image")
    assert (status, "picture" in said["detail"]) == (400, True)
    drawn = app.root / "outputs" / "2026-01-01" / "00000-1.png"
    drawn.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), "blue").save(drawn)
    form = urllib.parse.urlencode({"picture": "2026-01-01/00000-1.png"}).encode()
    for data, expected in ((form, 200), (form.replace(b"2026", b"..%2F2026"), 404)):
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        url = app.url + "/api/v1/hypernetworks/seen/preview"
        request = urllib.request.Request(url, data, kind, method="PUT")
        try:
            status = urllib.request.urlopen(request, timeout=30).status
        except urllib.error.HTTPError as error:
            status = error.code
        assert status == expected
    picture = Image.open(io.BytesIO(app.call("/api/v1/hypernetworks/seen/preview")))
    assert picture.getpixel((5, 5)) == (0, 0, 255)


@pytest.fixture
def exported(app: Any, folder: Path) -> Callable[..., tuple[dict[str, Any], bytes]]:
    """Exports and fetches the file."""
    network(folder / "carried.pt", widths=(128, 256), activation=None, layer_structure=(1, 1))

    def call(**request: Any) -> tuple[dict[str, Any], bytes]:
        job = app.call("/api/v1/hypernetworks/carried/export", request)
        ended = app.wait_for(job["id"])
        assert ended["state"] == "done", ended["error"]
        return ended["result"], app.call(f"/api/v1/exports/{job['id']}")

    return call


@pytest.mark.parametrize(
    ("to", "file"),
    [("webui", "carried.pt"), ("safetensors", "carried.safetensors"), ("comfyui", "carried-comfyui.pt")],
)
def test_exact_exports(
    exported: Callable[..., Any], folder: Path, tmp_path: Path, to: str, file: str
) -> None:
    result, content = exported(to=to)
    assert result == {"file": file}
    (tmp_path / file).write_bytes(content)
    if to != "comfyui":
        for key, value in load(folder / "carried.pt").state_dict().items():
            torch.testing.assert_close(load(tmp_path / file).state_dict()[key], value)
    assert zipfile.is_zipfile(io.BytesIO(content)) == (to != "safetensors")


def test_lora_exports_open_the_model(exported: Callable[..., Any]) -> None:
    from safetensors.torch import load as read

    result, content = exported(to="lora-kohya", rank=4, steps=2, prompts=["a face"])
    assert result["file"] == "carried-lora-kohya.safetensors"
    assert "rank 4" in result["report"]
    downs = [value for key, value in read(content).items() if key.endswith("lora_down.weight")]
    assert {value.shape[0] for value in downs} == {4}
    result, content = exported(to="lora-peft", rank=2, steps=2, prompts=["a face"])
    assert result["file"] == "carried-lora-peft.zip"
    names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    assert sorted(Path(name).name for name in names) == ["adapter_config.json", "adapter_model.safetensors"]


def test_an_export_that_cannot_be_says_why(app: Any, folder: Path) -> None:
    network(folder / "foreign.pt", widths=(12,))
    job = app.call("/api/v1/hypernetworks/foreign/export", {"to": "lora-kohya"})
    ended = app.wait_for(job["id"])
    assert ended["state"] == "failed"
    assert "12" in ended["error"]
    assert app.call(f"/api/v1/exports/{job['id']}")["status"] == 404
    assert app.call("/api/v1/hypernetworks/foreign/export", {"to": "onnx"})["status"] == 422


@pytest.mark.parametrize("rank", ["many", "0", 0, 5000, 1.5])
def test_a_rank_that_cannot_be_is_told_once(rank: Any) -> None:
    with pytest.raises(
        UserError, match=r"^rank: expected a whole number from 1 to 4096, or full \(got [^;]+$"
    ):
        checked(ExportRequest, {"to": "lora-kohya", "rank": rank})
    assert [checked(ExportRequest, {"to": "webui", "rank": fits}).rank for fits in (8, "full", None)] == [
        8,
        "full",
        None,
    ]


def test_a_listing_walks_the_folder_once_and_sees_every_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperbrush.app.networks.service import cards, preview
    from hyperbrush.app.workspace import Workspace
    from hyperbrush.hypernetworks import AttentionHypernetwork

    workspace = Workspace(tmp_path)
    folder = workspace.folder("hypernetworks")
    for number in range(12):
        AttentionHypernetwork([8], layer_structure=[1, 1]).save(folder / f"n{number}.safetensors")
    walks: list[object] = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *given, **how: [walks.append(given), walk(*given, **how)][1])
    assert len(cards(workspace)) == 12
    assert len(cards(workspace)) == 12
    assert len(walks) == 1
    (folder / "n3.txt").write_text("of ink")
    (folder / "n4.png").write_bytes(b"a picture")
    (folder / "n5.safetensors").unlink()
    found = {card.entry.name: card for card in cards(workspace)}
    assert len(found) == 11
    assert found["n3"].entry.notes.description == "of ink"
    assert found["n4"].preview
    assert not found["n3"].preview
    walks.clear()
    assert preview(workspace, found["n4"].id) == folder / "n4.png"
    assert walks == [], "a page asks for every card's"
    assert preview(workspace, "n4") == folder / "n4.png"
    (folder / "n4.png").unlink()
    with pytest.raises(UserError, match="has no preview"):
        preview(workspace, found["n4"].id)


def test_loras_are_listed_in_one_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hyperbrush.app.networks.loras import listed
    from hyperbrush.app.workspace import Workspace

    workspace = Workspace(tmp_path)
    assert listed(workspace) == []
    folder = workspace.loras.folder
    folder.mkdir()
    for number in range(12):
        (folder / f"n{number}.safetensors").write_bytes(b"weights")
    (folder / "n3.txt").write_text("of ink")
    (folder / "n3.json").write_text("{broken")
    (folder / "n4.png").write_bytes(b"a picture")
    (folder / "of another kind.pt").write_bytes(b"weights")
    walks: list[object] = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *given, **how: [walks.append(given), walk(*given, **how)][1])
    found = {one.name: one for one in listed(workspace)}
    assert len(found) == 12
    assert len(walks) == 1
    assert found["n3"].notes.description == "of ink"
    assert found["n4"].preview == folder / "n4.png"


def test_what_fits_the_model_is_told_once_files_were_read(tmp_path: Path) -> None:
    from hyperbrush.app.create.page_networks import known
    from hyperbrush.app.model.service import describe
    from hyperbrush.app.networks.service import cards
    from hyperbrush.app.site import Site
    from hyperbrush.app.workspace import Workspace
    from hyperbrush.ldm.models import LatentDiffusion
    from hyperbrush.ldm.modules.attention_sites import attention_sites

    workspace = Workspace(tmp_path)
    site = Site(workspace)
    unet = LatentDiffusion.from_pretrained("emoji").unet
    widths = describe(workspace, "emoji").widths
    assert set(widths) == {site.context_width for site in attention_sites(unet)}
    folder = workspace.folder("hypernetworks")
    network(folder / "own.safetensors", widths=(widths[0], 999))
    network(folder / "other.safetensors", widths=(768, 320))
    (folder / "broken.safetensors").write_bytes(b"no")
    old = (time.time() - 60,) * 2
    for file in folder.iterdir():  # young files are not kept in mind
        os.utime(file, old)
    assert {one["name"] for one in known(site)} == {"own", "other", "broken"}, "nothing was read yet"
    assert {c.entry.name: c.fits for c in cards(workspace)} == {"own": True, "other": False, "broken": None}
    assert [one["name"] for one in known(site)] == ["own"]
    (folder / "broken.safetensors").unlink()
    network(folder / "broken.safetensors", widths=(widths[0], 999))
    network(folder / "a new one.safetensors", widths=(widths[0], 999))
    names = [one["name"] for one in known(site)]
    assert names == ["own", "a new one", "broken"], "another file may be sound; what was read comes first"


def test_a_pack_is_imported_listed_drawn_with_and_kept_whole(app: Any, folder: Path, tmp_path: Path) -> None:
    from hyperbrush.hypernetworks.convert.compression import compress

    nets = {f"packed {i}": load(network(tmp_path / f"{i}.pt", i, widths=(128, 256))) for i in range(2)}
    content = compress(nets).save(tmp_path / "api-looks.pack.safetensors").read_bytes()
    status, card = send(app, "/api/v1/hypernetworks", "POST", "api-looks.pack.safetensors", content)
    assert (status, card["name"], card["widths"]) == (201, "packed 0", [128, 256])
    found = {one["name"]: one for one in app.call("/api/v1/hypernetworks")}
    assert found["packed 1"]["prompt"] == "<hypernet:packed 1:1>"
    assert app.call(f"/api/v1/hypernetworks/{found['packed 1']['id']}/file") == content
    refused = app.call("/api/v1/hypernetworks/packed%201", method="DELETE")
    assert refused["status"] == 400
    assert "one of several in the pack" in json.dumps(refused)
    status, second = send(app, "/api/v1/hypernetworks", "POST", "api-looks.pack.safetensors", content)
    assert (status, second["name"]) == (201, "api-looks-2/packed 0")
    status, _ = send(app, "/api/v1/hypernetworks", "POST", "api-looks.pack.safetensors", content[:-9])
    assert status == 400
    assert incoming(app) == []
    for file in folder.glob("api-looks*"):
        file.unlink()
