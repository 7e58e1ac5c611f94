"""The samplers by the names people use, and the noise schedules that can stand behind them; no torch is needed to look
one up.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hyperbrush.errors import UserError, unknown_name

ALL_PREDICTIONS = ("epsilon", "v_prediction", "sample")
NO_SAMPLE = ("epsilon", "v_prediction")
FLOW = ("flow_prediction",)  # models trained by flow matching
# Where the noise levels lie, as the webui names it (`webui_schedule.noise_levels`); none is even timesteps.
SCHEDULES = ("Karras", "Exponential", "SGM Uniform", "Simple", "Beta")
AUTOMATIC_SCHEDULE = "Automatic"  # the sampler's own, in webuis since 1.9
# Of a second pass (`second_pass`): name, as in the webui → (mode, antialias) of `torch.nn.functional.interpolate` on latents; None: Pillow's on the picture.
UPSCALERS: dict[str, tuple[str, bool] | None] = {
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
    "Lanczos": None,
}
_EVEN = ("", "uniform", "normal")


@dataclass(frozen=True)
class Sampler:
    """A sampler's name, how it is computed, and what it can do.

    Args:
        name: as the webui shows it.
        scheduler: class name in diffusers.
        options: constructor arguments.
        spellings: other names, folded as by `folded`.
        predictions: what the network may predict.
        zero_terminal_snr: whether it can start from pure noise.
        order: evaluations of the network a step.
        loop: name of the function in `levelled` that samples in place of diffusers' steps.
        schedule: one of `SCHEDULES`, or "" for even timesteps.
        schedules: whether others can stand behind its name.
        automatic: what newer webuis take where no schedule is named.
        own_levels: whether the levels are the webui's in both discretisations, diffusers' class not having the schedule.
        one_more: whether one level more is computed and the last but one left out, as the webui does for some.
        ancestral: whether it adds fresh noise, with a share called eta, at each step.
        brownian: whether its noise is a Brownian path.
    """

    name: str
    scheduler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    spellings: tuple[str, ...] = ()
    predictions: tuple[str, ...] = ALL_PREDICTIONS
    zero_terminal_snr: bool = True
    order: int = 1
    loop: str = ""
    schedule: str = ""
    schedules: bool = False
    automatic: str = ""
    own_levels: bool = False
    one_more: bool = False
    ancestral: bool = False
    brownian: bool = False


def _levelled(name: str, loop: str, *spellings: str, **more: Any) -> Sampler:
    """One of k-diffusion's that diffusers does not have."""
    return Sampler(
        name,
        "EulerDiscreteScheduler",
        spellings=spellings,
        predictions=NO_SAMPLE,
        zero_terminal_snr=False,
        loop=loop,
        own_levels=True,
        **more,
    )


_MULTISTEP = "DPMSolverMultistepScheduler"
_PLAIN = (
    Sampler("DDIM", "DDIMScheduler"),
    Sampler("PLMS", "PNDMScheduler", {"skip_prk_steps": True}, ("pndm",), NO_SAMPLE),
    Sampler("Euler", "EulerDiscreteScheduler", predictions=NO_SAMPLE, schedules=True),
    Sampler(
        "Euler a",
        "EulerAncestralDiscreteScheduler",
        spellings=("eulerancestral",),
        predictions=NO_SAMPLE,
        schedules=True,
        ancestral=True,
    ),
    Sampler("Heun", "HeunDiscreteScheduler", zero_terminal_snr=False, order=2, schedules=True),
    Sampler(
        "DPM++ 2M",
        _MULTISTEP,
        {"algorithm_type": "dpmsolver++"},
        predictions=ALL_PREDICTIONS + FLOW,
        schedules=True,
        automatic="Karras",
    ),
    Sampler(
        "DPM++ 2M SDE",
        _MULTISTEP,
        {"algorithm_type": "sde-dpmsolver++"},
        predictions=ALL_PREDICTIONS + FLOW,
        schedules=True,
        automatic="Exponential",
    ),
    Sampler(
        "DPM++ SDE",
        "DPMSolverSDEScheduler",
        predictions=NO_SAMPLE,
        order=2,
        schedules=True,
        automatic="Karras",
    ),
    Sampler("LMS", "LMSDiscreteScheduler", predictions=NO_SAMPLE, schedules=True),
    Sampler("UniPC", "UniPCMultistepScheduler", predictions=ALL_PREDICTIONS + FLOW),
    Sampler("LCM", "LCMScheduler"),
    Sampler("DDPM", "DDPMScheduler"),
    _levelled(
        "DPM++ 2S a",
        "dpmpp_2s_ancestral",
        "dpmpp2sancestral",
        order=2,
        schedules=True,
        automatic="Karras",
        ancestral=True,
    ),
    _levelled("DPM2", "dpm_2", order=2, schedules=True, automatic="Karras", one_more=True),
    _levelled(
        "DPM2 a",
        "dpm_2_ancestral",
        "dpm2ancestral",
        order=2,
        schedules=True,
        automatic="Karras",
        one_more=True,
        ancestral=True,
    ),
    _levelled(
        "DPM++ 3M SDE",
        "dpmpp_3m_sde",
        schedules=True,
        automatic="Exponential",
        one_more=True,
        brownian=True,
    ),
    _levelled("DPM fast", "dpm_fast", ancestral=True),
    _levelled("DPM adaptive", "dpm_adaptive", "dpmad", ancestral=True),
    _levelled("Restart", "restart", order=2, schedule="Karras"),
    Sampler("Flow Euler", "FlowMatchEulerDiscreteScheduler", spellings=("flowmatcheuler",), predictions=FLOW),
    Sampler(
        "Flow Heun", "FlowMatchHeunDiscreteScheduler", spellings=("flowmatchheun",), predictions=FLOW, order=2
    ),
)
_BY_NAME = {sampler.name: sampler for sampler in _PLAIN}
# Those that diffusers' class computes itself.
_KARRAS = ("Heun", "DPM++ 2M", "DPM++ 2M SDE", "DPM++ SDE", "LMS")


