"""Folders as other programs have them: repeats in names, masks in some of several, ~ and places beside a YAML file."""

import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import Selection
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.training import HypernetworkConfig
from hyperbrush.training.attention.run import HypernetworkRun, configured, run_preflight, train_run
from hyperbrush.training.attention.trainer import pictures_of
from hyperbrush.training.data.pictures import FolderConfig, named_repeats
from hyperbrush.training.loop.settings import resumed

REPORTED = Path("/work/shared/failing")
SHORT: dict[str, Any] = {
    "prompts": [], "max_steps": 4, "batch_size": 4, "validate_every": 2, "checkpoint_every": 2, "validation_share": 0.0, "warmup_steps": 0, "schedule": "constant"
}  # fmt: skip


def draw(path: Path, hue: int, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("HSV", (32, 32), (hue * 20 % 256, 255, 255)).convert("RGB").convert(mode).save(path)
    return path


def kohya(root: Path, *folders: tuple[str, int]) -> Path:
    for number, (name, count) in enumerate(folders):
        for i in range(count):
            draw(root / name / f"{i}.png", 5 * number + i).with_suffix(".caption").write_text(f"{name} {i}")
    return root


def opened(model: LatentDiffusion, data: Any, validation: Any = None, **training: Any) -> Any:
    return pictures_of(model, HypernetworkConfig(**(SHORT | training)), data, validation)


def seen(data: Any) -> Counter[str]:
    return Counter(Path(data.paths[i]).parent.name for i in range(len(data)))


def test_repeats_of_sd_scripts(tmp_path: Path, tiny: LatentDiffusion) -> None:
    root = kohya(tmp_path / "k", ("10_red cat", 2), ("3_dog", 1), ("plain", 2), ("2023_trip", 1))
    train, _ = opened(tiny, root)
    assert seen(train) == {"10_red cat": 20, "3_dog": 3, "plain": 2, "2023_trip": 1}
    assert sorted(set(train.captions))[0] == "10_red cat 0"
    draws = {train.example(i, 0)["image"].sum().item() for i in range(len(train))}
    assert len(draws) == 6  # one colour a picture
    for other in (FolderConfig(path=str(root), repeats=1), FolderConfig(path=str(root), share=2.0)):
        assert len(opened(tiny, [other])[0]) == 6
    assert len(opened(tiny, root, validation=root)[1]) == 6  # judged by once each
    alone = kohya(tmp_path / "alone", ("4_ink", 3))
    assert len(opened(tiny, alone)[0]) == 12
    assert named_repeats([FolderConfig(path=str(root)), FolderConfig(path=str(alone), repeats=2)]) == [
        (root / "10_red cat", 10),
        (root / "3_dog", 3),
    ]


def test_pictures_are_held_out_of_each_number_of_repeats(tmp_path: Path, tiny: LatentDiffusion) -> None:
    root = kohya(tmp_path / "k", ("5_a", 5), ("2_b", 4), ("3_c", 1))
    train, held = opened(tiny, root, validation_share=0.25)
    assert held is not None
    assert seen(held) == {"5_a": 1, "2_b": 1}
    assert seen(train) == {"5_a": 20, "2_b": 6, "3_c": 3}
    assert not set(train.paths) & set(held.paths)
    assert all(isinstance(part.data, Selection) for part in train.parts)
    few = kohya(tmp_path / "few", ("10_a", 3))  # too few to hold one out, whatever their repeats
    assert [len(few) if few else few for few in opened(tiny, few, validation_share=0.25)] == [30, None]


def test_repeats_are_told_kept_and_resumed(tmp_path: Path, tiny: LatentDiffusion) -> None:
    root = kohya(tmp_path / "k", ("3_a", 3), ("1_b", 3))

    def run(name: str, steps: int, resume: bool = False) -> torch.Tensor:
        config = HypernetworkRun.of(
            name="t",
            data=str(root),
            hypernetworks=str(tmp_path / "library"),
            training=SHORT | {"max_steps": steps},
        )
        if resume:
            config, _ = resumed(HypernetworkRun, tmp_path / name, training={"max_steps": steps})
        made = train_run(config, tmp_path / name, overwrite=True, model=tiny, resume=resume)
        from hyperbrush import load

        return torch.cat([p.flatten() for p in load(made.file).parameters()])

    whole = run("whole", 4)
    run("two", 2)
    assert torch.equal(run("two", 4, resume=True), whole)
    written = yaml.safe_load((tmp_path / "two/config.yaml").read_text())
    assert written["data"][0]["repeats"] is None
    report = run_preflight(HypernetworkRun.of(name="t", data=str(root)), tiny).text()
    assert "note: 1 folders have repeats in their names" in report
    assert "3_a: each picture counts 3 times" in report


def alpha(root: Path, count: int) -> Path:
    for i in range(count):
        picture = Image.open(draw(root / f"{i}.png", i)).convert("RGBA")
        picture.paste((0, 0, 0, 0), (0, 0, 16, 32))
        picture.save(root / f"{i}.png")
    return root


def plain(root: Path, count: int) -> Path:
    for i in range(count):
        draw(root / f"{i}.png", 7 + i)
    return root


@pytest.mark.parametrize("source", ["alpha", "files", "folder"])
def test_masks_in_some_of_several_folders(source: str, tmp_path: Path, tiny: LatentDiffusion) -> None:
    masked, bare = plain(tmp_path / "masked", 3), plain(tmp_path / "bare", 3)
    settings: dict[str, Any] = {"masks": "files"}
    if source == "alpha":
        settings, masked = {"masks": "alpha"}, alpha(tmp_path / "alpha", 3)
    half = Image.new("L", (32, 32), 255)
    half.paste(0, (0, 0, 16, 32))
    where = masked if source == "files" else tmp_path / "masks"
    where.mkdir(exist_ok=True)
    for i in range(3):
        half.save(where / (f"{i}.mask.png" if source == "files" else f"m{i}.png"))
    if source == "folder":
        settings["mask_folder"] = str(where)
        for i in range(3):  # names of their own, so that the masks are of one folder's pictures
            (masked / f"{i}.png").rename(masked / f"m{i}.png")
    train, held = opened(tiny, [masked, bare], validation=bare, **settings)
    shares = {
        Path(e["path"]).parent.name: e["mask"].mean().item()
        for e in (train.example(i, 0) for i in range(len(train)))
    }
    assert shares == {masked.name: pytest.approx(0.5), "bare": 1.0}
    assert all(held.example(i, 0)["mask"].min() == 1 for i in range(3))
    assert not [p for part in train.parts for p in part.data.problems]
    config = HypernetworkRun.of(name="t", data=[str(masked), str(bare)], training=SHORT | settings)
    report = run_preflight(config, tiny)
    assert len(report.of("unmasked").notes) == 3  # type: ignore[union-attr]
    assert report.of("bad_masks") is None
    train_run(config.model_copy(update={"hypernetworks": str(tmp_path / "l")}), tmp_path / "run", model=tiny)
    with pytest.raises(UserError, match=r'masks="\w+", but no picture of .*bare.*bare'):
        opened(tiny, [bare, bare], **(settings | {"mask_folder": None}))
    with pytest.raises(UserError, match="transparent anywhere|has a mask"):
        opened(tiny, bare, **(settings | {"mask_folder": None}))


@pytest.mark.skipif(not REPORTED.is_dir(), reason="the reported folders are not here")
def test_the_reported_folders(tmp_path: Path, tiny: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # which is not where the file is
    config = configured(REPORTED / "07/prior.yaml", hypernetworks=str(tmp_path / "l"))
    assert [folder.path for folder in config.data] == [str(REPORTED / f"07/{n}") for n in ("alpha", "plain")]
    train_run(config, tmp_path / "run", model=tiny)
    train, _ = opened(tiny, [REPORTED / "07/maskfiles", REPORTED / "07/plain"], masks="files")
    assert len(train) == 8
    assert len(opened(tiny, REPORTED / "10/kohya")[0]) == 80
    assert opened(tiny, REPORTED / "10/csv")[0].captions == [f"cat face {i}" for i in range(8)]


def test_places_in_a_yaml_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    (
        plain(there / "pics", 1),
        plain(there / "masks", 1),
        plain(here / "held", 1),
        plain(tmp_path / "home/p", 1),
    )
    (there / "words.txt").write_text("[filewords]")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = there / "ink.yaml"
    text = {
        "data": ["pics", {"path": "~/p", "repeats": 2}],
        "validation": "held",
        "training": {"templates": "words.txt", "masks": "files", "mask_folder": "masks"},
    }
    file.write_text(yaml.safe_dump(text))
    config = configured(file)
    assert [f.path for f in config.data] == [str(there / "pics"), str(tmp_path / "home/p")]
    assert [f.path for f in config.validation] == ["held"]
    assert config.training.templates == str(there / "words.txt")
    assert config.training.mask_folder == str(there / "masks")
    assert configured(data="~/p", name="x").data[0].path == str(tmp_path / "home/p")
    assert not caplog.records
    plain(here / "pics", 1)  # the current folder comes first, and which is taken is said
    with caplog.at_level(logging.WARNING):
        assert configured(file).data[0].path == "pics"
    assert f"pics is {here / 'pics'}, not {there / 'pics'} beside the file" in caplog.text


def test_home_in_options_without_a_shell(tmp_path: Path) -> None:
    plain(tmp_path / "pics", 1)
    done = subprocess.run(
        [sys.executable, "-m", "hyperbrush", "train", "--data=~/pics", "--name", "x", "--resume", "~/run"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2
    assert f"{tmp_path}/run is no run folder" in done.stderr
