"""A stop before the first step: obeyed at once, by every training, and the same command goes on to the same end."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hyperbrush.ldm.data import ImageFolder, LatentCache
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.stopping import may_stop_here, stoppable
from hyperbrush.training import Interrupted
from hyperbrush.training.attention.run import configured, train_run
from hyperbrush.training.before.preflight import preflight
from hyperbrush.training.generator.run import configured_generator, train_generator
from hyperbrush.training.ldm.config import read_config
from hyperbrush.training.ldm.run import train_ldm
from hyperbrush.training.loop import checkpoint as checkpoints

PICTURES = 80  # three batches of latents


class Stop(Exception):
    """Asked for."""


def test_it_is_asked_for_before_each_layer_and_in_loops() -> None:
    asked: list[int] = []

    def ask() -> None:
        asked.append(1)
        if len(asked) == 4:
            raise Stop

    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    may_stop_here()
    with pytest.raises(Stop), stoppable(ask):
        assert len(asked) == 1, "at once"
        network(torch.ones(2))  # itself, its first layer, and not its second
    network(torch.ones(2))
    may_stop_here()
    assert len(asked) == 4, "outside nobody asks"
    with pytest.raises(Stop), stoppable(ask):
        asked[:] = [1] * 3
        may_stop_here()


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(PICTURES):
        pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"thing {i:02}.png")
    return folder


def test_folders_are_looked_at_no_longer(many: Path) -> None:
    for look in (lambda: ImageFolder(many), lambda: preflight(many)):
        asked: list[int] = []

        def ask(asked: list[int] = asked) -> None:
            asked.append(1)
            if len(asked) > 5:
                raise Stop

        with pytest.raises(Stop), stoppable(ask):
            look()
        assert len(asked) == 6


def hypernetwork(many: Path, model: Path, run: Path, **how: Any) -> None:
    training = {"max_steps": 2, "batch_size": 2, "validation_share": 0, "flip": 0, "validate_every": 1}
    library = str(run.parent / "library")
    train_run(
        configured(name="ink", data=[str(many)], model=str(model), hypernetworks=library, training=training),
        run,
        overwrite=True,
        **how,
    )


def generator(many: Path, model: Path, run: Path, **how: Any) -> None:
    world = many.parent / "world"
    if not world.exists():
        for number in range(2):
            (world / str(number)).mkdir(parents=True)
        for i, path in enumerate(sorted(many.iterdir())):
            (world / str(i % 2) / path.name).write_bytes(path.read_bytes())
    shape = {"embedding_dim": 32, "hidden_dim": 32, "rank": 2, "depth": 1, "heads": 4}
    training = {"max_steps": 2, "batch_size": 4, "shared_steps": 0, "references": 2}
    made = configured_generator(
        None,
        name="g",
        data=str(world),
        model=str(model),
        generators=str(run.parent / "library"),
        network=shape,
        training=training,
    )
    train_generator(made, run, overwrite=True, **how)


def diffusion(many: Path, model: Path, run: Path, **how: Any) -> None:
    values = {
        "kind": "diffusion",
        "data": {"size": 32, "folders": [str(many)]},
        "start_from": str(model),
        "training": {"steps": 2, "batch_size": 2},
    }
    train_ldm(read_config(values), run, **how)


@pytest.mark.parametrize("train", [hypernetwork, generator, diffusion], ids=lambda f: f.__name__)
def test_stopped_while_encoding(
    many: Path,
    make_tiny: Callable[..., LatentDiffusion],
    tmp_path: Path,
    train: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the second batch of latents, between two layers: the first one is kept, and the end is the same."""
    make_tiny().save_pretrained(tmp_path / "model")
    whole = tmp_path / "whole"
    train(many, tmp_path / "model", whole)
    batches: list[int] = []
    real = LatentDiffusion.moments

    def moments(self: LatentDiffusion, images: torch.Tensor) -> dict[str, torch.Tensor]:
        batches.append(len(images))
        return real(self, images)

    monkeypatch.setattr(LatentDiffusion, "moments", moments)
    run = tmp_path / "run"
    with pytest.raises(Interrupted, match="stopped before the first step") as stopped:
        train(many, tmp_path / "model", run, should_stop=lambda: len(batches) == 2)
    assert stopped.value.step is None
    assert len(batches) == 2, "no third batch, and no step"
    assert not checkpoints.steps(run / "checkpoints")
    kept = [path for path in run.rglob("cache/**/*.safetensors") if "texts" not in path.parts]
    assert len(kept) == 1
    batches.clear()
    train(many, tmp_path / "model", run)
    again = sum(batches)
    batches.clear()
    train(many, tmp_path / "model", tmp_path / "other")
    assert again < sum(batches), "what was encoded is not encoded again"
    ends = [checkpoints.load(checkpoints.path_of(place / "checkpoints", 2)) for place in (run, whole)]
    assert checkpoints.digest(ends[0].tensors) == checkpoints.digest(ends[1].tensors)


def test_what_is_cached_is_whole_batches(many: Path, tmp_path: Path, tiny: LatentDiffusion) -> None:
    from hyperbrush.ldm.data import cache_latents

    data = ImageFolder(many, size=32)
    calls: list[int] = []

    def encode(images: torch.Tensor) -> dict[str, torch.Tensor]:
        calls.append(1)
        return tiny.moments(images)

    def ask() -> None:
        if len(calls) == 2:
            raise Stop

    with pytest.raises(Stop), LatentCache(tmp_path / "cache", "x") as cache, stoppable(ask):
        cache_latents(data, encode, cache)
    with LatentCache(tmp_path / "cache", "x") as cache:
        assert len(cache) == 32


SLOW = """
import sys, time
from hyperbrush.ldm.models import LatentDiffusion
real = LatentDiffusion.moments
def moments(self, images):
    print("encoding", flush=True)
    time.sleep(0.3)
    return real(self, images)
LatentDiffusion.moments = moments
from hyperbrush.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_while_encoding(
    many: Path, make_tiny: Callable[..., LatentDiffusion], tmp_path: Path, number: signal.Signals
) -> None:
    make_tiny().save_pretrained(tmp_path / "model")
    (tmp_path / "own.yaml").write_text(
        "{kind: diffusion, start_from: model, data: {size: 32, flip: 0.5, folders: [many]}, training: {steps: 3}}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "ldm", "train", "own.yaml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "encoding\n", process.communicate()[1]
    process.send_signal(number)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert out == "", "no further batch of five"
    assert "stopping; once more to stop at once" in said
    assert "stopped before the first step; the same command goes on from there" in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs/own/running.json").exists()
    assert not list((tmp_path / "runs/own").rglob(".*part*"))


TWO = """
import sys
from hyperbrush.training.loop.launch import run_together
sys.exit(run_together([sys.executable, "-c", *sys.argv[1:]], 2))
"""


@pytest.mark.slow
def test_a_signal_to_the_parent_of_two_while_one_encodes(
    many: Path, make_tiny: Callable[..., LatentDiffusion], tmp_path: Path
) -> None:
    """The other one waits meanwhile, and learns of it."""
    make_tiny().save_pretrained(tmp_path / "model")
    command = ["train", "--data", "many", "--name", "ink", "--model", "model", "--steps", "3"]
    process = subprocess.Popen(
        [sys.executable, "-c", TWO, SLOW, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "encoding\n", process.communicate()[1]
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert out == ""
    assert said.count("stopped before the first step; the same command goes on from there") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "runs/ink/running.json").exists()