def _scheduled(base: Sampler, schedule: str) -> Sampler:
    """A sampler on another noise schedule."""
    karras = schedule == "Karras" and base.name in _KARRAS
    return replace(
        base,
        name=f"{base.name} {schedule}",
        options={**base.options, "use_karras_sigmas": True} if karras else base.options,
        spellings=tuple(one + folded(schedule) for one in (folded(base.name), *base.spellings))
        + ((f"{folded(base.name)}ka",) if schedule == "Karras" else ()),
        predictions=tuple(one for one in base.predictions if one not in FLOW),  # whose sigmas end at 1
        schedule=schedule,
        schedules=False,
        own_levels=not karras,
    )


def folded(name: str) -> str:
    """Small letters and digits only, "++" as "pp"."""
    return re.sub("[^a-z0-9]", "", name.casefold().replace("++", "pp"))


# The order of lists: those of old pictures first.
SAMPLERS: dict[str, Sampler] = {
    name: _BY_NAME[name] if name in _BY_NAME else _scheduled(_BY_NAME[name.removesuffix(" Karras")], "Karras")
    for name in (
        "DDIM",
        "PLMS",
        "Euler",
        "Euler a",
        "Heun",
        "DPM++ 2M Karras",
        "DPM++ 2M SDE Karras",
        "DPM++ SDE Karras",
        "DPM++ 2M",
        "DPM++ 2M SDE",
        "DPM++ SDE",
        "LMS",
        "LMS Karras",
        "UniPC",
        "LCM",
        "Heun Karras",
        "DPM++ 2S a",
        "DPM++ 2S a Karras",
        "DPM2",
        "DPM2 Karras",
        "DPM2 a",
        "DPM2 a Karras",
        "DPM++ 3M SDE",
        "DPM++ 3M SDE Karras",
        "DPM fast",
        "DPM adaptive",
        "Restart",
        "DDPM",
        "Flow Euler",
        "Flow Heun",
    )
}


USUAL = "DPM++ 2M Karras"  # where none is named


def usual_sampler(prediction: str) -> str:
    """The sampler to take where none is named, by what the network predicts."""
    return "Flow Euler" if prediction in FLOW else USUAL


def sampler_names(prediction: str = "") -> list[str]:
    """The samplers' names, as `SAMPLERS` orders them; prediction: those alone that can draw with such a model."""
    return [name for name, sampler in SAMPLERS.items() if not prediction or prediction in sampler.predictions]


def find_sampler(name: str) -> Sampler:
    """The sampler of a name in any common spelling: "Euler a", "euler_a", "k_euler_ancestral"; also of one with a schedule
    that `SAMPLERS` does not list, "Euler SGM Uniform".

    Raises:
        UserError: unknown sampler, or one that no schedule can stand behind.

    >>> find_sampler("dpmpp_2m_karras").name
    'DPM++ 2M Karras'
    """
    wanted = folded(name)
    if found := _listed(wanted):
        return found
    for schedule in SCHEDULES:
        base = _listed(wanted.removesuffix(folded(schedule))) if wanted.endswith(folded(schedule)) else None
        if base is not None and base.schedules:
            return _scheduled(base, schedule)
        if base is not None:
            raise UserError(
                f"sampler {base.name!r} has no noise schedule {schedule!r}: {_why_not(base)}; leave it out"
            )
    raise unknown_name("sampler", name, SAMPLERS, f"; with {', '.join(SCHEDULES)} behind many of them")


def _why_not(base: Sampler) -> str:
    return f"it has {base.schedule} already" if base.schedule else "it chooses its steps itself"


def _listed(wanted: str) -> Sampler | None:
    for sampler in SAMPLERS.values():
        if {wanted, wanted.removeprefix("k")} & {folded(sampler.name), *sampler.spellings}:
            return sampler
    return None


def with_schedule(name: str, schedule: str = "") -> str:
    """The name of a sampler with the noise schedule that newer programs write beside it.

    "" and "Automatic" take the webui's own for the sampler (Karras for DPM++ 2M), "Uniform" and "Normal" even timesteps.

    Raises:
        UserError: an unknown sampler or schedule, or one that the sampler cannot have.

    >>> with_schedule("DPM++ 2M", "Automatic"), with_schedule("Euler", "sgm_uniform")
    ('DPM++ 2M Karras', 'Euler SGM Uniform')
    """
    sampler = find_sampler(name)
    wanted = folded(schedule)
    if wanted in ("", folded(AUTOMATIC_SCHEDULE)):
        return (
            find_sampler(f"{sampler.name} {sampler.automatic}").name
            if sampler.automatic and not sampler.schedule
            else sampler.name
        )
    if wanted == folded(sampler.schedule):
        return sampler.name
    known = next((one for one in SCHEDULES if folded(one) == wanted), None)
    if known is None and wanted not in _EVEN:
        raise unknown_name("noise schedule", schedule, (AUTOMATIC_SCHEDULE, "Uniform", *SCHEDULES))
    if sampler.schedule:
        raise UserError(
            f"sampler {sampler.name!r} has its noise schedule in its name; {schedule!r} beside it contradicts"
        )
    return sampler.name if known is None else find_sampler(f"{sampler.name} {known}").name
