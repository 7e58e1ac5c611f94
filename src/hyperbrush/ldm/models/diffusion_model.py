"""A denoiser, UNet or transformer, and the process it denoises, which diffusers' scheduler settings describe."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.ldm.models.autoencoder import norm_groups
from hyperbrush.ldm.models.transformer import denoised, is_transformer
from hyperbrush.ldm.modules import diffusion, flow


def build_unet(
    *,
    latent_dim: int,
    sample_size: int,
    channels: Sequence[int],
    attention_resolutions: Sequence[int],
    num_heads: int,
    layers_per_block: int = 2,
    context_dim: int | None = None,
    num_classes: int | None = None,
    extra_channels: int = 0,
    dropout: float = 0.0,
) -> nn.Module:
    """A fresh `UNet2DConditionModel`, with attention where the latent map is as wide as listed.

    Args:
        latent_dim: channels of the latents (and of the output).
        sample_size: side of the latent map at the first level.
        channels: width of each level; each level halves the map.
        attention_resolutions: sides of the latent map at which attention stands.
        num_heads: attention heads at every level (diffusers calls this `attention_head_dim`).
        layers_per_block: residual layers a level.
        context_dim: width of the text states for cross-attention; None gives the UNet a single null
            token, so that only the self-attention does work.
        num_classes: a class embedding is added to the time embedding.
        extra_channels: channels of a picture concatenated to the input.
        dropout: in the residual and attention blocks.

    Raises:
        UserError: no level has a listed width, or the heads do not divide a level with attention.
    """
    from diffusers import UNet2DConditionModel

    sides = [sample_size // 2**i for i in range(len(channels))]
    with_attention = [side in set(attention_resolutions) for side in sides]
    stray = sorted(set(attention_resolutions) - set(sides))
    if stray:
        raise UserError(
            f"attention_resolutions {stray} match no level: with latents {sample_size} wide the levels "
            f"are {sides} wide. (CompVis counts downsampling factors; here it is the map's width.)"
        )
    for width, attends in zip(channels, with_attention, strict=True):
        if attends and width % num_heads:
            raise UserError(
                f"num_heads={num_heads} does not divide the width {width} of a level with attention"
            )
    if channels[-1] % num_heads:
        raise UserError(f"num_heads={num_heads} does not divide the width {channels[-1]} of the middle block")
    down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in with_attention]
    up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(with_attention)]
    return UNet2DConditionModel(  # type: ignore[no-any-return]
        sample_size=sample_size,
        in_channels=latent_dim + extra_channels,
        out_channels=latent_dim,
        block_out_channels=tuple(channels),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        layers_per_block=layers_per_block,
        attention_head_dim=num_heads,
        cross_attention_dim=context_dim or 32,
        norm_num_groups=norm_groups(channels),
        num_class_embeds=num_classes,
        dropout=dropout,
    )


class DiffusionModel(nn.Module):
    """UNet and process: what `LatentDiffusion.diffusion` is.

    Args:
        unet: a diffusers UNet, called as ``unet(latents, timesteps, encoder_hidden_states=…)``, or a PixArt
            transformer in its place; under this name whatever it is, for so checkpoints and hypernetworks find it.
        schedule: signal shares of the process, or a rectified flow's shares of noise.
        prediction: "epsilon", "v_prediction" or "sample"; "flow_prediction" of a flow.
        scheduler_config: the diffusers settings the schedule came from, for samplers.
        pixels_per_latent: the first stage's downsampling, which Stable Diffusion XL is told sizes by.
    """

    def __init__(
        self,
        unet: nn.Module,
        schedule: diffusion.Process,
        prediction: str,
        scheduler_config: Mapping[str, Any],
        pixels_per_latent: int = 8,
    ) -> None:
        super().__init__()
        diffusion.check_prediction(prediction, schedule)
        self.unet = unet
        self.schedule = schedule
        self.prediction = prediction
        self.scheduler_config = dict(scheduler_config)
        self.pixels_per_latent = pixels_per_latent

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        *,
        class_labels: Tensor | None = None,
        concat: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> Tensor:
        """The denoiser's output (batch, c, h, w).

        latents: (batch, c, h, w); timesteps: (batch,) or a scalar; context: (batch, tokens, width);
        class_labels: (batch,); concat: (batch, extra, h, w); pooled: (batch, projection), the pooled
        text states of Stable Diffusion XL, which is also told the picture's size, uncropped.

        Raises:
            UserError: latents (and concat) of other channels than the UNet's.
        """
        if concat is not None:
            latents = torch.cat([latents, concat], dim=1)
        expected = self.unet.config.in_channels  # type: ignore[union-attr]
        if latents.shape[1] != expected:
            raise UserError(
                f"this UNet reads {expected} channels and got {latents.shape[1]}: a model that is told of a picture "
                "(inpainting, conditioning 'image') needs it beside the latents"
            )
        if context is None:
            width = int(self.unet.config.cross_attention_dim)  # type: ignore[union-attr, arg-type]
            context = latents.new_zeros(len(latents), 1, width)
        if is_transformer(self.unet):
            return denoised(self.unet, latents, timesteps, context)
        added = None
        if pooled is not None:
            height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
            sizes = pooled.new_tensor([height, width, 0, 0, height, width]).expand(len(latents), -1)
            added = {"text_embeds": pooled, "time_ids": sizes}
        out = self.unet(
            latents,
            timesteps,
            encoder_hidden_states=context,
            class_labels=class_labels,
            added_cond_kwargs=added,
        )
        sample: Tensor = out.sample
        return sample

    def draw(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator,
        *,
        condition_dropout: float = 0.0,
        offset_noise: float = 0.0,
        perturbation: float = 0.0,
        timestep_sampling: str = "uniform",
        timestep_options: Mapping[str, float] | None = None,
        timestep_range: tuple[int, int] | None = None,
    ) -> dict[str, Tensor]:
        """All randomness of one training step: noise, timesteps, which conditions are kept.

        shape: (batch, c, h, w) of the latents.  A batch split over processes draws it whole from one
        generator and takes its rows.
        """
        steps = len(self.schedule)
        low, high = timestep_range or (0, steps)
        drawn = {
            "timesteps": diffusion.sample_timesteps(
                shape[0],
                steps,
                generator,
                low=low,
                high=high,
                method=timestep_sampling,
                options=timestep_options,
            ),
            "noise": diffusion.sample_noise(shape, generator, offset=offset_noise),
            "keep": torch.rand(shape[0], generator=generator) >= condition_dropout,
        }
        if perturbation:
            drawn["perturbed"] = diffusion.perturb(drawn["noise"], generator, perturbation)
        return drawn

    def losses(
        self,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        *,
        weighting: str = "none",
        loss: str | diffusion.Loss = "mse",
        perturbation: Tensor | None = None,
        mask: Tensor | None = None,
        **condition: Tensor | None,
    ) -> Tensor:
        """Weighted error of each picture, (batch,) float32.

        latents: clean, scaled, (batch, c, h, w); noise: the same shape; timesteps: (batch,);
        perturbation: noise to make x_t with, where it differs from the target's; mask: (batch, 1, h, w)
        weights of the latent map's places; loss: mse, l1, huber, or a function of prediction and target
        (batch, c, h, w, both float32) that returns the error of each element.

        Raises:
            UserError: unknown loss or weighting; a function that returns another shape.
        """
        noisy = diffusion.add_noise(
            self.schedule, latents, noise if perturbation is None else perturbation, timesteps
        )
        goal = diffusion.target(self.schedule, self.prediction, latents, noise, timesteps)
        output = self(noisy, self.schedule.told(timesteps), context, **condition)
        error = diffusion.loss_of(loss)(output.float(), goal.float())
        if error.shape != goal.shape:
            raise UserError(
                f"the loss function gave shape {tuple(error.shape)}; expected the error of each element, "
                f"{tuple(goal.shape)} (no mean: weights and masks come after)"
            )
        if mask is not None:
            error = error * mask / mask.mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
        weight = diffusion.loss_weight(self.schedule, self.prediction, timesteps, weighting)
        losses: Tensor = error.flatten(1).mean(1) * weight.to(error.device)
        return losses


SCHEDULE = "scaled_linear"  # where none is named


def scheduler_config(
    schedule: str | Sequence[float] | Callable[[float], float],
    steps: int,
    prediction: str,
    zero_terminal_snr: bool,
    shift: float = 1.0,
) -> dict[str, Any]:
    """The diffusers settings of a process.

    schedule: a name; the betas of all steps, which then number them; or a function of the share of the process, 0 to 1,
        to the signal's share of the variance.
    shift: of a flow ("flow_prediction"), see `flow.shifted`.

    Raises:
        UserError: an unknown schedule or prediction; betas that are no shares between 0 and 1; a function that does not
            fall; what a flow does not have, or it alone.
    """
    if prediction not in diffusion.PREDICTIONS:
        raise unknown_name("prediction type", prediction, diffusion.PREDICTIONS)
    if prediction == "flow_prediction":
        if schedule != SCHEDULE or zero_terminal_snr:
            raise UserError(
                f"{'zero_terminal_snr' if zero_terminal_snr else 'a noise schedule'} is of a variance-preserving process; "
                "'flow_prediction' goes straight to noise alone and has a shift in its place: leave it out"
            )
        return flow.config_of(steps, shift)
    if shift != 1:
        raise UserError(
            f"shift {shift:g} is of prediction 'flow_prediction' alone; leave it out of {prediction!r}"
        )
    if not isinstance(schedule, str):
        betas = checked_betas(_betas_of(schedule, steps) if callable(schedule) else schedule)
        process = scheduler_config("linear", len(betas), prediction, zero_terminal_snr)
        return process | {"trained_betas": betas}
    name = "squaredcos_cap_v2" if schedule == "cosine" else schedule
    diffusion.NoiseSchedule.named(name, steps)  # refuses unknown names
    config: dict[str, Any] = {
        "num_train_timesteps": steps,
        "beta_schedule": name,
        "prediction_type": prediction,
        "rescale_betas_zero_snr": zero_terminal_snr,
        "timestep_spacing": "trailing" if zero_terminal_snr else "leading",
        "steps_offset": 0 if zero_terminal_snr else 1,
        "clip_sample": False,
        "set_alpha_to_one": False,
    }
    if name == "linear":
        config |= {"beta_start": 0.0001, "beta_end": 0.02}
    if name == "scaled_linear":
        config |= {"beta_start": 0.00085, "beta_end": 0.012}
    return config


def checked_betas(betas: Sequence[float]) -> list[float]:
    """The betas of a process as numbers.

    Raises:
        UserError: fewer than two, or one that is no share above 0 and below 1.
    """
    found = [float(beta) for beta in betas]
    wrong = next((i for i, beta in enumerate(found) if not 0 < beta < 1), None)
    if wrong is not None:
        raise UserError(
            f"beta {wrong} of the noise schedule is {found[wrong]}: expected a number above 0 and below 1"
        )
    if len(found) < 2:
        raise UserError(
            f"a noise schedule of {len(found)} betas; expected one for each of its steps, such as 1000"
        )
    return found


def _betas_of(signal: Callable[[float], float], steps: int) -> list[float]:
    """Betas of a function's signal shares, as Nichol & Dhariwal (2021, equation 17) make them of a cosine."""
    shares = [float(signal(step / steps)) for step in range(steps + 1)]
    if not all(math.isfinite(share) and share >= 0 for share in shares) or any(
        after >= before for before, after in pairwise(shares)
    ):
        raise UserError("the noise schedule's function must fall from step to step and stay at 0 or above")
    return [min(1 - after / before, 0.999) for before, after in pairwise(shares)]


def schedule_of(config: Mapping[str, Any]) -> diffusion.Process:
    """The noise schedule that diffusers settings describe, or the flow."""
    if config.get("prediction_type") == "flow_prediction":
        return flow.FlowSchedule.of_shift(config["shift"], config["num_train_timesteps"])
    if config.get("trained_betas") is not None:
        betas = torch.as_tensor(config["trained_betas"], dtype=torch.float64)
        alphas = torch.cumprod(1 - betas, 0)
        zero = config.get("rescale_betas_zero_snr", False)
        return diffusion.NoiseSchedule(diffusion.rescale_to_zero_terminal_snr(alphas) if zero else alphas)
    name = config.get("beta_schedule", "linear")
    ends = {} if name == "squaredcos_cap_v2" else {k: config.get(k) for k in ("beta_start", "beta_end")}
    return diffusion.NoiseSchedule.named(
        name,
        config.get("num_train_timesteps", 1000),
        zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
        **ends,
    )
