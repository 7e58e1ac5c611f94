"""Every Python block of the docs' pages on hypernetworks runs, in order, on a tiny pipeline and real files."""

import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import hyperbrush as hb
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.training.attention.run import configured, setting_names

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def desk(
    tiny: LatentDiffusion, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """What the pages take for granted: a pipeline, two files beside it, and both networks loaded."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for name in ("water.pt", "ink.safetensors"):
        network = hb.AttentionHypernetwork.for_unet(
            tiny.unet, name=Path(name).stem, activation="linear", weight_init="XavierNormal"
        )
        network.save(name)
    return {
        "pipe": tiny.pipeline(),
        "water": hb.load("water.pt"),
        "ink": hb.load("ink.safetensors"),
        "hb": hb,
        "model": tiny,
    }


@pytest.mark.parametrize(
    "page",
    [
        "using-hypernetworks.md",
        "file-formats.md",
        "training.md",
        "generate-a-style.md",
        "compress-a-folder.md",
    ],
)
def test_python_blocks_run(page: str, desk: dict[str, Any]) -> None:
    desk["pipe"].set_progress_bar_config(disable=True)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S)
    assert blocks
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page}, block {number}", "exec"), desk)
        if "attached" in desk:
            desk.pop("attached").detach()


def test_the_settings_reference_is_the_models(open_script: Callable[[str], ModuleType]) -> None:
    module = open_script("docs/make_settings.py")
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run python docs/make_settings.py"


def test_the_gallery_is_what_its_script_writes(open_script: Callable[[str], ModuleType]) -> None:
    module = open_script("docs/make_gallery.py")
    assert (DOCS / "gallery.md").read_text(encoding="utf-8") == module.page(), (
        "run python docs/make_gallery.py"
    )
    shown = {entry.picture for entry in module.ENTRIES}
    assert shown == {path.name for path in (DOCS / "gallery").iterdir()}
    assert not re.findall(r"^.*\|  \|$", module.page(), re.M), "every setting has a meaning"


def test_settings_named_in_the_docs_exist(tmp_path: Path) -> None:
    """What the table from the webui's settings to ours names."""
    known = {name.rpartition(".")[2] for name in setting_names()} | set(setting_names())
    text = (DOCS / "training.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:training|network)\.[a-z_]+)", text)
    assert len(named) > 30
    assert not set(named) - known
    file = re.search(r"```yaml\n(.*?)```", text, re.S)
    assert file is not None
    (tmp_path / "ink.yaml").write_text(file[1])
    assert configured(tmp_path / "ink.yaml").training.templates


def test_the_map_of_the_code_names_what_is_there() -> None:
    root = Path(__file__).parent.parent
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    tree, text = re.search(r"```\n(.*?)```\n(.*)", page, re.S).groups()  # type: ignore[union-attr]
    for folder in re.findall(r"^ +((?:\w+/ ?)+)", tree, re.M):
        for name in folder.split():
            assert list((root / "src").rglob(name.rstrip("/"))), name
    named = re.findall(r"`([\w/*]+(?:\.(?:py|md)|/[\w*]+/?))`", text)
    assert len(named) > 50
    for name in named:
        places = [
            root,
            root / "src/hyperbrush",
            *(p for p in root.glob("src/hyperbrush/**/") if "__pycache__" not in p.parts),
            *root.glob("tests/**/"),
        ]
        assert any(list(place.glob(name)) for place in places), f"{name} is not there"


def test_where_things_of_the_original_programs_are_is_true() -> None:
    page = (DOCS / "original-programs.md").read_text(encoding="utf-8")
    ours = " ".join(line.split("|")[2] for line in page.splitlines() if line.startswith("| "))
    for name in re.findall(r"`([\w/]+\.py)`", ours):
        assert (DOCS.parent / "src/hyperbrush" / name).is_file(), name
    dotted = re.findall(r"`(hyperbrush\.[\w.]+)`", ours)
    assert len(dotted) > 20
    for name in dotted:
        pkgutil.resolve_name(name)
