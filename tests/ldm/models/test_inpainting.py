"""Inpainting models and tiny first stages: drawn, saved and opened as diffusers' own pipelines do it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from hyperbrush.cli import main
from hyperbrush.commands.doctor import examine
from hyperbrush.errors import UserError
from hyperbrush.generation import generate
from hyperbrush.hypernetworks import AttentionHypernetwork, attach
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.diffusion_model import build_unet
from hyperbrush.ldm.models.inpainting import masked_input, random_mask
from hyperbrush.ldm.util import keyed_generator

pytestmark = pytest.mark.filterwarnings("ignore")
Make = Callable[..., LatentDiffusion]


def unet(extra: int = 5) -> torch.nn.Module:
    torch.manual_seed(1)
    return build_unet(
        latent_dim=4,
        sample_size=16,
        channels=(32, 64),
        attention_resolutions=[8],
        num_heads=4,
        layers_per_block=1,
        context_dim=32,
        extra_channels=extra,
    )


@pytest.fixture
def painter(make_tiny: Make) -> LatentDiffusion:
    """A model for inpainting, of diffusers' own parts."""
    return make_tiny(unet=unet(), prediction="epsilon").eval()


@pytest.fixture
def small(make_tiny: Make) -> LatentDiffusion:
    """A model with diffusers' tiny first stage."""
    torch.manual_seed(2)
    stage = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        scaling_factor=0.7,
    )
    return make_tiny(first_stage=stage, scale_factor=0.7).eval()


