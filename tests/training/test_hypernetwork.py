"""Training a hypernetwork on a frozen model."""

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

import hyperbrush as hb
from hyperbrush.assets import style_folder
from hyperbrush.errors import UserError
from hyperbrush.ldm.data import ImageFolder
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.training import Interrupted, train_hypernetwork
from hyperbrush.training.attention.run import HypernetworkRun, read_run, train_run
from hyperbrush.training.loop.settings import save_run

DATA = style_folder() / "validation"


@pytest.fixture(scope="module")
def emoji() -> LatentDiffusion:
    return LatentDiffusion.from_pretrained("emoji")


def network(model: LatentDiffusion, **settings) -> hb.AttentionHypernetwork:
    torch.manual_seed(0)
    return hb.AttentionHypernetwork.for_unet(
        model.unet, name="t", layer_structure=(1, 1), activation="linear", **settings
    )


@cache
def few_pictures() -> Path:
    """Twenty of the pictures: what is encoded anew for each of so many runs."""
    folder = Path(tempfile.mkdtemp())
    for path in sorted(DATA.glob("*.png"))[:20]:
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize(
    ("widths", "config", "rate"),
    [
        ((128, 256), {}, 2e-3),
        ((768, 320, 640, 1280), {}, 4e-4),
        ((768, 1280), {"optimizer": "AdamW"}, None),  # torch's own class, at torch's rate
        ((768, 1280), {"optimizer": "prodigy"}, None),
        ((768, 1280), {"learning_rate": 1e-4}, 1e-4),
    ],
)
def test_the_usual_rate_goes_with_the_width(widths: tuple[int, ...], config: dict, rate: float | None):
    trainer = hb.HypernetworkTrainer(hb.AttentionHypernetwork(widths), config)
    assert trainer.config.learning_rate == (None if rate is None else pytest.approx(rate))


def train(model: LatentDiffusion, run: Path, *, resume: bool = False, stop_at: int | None = None, **config):
    hn = network(model)
    seen: list[int] = []

    def should_stop() -> bool:
        return stop_at is not None and len(seen) + 1 >= stop_at

    settings = {
        "max_steps": 6,
        "batch_size": 4,
        "validate_every": 3,
        "checkpoint_every": 2,
        "validation_share": 0.2,
        "log_every": 1,
    }
    trainer = hb.HypernetworkTrainer(
        hn, settings | config, run=run, on_progress=lambda p: seen.append(p.step), should_stop=should_stop
    )
    trainer.train(model, few_pictures(), resume=resume)
    return hn


def weights(hn: hb.AttentionHypernetwork) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in hn.parameters()])


FOUR = {"max_steps": 4, "validate_every": 4}


@pytest.fixture(scope="module")
def small(make_tiny: Callable[..., LatentDiffusion]) -> LatentDiffusion:
    """A tiny model of 32-pixel pictures, where only whether something changes is asked."""
    return make_tiny()


