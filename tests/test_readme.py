"""The README's commands run as written (the demo with fewer steps)."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import hyperbrush as hb
from hyperbrush.assets import style_folder
from hyperbrush.ldm.models import LatentDiffusion

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def block(kind: str) -> str:
    found = re.search(rf"<!-- tested: {kind} -->\n```\w+\n(.*?)```", README, re.S)
    assert found, kind
    return found.group(1)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with a dozen PICTURES, as a newcomer would have."""
    pictures = tmp_path / "PICTURES"
    pictures.mkdir()
    for path in sorted((style_folder() / "train").glob("*.png"))[:12]:
        shutil.copy(path, pictures)
    return tmp_path


def run(*command: str, cwd: Path) -> str:
    """A command with this Python's hyperbrush."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_shell_commands(desk: Path) -> None:
    lines = [line for line in block("shell").splitlines() if line.startswith("hyperbrush ")]
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[1] == "demo":
            words += ["--steps", "6"]
        if words[1] == "train":
            words[words.index("--steps") + 1] = "6"
        shown = run(sys.executable, "-m", *words, cwd=desk)
        if words[1] == "list":
            assert "ink" in shown
            assert "attention hypernetwork" in shown
    for name in (
        "pizza.png",
        "moon.png",
        "cat.png",
        "grid.png",
        "again.png",
        "ink.pt",
        "demo/grid.png",
        "demo/report.html",
    ):
        assert (desk / name).stat().st_size > 500, name


def test_two_lines(tiny: LatentDiffusion, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny.pipeline()
    hb.AttentionHypernetwork.for_unet(tiny.unet, weight_init="XavierNormal").save(desk / "water.pt")
    monkeypatch.chdir(desk)
    bare = pipe("cat face", num_inference_steps=2, generator=torch.manual_seed(1), output_type="np").images
    exec(block("pipeline"), {"pipe": pipe})
    drawn = pipe("cat face", num_inference_steps=2, generator=torch.manual_seed(1), output_type="np").images
    assert np.abs(drawn - bare).max() > 0.01


def test_python_example(desk: Path) -> None:
    unet = LatentDiffusion.from_pretrained("emoji").unet
    hb.AttentionHypernetwork.for_unet(unet, name="water", weight_init="Normal").save(desk / "water.pt")
    (desk / "example.py").write_text(block("python"), encoding="utf-8")
    shown = run(sys.executable, "example.py", cwd=desk)
    assert re.search(r"\d+ of \d+ projections reached", shown)
    assert (desk / "mine.safetensors").is_file()
    assert hb.load(desk / "mine.pt").widths == hb.load(desk / "mine.safetensors").widths
