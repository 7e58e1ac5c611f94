"""Drawing: embeddings in place of captions, pictures to start from, the scheduler while it runs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.generation.encoding import encode_prompts
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.text import same_length
from hyperbrush.ldm.sampling.samplers import SAMPLERS

TEXTS = ["red square", "cat face"]


@pytest.fixture
def model(make_tiny: Callable[..., LatentDiffusion]) -> LatentDiffusion:
    """A tiny model whose pictures depend on what it is told."""
    built = make_tiny().eval()
    generator = torch.Generator().manual_seed(5)
    for name, parameter in built.unet.named_parameters():
        if "attn2" in name or "conv_out" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return built


def test_embeddings_draw_what_captions_draw(model: LatentDiffusion) -> None:
    settings: dict[str, Any] = {"seeds": [3, 4], "steps": 3, "guidance_scale": 3.0, "negative": "blue"}
    by_captions = model.sample(TEXTS, **settings)
    with torch.no_grad():
        states, null = model.encode_text(TEXTS), model.encode_text(["blue", "blue"])
    assert torch.equal(model.sample(embeddings=states, **settings), by_captions)
    del settings["negative"]
    assert torch.equal(model.sample(embeddings=states, negative_embeddings=null, **settings), by_captions)
    assert not torch.equal(model.sample(embeddings=states, **settings), by_captions)
    other = model.sample(embeddings=states.flip(0), negative_embeddings=null, **settings)
    assert not torch.allclose(other, by_captions)
    bare = {"seeds": [3, 4], "steps": 3, "guidance_scale": 1.0}
    assert torch.equal(model.sample(embeddings=states, **bare), model.sample(TEXTS, **bare))


def test_two_lengths_of_text_are_each_seen_as_alone(model: LatentDiffusion) -> None:
    long = encode_prompts(model, ["red BREAK cat BREAK heart"]).embeddings
    null = encode_prompts(model, ["blue"]).embeddings
    assert long.shape[1] == 3 * null.shape[1]
    latents, time = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor(500)
    with torch.no_grad():
        u, c = (model.diffusion(latents, time, context=context) for context in (null, long))
        repeated, same = same_length(null, long)
        torch.testing.assert_close(model.diffusion(latents, time, context=repeated), u)
    assert torch.equal(same, long)
    assert not torch.allclose(u, c, atol=1e-2)
    settings: dict[str, Any] = {"steps": 1, "guidance_scale": 3.0, "output": "latents", "sampler": "Euler"}
    out = model.sample(embeddings=long, negative_embeddings=null, **settings)
    torch.testing.assert_close(
        out, model.sample(embeddings=long, negative_embeddings=repeated, **settings), atol=3e-5, rtol=0
    )
    two, three = same_length(torch.rand(1, 32, 4), torch.rand(1, 48, 4))
    assert two.shape == three.shape == (1, 96, 4)


@pytest.mark.parametrize(
    "sampler", [name for name, one in SAMPLERS.items() if "v_prediction" in one.predictions]
)
def test_the_scheduler_is_there_while_it_runs(model: LatentDiffusion, sampler: str) -> None:
    assert model.scheduler is None
    seen: list[tuple[bool, int]] = []
    forward = model.unet.forward

    def watch(sample: Any, timestep: Any, *rest: Any, **options: Any) -> Any:
        timesteps = model.scheduler.timesteps
        seen.append((float(timestep) in timesteps.tolist(), len(timesteps)))
        return forward(sample, timestep, *rest, **options)

    model.unet.forward = watch
    model.sample("cat face", steps=4, sampler=sampler)
    assert model.scheduler is None
    assert len(seen) >= 4
    if sampler == "DPM adaptive":  # it chooses its levels as it goes: the first alone is known before
        assert seen[0][0]
    else:
        assert all(known for known, _ in seen)


def test_the_scheduler_goes_when_sampling_fails(model: LatentDiffusion) -> None:
    def stop(*_: object) -> None:
        assert model.scheduler is not None
        raise KeyboardInterrupt

    model.train()
    with pytest.raises(KeyboardInterrupt):
        model.sample("cat face", steps=4, on_step=stop)
    assert model.scheduler is None
    assert model.training


def test_starts_from_a_picture(model: LatentDiffusion) -> None:
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    told: list[tuple[int, int]] = []
    settings: dict[str, Any] = {"steps": 10, "guidance_scale": 1.0, "output": "latents", "image": image}
    start = model.encode(image * 2 - 1).detach()
    little = model.sample(
        TEXTS, **settings, image_strength=0.1, on_step=lambda done, of, _: told.append((done, of))
    )
    much = model.sample(TEXTS, **settings, image_strength=0.8)
    assert told == [(1, 1)]
    assert (little - start).norm() < 0.5 * (much - start).norm()
    assert model.sample(TEXTS, steps=2, image=image[..., :16], image_strength=0.5).shape == (2, 3, 32, 16)
    alone = model.sample(TEXTS[:1], **(settings | {"image": image[:1]}), image_strength=0.8, seeds=[0])
    torch.testing.assert_close(alone, much[:1], atol=1e-4, rtol=1e-4)


def test_a_mask_keeps_its_part_to_the_bit(model: LatentDiffusion) -> None:
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, 32, 32)
    mask[..., 16:] = 1
    drawn = model.sample(TEXTS, steps=3, image=image, image_strength=1.0, mask=mask)
    assert (drawn[..., :16] == image[..., :16]).all()
    assert (drawn[..., 16:] - image[..., 16:]).abs().mean() > 0.05
    half = model.sample(TEXTS, steps=3, image=image, image_strength=1.0, mask=mask / 2)
    assert (half[..., 16:] - image[..., 16:]).abs().mean() < (drawn[..., 16:] - image[..., 16:]).abs().mean()


def test_webui_discretisation_draws_another_picture(model: LatentDiffusion) -> None:
    pictures = [
        model.sample("cat face", steps=5, sampler="Euler", discretisation=d) for d in ("diffusers", "webui")
    ]
    assert not torch.allclose(*pictures)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embeddings": torch.zeros(1, 5, 99)}, r"embeddings have shape \(1, 5, 99\).*\(batch, tokens, 32\)"),
        ({"embeddings": torch.zeros(5, 32)}, r"embeddings have shape \(5, 32\)"),
        ({"captions": "a", "embeddings": torch.zeros(1, 5, 32)}, "give one of them"),
        (
            {"embeddings": torch.zeros(2, 5, 32), "negative_embeddings": torch.zeros(1, 5, 32)},
            "1 negative_embeddings for 2 pictures",
        ),
        (
            {"captions": "a", "negative_embeddings": torch.zeros(1, 5, 8)},
            r"negative_embeddings have shape \(1, 5, 8\)",
        ),
        (
            {"embeddings": torch.zeros(1, 5, 32), "pooled_embeddings": torch.zeros(1, 8)},
            "reads no pooled_embeddings",
        ),
        ({"captions": "a", "negative_pooled_embeddings": torch.zeros(1, 8)}, "negative_embeddings too"),
        ({"captions": "a", "image": torch.zeros(2, 3, 32, 32)}, r"\(2, 3, 32, 32\); expected \(1, 3, H, W\)"),
        ({"captions": "a", "image": torch.zeros(1, 3, 30, 32)}, "multiples of 4 pixels"),
        (
            {"captions": "a", "image": torch.zeros(1, 3, 32, 32), "size": (16, 32)},
            "size 32x16 is not the image's, 32x32",
        ),
        (
            {"captions": "a", "image": torch.zeros(1, 3, 32, 32), "image_strength": 0.1},
            "strength 0.1 of 2 steps leaves none",
        ),
        ({"captions": "a", "mask": torch.ones(1, 1, 32, 32)}, "a mask needs an image"),
        (
            {"captions": "a", "image": torch.zeros(1, 3, 32, 32), "mask": torch.ones(1, 1, 8, 8)},
            r"mask has shape \(1, 1, 8, 8\); expected \(1, 1, 32, 32\)",
        ),
        (
            {"captions": "a", "image": torch.zeros(1, 3, 32, 32), "mask": torch.zeros(1, 1, 32, 32)},
            "the mask is black everywhere",
        ),
        ({"captions": "a", "discretisation": "web"}, "unknown discretisation 'web'; did you mean 'webui'"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:20],
)
def test_refuses(model: LatentDiffusion, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.sample(**arguments, steps=2)
    assert model.scheduler is None


def test_embeddings_need_a_text_model(make_tiny: Callable[..., LatentDiffusion]) -> None:
    with pytest.raises(UserError, match="conditioned by 'none' and reads no embeddings"):
        make_tiny(conditioning="none").sample(embeddings=torch.zeros(1, 5, 32), steps=1)