@pytest.fixture(scope="module")
def unchanged(small: LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    return weights(train(small, tmp_path_factory.mktemp("unchanged"), **FOUR))


def test_learns_and_leaves_the_model_alone(emoji: LatentDiffusion, tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in emoji.state_dict().items()}
    hn = train(emoji, tmp_path / "run", max_steps=12, learning_rate=3e-3, validate_every=4)
    assert all(torch.equal(before[k], v) for k, v in emoji.state_dict().items())
    assert not any(m._forward_pre_hooks for m in emoji.unet.modules())
    rows = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    valid = [r["validation_loss"] for r in rows if "validation_loss" in r]
    assert valid[-1] < rows[-1]["validation_base"], "twelve steps already help on this style"
    assert not hn.training


def test_resume_is_exact(emoji: LatentDiffusion, tmp_path: Path) -> None:
    whole = weights(train(emoji, tmp_path / "whole"))
    with pytest.raises(Interrupted) as stopped:
        train(emoji, tmp_path / "parts", stop_at=3)
    assert stopped.value.step == 3
    parts = weights(train(emoji, tmp_path / "parts", resume=True))
    assert torch.equal(whole, parts)
    again = train(emoji, tmp_path / "parts", resume=True)
    assert torch.equal(whole, weights(again)), "a finished run resumed gives its result again"


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 1e-4},
        {"weighting": "min_snr"},
        {"offset_noise": 0.1},
        {"perturbation": 0.1},
        {"condition_dropout": 1.0},
        {"timestep_sampling": "logit_normal"},
        {"seed": 1},
        {"schedule": "constant"},
        {"warmup_steps": 0},
        {"ema_decay": None},
        {"max_grad_norm": 1e-3},
        {"weight_decay": 10.0},
        {"flip": 0.0},
        {"target_layers": ["attn2"]},
        {"mixed_precision": "bf16"},
        {"size": 16},
        {"batch_size": 2},
        {"validation_share": 0.5},
        {"max_steps": 5},
        {"decay_from": 0.75, "warmup_steps": 0},
        {"schedule": "cosine_with_restarts", "num_cycles": 2, "warmup_steps": 0},
        {"size": [16, 32]},
        {"loss": "l1"},
        {"loss": "huber"},
        {"timestep_range": [0.0, 0.5]},
        {"optimizer": "lion"},
        {"optimizer_options": {"amsgrad": True}},
        {"betas": [0.5, 0.9]},
        {"eps": 1e-2},
        {"clip": "value", "max_grad_norm": 1e-4},
        {"blocks": ["mid"]},
        {"latent_sampling": "random"},
        {"crop": "random", "size": 16},
        {"captions": "none"},
        {"templates": "style"},
        {"trigger": "anna", "templates": "style_filewords"},
        {"caption_suffix": ", flat"},
        {"validate_every": 1, "patience": 1, "learning_rate": 1e-9},
    ],
    ids=str,
)
def test_each_setting_makes_a_difference(
    small: LatentDiffusion, tmp_path: Path, unchanged: torch.Tensor, change: dict
) -> None:
    assert not torch.equal(unchanged, weights(train(small, tmp_path, **(FOUR | change))))


def test_accumulation_and_gradient_checkpointing_change_nothing(
    emoji: LatentDiffusion, tmp_path: Path
) -> None:
    # With the usual eps, Adam divides what rounding leaves of zeros by hardly anything; and steps whose
    # timesteps make the UNet's own rounding large (5e-3 in fp32, 1e-12 in fp64) tell nothing.
    settings = {"max_steps": 3, "eps": 1e-3, "learning_rate": 1e-3, "timestep_sampling": "uniform"}
    base = weights(train(emoji, tmp_path / "a", **settings))
    parts = weights(train(emoji, tmp_path / "b", **settings, gradient_accumulation=2))
    fresh = LatentDiffusion.from_pretrained("emoji")
    spared = weights(train(fresh, tmp_path / "c", **settings, gradient_checkpointing=True))
    for other in (parts, spared):
        assert (base - other).norm() < 2e-3 * base.norm()


def test_epochs_previews_and_dataset(emoji: LatentDiffusion, tmp_path: Path) -> None:
    data = ImageFolder(DATA, size=64)
    hn = network(emoji)
    trainer = hb.HypernetworkTrainer(
        hn,
        {
            "max_epochs": 1,
            "batch_size": 32,
            "prompts": ["cat face"],
            "preview_every": 1,
            "validation_share": 0.0,
            "trackers": ["tensorboard"],
        },
        run=tmp_path,
    )
    trainer.train(emoji, data)
    assert [p.name for p in sorted((tmp_path / "previews").iterdir())] == [
        "step-00000001",
        "step-00000002",
    ]
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_one_documented_step(emoji: LatentDiffusion) -> None:
    hn = network(emoji)
    optimizer = torch.optim.SGD(hn.parameters(), lr=1.0)
    batch = {"latents": torch.randn(2, *emoji.latent_shape), "captions": ["cat face", "rocket"]}
    before = weights(hn)
    first = train_hypernetwork(emoji, batch, hn, optimizer, torch.Generator().manual_seed(0))
    assert not torch.equal(before, weights(hn))
    second = train_hypernetwork(emoji, batch, hn, optimizer, torch.Generator().manual_seed(0))
    assert second < first
    with pytest.raises(UserError, match="the loss is nan"):
        train_hypernetwork(
            emoji, batch | {"latents": torch.full((2, *emoji.latent_shape), torch.nan)}, hn, optimizer
        )


