"""Every diffusers pipeline of Stable Diffusion: what a hypernetwork does there is what its UNet does by hand."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hyperbrush.hypernetworks import Ramp, Window, attach
from hyperbrush.hypernetworks.attaching.progress import Progress
from hyperbrush.ldm.modules.attention_sites import find_attentions

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore")
BOUND = 1e-5

PIPELINES = [
    *(("sd1", what, {}) for what in ("text", "image", "inpaint", "controlnet", "controlnet image")),
    ("sd1", "inpaint", {"in_channels": 9}),
    ("sd1", "controlnet inpaint", {}),
    *(("sd1", what, {}) for what in ("pag", "pag image", "pag inpaint", "pag controlnet")),
    *(("sdxl", what, {}) for what in ("text", "image", "inpaint", "controlnet", "controlnet image")),
    ("sdxl", "inpaint", {"in_channels": 9}),
    ("sdxl", "controlnet inpaint", {}),
    *(("sdxl", what, {}) for what in ("pag", "pag image", "pag inpaint", "pag controlnet")),
    *(("sd2", what, {}) for what in ("text", "image", "inpaint")),
]


UNGUIDED = [("sd1", "text", {}), ("sd1", "pag", {}), ("sdxl", "pag inpaint", {}), ("sdxl", "controlnet", {})]


def clean(unet: Any) -> bool:
    """Whether nothing hangs on a UNet."""
    return not any(m._forward_pre_hooks or m._forward_hooks or "forward" in vars(m) for m in unet.modules())


@pytest.mark.parametrize(
    ("family", "what", "changes", "guidance_scale"),
    [(*case, 7.5) for case in PIPELINES] + [(*case, 1.0) for case in UNGUIDED],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_every_pipeline(
    family: str,
    what: str,
    changes: dict[str, Any],
    guidance_scale: float,
    make_pipe: Make,
    make_network: Make,
    by_hand: Make,
    draw: Make,
    relative: Make,
) -> None:
    pipe = make_pipe(what, family, **changes)
    unet = pipe.unet
    stack = [(make_network(unet), 0.7), (make_network(unet, seed=4, activation="tanh"), -0.3)]

    def picture() -> torch.Tensor:
        steps = 3 if {"image", "inpaint"} & set(what.split()) else 2
        return draw(pipe, guidance_scale=guidance_scale, num_inference_steps=steps)

    bare = picture()
    pipe.unet = by_hand(unet, stack)
    expected = picture()
    pipe.unet = unet
    with attach(pipe, stack) as attached:
        assert relative(picture(), expected) < BOUND < 1e-3 < relative(bare, expected)
        assert len(attached.applied.sites) == len(find_attentions(unet))
    assert torch.equal(picture(), bare)
    assert clean(unet)


def test_decoded_pictures_and_a_second_run(
    make_pipe: Make, make_network: Make, by_hand: Make, draw: Make, relative: Make
) -> None:
    pipe = make_pipe()
    unet, hn = pipe.unet, make_network(pipe.unet)
    pipe.unet = by_hand(unet, [(hn, 1.0)])
    expected = draw(pipe, output_type="pt")
    pipe.unet = unet
    with attach(pipe, hn):
        out = draw(pipe, output_type="pt")
        assert out.shape == (1, 3, 16, 16)
        assert relative(out, expected) < BOUND
        assert torch.equal(draw(pipe, output_type="pt"), out)


def test_a_controlnet_keeps_its_own_attentions(make_pipe: Make, make_network: Make, draw: Make) -> None:
    pipe = make_pipe("controlnet")
    hn = make_network(pipe.unet)
    before = copy.deepcopy(pipe.controlnet)
    own: list[list[torch.Tensor]] = []
    forward = pipe.controlnet.forward

    def listen(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        own[-1].extend(out[0])
        return out

    pipe.controlnet.forward = listen

    def first_step() -> torch.Tensor:
        own.append([])
        return draw(pipe, num_inference_steps=1)

    without, bare = first_step(), own[-1]
    with attach(pipe, hn):
        assert all(
            not m._forward_pre_hooks and type(m) is type(other)
            for m, other in zip(pipe.controlnet.modules(), before.modules(), strict=True)
        )
        out = first_step()
    assert not torch.allclose(out, without, atol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(own[-1], bare, strict=True))
    assert all(residual.abs().max() > 0 for residual in bare)


class Measured:
    """The strength that really acted at each pass of the UNet, at one self- and one cross-attention."""

    def __init__(self, pipe: Any, hypernetwork: Any) -> None:
        self.strengths: list[dict[str, float]] = []
        attentions = {site.kind: (site, a) for site, a in find_attentions(pipe.unet)}
        for kind, (site, attention) in attentions.items():
            seen: list[torch.Tensor] = []
            network = hypernetwork.network_for(site.context_width).key
            before = lambda m, a, kwargs, kind=kind, seen=seen: seen.append(  # noqa: E731
                a[0] if kind == "attn1" else kwargs["encoder_hidden_states"]
            )
            attention.register_forward_pre_hook(before, with_kwargs=True)

            def transformed(
                m: Any, args: Any, kind: str = kind, seen: Any = seen, net: Any = network
            ) -> None:
                context = seen.pop()
                change = net(context).double()
                share = ((args[0] - context).double() * change).sum() / change.square().sum()
                if kind == "attn1":
                    self.strengths.append({})
                self.strengths[-1][kind] = float(share)

            attention.to_k.register_forward_pre_hook(transformed)

    def take(self) -> list[float]:
        """Those since the last call."""
        found, self.strengths = self.strengths, []
        for strength in found:
            assert strength["attn1"] == pytest.approx(strength["attn2"], abs=1e-4)
        return [strength["attn1"] for strength in found]


THIRDS = [0, 1 / 3, 2 / 3, 1]
SAMPLERS = {  # sampler → progress at each pass of a run of 4 steps, and of an image-to-image run of its half
    "DDIM": (THIRDS, [0, 1]),
    "DDPM": (THIRDS, [0, 1]),
    "PNDM": ([0, 1 / 3, 1 / 3, 2 / 3, 1], [0, 0.5, 1]),
    "HeunDiscrete": ([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1], [0, 1, 1]),
    "KDPM2Discrete": ([i / 6 for i in range(7)], [0, 0.5, 1]),
    "DPMSolverMultistep": (THIRDS, [0, 1]),
    "UniPCMultistep": (THIRDS, [0, 1]),
    "EulerDiscrete": (THIRDS, [0, 1]),
    "EulerAncestralDiscrete": (THIRDS, [0, 1]),
    "LCM": (THIRDS, [0, 1]),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_schedules_count_the_sampler_s_steps(
    sampler: str, make_pipe: Make, make_network: Make, draw: Make
) -> None:
    for what, progress in zip(("controlnet", "image"), SAMPLERS[sampler], strict=True):
        pipe = make_pipe(what, scheduler=sampler)
        hn = make_network(pipe.unet)
        settings = {"num_inference_steps": 4}
        if what == "image":
            settings |= {"strength": 0.5}
        with attach(pipe, (hn, Ramp(0.2, 0.8))) as attached:
            measured = Measured(pipe, hn)
            for _ in range(2):  # a second run starts anew
                draw(pipe, **settings)
                assert measured.take() == pytest.approx([0.2 + 0.6 * p for p in progress], abs=1e-4)
            attached.set_strengths(Window(0.7, 0.3, 0.8))
            draw(pipe, **settings)
            acting = [0.7 if 0.3 <= p <= 0.8 else 0.0 for p in progress]
            assert measured.take() == pytest.approx(acting, abs=1e-4)


@pytest.mark.parametrize("sampler", ["DDIM", "EulerDiscrete", "HeunDiscrete"])
def test_schedules_between_denoising_start_and_end(
    sampler: str, make_pipe: Make, make_network: Make, draw: Make
) -> None:
    base = make_pipe("text", "sdxl", sampler)
    hn = make_network(base.unet)
    with attach(base, (hn, Ramp(0, 1))):
        measured = Measured(base, hn)
        latents = draw(base, num_inference_steps=10, denoising_end=0.6)
        first = measured.take()
    refiner = make_pipe("image", "sdxl", sampler)
    with attach(refiner, (hn, Ramp(0, 1))):
        measured = Measured(refiner, hn)
        draw(refiner, num_inference_steps=10, denoising_start=0.6, image=latents)
        second = measured.take()
    for found in (first, second):
        steps = list(dict.fromkeys(round(s, 4) for s in found))
        assert steps == pytest.approx([i / (len(steps) - 1) for i in range(len(steps))], abs=1e-3)
        assert 3 <= len(steps) <= 7


def test_equal_timesteps_of_karras_are_several_steps() -> None:
    from diffusers import DPMSolverMultistepScheduler

    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler = DPMSolverMultistepScheduler(**schedule, use_karras_sigmas=True)
    scheduler.set_timesteps(50)
    assert len(set(scheduler.timesteps.tolist())) < 50
    pipe = type("Pipe", (), {"scheduler": scheduler})()
    progress, found = Progress(pipe), []
    for t in scheduler.timesteps:
        progress.see(t)
        found.append(progress.at(t))
        scheduler.step(torch.zeros(1, 1, 2, 2), t, torch.zeros(1, 1, 2, 2))
    assert found == pytest.approx([i / 49 for i in range(50)])
