"""LatentDiffusion: as written in the design, every condition, every form of a batch."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from hyperbrush.errors import UserError
from hyperbrush.ldm.models import LatentDiffusion, train_step

Maker = Callable[..., LatentDiffusion]
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
TEXTS = ["red square", "cat face"]


def test_the_call_in_the_design_works() -> None:
    from hyperbrush.ldm.modules.attention_sites import attention_sites

    model = LatentDiffusion(latent_dim=4, attention_resolutions=[8, 16, 32], num_heads=8)
    assert (model.image_size, model.latent_shape) == (512, (4, 64, 64))
    assert {s.block for s in attention_sites(model.unet)} == {
        "down.1",
        "down.2",
        "down.3",
        "mid",
        "up.0",
        "up.1",
        "up.2",
    }
    assert all(s.heads == 8 for s in attention_sites(model.unet))
    assert model.encoder is model.first_stage.encoder
    assert model.diffusion.unet is model.unet
    loss = model({"latents": torch.randn(1, 4, 16, 16), "captions": ["cat face"]})
    assert loss.ndim == 0


CONDITIONS = {
    "text": ({}, {"captions": TEXTS}),
    "none": ({}, {}),
    "class": ({"num_classes": 3}, {"class_labels": torch.tensor([0, 2])}),
    "image": ({"image_channels": 4}, {"condition_images": torch.randn(2, 4, 16, 16)}),
}


@pytest.mark.parametrize("kind", CONDITIONS)
@pytest.mark.parametrize("stage", ["kl", "vq"])
def test_every_condition_trains_and_samples(make_tiny: Maker, kind: str, stage: str) -> None:
    settings, condition = CONDITIONS[kind]
    model = make_tiny(conditioning=kind, first_stage=stage, **settings)
    optimizer = torch.optim.AdamW(model.unet.parameters(), 1e-3)
    before = model.unet.conv_in.weight.clone()
    loss = train_step(
        model,
        {"images": IMAGES, **condition},
        optimizer,
        torch.Generator().manual_seed(0),
        condition_dropout=0.5,
    )
    assert loss > 0
    assert not torch.equal(before, model.unet.conv_in.weight)
    arguments = dict(condition) if kind != "text" else {"captions": TEXTS}
    made = model.sample(count=2, steps=2, guidance_scale=2.0, **arguments)
    assert made.shape == (2, 3, 32, 32)
    assert 0 <= float(made.min()) <= float(made.max()) <= 1


@pytest.mark.parametrize("kind", ["text", "class", "image"])
def test_the_condition_matters_and_can_be_dropped(make_tiny: Maker, kind: str) -> None:
    settings, condition = CONDITIONS[kind]
    model = make_tiny(conditioning=kind, **settings)
    nn.init.normal_(model.unet.conv_out.weight)

    def loss(keep: bool) -> torch.Tensor:
        drawn = model.draw((2, 4, 16, 16), torch.Generator().manual_seed(1))
        return model.losses({"images": IMAGES, **condition, **drawn, "keep": torch.full((2,), keep)})

    assert not torch.allclose(loss(True), loss(False))
    torch.testing.assert_close(loss(True), loss(True))


def test_forms_of_a_batch_agree(tiny: LatentDiffusion) -> None:
    drawn = tiny.draw((2, 4, 16, 16), torch.Generator().manual_seed(0))
    latents = tiny.encode(IMAGES).detach()
    by_images = tiny.losses({"images": IMAGES, "captions": TEXTS, **drawn})
    by_latents = tiny.losses({"latents": latents, "captions": TEXTS, **drawn})
    by_states = tiny.losses({"latents": latents, "embeddings": tiny.encode_text(TEXTS), **drawn})
    means = {"latent_means": latents / tiny.scale_factor, "captions": TEXTS}
    torch.testing.assert_close(by_images, by_latents)
    torch.testing.assert_close(by_images, by_states)
    torch.testing.assert_close(by_images, tiny.losses(means | drawn))
    with_std = means | {"latent_stds": torch.ones(2, 4, 16, 16), "sample_latents": True}
    assert not torch.allclose(by_images, tiny.losses(with_std | drawn, torch.Generator().manual_seed(5)))


@pytest.mark.parametrize(
    "change",
    [
        {"offset_noise": 0.5},
        {"perturbation": 0.5},
        {"timestep_range": (0, 10)},
        {"timestep_sampling": "stratified"},
        {"weighting": "min_snr"},
        {"condition_dropout": 1.0},
    ],
    ids=str,
)
def test_settings_of_the_loss_matter(tiny: LatentDiffusion, change: dict) -> None:
    nn.init.normal_(tiny.unet.conv_out.weight)
    batch = {"images": IMAGES, "captions": TEXTS}
    plain = tiny.losses(batch, torch.Generator().manual_seed(0))
    assert not torch.allclose(plain, tiny.losses(batch, torch.Generator().manual_seed(0), **change))


def test_masks_weigh_places(tiny: LatentDiffusion) -> None:
    drawn = tiny.draw((2, 4, 16, 16), torch.Generator().manual_seed(0))
    batch = {"images": IMAGES, "captions": TEXTS, **drawn}
    half = torch.zeros(2, 1, 16, 16)
    half[..., :8] = 1
    plain = tiny.losses(batch)
    torch.testing.assert_close(plain, tiny.losses(batch | {"masks": torch.ones(2, 1, 16, 16)}))
    assert not torch.allclose(plain, tiny.losses(batch | {"masks": half}))


def test_what_is_missing_is_named(make_tiny: Maker, tiny: LatentDiffusion) -> None:
    with pytest.raises(UserError, match="needs 'images', 'latents' or 'latent_means'; got \\['captions'\\]"):
        tiny({"captions": TEXTS})
    with pytest.raises(UserError, match="needs 'captions' or 'embeddings'"):
        tiny({"images": IMAGES})
    with pytest.raises(UserError, match="conditioned by 'none' and reads no captions"):
        make_tiny(conditioning="none").encode_text(TEXTS)
    with pytest.raises(UserError, match="needs num_classes"):
        make_tiny(conditioning="class")
    with pytest.raises(UserError, match="did you mean 'text'"):
        make_tiny(conditioning="txt")
    with pytest.raises(UserError, match="match no level.*16, 8.*wide"):
        make_tiny(attention_resolutions=[32])
    with pytest.raises(UserError, match="num_heads=5 does not divide"):
        make_tiny(num_heads=5)
    with pytest.raises(UserError, match="unknown first stage 'vae'"):
        make_tiny(first_stage="vae")
    with pytest.raises(UserError, match="zero terminal SNR"):
        make_tiny(prediction="epsilon", zero_terminal_snr=True)
    with pytest.raises(UserError, match="3 seeds for 2 pictures"):
        tiny.sample(TEXTS, seeds=[1, 2, 3])
    with pytest.raises(UserError, match="multiples of 4 pixels"):
        tiny.sample(TEXTS, size=(30, 32))


def test_scale_is_one_over_std(tiny: LatentDiffusion) -> None:
    scale = tiny.measure_scale(IMAGES)
    assert float(tiny.encode(IMAGES).detach().std()) == pytest.approx(1.0, rel=1e-4)
    assert tiny.first_stage.config.scaling_factor == scale
    back = tiny.decode(tiny.encode(IMAGES))
    torch.testing.assert_close(back, tiny.first_stage(IMAGES).sample, atol=1e-4, rtol=1e-3)
    assert not torch.equal(tiny.encode(IMAGES), tiny.encode(IMAGES, torch.Generator().manual_seed(0)))


def test_train_step_learns_and_refuses_nan(tiny: LatentDiffusion) -> None:
    optimizer = torch.optim.AdamW(tiny.unet.parameters(), 3e-3)
    batch = {"images": IMAGES, "captions": TEXTS}
    losses = [train_step(tiny, batch, optimizer, torch.Generator().manual_seed(0)) for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0]
    weight = tiny.unet.conv_in.weight.clone()
    with pytest.raises(UserError, match="the loss is nan: lower the learning rate"):
        train_step(tiny, batch | {"images": IMAGES * torch.nan}, optimizer)
    assert torch.equal(weight, tiny.unet.conv_in.weight)


def test_zero_terminal_snr_model_samples(make_tiny: Maker) -> None:
    model = make_tiny(zero_terminal_snr=True)
    assert model.sample(TEXTS, steps=3).isfinite().all()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"first_stage": "vq"},
        {"conditioning": "none"},
        {"conditioning": "class", "num_classes": 2},
        {"schedule": "cosine"},
        {"prediction": "epsilon"},
        {"zero_terminal_snr": True},
    ],
    ids=str,
)
def test_saved_and_opened_again(make_tiny: Maker, tmp_path: Path, settings: dict) -> None:
    model = make_tiny(**settings)
    model.scale_factor = 0.37
    model.known_words = frozenset({"red", "cat"})
    model.save_pretrained(tmp_path / "model")
    again = LatentDiffusion.from_pretrained(tmp_path / "model")
    theirs = again.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in model.state_dict().items())
    assert (again.scale_factor, again.conditioning, again.known_words) == (
        0.37,
        model.conditioning,
        model.known_words,
    )
    assert again.diffusion.prediction == model.diffusion.prediction
    torch.testing.assert_close(
        again.diffusion.schedule.alphas_cumprod, model.diffusion.schedule.alphas_cumprod
    )
    half = tmp_path / "half"
    model.save_pretrained(half, dtype=torch.float16)
    assert model.dtype == torch.float32
    assert (half / "unet/diffusion_pytorch_model.safetensors").stat().st_size < 0.6 * (
        tmp_path / "model/unet/diffusion_pytorch_model.safetensors"
    ).stat().st_size


def test_plain_diffusers_opens_the_folder(tiny: LatentDiffusion, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    tiny.save_pretrained(tmp_path / "model")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        "cat face",
        num_inference_steps=3,
        guidance_scale=4.0,
        output_type="pt",
        generator=torch.Generator().manual_seed(3),
    ).images
    ours = LatentDiffusion.from_pretrained(tmp_path / "model").sample(
        ["cat face"], seeds=[3], steps=3, sampler="DDIM"
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    by_parts = tiny.pipeline()
    assert by_parts.unet is tiny.unet


def test_a_foreign_diffusers_folder_opens(tiny: LatentDiffusion, tmp_path: Path) -> None:
    tiny.pipeline().save_pretrained(tmp_path / "model")
    again = LatentDiffusion.from_pretrained(tmp_path / "model")
    assert torch.equal(again.unet.conv_in.weight, tiny.unet.conv_in.weight)
    assert again.sample(["cat face"], steps=1).shape == (1, 3, 32, 32)


def test_what_cannot_be_opened_is_said(make_tiny: Maker, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, message in (
        ("emojy", "unknown model 'emojy'"),
        (tmp_path / "none", "unknown model"),
        (tmp_path / "empty", "no model_index.json"),
        (str(tmp_path / "x.ckpt"), "unknown model"),
    ):
        with pytest.raises(UserError, match=message):
            LatentDiffusion.from_pretrained(source)
    with pytest.raises(UserError, match="cannot fetch model 'nobody/nothing'"):
        LatentDiffusion.from_pretrained("nobody/nothing")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(UserError, match="cannot open the model"):
        LatentDiffusion.from_pretrained(tmp_path / "broken")
    with pytest.raises(UserError, match="needs a text condition and a first stage without a codebook"):
        make_tiny(conditioning="none").pipeline()


def test_a_full_disk_leaves_the_old_model(
    tiny: LatentDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hyperbrush.ldm.models.loading as loading

    tiny.save_pretrained(tmp_path / "model")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loading, "write_json", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
        tiny.save_pretrained(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert LatentDiffusion.from_pretrained(tmp_path / "model")


def test_a_condition_that_does_not_fit_is_named(make_tiny: Maker, tiny: LatentDiffusion) -> None:
    labelled, plain = make_tiny(conditioning="class", num_classes=3), make_tiny(conditioning="none")
    latents = torch.zeros(1, 4, 16, 16)
    with pytest.raises(UserError, match=r"by 'class' needs 'class_labels'; got \['latents'\]"):
        labelled({"latents": latents})
    with pytest.raises(UserError, match=r"by 'image' needs 'condition_images'"):
        make_tiny(conditioning="image")({"latents": latents})
    with pytest.raises(UserError, match=r"class labels \[3\] are not all within 0 to 2"):
        labelled.sample(class_labels=torch.tensor([3]), steps=1)
    with pytest.raises(UserError, match="conditioned by 'none' and reads no captions"):
        plain.sample(TEXTS, steps=1)
    with pytest.raises(UserError, match="1 negative texts for 2 pictures"):
        tiny.sample(TEXTS, negative=["blue"], steps=1)
    with pytest.raises(UserError, match="unknown output 'latent'; did you mean 'latents'"):
        tiny.sample(TEXTS, output="latent", steps=1)
    assert torch.equal(tiny.sample("cat face", steps=1), tiny.sample(["cat face"], steps=1))


@pytest.mark.parametrize(
    "part",
    [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "hyperbrush.json",
    ],
)
def test_a_broken_part_is_one_clear_error(tiny: LatentDiffusion, tmp_path: Path, part: str) -> None:
    tiny.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / part
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"cannot open the model in .*model: "):
        LatentDiffusion.from_pretrained(tmp_path / "model")


def test_old_programs_can_read_the_text_side(tiny: LatentDiffusion, tmp_path: Path) -> None:
    from safetensors import safe_open

    tiny.save_pretrained(tmp_path / "model")
    with safe_open(tmp_path / "model/text_encoder/model.safetensors", framework="pt") as file:
        assert all(key.startswith("text_model.") for key in file.keys())  # noqa: SIM118
    assert (tmp_path / "model/tokenizer/merges.txt").read_text().startswith("#version")
    vocabulary = json.loads((tmp_path / "model/tokenizer/vocab.json").read_text())
    assert len(vocabulary) == len(tiny.tokenizer)


def test_pictures_in_and_latents_or_the_loss_out(make_tiny: Maker) -> None:
    """`model.encoder.encode(x)` and `model(x)`, as the class is sketched."""
    import copy

    model = make_tiny()
    x = IMAGES
    model.scale_factor = 0.5
    z = model.encoder.encode(x)
    assert torch.equal(z, model.encode(x))
    drawn = model.encoder.encode(x, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, model.encode(x, torch.Generator().manual_seed(0)))
    assert not torch.equal(drawn, z)

    loss = model(x, torch.Generator().manual_seed(0))
    told = {"images": x, "captions": ["", ""]}
    assert torch.equal(loss, model(told, torch.Generator().manual_seed(0)))
    loss.backward()

    twin = copy.deepcopy(model)
    with pytest.raises(UserError, match="copy without its first stage"):
        twin.first_stage.encoder.encode(x)
    with torch.no_grad():
        next(twin.first_stage.parameters()).add_(0.1)
    assert torch.equal(model.encoder.encode(x), z)
    assert torch.equal(twin.encoder.encode(x), twin.encode(x))
    assert not torch.equal(twin.encoder.encode(x), z)
    assert set(model.state_dict()) == set(twin.state_dict())

    for wrong in (torch.rand(3, 64, 64), torch.rand(2, 4, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(UserError, match=r"expected \(batch, 3, height, width\) in \[-1, 1\]"):
            model(wrong)


def test_pictures_alone_for_other_conditions(make_tiny: Maker) -> None:
    x = IMAGES
    torch.manual_seed(0)
    assert make_tiny(conditioning="none")(x).isfinite()
    model = make_tiny(conditioning="class", num_classes=3)
    seen = []
    model.unet.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["class_labels"]), with_kwargs=True
    )
    model(x)
    assert seen[0].tolist() == [model.null_label] * 2
    with pytest.raises(UserError, match="'condition_images'"):
        make_tiny(conditioning="image")(x)
