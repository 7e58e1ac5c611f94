"""Stable Diffusion XL's architecture at small widths."""

from pathlib import Path
from typing import Any

import pytest
import torch

import hyperbrush as hb
from hyperbrush.generation import generate
from hyperbrush.generation.opened import open_model
from hyperbrush.ldm.models import LatentDiffusion


@pytest.fixture
def xl(tokenizer: Any) -> Any:
    """A tiny `StableDiffusionXLPipeline`."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    text = {
        "vocab_size": len(tokenizer),
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": 24,
    }
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=56,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=8,
        sample_size=32,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        force_upcast=False,
    )
    pipe = StableDiffusionXLPipeline(
        vae=vae,
        unet=unet,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        add_watermarker=False,
        text_encoder=CLIPTextModel(CLIPTextConfig(hidden_size=32, **text)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=24, **text)),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            steps_offset=1,
            clip_sample=False,
            set_alpha_to_one=False,
        ),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any) -> torch.Tensor:
    return pipe(
        "cat face",
        num_inference_steps=3,
        guidance_scale=4.0,
        output_type="pt",
        generator=torch.Generator().manual_seed(3),
    ).images


def test_draws_what_the_pipeline_draws(xl: Any, tmp_path: Path) -> None:
    xl.save_pretrained(tmp_path / "xl")
    model = LatentDiffusion.from_pretrained(tmp_path / "xl")
    ours = model.sample(["cat face"], seeds=[3], steps=3, sampler="DDIM", guidance_scale=4.0)
    torch.testing.assert_close(ours, draw(xl), atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path / "again")
    again = LatentDiffusion.from_pretrained(tmp_path / "again")
    assert torch.equal(
        again.sample(["cat face"], seeds=[3], steps=1), model.sample(["cat face"], seeds=[3], steps=1)
    )
    torch.testing.assert_close(draw(model.pipeline()), draw(xl), atol=1e-5, rtol=0)


def test_plain_diffusers_draws_with_a_folder_in_half_precision(xl: Any, tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    xl.save_pretrained(tmp_path / "xl")
    LatentDiffusion.from_pretrained(tmp_path / "xl").save_pretrained(tmp_path / "half", dtype=torch.float16)
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path / "half")
    assert {pipe.unet.dtype, pipe.text_encoder.dtype, pipe.text_encoder_2.dtype} == {torch.float32}
    assert torch.isfinite(draw(pipe)).all()
    for config in (tmp_path / "half").rglob("*config.json"):
        assert str(tmp_path) not in config.read_text()


def test_trains_a_hypernetwork(xl: Any, pictures: Path, tmp_path: Path) -> None:
    hn = hb.AttentionHypernetwork.for_unet(xl.unet, name="xl")
    trainer = hb.HypernetworkTrainer(
        hn, {"max_steps": 2, "batch_size": 4, "condition_dropout": 0.5}, run=tmp_path
    )
    trainer.train(xl, pictures)
    assert any(p.detach().abs().max() > 0 for p in hn.parameters())
    hn.save(tmp_path / "networks/xl.safetensors")
    model = LatentDiffusion.from_pretrained
    xl.save_pretrained(tmp_path / "model")
    [picture] = generate(
        "cat face <hypernet:xl:1>",
        model=model(tmp_path / "model"),
        seed=1,
        steps=1,
        hypernetworks=tmp_path / "networks",
    )
    assert "projections reached: widths" in picture.notes[0]


def test_embeddings_draw_what_captions_draw(xl: Any, tmp_path: Path) -> None:
    from hyperbrush.errors import UserError
    from hyperbrush.generation.encoding import encode_prompts

    xl.save_pretrained(tmp_path / "xl")
    model = LatentDiffusion.from_pretrained(tmp_path / "xl")
    encoded, null = encode_prompts(model, ["cat face"]), encode_prompts(model, ["red"])
    settings: dict[str, Any] = {"seeds": [3], "steps": 2, "guidance_scale": 4.0}
    texts = {"embeddings": encoded.embeddings, "pooled_embeddings": encoded.pooled}
    nulls = {"negative_embeddings": null.embeddings, "negative_pooled_embeddings": null.pooled}
    by_captions = model.sample(["cat face"], negative="red", **settings)
    assert torch.equal(model.sample(**texts, **nulls, **settings), by_captions)
    assert torch.equal(model.sample(**texts, negative="red", **settings), by_captions)
    with pytest.raises(UserError, match="need pooled_embeddings too"):
        model.sample(embeddings=encoded.embeddings, **settings)
    with pytest.raises(UserError, match="need negative_pooled_embeddings too"):
        model.sample(**texts, negative_embeddings=null.embeddings, **settings)
    with pytest.raises(UserError, match="2 pooled_embeddings for 1 embeddings"):
        model.sample(**(texts | {"pooled_embeddings": encoded.pooled.repeat(2, 1)}), **settings)


def test_its_first_stage_stays_wide_in_half_precision(xl: Any, tmp_path: Path, tiny_folder: Path) -> None:
    xl.save_pretrained(tmp_path / "xl")
    model = open_model(tmp_path / "xl", precision="fp16").model
    assert (model.unet.dtype, model.first_stage.dtype) == (torch.float16, torch.float32)
    assert torch.isfinite(model.decode(torch.randn(1, 4, 16, 16, dtype=torch.float32))).all()
    other = open_model(tiny_folder, precision="fp16").model
    assert other.first_stage.dtype == torch.float16
