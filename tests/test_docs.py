"""Every Python block of the docs' pages on hypernetworks runs, in order, on a tiny pipeline and real files."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import hyperbrush as hb
from hyperbrush.ldm.models import LatentDiffusion

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def desk(tiny: LatentDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
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
    }


@pytest.mark.parametrize("page", ["using-hypernetworks.md", "file-formats.md"])
def test_python_blocks_run(page: str, desk: dict[str, Any]) -> None:
    desk["pipe"].set_progress_bar_config(disable=True)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S)
    assert blocks
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page}, block {number}", "exec"), desk)
        if "attached" in desk:
            desk.pop("attached").detach()
