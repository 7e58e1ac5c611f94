"""The quality study's parts at tiny sizes: real runs of every method, resumable, with tables."""

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork
from hyperbrush.picture_judge import PictureJudge
from hyperbrush.training.attention.trainer import HypernetworkObjective

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
BUDGET = 200_000
STYLES = ("emojione-monotone", "fxemoji")


@pytest.fixture(scope="module")
def quality() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("quality_study", BENCHMARKS / "quality.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


@pytest.fixture(scope="module")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sets of twelve pictures: the colour is the name's, dark or light is the style."""
    folder = tmp_path_factory.mktemp("icons")
    names = ["red-apple", "rocket", "cat-face", "house", "mushroom", "pizza", "alarm-clock", "anchor"]
    chance = np.random.default_rng(0)
    colours = chance.integers(0, 128, (len(names), 64, 64, 3))
    for style, light in (("noto", 64), ("emojione-monotone", 0), ("fxemoji", 127)):
        (folder / style / "train").mkdir(parents=True)
        for name, colour in zip(names, colours, strict=True):
            written = name.replace("-", "") if style == "fxemoji" else name
            picture = Image.fromarray((colour + light).astype("uint8"))
            picture.save(folder / style / "train" / f"{written}.png")
    return folder


@pytest.fixture(scope="module")
def plan(quality: ModuleType) -> Any:
    return quality.Plan(
        steps=2, batch_size=2, watch=(1, 2), watched=2, train=3, validation=4, pictures=2, sampling_steps=2
    )


@pytest.fixture(scope="module")
def study(quality: ModuleType, icons: Path, plan: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    judge = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    torch.manual_seed(0)
    names = ["red apple", "rocket", "cat face", "house", "mushroom", "pizza", "alarm clock", "anchor"]
    PictureJudge(names, STYLES, channels=(8, 8, 8, 8), width=8).save(judge)
    return quality.Study("emoji", icons, tmp_path_factory.mktemp("work"), plan, STYLES, judge)


@pytest.fixture(scope="module")
def bare(quality: ModuleType, study: Any) -> dict[str, Any]:
    found: dict[str, Any] = study.run(job(quality, "base"))
    return found


def job(
    quality: ModuleType, method: str, phase: str = "main", seed: int = 0, style: str = "emojione-monotone"
) -> Any:
    rate = 0.0 if method == "base" else quality.METHODS[method].rates[0]
    return quality.Job(phase, style, method, rate, seed, BUDGET)


def test_no_name_is_in_both_parts_and_all_are_under_the_known_spelling(study: Any) -> None:
    data = study.data("fxemoji")
    train, validation = set(data.train.captions), set(data.captions)
    assert not train & validation
    assert (len(train), len(validation)) == (3, 4)
    assert {"red apple", "alarm clock", "cat face"} & (train | validation)
    assert not any("redapple" in c or "alarmclock" in c for c in train | validation)


def test_missing_icons_are_told_with_the_command(quality: ModuleType, tmp_path: Path) -> None:
    from quality.data import split

    with pytest.raises(UserError, match="icons.py"):
        split(tmp_path, "emojione-monotone", 3, 4)


@pytest.mark.parametrize(
    "name",
    [
        "default",
        "lora-qkvo",
        "full",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("best", "lora-kv", "webui", "inversion")),
    ],
)
def test_every_method_learns_and_leaves_the_model_alone(
    quality: ModuleType, study: Any, bare: dict[str, Any], name: str
) -> None:
    _, objective = study.prepared(job(quality, name))
    size = objective.adapter.size
    if quality.METHODS[name].sized:
        assert size == pytest.approx(BUDGET, rel=0.06)
    before = {k: p.detach().clone() for k, p in objective.named_parameters() if p.requires_grad}
    if name in ("default", "lora-kv", "lora-qkvo", "full"):  # these begin by changing nothing
        assert objective.validation_loss(objective.held_out) == pytest.approx(bare["best_watched"], rel=1e-5)
    objective(objective.batch(0, 2))["loss"].backward()
    gradients = [p.grad for p in objective.parameters() if p.requires_grad]
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)
    assert sum(v.numel() for v in before.values()) == size
    found = study.run(job(quality, name))
    assert found["size"] == size
    assert list(found["watched"]) == [0, 1, 2]
    assert found["watched"][2] != found["watched"][0]
    assert 0 <= found["content"] <= found["content_five"] <= 1
    assert 0 <= found["style"] <= 1
    strengths = ["1"] if name in ("inversion", "full") else ["0.25", "0.5", "0.75", "1"]
    assert list(found["curve"]) == strengths
    assert 0 <= found["area"] <= 1
    _, untouched = study.prepared(job(quality, "lora-kv"))
    assert untouched.validation_loss(untouched.held_out) == pytest.approx(bare["best_watched"], rel=1e-5)


