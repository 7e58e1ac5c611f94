"""Strengths that change with the step or the picture."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import PerPicture, Ramp, Use, Window, attach
from hyperbrush.hypernetworks.attaching.progress import Progress
from hyperbrush.ldm.modules.attention_sites import find_attentions

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def test_windows_and_ramps() -> None:
    window = Window(0.7, 0.25, 0.75)
    assert [window(i / 4) for i in range(5)] == [0, 0.7, 0.7, 0.7, 0]
    ramp = Ramp(1.0, 0.0, 0.5, 1.0)
    assert [ramp(i / 4) for i in range(5)] == [1, 1, 1, 0.5, 0]
    assert Window(Ramp(0, 1), 0.5)(0.75) == 0.75
    for wrong in (
        lambda: Window(1, 0.6, 0.5),
        lambda: Window(1, -0.1),
        lambda: Ramp(0, 1, 0.5, 0.5),
        lambda: Ramp(math.nan, 1),
        lambda: PerPicture([]),
        lambda: PerPicture([math.inf]),
    ):
        with pytest.raises(UserError):
            wrong()


class Scheduler:
    """What `Progress` reads of a diffusers scheduler."""

    def __init__(self, timesteps: list[float], begin_index: int | None = None) -> None:
        self.timesteps = torch.tensor(timesteps)
        self.begin_index = begin_index


class Pipe:
    def __init__(self, unet: Any, scheduler: Scheduler | None) -> None:
        self.unet, self.scheduler = unet, scheduler


def test_progress_counts_steps() -> None:
    pipe = Pipe(None, Scheduler([999.0, 749.0, 749.0, 500.0, 250.0]))
    assert [Progress(pipe).at(torch.tensor(t)) for t in (999.0, 749.0, 500.0, 250.0)] == [0, 1 / 3, 2 / 3, 1]
    image_to_image = Pipe(None, Scheduler([900, 600, 300, 0], begin_index=2))
    assert [Progress(image_to_image).at(t) for t in (300, 0)] == [0, 1]
    assert Progress(Pipe(None, Scheduler([500]))).at(500) == 0
    assert Progress(object()).at(999) == 0
    assert Progress(object()).at(torch.tensor([0, 0])) == 1


def run(unet: Any, timestep: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(1, 4, 8, 8, generator=generator).repeat(batch, 1, 1, 1)
    context = torch.randn(1, 5, 24, generator=generator).repeat(batch, 1, 1)
    out: torch.Tensor = unet(sample, timestep, context).sample
    return out


@pytest.mark.parametrize(
    "schedule", [Window(0.7, 0.5, 0.5), Ramp(-1, 1), lambda p: p**2, Window(Ramp(0, 1), 0, 0.5)]
)
def test_schedules_act_as_the_numbers_they_give(schedule: Any, make_unet: Make, make_network: Make) -> None:
    unet = make_unet()
    hn = make_network(unet)
    pipe = Pipe(unet, Scheduler([900, 500, 100]))
    with attach(pipe, (hn, (schedule, 0.3))) as attached:
        outs = [run(unet, t) for t in (900, 500, 100)]
        again = [run(unet, t) for t in (900, 500, 100)]
        assert attached.strengths == [(schedule, 0.3)]
    for i, out in enumerate(outs):
        with attach(unet, (hn, (schedule(i / 2), 0.3))):
            assert torch.equal(run(unet, (900, 500, 100)[i]), out)
        assert torch.equal(out, again[i])


def test_schedules_that_give_nonsense_are_refused(make_unet: Make, make_network: Make) -> None:
    unet = make_unet()
    with pytest.raises(UserError, match="not a finite number"):
        attach(unet, (make_network(unet), lambda p: float("nan")))


def test_each_picture_has_its_own_networks_and_strengths(make_unet: Make, make_network: Make) -> None:
    unet = make_unet()
    first, second = make_network(unet), make_network(unet, seed=5)
    strengths = [[0.7, 0.0, -0.3], [0.0, 0.0, 1.0]]
    uses = [(first, PerPicture(strengths[0])), (second, PerPicture(strengths[1]))]
    with attach(unet, uses) as attached:
        out = run(unet, 500, batch=6)  # both sides of guidance
        attached.set_strengths([PerPicture([0, 0, 0]), PerPicture([0.5, 0.5, 0.5])])
        equal = run(unet, 500, batch=6)
        with pytest.raises(UserError, match="strengths for 3 pictures, but the batch has 4 rows"):
            run(unet, 500, batch=4)
    for picture in range(3):
        with attach(unet, [(first, strengths[0][picture]), (second, strengths[1][picture])]):
            alone = run(unet, 500, batch=2)
        torch.testing.assert_close(out[[picture, picture + 3]], alone, rtol=1e-5, atol=1e-6)
    with attach(unet, (second, 0.5)):
        torch.testing.assert_close(equal, run(unet, 500, batch=6), rtol=1e-5, atol=1e-6)


def test_pictures_may_have_schedules(make_unet: Make, make_network: Make) -> None:
    unet = make_unet()
    hn = make_network(unet)
    pipe = Pipe(unet, Scheduler([900, 100]))
    with attach(pipe, (hn, PerPicture([Window(1.0, 0, 0.4), 0.5]))):
        outs = [run(unet, t) for t in (900, 100)]
    for out, strengths in zip(outs, ((1.0, 0.5), (0.0, 0.5)), strict=True):
        for row, strength in enumerate(strengths):
            with attach(unet, (hn, strength)):
                alone = run(unet, (900, 100)[out is outs[1]], batch=1)
            torch.testing.assert_close(out[row : row + 1], alone, rtol=1e-5, atol=1e-6)


def test_softmax_networks_of_single_pictures_see_their_own_rows(make_unet: Make, make_network: Make) -> None:
    unet = make_unet()
    hn = make_network(unet, activation="softmax")
    with attach(unet, (hn, PerPicture([0.0, 1.0]))) as attached:
        attached.rows_per_picture = 2
        out = run(unet, 500, batch=4)
    with attach(unet, (hn, 1.0)):
        torch.testing.assert_close(out[[1, 3]], run(unet, 500, batch=2), rtol=1e-5, atol=1e-6)


def test_verbs(make_unet: Make, make_network: Make, call: Make, tmp_path: Any) -> None:
    unet = make_unet()
    bare = call(unet)
    water = make_network(unet, name="water")
    fire = make_network(unet, seed=5, name="fire")
    fire.save(tmp_path / "fire.safetensors")
    attached = attach(unet)
    assert torch.equal(call(unet), bare)
    assert attached.list() == {}
    assert attached.load(water, 0.7) == "water"
    assert attached.load(tmp_path / "fire.safetensors", attn=["attn2"]) == "fire"
    assert attached.load(water, -0.1) == "water-2"
    attached.unload("water-2")
    both = call(unet)
    uses = [Use(water, 0.7), Use(fire, attn=["attn2"], name="flames")]
    with attach(make_copy(unet), uses) as other:
        assert torch.equal(call(other._unet), both)
        assert other.names == ["water", "flames"]
    attached.set_strengths({"fire": 0.25})
    assert attached.list() == {"water": 0.7, "fire": 0.25}
    attached.disable()
    assert torch.equal(call(unet), bare)
    assert not any(m._forward_pre_hooks for m in unet.modules())
    attached.enable()
    attached.unload("water")
    with attach(make_copy(unet), Use(fire, 0.25, attn=["attn2"])) as other:
        assert torch.equal(call(unet), call(other._unet))
    with pytest.raises(UserError, match=r"'water'.*fire"):
        attached.set_strengths({"water": 1})
    with pytest.raises(UserError, match="does not exist"):
        attached.load(tmp_path / "earth.pt")
    assert attached.names == ["fire"]
    attached.detach()
    assert torch.equal(call(unet), bare)
    with pytest.raises(UserError, match="already detached"):
        attached.load(water)


def make_copy(unet: Any) -> Any:
    """The same UNet without anything attached."""
    from diffusers import UNet2DConditionModel

    made = UNet2DConditionModel.from_config(unet.config).eval()
    made.load_state_dict(unet.state_dict())
    return made


def test_schedules_under_compile(make_unet: Make, make_network: Make) -> None:
    unet = make_unet()
    hn = make_network(unet)
    expected = []
    with attach(Pipe(unet, Scheduler([900, 100])), (hn, Ramp(0.5, 1))):
        expected = [run(unet, t) for t in (900, 100)]
    compiled = torch.compile(unet, backend="eager")
    with attach(Pipe(compiled, Scheduler([900, 100])), (hn, Ramp(0.5, 1))):
        for t, out in zip((900, 100), expected, strict=True):
            torch.testing.assert_close(run(compiled, t), out, rtol=1e-5, atol=1e-6)
    unet.compile(backend="eager")  # in place
    with attach(Pipe(unet, Scheduler([900, 100])), (hn, Ramp(0.5, 1))):
        for t, out in zip((900, 100), expected, strict=True):
            torch.testing.assert_close(run(unet, t), out, rtol=1e-5, atol=1e-6)


def test_sites_are_hooked_only_where_asked(make_unet: Make, make_network: Make) -> None:
    unet = make_unet()
    hn = make_network(unet)
    with attach(unet, [Use(hn, 1.0, attn=["attn2"]), Use(hn, 1.0, blocks=["mid"])]) as attached:
        hooked = {s.path for s, a in find_attentions(unet) if a.to_k._forward_pre_hooks}
        assert hooked == {s.path for s in attached.applied.sites}
        assert len(hooked) == 8
