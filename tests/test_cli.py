"""The command line as a person uses it: real processes (see `forked`), exit statuses, one-line errors."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import forked
import pytest
from forked import hyperbrush
from PIL import Image

from hyperbrush.assets import style_folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted((style_folder() / "train").glob("*.png"))[:12]:
        shutil.copy(path, folder)
    return folder


def wrong_folder(pictures: Path) -> None:
    (pictures / "torn.png").write_bytes(b"\x89PNG nothing")
    (pictures / "odd.txt").write_bytes(b"\xff\xfe\x00 not text")
    Image.new("RGB", (8, 8)).save(pictures / "odd.png")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--data", "nowhere", "--name", "x"], "nowhere"),
        (["train", "--data", "empty", "--name", "x"], "empty"),
        (["train", "--name", "x"], "--data"),
        (["train", "--data", "broken", "--name", "a/b"], "name"),
        (["train", "--resume", "nowhere"], "no run folder"),
        (["generate", "cat", "--sampler", "Eulr"], "did you mean 'Euler'"),
        (["generate", "cat", "--model", "emojy"], "unknown model 'emojy'"),
        (["generate", "cat", "--model", "./nowhere"], "unknown model './nowhere'"),
        (["generate", "cat <hypernet:none:1>"], "no hypernetwork folder at models/hypernetworks"),
        (["generate", "cat <hypernet:none:x>"], "'x' is not a number"),
        (["generate", "cat", "--steps", "many"], "Invalid value for '--steps'"),
        (["generate", "cat", "--foo"], "--foo"),
        (["ldm", "train", "nowhere.yaml"], "nowhere.yaml"),
        (["ldm", "train", "wrong.yaml"], "did you mean 'batch_size'"),
        (["ldm", "train"], "config"),
        (["nonsense"], "nonsense"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, pictures: Path, words: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    pictures.rename(tmp_path / "broken")
    wrong_folder(tmp_path / "broken")
    (tmp_path / "wrong.yaml").write_text(
        "kind: first_stage\ndata: {folders: [{path: x}], sise: 64}\ntraining: {batch_sise: 4, steps: -1}\n"
    )
    before = {p for p in tmp_path.rglob("*.p*")}
    done = hyperbrush(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("hyperbrush: ")
    assert {p for p in tmp_path.rglob("*.p*")} == before


def test_every_broken_file_is_in_one_report(tmp_path: Path, pictures: Path) -> None:
    wrong_folder(pictures)
    done = hyperbrush("train", "--data", pictures, "--name", "x", "--steps", 1, cwd=tmp_path)
    assert done.returncode == 0, "it trains on the others"
    assert "torn.png" in done.stderr
    assert "odd.txt" in done.stderr


def test_train_list_generate_evaluate(tmp_path: Path, pictures: Path) -> None:
    done = hyperbrush(
        "train", "--data", pictures, "--name", "mine", "--steps", 4, "--batch-size", 4, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "left" in done.stderr
    assert (tmp_path / "models/hypernetworks/mine.safetensors").is_file()
    listed = hyperbrush("list", cwd=tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["name", "mine"]
    made = hyperbrush(
        "generate",
        "cat face <hypernet:mine:1>",
        "--seed",
        1,
        "--steps",
        2,
        "--count",
        2,
        "--out",
        "c.png",
        cwd=tmp_path,
    )
    assert made.returncode == 0, made.stderr
    assert "projections reached" in made.stderr
    assert (tmp_path / "c-02.png").is_file()
    shown = hyperbrush("evaluate", "--data", pictures, "--hypernetwork", "mine", cwd=tmp_path).stdout
    assert "PSNR" in shown
    assert "with mine" in shown
    again = hyperbrush("train", "--data", pictures, "--name", "mine", cwd=tmp_path)
    assert again.returncode == 2
    assert "--resume" in again.stderr


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_keeps_a_checkpoint_and_prints_the_command_to_resume(tmp_path: Path, pictures: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "hyperbrush",
        "train",
        "--data",
        str(pictures),
        "--name",
        "mine",
        "--steps",
        "400",
        "--batch-size",
        "2",
    ]
    process = forked.start(command, cwd=tmp_path, stderr=forked.PIPE)
    metrics = tmp_path / "runs/mine/metrics.jsonl"
    for _ in range(600):
        if metrics.is_file() and metrics.stat().st_size:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert "go on with: hyperbrush train --resume runs/mine" in shown
    *_, checkpoint = sorted((tmp_path / "runs/mine/checkpoints").iterdir())
    step = int(checkpoint.stem[5:])
    config = tmp_path / "runs/mine/config.yaml"
    config.write_text(config.read_text().replace("max_steps: 400", f"max_steps: {step + 2}"))
    done = hyperbrush("train", "--resume", "runs/mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"({step + 2} steps" in done.stdout


def test_ldm_sample_and_version(tmp_path: Path) -> None:
    done = hyperbrush("ldm", "sample", "cat face", "rocket", "--steps", 2, "--out", "grid.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "grid.png").size == (130, 64)
    assert hyperbrush("--version", cwd=tmp_path).stdout.strip().count(".") == 2


def test_unwritable_output_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = hyperbrush("generate", "cat", "--steps", 1, "--out", "file/c.png", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr


def test_drawing_options_reach_the_picture(tmp_path: Path) -> None:
    def draw(*options: object) -> Image.Image:
        done = hyperbrush(
            "--verbose", "generate", "cat face", "--seed", 1, "--steps", 2, *options, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return Image.open(tmp_path / "picture.png").convert("RGB")

    plain = draw().tobytes()
    assert draw("--width", 96, "--height", 32).size == (96, 32)
    assert draw("--cfg", 1).tobytes() != plain
    assert draw("--negative", "red heart").tobytes() != plain
    assert draw("--precision", "bf16").tobytes() != plain
    assert draw("--attention", "eager", "--device", "cpu").size == (64, 64)