def test_all_methods_meet_the_same_pictures_and_those_of_one_sampling_the_same_noises(
    quality: ModuleType, study: Any
) -> None:
    names = ("default", "best", "lora-stratified", "lora-kv", "inversion")
    batches = [study.prepared(job(quality, name))[1].batch(1, 2) for name in names]
    for other in batches[1:]:
        assert torch.equal(other["latent_means"], batches[0]["latent_means"])
    for first, *others in (batches[:3], batches[3:]):
        for other in others:
            assert other["captions"] == first["captions"]
            for key in ("noise", "timesteps"):
                assert torch.equal(other[key], first[key])
    assert not torch.equal(batches[0]["timesteps"], batches[3]["timesteps"])
    again = dataclasses.replace(job(quality, "default"), seed=1)
    assert not torch.equal(study.prepared(again)[1].batch(1, 2)["noise"], batches[0]["noise"])


def test_our_default_is_what_our_trainer_would_train(quality: ModuleType, study: Any) -> None:
    """The loss of a step is that of `HypernetworkObjective` with the same settings and weights."""
    _, objective = study.prepared(job(quality, "default"))
    network = objective.adapter.network
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05)
    mine = float(objective(objective.batch(0, 2))["loss"].detach())
    data = study.data("emojione-monotone")
    fresh = quality.Study("emoji", study.icons, study.work, study.plan, study.styles, study.opened[-1]).model
    copied = AttentionHypernetwork.for_unet(
        fresh.unet,
        layer_structure=network.settings.layer_structure,
        activation=network.settings.activation,
        per_site=bool(network.sites),
    )
    copied.load_state_dict(network.state_dict())
    theirs = HypernetworkObjective(
        fresh, copied, objective.config, data.train, held_out=data.validation, texts=data.texts
    )
    assert float(theirs(theirs.batch(0, 2))["loss"].detach()) == pytest.approx(mine, rel=1e-5)


def test_new_words_are_said_after_the_caption_and_not_in_the_empty_one(
    quality: ModuleType, study: Any
) -> None:
    _, objective = study.prepared(job(quality, "inversion"))
    before = {c: objective.text_states([c])["embeddings"] for c in ("", "red apple", "apple " * 40)}
    with torch.no_grad():
        objective.adapter.vectors.add_(1)
    after = {c: objective.text_states([c])["embeddings"] for c in before}
    assert torch.equal(after[""], before[""])
    assert torch.allclose(after[""], study.data("emojione-monotone").texts[""]["embeddings"], atol=1e-5)
    for caption in ("red apple", "apple " * 40):
        assert after[caption].shape == before[caption].shape
        assert not torch.allclose(after[caption], before[caption])
    # the caption's own words come first and do not see the new ones
    assert torch.allclose(after["red apple"][:, :3], before["red apple"][:, :3])


def test_the_webuis_defaults(quality: ModuleType, study: Any) -> None:
    _, objective = study.prepared(job(quality, "webui"))
    network = objective.adapter.network
    assert (network.settings.layer_structure, network.settings.activation) == ((1, 2, 1), "relu")
    weights = torch.cat([p.detach().flatten() for p in network.parameters() if p.ndim == 2])
    assert float(weights.std()) == pytest.approx(0.01, rel=0.02)
    assert (objective.config.ema_decay, objective.config.max_grad_norm) == (None, None)
    assert max(quality.METHODS["webui"].rates) <= 5e-5


