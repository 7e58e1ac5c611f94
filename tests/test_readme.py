"""The README's commands run as written (demos and trainings with fewer steps); its translations keep step with it."""

import re
import shlex
import shutil
import sys
from collections import Counter
from pathlib import Path

import forked
import numpy as np
import pytest
import torch

import hyperbrush as hb
from hyperbrush.assets import style_folder
from hyperbrush.ldm.models import LatentDiffusion

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(kind: str) -> str:
    found = re.search(rf"<!-- tested: {kind} -->\n```\w+\n(.*?)```", README, re.S)
    assert found, kind
    return found.group(1)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with a dozen PICTURES, and A.png and B.png of one style, as a newcomer would have."""
    pictures = tmp_path / "PICTURES"
    pictures.mkdir()
    found = sorted((style_folder() / "train").glob("*.png"))
    for path in found[:12]:
        shutil.copy(path, pictures)
    for name, path in zip("AB", found[12:14], strict=True):
        shutil.copy(path, tmp_path / f"{name}.png")
    return tmp_path


def run(*command: str, cwd: Path) -> str:
    """A command with this Python's hyperbrush."""
    done = forked.run(command, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_shell_commands(desk: Path) -> None:
    lines = [line for line in block("shell").splitlines() if line.startswith("hyperbrush ")]
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[1] == "demo":
            words += ["--steps", "2"]
        if words[1] == "train":
            words[words.index("--steps") + 1] = "2"
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
        "hyper/hyper-grid.png",
        "hyper/hypernetworks/ink-tuned.safetensors",
    ):
        assert (desk / name).stat().st_size > 500, name
    made = hb.load(desk / "style.safetensors")
    assert isinstance(made, hb.GeneratedWeights)
    assert made.layers


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


TRANSLATIONS = ("README.ko.md", "README.zh.md")
CODE = re.compile(r"(?:<!-- tested: \w+ -->\n)?^```.*?^```$", re.S | re.M)


def shape(name: str) -> dict[str, list[object]]:
    """What a README says in no language: code, headings, links, and the figures and commands of its tables and text."""
    text = (ROOT / name).read_text(encoding="utf-8")
    prose = CODE.sub("", text)
    rows = [line for line in prose.splitlines() if line.startswith("|")]
    return {
        "code blocks": CODE.findall(text),
        "levels of the headings": [len(m) for m in re.findall(r"^(#+) ", prose, re.M)],
        "links": sorted(re.findall(r"(?<!!)\[[^]]*\]\(([^)]*)\)", prose)),
        "pictures": re.findall(r"!\[[^]]+\]\(([^)]*)\)", prose),
        "code in the text": sorted(re.findall(r"`([^`\n]+)`", prose)),
        "tables": [
            [(numbers(cell), re.findall(r"`[^`]+`", cell)) for cell in row.split("|")] for row in rows
        ],
    }


def numbers(text: str) -> list[str]:
    """The numbers of a text, in any order: languages put their words in others."""
    return sorted(re.findall(r"\d+(?:[.,]\d+)*", text))


@pytest.mark.parametrize("name", TRANSLATIONS)
def test_translations_keep_step(name: str) -> None:
    english, translated = shape("README.md"), shape(name)
    assert len(english["code blocks"]) >= 5
    assert len(english["tables"]) > 20
    for part, wanted in english.items():
        assert translated[part] == wanted, part


@pytest.mark.parametrize("name", TRANSLATIONS)
def test_translations_keep_every_figure(name: str) -> None:
    """Numerals of the English text; a language may write more of them where English has words."""
    missing = Counter(numbers(README)) - Counter(numbers((ROOT / name).read_text(encoding="utf-8")))
    assert not missing


@pytest.mark.parametrize("name", ["README.md", *TRANSLATIONS])
def test_links_lead_somewhere(name: str) -> None:
    found = re.findall(r"\]\(([^)#]+)", CODE.sub("", (ROOT / name).read_text(encoding="utf-8")))
    assert set(TRANSLATIONS) < set(found)
    missing = [target for target in found if "://" not in target and not (ROOT / target).exists()]
    assert not missing
