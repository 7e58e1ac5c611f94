"""Every way a picture comes in × every kind of file: each shows what a viewer shows."""

import base64
import io
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hyperbrush.app.networks import service as networks
from hyperbrush.app.train.datasets import thumbnail
from hyperbrush.app.uploads import Uploads, open_picture
from hyperbrush.cli import main
from hyperbrush.errors import UserError
from hyperbrush.generation.settings import Settings
from hyperbrush.hypernetworks.files import modelspec
from hyperbrush.hypernetworks.generator.condition_sources import _image
from hyperbrush.ldm.data import pictures
from hyperbrush.ldm.data.masks import read_mask

OPAQUE = (255, 170, 85, 0)  # brightness of the quadrants: above left, above right, below left, below right
HIDDEN = 200  # what a transparent quadrant would show
SIZE = (64, 48)  # pixels across and down


def scene(last: int = 0) -> np.ndarray[Any, Any]:
    width, height = SIZE
    found = np.zeros((height, width), np.uint8)
    for i, value in enumerate((*OPAQUE[:3], last)):
        down, across = (i // 2) * height // 2, (i % 2) * width // 2
        found[down : down + height // 2, across : across + width // 2] = value
    return found


def saved(array: np.ndarray[Any, Any] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    made = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(made, kind, **options)
    return made.getvalue()


def lying(orientation: int, kind: str) -> bytes:
    """The scene stored as a camera does, with what turns it upright."""
    backwards = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(scene()).transpose(backwards[orientation])
    return saved(stored, kind, exif=exif, **({"quality": 100} if kind == "JPEG" else {}))


def alpha(mode: str) -> Image.Image:
    grey = Image.fromarray(scene(HIDDEN))
    clear = grey.point([0 if value == HIDDEN else 255 for value in range(256)])
    grey.putalpha(clear)
    return grey.convert(mode)


def palette() -> Image.Image:
    found = Image.fromarray(scene(HIDDEN)).convert("P")
    found.putpalette([value for value in range(256) for _ in range(3)])
    return found


DEEP = scene().astype(np.uint16) * 257
FILES: dict[str, bytes] = {
    **{f"exif {n} {kind}": lying(n, kind) for n in range(2, 9) for kind in ("PNG", "JPEG", "WEBP")},
    "grey": saved(scene()),
    "RGB": saved(Image.fromarray(scene()).convert("RGB")),
    "palette": saved(Image.fromarray(scene()).convert("P")),
    "CMYK": saved(Image.fromarray(scene()).convert("CMYK"), "JPEG", quality=100),
    "16 bits": saved(DEEP),
    "RGBA": saved(alpha("RGBA")),
    "RGBA WebP": saved(alpha("RGBA"), "WEBP", lossless=True),
    "LA": saved(alpha("LA")),
    "palette with transparency": saved(palette(), transparency=HIDDEN),
    "grey with a transparent value": saved(scene(HIDDEN), transparency=HIDDEN),
    "RGB with a transparent colour": saved(
        Image.fromarray(scene(HIDDEN)).convert("RGB"), transparency=(HIDDEN,) * 3
    ),
    "16 bits with a transparent value": saved(
        scene(HIDDEN).astype(np.uint16) * 257, transparency=HIDDEN * 257
    ),
    "GIF with transparency": saved(palette(), "GIF", transparency=HIDDEN),
}
# What the app does not take, or Pillow writes in one way alone.
MORE: dict[str, bytes] = {
    "16-bit TIFF": saved(DEEP, "TIFF"),
    "16-bit PGM": b"P5\n64 48\n65535\n" + DEEP.astype(">u2").tobytes(),
    "16-bit TIFF, big endian": saved(Image.frombytes("I;16B", SIZE, DEEP.astype(">u2").tobytes()), "TIFF"),
}


def quadrants(image: Image.Image) -> list[int]:
    grey = np.asarray(image.convert("L")).astype(int)
    height, width = grey.shape
    places = [(height // 4, width // 4), (height // 4, width * 3 // 4)]
    places += [(height * 3 // 4, width // 4), (height * 3 // 4, width * 3 // 4)]
    return [int(grey[place]) for place in places]


def by_command_line(path: Path, monkeypatch: pytest.MonkeyPatch, option: str) -> Image.Image:
    seen: dict[str, Any] = {}

    def draw(**arguments: Any) -> list[Any]:
        seen.update(arguments)
        return [types.SimpleNamespace(notes=[], seed=1)]

    monkeypatch.setattr("hyperbrush.generation.generate", draw)
    words = ["generate", "cat", "--image", str(path)] + (["--mask", str(path)] if option == "mask" else [])
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert not stop.value.code
    found: Image.Image = getattr(Settings(image=seen["image"], mask=seen.get("mask")), option)
    return found


def by_upload(path: Path) -> Image.Image:
    uploads = Uploads(path.parent / "uploads")
    return uploads.open(uploads.keep(path.read_bytes(), path.name))


def by_preview(path: Path, monkeypatch: pytest.MonkeyPatch) -> Image.Image:
    kept: list[Image.Image] = []
    library = types.SimpleNamespace(set_preview=lambda name, image: kept.append(image))
    monkeypatch.setattr(networks, "find", lambda library, which: which)
    monkeypatch.setattr(networks, "card", lambda workspace, which: None)
    site: Any = types.SimpleNamespace(
        workspace=types.SimpleNamespace(library=library), news=lambda topic: None
    )
    networks.set_preview(site, "net", open_picture(path.read_bytes(), path.name))
    assert kept[0].mode == "RGB"
    return kept[0]


def by_data_url(path: Path) -> Image.Image:
    with Image.open(path) as given:
        given.load()
    return Image.open(io.BytesIO(base64.b64decode(modelspec.thumbnail(given).partition(",")[2])))


WAYS: dict[str, Callable[[Path, pytest.MonkeyPatch], Image.Image | None]] = {
    "training": lambda path, _: pictures.read(path, (255, 255, 255)),
    "preflight": lambda path, _: pictures.look(path, 512)[1],
    "Python, a path": lambda path, _: Settings(image=path).image,
    "Python, a text": lambda path, _: Settings(image=str(path)).image,
    "Python, a picture": lambda path, _: Settings(image=Image.open(path)).image,
    "command line": lambda path, patch: by_command_line(path, patch, "image"),
    "generator, a path": lambda path, _: _image(path),
    "generator, a picture": lambda path, _: _image(Image.open(path)),
    "ModelSpec": lambda path, _: by_data_url(path),
}
APP_WAYS: dict[str, Callable[[Path, pytest.MonkeyPatch], Image.Image | None]] = {
    "upload": lambda path, _: Settings(image=by_upload(path)).image,
    "thumbnail": lambda path, _: Image.open(thumbnail(path.parent, path, 512, path.name)),
    "preview": by_preview,
}
MASK_WAYS: dict[str, Callable[[Path, pytest.MonkeyPatch], Image.Image | None]] = {
    "training": lambda path, _: read_mask(path, "files", SIZE),
    "Python, a path": lambda path, _: Settings(image=path, mask=path).mask,
    "Python, a picture": lambda path, _: Settings(image=path, mask=Image.open(path)).mask,
    "command line": lambda path, patch: by_command_line(path, patch, "mask"),
}
APP_MASK_WAYS: dict[str, Callable[[Path, pytest.MonkeyPatch], Image.Image | None]] = {
    "upload": lambda path, _: Settings(image=path, mask=by_upload(path)).mask,
}


@pytest.mark.parametrize("kind", [*FILES, *MORE])
def test_every_way_shows_what_a_viewer_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "given.png"  # what it is, the content says
    path.write_bytes((FILES | MORE)[kind])
    transparent = "transparen" in kind or kind.startswith(("RGBA", "LA"))
    shown = (*OPAQUE[:3], 255 if transparent else 0)
    for way, read in (WAYS | (APP_WAYS if kind in FILES else {})).items():
        found = read(path, monkeypatch)
        assert found is not None
        assert found.size == SIZE, way
        # JPEG, lossy WebP and CMYK are off by a little, in the file and in the thumbnail.
        assert quadrants(found) == pytest.approx(shown, abs=8), way
    for way, read in (MASK_WAYS | (APP_MASK_WAYS if kind in FILES else {})).items():
        found = read(path, monkeypatch)
        assert found is not None
        assert (found.mode, found.size) == ("L", SIZE), way
        assert quadrants(found) == pytest.approx(OPAQUE, abs=8), way


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK"])
def test_every_mode_in_memory(mode: str) -> None:
    clear = mode in ("LA", "La", "PA", "RGBA", "RGBa")
    given = alpha("LA").convert("RGBA") if clear else Image.fromarray(scene())
    if mode in ("LA", "La"):
        given = given.convert("LA")
    found = given if given.mode == mode else given.convert(mode)
    shown: Any = Settings(image=found).image
    assert shown.mode == "RGB"
    wanted = (*OPAQUE[:3], 255) if clear else OPAQUE
    if mode == "1":
        assert [quadrants(shown)[i] for i in (0, 3)] == [255, 0]
    else:
        assert quadrants(shown) == pytest.approx(wanted, abs=2)


def test_a_picture_is_turned_once_and_the_callers_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(lying(6, "JPEG"))
    with Image.open(tmp_path / "a.jpg") as given:
        given.load()
    before = given.tobytes()
    once: Any = Settings(image=given).image
    again: Any = Settings(image=once).image
    assert once.size == again.size == SIZE
    assert given.size == (48, 64)
    assert given.tobytes() == before
    twice = open_picture(lying(6, "PNG"))
    assert pictures.flatten(twice).size == SIZE


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_range_are_refused_everywhere(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (8, 8), 1).save(tmp_path / "a.tiff")
    with Image.open(tmp_path / "a.tiff") as given:
        given.load()
    for refused in (given, tmp_path / "a.tiff"):
        with pytest.raises(UserError, match=f"cannot read image.*Pillow mode {mode}.*save with 8 bits"):
            Settings(image=refused)
    with pytest.raises(UserError, match="expected a PIL image or a path"):
        Settings(image=7)
    with pytest.raises(UserError, match="cannot read mask none.png as a picture: the file is gone"):
        Settings(image=Image.new("RGB", (8, 8)), mask="none.png")


def test_a_black_opaque_mask_counts_nowhere(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 255)).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", "files", (8, 8)).getextrema() == (0, 0)