@pytest.mark.parametrize("name", ["default", "lora-qkvo"])
def test_a_strength_of_zero_is_the_bare_model_and_one_half_lies_between(
    quality: ModuleType, study: Any, bare: dict[str, Any], name: str
) -> None:
    _, objective = study.prepared(job(quality, name))
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in objective.adapter.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=chance) * 0.05)
    losses = {}
    for strength in (0.0, 0.5, 1.0):
        assert objective.adapter.set_strength(strength)
        losses[strength] = objective.validation_loss(objective.held_out)
    assert losses[0.0] == pytest.approx(bare["best_watched"], rel=1e-5)
    assert len(set(losses.values())) == 3


def test_the_names_a_style_is_judged_among(quality: ModuleType) -> None:
    from quality.measures import candidates

    assert candidates(["a", "b"], ["b", "c", "d", "e", "f"], 4) == ["a", "b", "c", "e"]
    assert candidates(["a", "b"], ["c"], 4) == ["a", "b", "c"]
    assert candidates(["a", "b"], ["c"], 1) == ["a", "b"]


def test_the_area_under_style_against_content() -> None:
    from quality.measures import area

    assert area([]) == 0
    assert area([(1.0, 1.0)]) == 1
    assert area([(0.5, 0.8), (1.0, 0.4), (0.4, 0.2)]) == pytest.approx(0.6)  # the last is dominated


def test_what_others_share_is_learnt_from_none_of_the_styles_own_pictures(
    quality: ModuleType, study: Any
) -> None:
    _, own = study.prepared(job(quality, "default"))
    _, shared = study.prepared(job(quality, "default", phase="shared"))
    other = study.data("fxemoji").train
    seen = {path for step in range(3) for path in shared.batch(step, 2)["paths"]}
    assert seen <= set(other.paths)
    assert shared.data.validation is own.data.validation


def test_a_study_goes_on_where_it_was_stopped(
    quality: ModuleType, study: Any, plan: Any, tmp_path: Path
) -> None:
    path = tmp_path / "results.jsonl"
    results = quality.Results(path, study.sha256, plan)
    results.add(job(quality, "base"), {"loss": 1.0, "best_watched": 1.0})
    with path.open("a") as file:
        file.write('{"job": {"phase"')  # a kill
    again = quality.Results(path, study.sha256, plan)
    assert job(quality, "base") in again
    assert job(quality, "base", seed=1) not in again
    assert job(quality, "base") not in quality.Results(path, "other weights", plan)
    assert job(quality, "base") not in quality.Results(path, study.sha256, dataclasses.replace(plan, steps=3))
    jobs = [job(quality, "base"), job(quality, "webui")]
    assert list(quality.work_through(jobs, again, study, 2)) == [job(quality, "webui")]
    assert list(quality.work_through(jobs, again, study, 2)) == []
    assert again.rows[-1]["loss"] == pytest.approx(study.run(job(quality, "webui"))["loss"], rel=1e-4)


