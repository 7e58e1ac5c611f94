"""Samplers by the names people use, on diffusers' schedulers: noise and a seed to latents."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.ldm.modules import flow
from hyperbrush.ldm.sampling.flow import flow_scheduler
from hyperbrush.ldm.sampling.levelled import run_levelled
from hyperbrush.ldm.sampling.names import ALL_PREDICTIONS as ALL_PREDICTIONS
from hyperbrush.ldm.sampling.names import AUTOMATIC_SCHEDULE as AUTOMATIC_SCHEDULE
from hyperbrush.ldm.sampling.names import FLOW as FLOW
from hyperbrush.ldm.sampling.names import SAMPLERS as SAMPLERS
from hyperbrush.ldm.sampling.names import SCHEDULES as SCHEDULES
from hyperbrush.ldm.sampling.names import Sampler as Sampler
from hyperbrush.ldm.sampling.names import find_sampler as find_sampler
from hyperbrush.ldm.sampling.names import sampler_names as sampler_names
from hyperbrush.ldm.sampling.names import with_schedule as with_schedule
from hyperbrush.ldm.sampling.noise import Variation
from hyperbrush.ldm.sampling.noise import starting_noise as starting_noise
from hyperbrush.ldm.sampling.webui_schedule import brownian_noise, set_webui_levels

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

Predict = Callable[[Tensor, Tensor], Tensor]
OnStep = Callable[[int, int, Tensor], None]

# What of a scheduler's settings belongs to the model; the rest is the sampler's.
PROCESS_KEYS = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "prediction_type",
)
PLACEMENT_KEYS = ("timestep_spacing", "steps_offset", "set_alpha_to_one")
BETA_ENDS = {"linear": (0.0001, 0.02), "scaled_linear": (0.00085, 0.012)}
DISCRETISATIONS = ("diffusers", "webui")
ALMOST_ZERO = 2.0**-24  # diffusers' stand-in for a terminal signal of 0, whose sigma is infinite


def make_scheduler(sampler: str, config: Mapping[str, Any]) -> "SchedulerMixin":
    """Diffusers' scheduler for a sampler, on the noise process of a model.

    As ``Class.from_config(pipe.scheduler.config)`` in diffusers, except that only what belongs to
    the model is taken over (never another sampler's options), that latents are never clipped,
    and that ``steps_offset`` is 1 unless given, as in `StableDiffusionPipeline`.  Zero terminal SNR
    takes trailing spacing (Lin et al. 2023, 2305.08891, section 3.3).

    Args:
        sampler: a name of `SAMPLERS`, in any spelling of `find_sampler`.
        config: the model's scheduler settings by their diffusers names: num_train_timesteps,
            beta_schedule, beta_start, beta_end, trained_betas, rescale_betas_zero_snr,
            prediction_type, timestep_spacing, steps_offset, set_alpha_to_one; of a flow those that
            `flow.process_config` reads; others are ignored.

    Raises:
        UserError: unknown sampler or prediction type; one the sampler cannot use; zero terminal SNR
            with eps-prediction or a sampler that cannot start from it; see `flow.process_config`.
    """
    import diffusers

    chosen = find_sampler(sampler)
    config = flow.process_config(config)
    if config.get("prediction_type") in FLOW:
        _check_prediction(chosen, config["prediction_type"], False)
        return flow_scheduler(chosen, config)
    process = _process(config)
    zero = _zero_terminal_snr(config)
    _check_prediction(chosen, process["prediction_type"], zero)
    unset = config.get("_use_default_values", ())  # what diffusers' class filled in, not the model
    settings = {k: config[k] for k in PLACEMENT_KEYS if k in config and k not in unset}
    settings = {"steps_offset": 1, **settings, **process, "clip_sample": False}
    scheduler = getattr(diffusers, chosen.scheduler)
    accepted = inspect.signature(scheduler.__init__).parameters
    if zero:
        settings["timestep_spacing"] = "trailing"
        if "rescale_betas_zero_snr" in accepted:
            settings["rescale_betas_zero_snr"] = True
        else:
            settings["trained_betas"] = _almost_zero_terminal_snr_betas(process)
    if "original_inference_steps" in accepted:
        settings["original_inference_steps"] = min(50, process["num_train_timesteps"])
    settings = {k: v for k, v in settings.items() if k in accepted}
    made: SchedulerMixin = scheduler(**settings, **chosen.options)
    made.sampler = chosen  # `sample` takes its loop and its levels from there
    if chosen.loop:
        made.order = chosen.order
    return made


def _process(config: Mapping[str, Any]) -> dict[str, Any]:
    """The model's noise process with nothing left to the defaults of a scheduler's class."""
    process = {k: config[k] for k in PROCESS_KEYS if config.get(k) is not None}
    schedule = process.setdefault("beta_schedule", "linear")
    if schedule == "cosine":
        process["beta_schedule"] = "squaredcos_cap_v2"
    if schedule in BETA_ENDS:
        start, end = BETA_ENDS[schedule]
        process = {"beta_start": start, "beta_end": end, **process}
    if "trained_betas" in process:
        process["trained_betas"] = torch.as_tensor(process["trained_betas"]).tolist()
        process["num_train_timesteps"] = len(process["trained_betas"])
    return {"num_train_timesteps": 1000, "prediction_type": "epsilon", **process}


def _zero_terminal_snr(config: Mapping[str, Any]) -> bool:
    """Whether the last timestep of a process is pure noise."""
    betas = config.get("trained_betas")
    return bool(config.get("rescale_betas_zero_snr") or (betas is not None and max(betas) >= 1))


def _check_prediction(sampler: Sampler, prediction: str, zero_terminal_snr: bool) -> None:
    """Refuse what a sampler cannot do with a network's prediction."""
    if prediction not in ALL_PREDICTIONS + FLOW:
        raise unknown_name("prediction type", prediction, ALL_PREDICTIONS + FLOW)
    if prediction not in sampler.predictions:
        able = [s.name for s in SAMPLERS.values() if prediction in s.predictions]
        raise UserError(
            f"sampler {sampler.name!r} cannot use a model that predicts {prediction!r}; "
            f"take one of {', '.join(able)}"
        )
    if zero_terminal_snr and prediction == "epsilon":
        raise UserError(
            "prediction type 'epsilon' cannot be sampled with zero terminal SNR: at the first step "
            "the picture cannot be recovered from the noise (0/0). It needs a 'v_prediction' model"
        )
    if zero_terminal_snr and not sampler.zero_terminal_snr:
        able = [s.name for s in SAMPLERS.values() if s.zero_terminal_snr]
        raise UserError(
            f"sampler {sampler.name!r} diverges on a model with zero terminal SNR; "
            f"take one of {', '.join(able)}"
        )


def _almost_zero_terminal_snr_betas(process: Mapping[str, Any]) -> list[float]:
    """Betas of Algorithm 1 of Lin et al. (2023), ending at `ALMOST_ZERO` signal as in diffusers."""
    from hyperbrush.ldm.modules.diffusion import NoiseSchedule, rescale_to_zero_terminal_snr

    if "trained_betas" in process:
        betas = torch.tensor(process["trained_betas"], dtype=torch.float64)
        alphas_cumprod = rescale_to_zero_terminal_snr(torch.cumprod(1 - betas, 0))
    else:
        ends = {k: process[k] for k in ("beta_start", "beta_end") if k in process}
        schedule = NoiseSchedule.named(
            process["beta_schedule"],
            process["num_train_timesteps"],
            zero_terminal_snr=True,
            **ends,
        )
        alphas_cumprod = schedule.alphas_cumprod
    alphas_cumprod = alphas_cumprod.clamp(min=ALMOST_ZERO)
    alphas = torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
    betas_list: list[float] = (1 - alphas).tolist()
    return betas_list


@torch.no_grad()
def sample(
    predict: Predict,
    scheduler: "SchedulerMixin",
    shape: tuple[int, int, int],
    seeds: Sequence[int],
    steps: int,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    latents: Tensor | None = None,
    variation: Variation | None = None,
    image_latents: Tensor | None = None,
    strength: float = 1.0,
    mask: Tensor | None = None,
    discretisation: str = "diffusers",
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample latents (batch, c, h, w) as diffusers' `StableDiffusionPipeline` does.

    All noise of a picture, the start and what a sampler adds on its way, comes from its own seed on
    the CPU: a picture does not depend on the batch it is in, nor on the device but for rounding.
    The same seeds as ``generator=[torch.Generator("cpu").manual_seed(s) for s in seeds]`` give the
    same pictures there (but for DPM++ SDE Karras, which diffusers does not let a generator seed).

    Args:
        predict: called with latents (batch, c, h, w), scaled by ``scheduler.scale_model_input``,
            and a timestep (a 0-d tensor, not always whole); returns the network's output, same
            shape.
        scheduler: from `make_scheduler`.
        shape: (c, h, w) of one picture's latents.
        seeds: one per picture.
        steps: sampling steps; some samplers evaluate the network twice a step (`Sampler.order`), DPM adaptive takes as many
            steps as it needs, and tells of them as shares of these.
        device: of the latents.
        dtype: of the latents.
        latents: starting noise of unit variance in place of that of the seeds.
        variation: the noise of the seeds goes so far towards that of others; what a sampler adds on its way is the
            seeds' own, as in the webui.
        image_latents: clean latents (batch, c, h, w) to start from (SDEdit, Meng et al. 2022,
            2108.01073), with noise from the seeds.
        strength: with ``image_latents``: the share of the steps that is run, as in diffusers.
        mask: with ``image_latents``: (batch or 1, 1, h, w), 1 where they are drawn anew, 0 where they are kept: after
            each step these are the original with as much noise as is left (as the webui's DDIM and diffusers' inpainting
            pipeline do on models that know of no masks), after the last the original itself.
        discretisation: where the steps lie: "diffusers", or "webui" for k-diffusion's noise levels and,
            in DPM++ 2M SDE, its Brownian noise, so that old pictures repeat (docs/samplers.md says which).
        on_step: called after each step with (steps done, steps to do, latents).

    Raises:
        UserError: an unknown discretisation, no seeds, a number of steps the schedule does not have, a strength out of range,
            latents or a mask of another shape.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    _check_request(scheduler, shape, seeds, steps, latents, image_latents, strength)
    if variation is not None and (latents is not None or len(variation.seeds) != len(seeds)):
        raise UserError(
            f"a variation needs one seed for each of the {len(seeds)} pictures, and no latents; got {len(variation.seeds)}"
        )
    _check_mask(mask, shape, seeds, image_latents)
    if discretisation not in DISCRETISATIONS:
        raise unknown_name("discretisation", discretisation, DISCRETISATIONS)
    as_webui = discretisation == "webui"
    if as_webui and scheduler.config.get("prediction_type", FLOW[0]) in FLOW:
        raise UserError(
            "discretisation 'webui' is of k-diffusion's noise levels, which models trained by flow matching do not have: "
            "take 'diffusers'"
        )
    first = steps - min(int(steps * strength), steps)
    chosen: Sampler | None = getattr(scheduler, "sampler", None)
    if chosen is not None and chosen.loop:
        noise = starting_noise(shape, generators, dtype, variation) if latents is None else latents
        return run_levelled(
            predict,
            scheduler,
            chosen,
            noise.to(device, dtype),
            steps,
            first,
            seeds,
            generators,
            image_latents=None if image_latents is None else image_latents.to(device, dtype),
            mask=mask,
            on_step=on_step,
        )
    timesteps, deviation = _set_timesteps(scheduler, steps, first, device, as_webui)
    x: Tensor
    if image_latents is not None:
        noise = (starting_noise(shape, generators, dtype, variation) if latents is None else latents).to(
            device, dtype
        )
        starts = timesteps[:1].repeat(len(seeds))
        x = scheduler.add_noise(image_latents.to(device, dtype), noise, starts)
    else:
        noise = starting_noise(shape, generators, dtype, variation) if latents is None else latents
        x = noise.to(device, dtype) * deviation
    if hasattr(scheduler, "noise_sampler_seed"):
        scheduler.noise_sampler = brownian_noise(scheduler.sigmas, x, seeds)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options: dict[str, Any] = {"generator": generators} if takes_generator else {}
    brownian = None
    if as_webui and scheduler.config.get("algorithm_type") == "sde-dpmsolver++":
        brownian = brownian_noise(scheduler.sigmas, x, seeds)
    order = getattr(scheduler, "order", 1)
    ahead = len(timesteps) - (steps - first) * order  # PLMS evaluates its first step twice
    done = 0
    for evaluated, timestep in enumerate(timesteps, start=1):
        output = predict(scheduler.scale_model_input(x, timestep), timestep).to(x)
        if brownian is not None:
            options["variance_noise"] = brownian(*scheduler.sigmas[first + evaluated - 1 :][:2])
        x = scheduler.step(output, timestep, x, **options, return_dict=False)[0]
        if evaluated == len(timesteps) or (evaluated > ahead and evaluated % order == 0):
            done += 1
            if mask is not None and image_latents is not None:
                kept = image_latents.to(x)
                if evaluated < len(timesteps):
                    kept = scheduler.add_noise(kept, noise, timesteps[evaluated].repeat(len(seeds)))
                x = torch.lerp(kept, x, mask.to(x))
            if on_step is not None:
                on_step(done, steps - first, x)
    return x


def check_steps(scheduler: "SchedulerMixin", steps: int) -> None:
    """Refuse a number of steps that a scheduler of `make_scheduler` cannot take.

    Raises:
        UserError: it is out of range.
    """
    config = scheduler.config
    most = config.get("original_inference_steps", config.num_train_timesteps)
    if "original_inference_steps" not in config and config.get("timestep_spacing") == "leading":
        most = most // 2 - 1  # with more, whole strides would begin far from pure noise
    if not 1 <= steps <= most:
        raise UserError(f"this sampler can take 1 to {most} steps; got {steps}")


def _check_request(
    scheduler: "SchedulerMixin",
    shape: tuple[int, int, int],
    seeds: Sequence[int],
    steps: int,
    latents: Tensor | None,
    image_latents: Tensor | None,
    strength: float,
) -> None:
    """Refuse what `sample` cannot do before anything is computed."""
    if not seeds:
        raise UserError("nothing to sample: give one seed for each picture")
    check_steps(scheduler, steps)
    if strength != 1 and image_latents is None:
        raise UserError(f"strength {strength} needs image_latents to start from")
    if not 0 < strength <= 1 or int(steps * strength) < 1:
        raise UserError(
            f"strength {strength} of {steps} steps leaves none to run; take more steps, or a "
            f"strength from {1 / steps:.3g} to 1"
        )
    for name, given in (("latents", latents), ("image_latents", image_latents)):
        if given is not None and tuple(given.shape) != (len(seeds), *shape):
            raise UserError(
                f"{name} have shape {tuple(given.shape)}; expected {(len(seeds), *shape)}, one for each seed"
            )


def _check_mask(
    mask: Tensor | None, shape: tuple[int, int, int], seeds: Sequence[int], image_latents: Tensor | None
) -> None:
    """Refuse a mask of nothing, or of another shape."""
    if mask is None:
        return
    if image_latents is None:
        raise UserError("a mask needs image_latents, of which it keeps a part")
    if mask.ndim != 4 or mask.shape[0] not in (1, len(seeds)) or tuple(mask.shape[1:]) != (1, *shape[1:]):
        raise UserError(
            f"mask has shape {tuple(mask.shape)}; expected {(len(seeds), 1, *shape[1:])}, one for each seed"
        )


def _set_timesteps(
    scheduler: "SchedulerMixin", steps: int, first: int, device: str | torch.device, as_webui: bool
) -> tuple[Tensor, float]:
    """Set a scheduler to run from step ``first``; its timesteps, one per evaluation, and the standard
    deviation of pure noise at step 0.
    """
    scheduler.set_timesteps(steps, device=device)
    chosen: Sampler | None = getattr(scheduler, "sampler", None)
    levels = chosen is not None and chosen.own_levels  # a schedule that diffusers' class does not have
    deviation = set_webui_levels(scheduler, steps, device) if as_webui or levels else None
    deviation = float(scheduler.init_noise_sigma) if deviation is None else deviation
    timesteps: Tensor = scheduler.timesteps
    if hasattr(scheduler, "set_begin_index"):  # else a repeated first timestep would be skipped
        scheduler.set_begin_index(first * scheduler.order)
    if hasattr(scheduler, "plms_timesteps"):  # its second timestep is there twice, from anywhere
        once = torch.cat([timesteps[:1], timesteps[2:]])[first:]
        return torch.cat([once[:2], once[1:]]), deviation
    return timesteps[first * getattr(scheduler, "order", 1) :], deviation


def classifier_free_guidance(
    unconditional: Tensor, conditional: Tensor, scale: float, rescale: float = 0.0
) -> Tensor:
    """Classifier-free guidance of Ho & Salimans (2022, 2207.12598), equation 6, in the form
    u + scale (c - u); with ``rescale``, equations 14 to 16 of Lin et al. (2023, 2305.08891).

    Args:
        unconditional: (batch, …) the network's output without the condition, any prediction type.
        conditional: (batch, …) its output with the condition.
        scale: 1 is the conditional output, 0 the unconditional one.
        rescale: phi, how far the standard deviation of each picture goes back to the conditional
            output's, 0 to 1.
    """
    guided = unconditional + scale * (conditional - unconditional)
    if not rescale:
        return guided
    over = tuple(range(1, guided.ndim))
    deviation = conditional.std(dim=over, keepdim=True) / guided.std(dim=over, keepdim=True)
    return rescale * (guided * deviation) + (1 - rescale) * guided


def composed_guidance(
    unconditional: Tensor, conditional: Sequence[Tensor], weights: Tensor, scale: float
) -> Tensor:
    """Composed guidance of Liu et al. (2022, 2206.01714), equation 11: u + scale · Σ w_i (c_i - u).

    Args:
        unconditional: (batch, …) the network's output without the condition, any prediction type.
        conditional: its output with each of the conditions, same shape.
        weights: (conditions, batch).
        scale: as of `classifier_free_guidance`.
    """
    guided = unconditional.clone()
    for part, share in zip(conditional, weights, strict=True):
        by_picture = share.to(part).view(-1, *[1] * (part.ndim - 1))
        guided += (part - unconditional) * (by_picture * scale)
    return guided