def test_run_from_a_config(tmp_path: Path, emoji: LatentDiffusion) -> None:
    config = HypernetworkRun.of(
        name="ink",
        data=str(DATA),
        hypernetworks=str(tmp_path / "library"),
        training={"max_steps": 4, "batch_size": 4, "validate_every": 2},
    )
    save_run(config, tmp_path / "run")
    assert read_run(tmp_path / "run") == config
    result = train_run(config, tmp_path / "run", model=emoji)
    assert result.file == tmp_path / "library/ink.safetensors"
    loaded = hb.load(result.file)
    assert loaded.name == "ink"
    assert loaded.step == result.best_step
    assert "hyperbrush generate" in result.summary()
    with pytest.raises(UserError, match="holds a run already; go on with --resume"):
        save_run(config, tmp_path / "run")


def test_wrong_settings_are_told_together(emoji: LatentDiffusion) -> None:
    with pytest.raises(UserError) as caught:
        hb.HypernetworkTrainer(network(emoji), {"learning_rte": 1, "batch_size": 0})
    assert "unknown setting 'learning_rte', did you mean 'learning_rate'?" in str(caught.value)
    assert "batch_size" in str(caught.value)
    with pytest.raises(UserError, match="expected a folder, several, or an ImageFolder"):
        hb.HypernetworkTrainer(network(emoji)).train(emoji, 3)


def test_a_loss_and_an_objective_of_ones_own(emoji: LatentDiffusion, tmp_path: Path) -> None:
    def with_own(name: str, **own) -> torch.Tensor:
        hn = network(emoji)
        settings = {"max_steps": 3, "batch_size": 4, "validate_every": 3, "keep_best": False}
        hb.HypernetworkTrainer(hn, settings, run=tmp_path / name, **own).train(emoji, DATA)
        return weights(hn)

    def fourth(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (prediction - target).pow(4)

    seen = []

    def whole(model: LatentDiffusion, batch) -> dict[str, torch.Tensor]:
        seen.append(sorted(batch))
        loss = model.losses(batch).mean()
        return {"loss": loss, "size": loss.detach() * 0}

    plain = with_own("plain")
    assert torch.equal(plain, with_own("named", loss=lambda a, b: (a - b).pow(2)))
    assert not torch.equal(plain, with_own("fourth", loss=fourth))
    assert torch.equal(plain, with_own("whole", compute=whole))
    assert "embeddings" in seen[0]
    assert "size" in json.loads((tmp_path / "whole/metrics.jsonl").read_text().splitlines()[0])
    with pytest.raises(UserError, match="expected the error of each element"):
        with_own("mean", loss=lambda a, b: (a - b).pow(2).mean())


def test_texts_that_do_not_fit_are_encoded_in_each_step(
    emoji: LatentDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = weights(train(emoji, tmp_path / "kept", max_steps=3))
    monkeypatch.setattr("hyperbrush.training.data.cached.TEXT_BYTES", 10)
    again = weights(train(emoji, tmp_path / "again", max_steps=3))
    torch.testing.assert_close(kept, again, atol=1e-4, rtol=0)


def test_held_out_pictures_may_differ_in_shape(emoji: LatentDiffusion, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, path in enumerate(sorted(DATA.glob("*.png"))[:20]):
        with Image.open(path) as picture:
            picture.convert("RGB").resize((64, 96 if number % 2 else 64)).save(folder / path.name)
    hn = network(emoji)
    settings = {
        "max_steps": 2,
        "batch_size": 2,
        "validate_every": 1,
        "buckets": "aspect",
        "validation_share": 0.4,
    }
    hb.HypernetworkTrainer(hn, settings, run=tmp_path / "run").train(emoji, folder)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(row["validation_base"] > 0 for row in rows)