def row(quality: ModuleType, method: str, loss: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    own = dataclasses.asdict(job(quality, method, seed=seed)) | more.pop("job", {})
    figures = {
        "loss": loss,
        "best_watched": loss,
        "last_watched": loss + 0.1,
        "size": 7,
        "style": 0.5,
        "content": 0.75,
        "content_five": 1,
        "area": 0.375,
        "curve": {"1": {"style": 0.5, "content": 0.75}},
    }
    return {"job": own, "watched": {"0": 1.0, "10": loss}, **figures, **more}


def test_tables(quality: ModuleType) -> None:
    from quality.report import half_gap_step

    rows = [row(quality, "base", 1.0), row(quality, "full", 0.5), row(quality, "full", 0.5, 1)]
    rows += [row(quality, "default", 0.6), row(quality, "default", 0.55, 1)]
    rows += [row(quality, "lora-kv", 0.7), row(quality, "lora-kv", 0.65, 1)]
    rows += [row(quality, "lora-qkvo", 0.9), row(quality, "lora-qkvo", 0.9, 1)]
    rows += [{"job": {**rows[3]["job"], "phase": "time"}, "seconds_per_step": 2.0}]
    rows += [row(quality, "default", 0.7, job={"phase": "sizes", "budget": 9})]
    text = quality.tables(rows, BUDGET)
    assert "| our default | 7 | 85.0 ± 5.0 |" in text
    assert "| our default | 20.0 ± 0.0 |" in text
    assert "| our default | 7 | 65.0 ± 5.0 |" in text  # at the end
    assert half_gap_step(rows, rows[3]) == pytest.approx(6.25)
    assert "11.8 ± 0.7" in text  # (12.5 + 11.1) / 2 seconds
    assert "| our default | 7 | 60.0 |" in text  # the other size
    assert "| our default | 7 | 37.5 ± 0.0 |" in text  # area
    assert "| our default | 7 | 1: 50 / 75 |" in text


def test_what_other_styles_share_is_a_part_of_the_defaults_gap(quality: ModuleType) -> None:
    rows = [row(quality, "base", 1.0), row(quality, "default", 0.5), row(quality, "default", 0.5, 1)]
    rows += [row(quality, "default", 0.9, job={"phase": "shared"})]
    assert "| share | 20 |" in quality.tables(rows, BUDGET)


def test_the_rate_is_the_best_over_all_tuning_styles(quality: ModuleType) -> None:
    from quality.report import chosen_rates

    rows = [row(quality, "base", 1.0), row(quality, "base", 2.0, job={"style": "icon-park"})]
    for style, rate, loss in (
        ("emojione-monotone", 0.1, 0.5),
        ("icon-park", 0.1, 1.9),
        ("emojione-monotone", 0.2, 0.6),
        ("icon-park", 0.2, 1.2),
        ("emojione-monotone", 0.4, 0.1),  # not tried on both
    ):
        rows.append(row(quality, "default", loss, job={"phase": "tune", "style": style, "rate": rate}))
    assert chosen_rates(rows) == {"default": 0.2}


def test_rates_can_be_given(quality: ModuleType) -> None:
    rates = quality.given_rates(["default=4e-3", "lora-kv=0.002"])
    assert rates == {"default": 0.004, "lora-kv": 0.002}
    jobs = quality.jobs_of("main", rates, rates, ["fxemoji"], [5])
    assert [(j.method, j.rate, j.seed) for j in jobs if j.method != "base"] == [
        ("default", 0.004, 5),
        ("lora-kv", 0.002, 5),
    ]
    with pytest.raises(UserError, match="lora-kv"):
        quality.given_rates(["lora-vk=1"])


def test_the_command_prints_what_stands(
    quality: ModuleType, study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--icons", str(study.icons), "--work", str(study.work), "--results", str(tmp_path / "r.jsonl")]
    common += ["--judge", str(study.opened[-1])]
    settings = {
        "steps": "2",
        "batch-size": "2",
        "watched": "2",
        "train": "3",
        "validation": "4",
        "pictures": "2",
    }
    settings |= {"sampling-steps": "2", "methods": "webui", "workers": "1"}
    common += [word for name, value in settings.items() for word in (f"--{name}", value)]
    common += ["--watch", "1", "2", "--styles", "emojione-monotone", "fxemoji"]
    quality.main([*common, "--phases", "tune", "time"])
    first = capsys.readouterr().out
    assert "tune emojione-monotone webui" in first
    assert "Rates, tuned on two styles" in first
    lines = (tmp_path / "r.jsonl").read_text()
    assert {json.loads(line)["model"] for line in lines.splitlines()} == {study.sha256}
    quality.main([*common, "--report"])
    assert "Rates, tuned on two styles" in capsys.readouterr().out
    assert (tmp_path / "r.jsonl").read_text() == lines
    assert study.seconds_per_step("default", BUDGET, steps=2) > 0
    with pytest.raises(SystemExit, match="no rate was tuned yet for full"):
        quality.main([*common, "--phases", "main", "--methods", "full"])
