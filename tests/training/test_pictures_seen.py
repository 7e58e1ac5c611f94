"""A resume says which pictures came, went or changed sides since the run began."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from toys import Regression, trainer

import hyperbrush as hb
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.training.data.seen import changed_pictures
from hyperbrush.training.loop.metrics import read


def objective(root: Path, trained: str, held_out: str = "") -> Regression:
    made = Regression()
    made.data = SimpleNamespace(paths=[str(root / name) for name in trained.split()])
    made.held_out = SimpleNamespace(paths=[str(root / name) for name in held_out.split()])
    return made


@pytest.mark.parametrize(
    ("trained", "held_out", "said"),
    [
        ("a.png b.png sub/a.png", "c.png", ""),
        ("b.png b.png a.png sub/a.png", "c.png", ""),
        ("a.png b.png sub/a.png n.png", "c.png", "1 were added (n.png)"),
        ("a.png", "c.png", "2 are gone (b.png, sub/a.png)"),
        (
            "a.png c.png sub/a.png",
            "b.png",
            "1 are trained on that were not before (c.png); 1 are held out that were",
        ),
        (
            "a.png b.png sub/a.png 1.png 2.png 3.png 4.png",
            "c.png",
            "4 were added (1.png, 2.png, 3.png and 1 more)",
        ),
    ],
)
def test_what_changed(tmp_path: Path, trained: str, held_out: str, said: str) -> None:
    assert changed_pictures(tmp_path, objective(tmp_path / "data", "a.png b.png sub/a.png", "c.png")) == ""
    moved = objective(tmp_path / "moved", trained, held_out)
    found = changed_pictures(tmp_path, moved)
    assert said in found
    assert bool(found) == bool(said)
    assert changed_pictures(tmp_path, moved) == "", "it is said once"


def test_a_training_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for steps, names in ((2, "a.png b.png"), (4, "a.png b.png"), (6, "a.png")):
        trainer(objective(tmp_path, names), run, steps=steps).train(resume=steps > 2)
    [event] = [row for row in read(run / "metrics.jsonl") if row.get("event") == "pictures"]
    assert event["step"] == 4
    assert "1 are gone (b.png)" in event["message"]
    shutil.rmtree(run)
    trainer(Regression(), run).train()
    assert not (run / "pictures.json").exists()


def test_a_validation_looks_at_so_many_from_all_over(
    make_tiny: Callable[..., LatentDiffusion], pictures: Path, tmp_path: Path
) -> None:
    model = make_tiny()
    network = hb.AttentionHypernetwork.for_unet(model.unet, layer_structure=(1, 1), name="t")
    seen: list[list[str]] = []
    for most in (256, 4):
        settings = {"max_steps": 1, "batch_size": 2, "validation_pictures": most}
        made = hb.HypernetworkTrainer(network, settings, run=tmp_path / str(most))
        objective: Any = made.objective(model, pictures, pictures)
        seen.append(list(objective.held_out.paths))
        assert objective.validate()["loss"] > 0
        objective.close()
    assert seen[1] == seen[0][::3]
    assert len(seen[0]) == 12
