"""Settings tried out without a model: what would fail at the first step is told before it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hyperbrush.errors import UserError, unknown_name

if TYPE_CHECKING:
    from hyperbrush.training.attention.run import HypernetworkRun

STEPS = 1000  # where the number is not known yet


def tried(config: "HypernetworkRun") -> list[str]:
    """What is wrong with names and combinations that the models of settings let through."""
    found = []
    for check in (_captions, _background, _optimizer, _draws, _sampler, _network):
        try:
            check(config)
        except UserError as error:
            found.append(str(error))
    return found


def _captions(config: "HypernetworkRun") -> None:
    t = config.training
    (t if t.trigger else t.model_copy(update={"trigger": config.name})).captioning()


def _background(config: "HypernetworkRun") -> None:
    from hyperbrush.ldm.data.pictures import background_colour

    background_colour(config.training.background)


def _optimizer(config: "HypernetworkRun") -> None:
    import torch

    from hyperbrush.training.loop.optimizers import configured
    from hyperbrush.training.loop.rates import RateSchedule

    settings = config.training.trainer(STEPS).optimizer
    configured(settings, [{"params": [torch.nn.Parameter(torch.zeros(2))]}])
    RateSchedule(settings, config.training.max_steps or STEPS)


def _draws(config: "HypernetworkRun") -> None:
    import torch

    from hyperbrush.ldm.modules.diffusion import WEIGHTINGS, sample_timesteps

    t = config.training
    if t.weighting not in WEIGHTINGS:
        raise unknown_name("loss weighting", t.weighting, WEIGHTINGS)
    sample_timesteps(1, 10, torch.Generator(), method=t.timestep_sampling)


def _sampler(config: "HypernetworkRun") -> None:
    from hyperbrush.ldm.sampling.samplers import find_sampler

    find_sampler(config.training.preview_sampler)


def _network(config: "HypernetworkRun") -> None:
    import torch

    from hyperbrush.hypernetworks import AttentionHypernetwork
    from hyperbrush.training.attention.run import NetworkConfig

    if config.start_from:
        if config.network != NetworkConfig():
            raise UserError("start_from brings its own network; leave the settings of 'network' out")
        return
    chosen: dict[str, Any] = config.network.model_dump(exclude={"per_site"})
    make: Callable[..., Any] = AttentionHypernetwork
    with torch.device("meta"):  # no memory is taken, however wide it is
        make([8], **chosen)