def scene(count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures in [0, 1] and a mask whose edges lie between the latents' places."""
    image = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(count, 1, 32, 32)
    mask[..., 5:20, 8:27] = 1
    return image, mask


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_it_draws_as_diffusers_does(
    painter: LatentDiffusion, strength: float, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """StableDiffusionInpaintPipeline, but for its draws from the posterior."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    image, mask = scene(2)
    pipe = painter.pipeline()
    assert type(pipe) is diffusers.StableDiffusionInpaintPipeline
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        ["red square", "cat face"],
        image=image,
        mask_image=mask,
        height=32,
        width=32,
        strength=strength,
        num_inference_steps=5,
        guidance_scale=scale,
        generator=[torch.Generator().manual_seed(s) for s in (7, 8)],
        output_type="latent",
    ).images
    settings: dict[str, Any] = {"seeds": [7, 8], "steps": 5, "sampler": "DDIM", "guidance_scale": scale}
    made = painter.sample(
        ["red square", "cat face"],
        image=image,
        mask=mask,
        image_strength=strength,
        output="latents",
        **settings,
    )
    assert float((made - expected).norm() / expected.norm()) < 1e-5
    other = painter.sample(
        ["red square", "cat face"],
        image=image,
        mask=1 - mask,
        image_strength=strength,
        output="latents",
        **settings,
    )
    assert float((other - expected).norm() / expected.norm()) > 1e-2
    # Of the pixels, what is kept is the original's.
    drawn = painter.sample(["red square", "cat face"], image=image, mask=mask, **settings)
    torch.testing.assert_close(drawn * (1 - mask), image * (1 - mask))


def test_without_a_mask_all_is_drawn_anew(painter: LatentDiffusion) -> None:
    """As in the webui: a white mask over a grey picture; from text alone and with a picture to start from."""
    grey = torch.full((1, 3, 32, 32), 0.5)
    plain = painter.sample(["red square"], steps=2, output="latents")
    told = painter.sample(
        ["red square"],
        image=grey,
        mask=torch.ones(1, 1, 32, 32),
        image_strength=1.0,
        steps=2,
        output="latents",
    )
    torch.testing.assert_close(plain, told)
    started = painter.sample(["red square"], image=scene()[0], steps=4, image_strength=0.5, output="latents")
    assert started.isfinite().all()
    wide = painter.sample(["red square"], steps=2, size=(32, 64))
    assert wide.shape == (1, 3, 32, 64)


def test_generate_tags_and_doctor(painter: LatentDiffusion, tmp_path: Path) -> None:
    from PIL import Image

    torch.manual_seed(0)
    network = AttentionHypernetwork.for_unet(painter.unet, name="ink", weight_init="XavierNormal")
    network.save(tmp_path / "ink.safetensors")
    painter.save_pretrained(tmp_path / "model")
    image, mask = scene()
    Image.fromarray((image[0] * 255).byte().permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    Image.fromarray((mask[0, 0] * 255).byte().numpy()).save(tmp_path / "m.png")
    common: dict[str, Any] = {
        "model": tmp_path / "model",
        "image": tmp_path / "a.png",
        "mask": tmp_path / "m.png",
        "seed": 1,
        "steps": 3,
        "hypernetworks": tmp_path,
    }
    bare, told = (
        generate(prompt, **common)[0].image.tobytes()
        for prompt in ("red [square:heart:0.5]", "red <hypernet:ink:1>")
    )
    assert bare != told
    assert generate("red square", model=painter, steps=2, seed=1)[0].image.size == (32, 32)
    found = examine(painter, [tmp_path / "ink.safetensors"], prompts=["red square"], steps=2, pairs=1)
    assert not found.wrong
    out = tmp_path / "out.png"
    folder, picture, hole = tmp_path / "model", tmp_path / "a.png", tmp_path / "m.png"
    command = f"generate red --model {folder} --image {picture} --mask {hole} --steps 2 --out {out}"
    with pytest.raises(SystemExit) as end:
        main(command.split())
    assert not end.value.code
    assert out.is_file()


def test_folders_and_files_open_again(painter: LatentDiffusion, tmp_path: Path) -> None:
    painter.save_pretrained(tmp_path / "m")
    index = json.loads((tmp_path / "m" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInpaintPipeline"
    image, mask = scene()
    settings: dict[str, Any] = {"image": image, "mask": mask, "steps": 2, "output": "latents"}
    expected = painter.sample(["cat face"], **settings)
    again = LatentDiffusion.from_pretrained(tmp_path / "m")
    assert torch.equal(again.sample(["cat face"], **settings), expected)
    theirs = diffusers.StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "m")
    theirs.save_pretrained(tmp_path / "theirs")  # a folder that diffusers wrote
    assert not (tmp_path / "theirs" / "hyperbrush.json").exists()
    other = LatentDiffusion.from_pretrained(tmp_path / "theirs")
    assert other.inpaints
    assert torch.equal(other.sample(["cat face"], **settings), expected)


def test_other_special_models_are_named(painter: LatentDiffusion) -> None:
    pipe = painter.pipeline()
    for extra, what in (
        (4, "an instruct-pix2pix model"),
        (1, "a depth-to-image model"),
        (2, "another kind of"),
    ):
        pipe.unet = unet(extra)
        with pytest.raises(UserError, match=f"{what}.*reads {4 + extra} channels.*or 9 for inpainting"):
            generate("red", model=pipe, steps=1)
        with attach(
            pipe, AttentionHypernetwork.for_unet(pipe.unet)
        ) as attached:  # for drawing with diffusers
            assert attached.applied.sites


def test_a_step_is_told_what_is_missing(painter: LatentDiffusion) -> None:
    image, mask = scene(2)
    batch = {"images": image * 2 - 1, "captions": ["red square"] * 2}

    def loss(masks: torch.Tensor) -> torch.Tensor:
        return painter.losses(batch | {"inpaint_masks": masks}, torch.Generator().manual_seed(0))

    # diffusers' example: the masked picture is grey where the mask is white, the mask small by its nearest places.
    kept = painter.encode((image * 2 - 1) * (mask < 0.5))
    small = mask[..., ::2, ::2]
    torch.testing.assert_close(masked_input(painter, image * 2 - 1, mask), torch.cat([small, kept], 1))
    assert not torch.equal(loss(mask), loss(torch.ones_like(mask)))
    torch.testing.assert_close(
        painter(image * 2 - 1, torch.Generator().manual_seed(0)),
        painter(
            batch | {"captions": ["", ""], "inpaint_masks": torch.ones_like(mask)},
            torch.Generator().manual_seed(0),
        ),
    )
    with pytest.raises(UserError, match="needs 'images' and 'inpaint_masks'"):
        painter.losses(batch)
    with pytest.raises(
        UserError, match=r"inpaint_masks have shape \(2, 1, 16, 16\); expected \(2, 1, 32, 32\)"
    ):
        loss(mask[..., ::2, ::2])
    with pytest.raises(UserError, match="this UNet reads 9 channels and got 4"):
        painter.diffusion(torch.zeros(1, 4, 16, 16), torch.tensor(3))


def test_random_masks() -> None:
    """Rectangles and ellipses of all sizes anywhere, wholly within the picture."""
    masks = torch.stack([random_mask((24, 40), keyed_generator(0, "m", i)) for i in range(400)])
    assert masks.shape == (400, 1, 24, 40)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    shares = masks.mean(dim=(1, 2, 3))
    assert float(shares.min()) < 0.02
    assert float(shares.max()) > 0.8
    assert 0.15 < float(shares.mean()) < 0.35  # a quarter, or π/4 of it for ellipses
    everywhere = masks.mean(dim=0)[0]
    assert float(everywhere.min()) > 0
    assert float(everywhere[12, 20]) > float(everywhere[0, 0])
    full = [bool(m[0].all(0).any()) for m in masks]  # from top to bottom
    assert any(full)
    assert not all(full)
    # A rectangle fills its bounding box, an ellipse does not.
    boxes = 0
    for mask in masks[:, 0]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        boxes += bool(
            mask.any() and mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
        )
    assert 150 < boxes < 280


def test_a_tiny_first_stage(small: LatentDiffusion, tmp_path: Path) -> None:
    image, mask = scene()
    latents = small.encode(image * 2 - 1, torch.Generator().manual_seed(0))
    stage: Any = small.first_stage
    torch.testing.assert_close(latents, stage.encode(image * 2 - 1).latents * 0.7)
    torch.testing.assert_close(small.decode(latents), stage.decode(latents / 0.7).sample)
    assert latents.shape == (1, 4, 16, 16)
    pipe = small.pipeline()
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        "red square",
        height=32,
        width=32,
        num_inference_steps=4,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images
    made = small.sample(["red square"], seeds=[5], steps=4, sampler="DDIM")
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)
    assert small.sample(["red square"], image=image, mask=mask, steps=3).isfinite().all()
    assert generate("red square", model=pipe, steps=2, seed=1, image=None)[0].image.size == (32, 32)
    small.save_pretrained(tmp_path / "m")
    again = LatentDiffusion.from_pretrained(tmp_path / "m")
    assert type(again.first_stage) is diffusers.AutoencoderTiny
    assert again.scale_factor == 0.7
    assert torch.equal(again.sample(["red square"], seeds=[5], steps=4, sampler="DDIM"), made)
    plain = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "m")
    plain.save_pretrained(tmp_path / "theirs")
    other = LatentDiffusion.from_pretrained(tmp_path / "theirs")
    assert torch.equal(other.sample(["red square"], seeds=[5], steps=4, sampler="DDIM"), made)
    assert not examine(small, [], prompts=["red square"], steps=2).wrong
    found = small.measure_scale(torch.rand(4, 3, 32, 32) * 2 - 1)
    assert found > 0
