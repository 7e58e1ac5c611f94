"""Networks on the conditional side of guidance alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.generation.opened import open_model
from hyperbrush.hypernetworks import PerPicture, Ramp, Use, Window, attach

Make = Callable[..., Any]
PROMPTS = ["a red heart", "cat face"]


def noise(seeds: range = range(2)) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(("what", "family"), [("text", "sd1"), ("text", "sdxl"), ("controlnet", "sd1")])
def test_it_leaves_the_unconditional_rows_alone(
    what: str, family: str, make_pipe: Make, make_network: Make, draw: Make, relative: Make
) -> None:
    pipe = make_pipe(what, family)
    hn = make_network(pipe.unet)
    with attach(pipe, hn):
        both = draw(pipe, prompt=PROMPTS, generator=noise())
    with attach(pipe, (hn, PerPicture([0, 0, 0.8, 0.8]))):
        by_rows = draw(pipe, prompt=PROMPTS, generator=noise())
    with attach(pipe, (hn, 0.8), guidance="conditional") as attached:
        assert torch.equal(draw(pipe, prompt=PROMPTS, generator=noise()), by_rows)
        attached.set_strengths(PerPicture([0.8, 0.0]))
        first = draw(pipe, prompt=PROMPTS, generator=noise())
        unguided = draw(pipe, prompt=PROMPTS, generator=noise(), guidance_scale=1.0)
    assert relative(by_rows, both) > 1e-3
    torch.testing.assert_close(first[:1], by_rows[:1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        first[1:], draw(pipe, prompt=PROMPTS, generator=noise())[1:], rtol=1e-5, atol=1e-6
    )
    with attach(pipe, (hn, PerPicture([0.8, 0.0]))):  # without guidance there is one side, on which it acts
        assert torch.equal(unguided, draw(pipe, prompt=PROMPTS, generator=noise(), guidance_scale=1.0))


def test_drawn_by_another_pipeline_of_the_same_parts(make_pipe: Make, make_network: Make, draw: Make) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = make_pipe()
    twin = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    twin.what = "image"
    hn = make_network(pipe.unet)
    start = {"image": torch.full((1, 3, 32, 32), 0.5), "strength": 0.5, "num_inference_steps": 8}
    with (
        attach(pipe, hn, guidance="conditional"),
        pytest.raises(UserError, match="has not drawn yet, so another pipeline runs its UNet"),
    ):
        draw(twin, **start)
    with attach(twin, (hn, Window(1.0, end=0.4))):
        expected = draw(twin, **start)
    draw(pipe)  # it remembers how many steps it ran
    with attach(pipe, (hn, Window(1.0, end=0.4))):
        assert torch.equal(draw(twin, **start), expected)
    assert not torch.equal(draw(twin, **start), expected)


def test_softmax_networks_see_each_picture_whole(make_pipe: Make, make_network: Make, draw: Make) -> None:
    pipe = make_pipe()
    hn = make_network(pipe.unet, activation="softmax", activate_output=True)
    with attach(pipe, hn, guidance="conditional"):
        two = draw(pipe, prompt=PROMPTS, generator=noise())
        one = draw(pipe, prompt=PROMPTS[:1], generator=noise(range(1)))
    torch.testing.assert_close(two[:1], one, rtol=1e-4, atol=1e-4)
    with attach(pipe, (hn, PerPicture([0, 0, 1.0, 1.0]))):
        assert torch.equal(draw(pipe, prompt=PROMPTS, generator=noise()), two)


def test_schedules_and_pairs_go_on(make_pipe: Make, make_network: Make, draw: Make) -> None:
    pipe = make_pipe()
    hn = make_network(pipe.unet)
    ramp = Ramp(0.2, 1.0)
    with attach(pipe, Use(hn, (ramp, 0.5), guidance="conditional")) as attached:
        out = draw(pipe)
        assert attached.strengths == [(ramp, 0.5)]
    with attach(pipe, (hn, (PerPicture([0, ramp]), PerPicture([0, 0.5])))):
        assert torch.equal(out, draw(pipe))


def test_beside_a_network_on_both_sides(make_pipe: Make, make_network: Make, draw: Make) -> None:
    pipe = make_pipe()
    first, second = make_network(pipe.unet), make_network(pipe.unet, seed=5)
    with attach(pipe, first) as attached:
        name = attached.load(second, 0.5, guidance="conditional")
        out = draw(pipe)
        attached.unload(name)
        alone = draw(pipe)
    with attach(pipe, [first, (second, PerPicture([0, 0.5]))]):
        assert torch.equal(out, draw(pipe))
    with attach(pipe, first):
        assert torch.equal(alone, draw(pipe))


@pytest.mark.parametrize("scale", [4.0, 1.0])
def test_the_model_of_this_package_tells_its_sides(scale: float, make_network: Make) -> None:
    model = open_model("emoji").model
    hn = make_network(model.unet)
    settings: dict[str, Any] = {"captions": PROMPTS, "steps": 2, "guidance_scale": scale, "output": "latents"}
    with attach(model, (hn, 0.8), guidance="conditional"):
        out = model.sample(**settings)
    with attach(model, (hn, PerPicture([0, 0, 0.8, 0.8]) if scale != 1 else 0.8)):
        assert torch.equal(out, model.sample(**settings))
    assert model.rows_per_picture is None


def test_generated_weights_do_so_too(make_pipe: Make, draw: Make) -> None:
    from hyperbrush.hypernetworks.weights.factors import Factors
    from hyperbrush.hypernetworks.weights.generated import GeneratedWeights
    from hyperbrush.ldm.modules.attention_sites import find_attentions

    pipe = make_pipe()
    torch.manual_seed(0)
    made = {}
    for site, _ in find_attentions(pipe.unet):
        for p in site.projections:
            down, up = torch.randn(2, p.in_width) * 0.2, torch.randn(p.out_width, 2)
            made[f"{site.path}.{p.name}"] = Factors(down, up)
    weights = GeneratedWeights(made)
    with attach(pipe, (weights, 0.5), guidance="conditional"):
        out = draw(pipe)
    with attach(pipe, (weights, PerPicture([0, 0.5]))):
        assert torch.equal(out, draw(pipe))
    with attach(pipe, (weights, 0.5)):
        assert not torch.equal(out, draw(pipe))


def test_what_cannot_tell_its_sides_is_refused(make_pipe: Make, make_network: Make) -> None:
    pipe = make_pipe()
    hn = make_network(pipe.unet)
    with pytest.raises(UserError, match="bare UNet2DConditionModel"):
        attach(pipe.unet, hn, guidance="conditional")
    with pytest.raises(UserError, match="three sides"):
        attach(make_pipe("pag"), hn, guidance="conditional")
    with pytest.raises(UserError, match="'conditional'"):
        attach(pipe, hn, guidance="condtional")
    with attach(pipe, hn, guidance="conditional") as attached, pytest.raises(UserError, match="cannot fuse"):
        attached.fuse(approximate=True)


def test_a_pipeline_that_tells_nothing_of_its_sides_is_refused(make_pipe: Make, make_network: Make) -> None:
    class Silent:
        """A pipeline without `do_classifier_free_guidance`, such as diffusers' upscalers."""

        def __init__(self, unet: Any) -> None:
            self.unet = unet

    pipe = make_pipe()
    with pytest.raises(UserError, match="Silent does not tell: use 'both'"):
        attach(Silent(pipe.unet), make_network(pipe.unet), guidance="conditional")


def test_softmax_networks_see_each_picture_of_a_model_alone(make_network: Make) -> None:
    model = open_model("emoji").model
    hn = make_network(model.unet, activation="softmax")
    settings: dict[str, Any] = {"steps": 1, "output": "latents"}
    with attach(model, (hn, 1.0)):
        both = model.sample(PROMPTS, seeds=[1, 2], **settings)
        alone = [
            model.sample([prompt], seeds=[seed], **settings)
            for prompt, seed in zip(PROMPTS, (1, 2), strict=True)
        ]
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-4, atol=1e-4)
