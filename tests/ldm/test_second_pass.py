"""What a sampling starts with between two seeds, and a second pass over larger latents, against the webui's formulas and diffusers."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.generation import generate, read_infotext, repeat_of
from hyperbrush.generation.settings import Settings
from hyperbrush.generation.wording import wording
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.pictures import from_picture
from hyperbrush.ldm.sampling.noise import Variation, slerp
from hyperbrush.ldm.sampling.samplers import make_scheduler, sample

SHAPE = (4, 8, 8)


@pytest.fixture
def model(make_tiny: Callable[..., LatentDiffusion]) -> LatentDiffusion:
    """A tiny model whose pictures depend on what it is told."""
    built = make_tiny().eval()
    generator = torch.Generator().manual_seed(5)
    for name, parameter in built.unet.named_parameters():
        if "attn2" in name or "conv_out" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return built


def noise(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def webui_slerp(val: float, low: Tensor, high: Tensor) -> Tensor:
    """modules/rng.py of the webui, line by line."""
    low_norm = low / torch.norm(low, dim=1, keepdim=True)
    high_norm = high / torch.norm(high, dim=1, keepdim=True)
    dot = (low_norm * high_norm).sum(1)
    if dot.mean() > 0.9995:
        return low * val + high * (1 - val)
    omega = torch.acos(dot)
    so = torch.sin(omega)
    return (torch.sin((1.0 - val) * omega) / so).unsqueeze(1) * low + (torch.sin(val * omega) / so).unsqueeze(
        1
    ) * high


def test_between_two_noises_as_the_webui() -> None:
    for share in (0.0, 0.3, 1.0):
        torch.testing.assert_close(
            slerp(share, noise(3), noise(9)), webui_slerp(share, noise(3), noise(9)), rtol=1e-6, atol=1e-6
        )
    # Columns at a right angle: by hand.
    one, other = torch.zeros(1, 2, 1), torch.zeros(1, 2, 1)
    one[0, 0], other[0, 1] = 1.0, 1.0
    turned = slerp(1 / 3, one, other)
    torch.testing.assert_close(turned.flatten(), torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)]))
    assert torch.equal(slerp(0.25, noise(3), noise(3)), noise(3) * 0.25 + noise(3) * 0.75)


def test_a_variation_begins_between_its_seeds(model: LatentDiffusion) -> None:
    def draw(**more: Any) -> Tensor:
        scheduler = make_scheduler("Euler", model.diffusion.scheduler_config)
        return sample(lambda x, t: 0.1 * x, scheduler, SHAPE, [3, 4], 4, **more)

    begun = torch.stack([webui_slerp(0.3, noise(3), noise(9)), webui_slerp(0.3, noise(4), noise(10))])
    torch.testing.assert_close(draw(variation=Variation([9, 10], 0.3)), draw(latents=begun))
    assert torch.equal(draw(variation=Variation([9, 10], 0.0)), draw())
    with pytest.raises(UserError, match="one seed for each of the 2 pictures"):
        draw(variation=Variation([9], 0.3))


def test_pictures_of_variations_say_so_and_are_drawn_again(model: LatentDiffusion) -> None:
    settings: dict[str, Any] = {"model": model, "steps": 2, "sampler": "Euler"}
    near = generate("red square", seed=3, subseed=9, subseed_strength=0.4, count=2, **settings)
    assert [one.seed for one in near] == [3, 3]
    assert [one.settings.fields["Variation seed"] for one in near] == ["9", "10"]
    assert "Variation seed: 10, Variation seed strength: 0.4" in near[1].parameters
    again = repeat_of(read_infotext(near[1].parameters))
    assert again.notes == []
    [same] = generate(model=model, **again.arguments)
    assert (
        from_picture(same.image) - from_picture(near[1].image)
    ).abs().max() <= 1.01 / 255  # alone and of two
    [whole] = generate("red square", seed=3, subseed=9, subseed_strength=1.0, **settings)
    [there] = generate("red square", seed=9, **settings)
    assert (from_picture(whole.image) - from_picture(there.image)).abs().max() <= 1.01 / 255
    assert near[0].image.tobytes() != there.image.tobytes()
    with pytest.raises(UserError, match="without subseed_strength"):
        generate("red square", subseed=9, **settings)


def by_diffusers(model: LatentDiffusion, upscaler: str) -> Tensor:
    """The picture of seed 3, 4 steps of DDIM at 32 pixels, then 3 of a schedule of int(3 / 0.6) = 5 at 64."""
    text, null = model.encode_text(["red square"]), model.encode_text([""])

    def steps(scheduler: Any, x: Tensor, timesteps: Tensor) -> Tensor:
        for t in timesteps:
            out, bare = (model.unet(x, t, encoder_hidden_states=states).sample for states in (text, null))
            x = scheduler.step(bare + 3.0 * (out - bare), t, x).prev_sample
        return x

    with torch.no_grad():
        scheduler = make_scheduler("DDIM", model.diffusion.scheduler_config)
        scheduler.set_timesteps(4)
        small = model.latent_shape
        x = steps(scheduler, noise(3, (1, *small)), scheduler.timesteps)
        if upscaler == "Lanczos":
            seen = ((model.decode(x) / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255).round()
            picture = Image.fromarray(seen.astype("uint8")).resize((64, 64), Image.Resampling.LANCZOS)
            x = model.encode(torch.from_numpy(np.array(picture) / 255).permute(2, 0, 1)[None].float() * 2 - 1)
        else:
            mode = {"Latent": "bilinear", "Latent (nearest-exact)": "nearest-exact"}[upscaler]
            x = torch.nn.functional.interpolate(x, scale_factor=2, mode=mode)
        scheduler = make_scheduler("DDIM", model.diffusion.scheduler_config)
        scheduler.set_timesteps(5)
        last = scheduler.timesteps[-3:]
        x = scheduler.add_noise(x, noise(3, tuple(x.shape)), last[:1])
        return (model.decode(steps(scheduler, x, last)) / 2 + 0.5).clamp(0, 1)[0]


@pytest.mark.parametrize("upscaler", ["Latent", "Latent (nearest-exact)", "Lanczos"])
def test_a_second_pass_is_what_diffusers_draws_step_by_step(model: LatentDiffusion, upscaler: str) -> None:
    told: list[tuple[int, int]] = []
    settings: dict[str, Any] = {"seed": 3, "steps": 4, "sampler": "DDIM", "guidance_scale": 3.0}
    settings |= {"hires_scale": 2.0, "hires_steps": 3, "hires_strength": 0.6, "hires_upscaler": upscaler}
    [drawn] = generate(
        "red square", model=model, **settings, on_step=lambda step, steps, _: told.append((step, steps))
    )
    assert drawn.image.size == (64, 64)
    assert (from_picture(drawn.image) - by_diffusers(model, upscaler)).abs().max() <= 1.01 / 255
    assert told == [(step, 7) for step in range(1, 8)]
    fields = (
        f"Size: 32x32, Denoising strength: 0.6, Hires upscale: 2, Hires steps: 3, Hires upscaler: {upscaler}"
    )
    assert all(field in drawn.parameters for field in fields.split(", "))
    again = repeat_of(read_infotext(drawn.parameters))
    assert again.notes == []
    [same] = generate(model=model, **again.arguments)
    assert same.image.tobytes() == drawn.image.tobytes()


def test_the_numbers_of_prompts_count_on_in_the_second_pass() -> None:
    settings = Settings(steps=20, hires_scale=2.0, hires_steps=10)

    def says(prompt: str) -> list[tuple[int, str]]:
        return list(wording(prompt, settings, second=True).parts[0])

    assert says("[cat:dog:0.5]") == [(10, "dog")]
    assert says("[cat:dog:1.5]") == [(5, "cat"), (10, "dog")]
    assert says("[cat:dog:25]") == [(5, "cat"), (10, "dog")]
    assert wording("[cat:dog:0.5]", settings).parts[0] == ((10, "cat"), (20, "dog"))


def test_a_second_pass_that_cannot_be_is_refused(model: LatentDiffusion) -> None:
    def draw(**more: Any) -> None:
        generate("red square", model=model, steps=2, **({"hires_scale": 2.0} | more))

    with pytest.raises(UserError, match="did you mean 'Latent'"):
        draw(hires_upscaler="Latents")
    with pytest.raises(UserError, match="drawn at the size given"):
        draw(image=generate("red square", model=model, steps=1)[0].image)
    steps: list[int] = []
    with pytest.raises(UserError, match=r"size 35x35 is not possible: both sides must be multiples"):
        draw(hires_scale=1.1, on_step=lambda step, *_: steps.append(step))
    assert steps == [], "before anything is drawn"
