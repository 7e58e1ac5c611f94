"""The diffusion process as small pure functions.

Notation: x0 data, eps noise, x_t = sqrt(a_t) x0 + sqrt(1 - a_t) eps, where a_t is the cumulative
product of 1 - beta ("alphas_cumprod" in the field's code) and SNR(t) = a_t / (1 - a_t).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hyperbrush.errors import UserError, unknown_name

Prediction = Literal["epsilon", "v_prediction", "sample"]
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")


def linear_betas(steps: int, start: float = 0.0001, end: float = 0.02) -> Tensor:
    """Betas of Ho et al. (2020); CompVis calls this "sqrt_linear"."""
    return torch.linspace(start, end, steps, dtype=torch.float64)


def scaled_linear_betas(steps: int, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """Betas linear in their square root (Stable Diffusion); CompVis calls this "linear"."""
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2


def cosine_betas(steps: int, offset: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """Cosine schedule of Nichol & Dhariwal (2021), equation 17."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha_bar = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta)


BETAS: dict[str, Callable[..., Tensor]] = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "squaredcos_cap_v2": cosine_betas,
    "cosine": cosine_betas,
}


def rescale_to_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Algorithm 1 of Lin et al. (2023, 2305.08891): shift and scale sqrt(a_t) so that a_T = 0.

    alphas_cumprod: (steps,) decreasing; returns the same shape with the first value kept.
    """
    root = alphas_cumprod.sqrt()
    first, last = root[0], root[-1]
    return ((root - last) * first / (first - last)) ** 2


@dataclass(frozen=True)
class NoiseSchedule:
    """Cumulative signal shares a_t of a discrete process.

    alphas_cumprod: (steps,) float64, decreasing, in [0, 1).
    """

    alphas_cumprod: Tensor

    @classmethod
    def named(
        cls,
        name: str = "scaled_linear",
        steps: int = 1000,
        *,
        zero_terminal_snr: bool = False,
        beta_start: float | None = None,
        beta_end: float | None = None,
    ) -> "NoiseSchedule":
        """Schedule by its diffusers name: linear, scaled_linear, squaredcos_cap_v2 (or cosine).

        Raises:
            UserError: unknown name, or a start or end given to the cosine schedule.
        """
        if name not in BETAS:
            raise unknown_name("noise schedule", name, BETAS)
        ends = {k: v for k, v in (("start", beta_start), ("end", beta_end)) if v is not None}
        if ends and BETAS[name] is cosine_betas:
            raise UserError("the cosine schedule has no beta_start and beta_end; leave them out")
        alphas = torch.cumprod(1 - BETAS[name](steps, **ends), dim=0)
        return cls(rescale_to_zero_terminal_snr(alphas) if zero_terminal_snr else alphas)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def zero_terminal_snr(self) -> bool:
        """True if the last step holds no signal at all."""
        return bool(self.alphas_cumprod[-1] <= 1e-12)

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio a / (1 - a); timesteps: (batch,) int; returns (batch,) float64."""
        a = self.alphas_cumprod[timesteps.cpu()]
        return a / (1 - a)

    def rates(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(a_t) and sqrt(1 - a_t), shaped (batch, 1, …) to multiply ``like`` (batch, …)."""
        a = self.alphas_cumprod[timesteps.cpu()]
        shape = (-1,) + (1,) * (like.ndim - 1)
        return (a.sqrt().to(like).view(shape), (1 - a).sqrt().to(like).view(shape))


def check_prediction(prediction: str, schedule: NoiseSchedule) -> None:
    """Refuse pairs of target and schedule that cannot work.

    Raises:
        UserError: unknown prediction type, or eps where the last step is pure noise.
    """
    if prediction not in PREDICTIONS:
        raise unknown_name("prediction type", prediction, PREDICTIONS)
    if prediction == "epsilon" and schedule.zero_terminal_snr:
        raise UserError(
            "prediction type 'epsilon' cannot be used with zero terminal SNR: at the last step the "
            "picture cannot be recovered from the noise (0/0). Take 'v_prediction'"
        )


def add_noise(schedule: NoiseSchedule, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Forward step q(x_t | x_0): x_t = sqrt(a) x0 + sqrt(1 - a) eps (Ho et al. 2020, equation 4).

    x0, noise: (batch, …); timesteps: (batch,) int.
    """
    signal, sigma = schedule.rates(timesteps, x0)
    return signal * x0 + sigma * noise


def target(schedule: NoiseSchedule, prediction: str, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network is to predict: eps, x0, or v = sqrt(a) eps - sqrt(1 - a) x0
    (Salimans & Ho 2022, section 4); shapes as in `add_noise`.
    """
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return x0
    if prediction == "v_prediction":
        signal, sigma = schedule.rates(timesteps, x0)
        return signal * noise - sigma * x0
    raise unknown_name("prediction type", prediction, PREDICTIONS)


def to_x0_and_noise(
    schedule: NoiseSchedule, prediction: str, output: Tensor, x_t: Tensor, timesteps: Tensor
) -> tuple[Tensor, Tensor]:
    """Both x0 and eps from a network's output, exactly, for every prediction type.

    output, x_t: (batch, …); timesteps: (batch,) int.
    """
    signal, sigma = schedule.rates(timesteps, x_t)
    if prediction == "v_prediction":
        return signal * x_t - sigma * output, sigma * x_t + signal * output
    if prediction == "epsilon":
        return (x_t - sigma * output) / signal, output
    if prediction == "sample":
        return output, (x_t - signal * output) / sigma
    raise unknown_name("prediction type", prediction, PREDICTIONS)


def convert(
    schedule: NoiseSchedule, output: Tensor, x_t: Tensor, timesteps: Tensor, *, source: str, to: str
) -> Tensor:
    """Restate a network's output of one prediction type as another."""
    x0, noise = to_x0_and_noise(schedule, source, output, x_t, timesteps)
    return target(schedule, to, x0, noise, timesteps)


# Loss weightings: (batch,) SNR -> (batch,) weight of the squared error of the *predicted* quantity.


def uniform_weight(snr: Tensor, prediction: str) -> Tensor:
    """One for every timestep."""
    return torch.ones_like(snr)


def min_snr_weight(snr: Tensor, prediction: str, gamma: float = 5.0) -> Tensor:
    """Min-SNR-γ of Hang et al. (2023, 2303.09556): min(SNR, γ) on x0, restated for the prediction.

    Squared errors relate as |x0|² = |eps|² / SNR = |v|² / (SNR + 1), hence the divisions.
    """
    clipped = snr.clamp(max=gamma)
    if prediction == "epsilon":
        return clipped / snr
    return clipped / (snr + 1) if prediction == "v_prediction" else clipped


def debiased_weight(snr: Tensor, prediction: str) -> Tensor:
    """Debiased estimation of Yu et al. (2023, 2310.08442): 1 / sqrt(SNR) on eps, SNR capped at 1000
    as in its reference code; restated for the prediction.
    """
    capped = snr.clamp(max=1000)
    on_noise = 1 / capped.sqrt()
    if prediction == "epsilon":
        return on_noise
    return on_noise * snr / (snr + 1) if prediction == "v_prediction" else on_noise * snr


WEIGHTINGS: dict[str, Callable[[Tensor, str], Tensor]] = {
    "none": uniform_weight,
    "min_snr": min_snr_weight,
    "debiased": debiased_weight,
}


# Elementwise errors of the predicted quantity: (prediction, target) -> the same shape.
Loss = Callable[[Tensor, Tensor], Tensor]
HUBER = 0.1  # where the pseudo-Huber loss turns from square to straight; of numbers around 1


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """(prediction - target)², the loss of Ho et al. 2020."""
    return (prediction - target).pow(2)


def absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    """|prediction - target|."""
    return (prediction - target).abs()


def huber_error(prediction: Tensor, target: Tensor, c: float = HUBER) -> Tensor:
    """Pseudo-Huber 2c(√(d² + c²) - c): a square near 0, straight beyond c, so that outliers count less
    (Khrapov et al. 2024, 2403.16728, with a constant c).
    """
    return 2 * c * (((prediction - target).pow(2) + c**2).sqrt() - c)


LOSSES: dict[str, Loss] = {"mse": squared_error, "l1": absolute_error, "huber": huber_error}


def loss_of(loss: str | Loss) -> Loss:
    """A loss by its name; a function passes through.

    Raises:
        UserError: unknown name.
    """
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise unknown_name("loss", loss, LOSSES)
    return LOSSES[loss]


def loss_weight(
    schedule: NoiseSchedule, prediction: str, timesteps: Tensor, weighting: str = "none"
) -> Tensor:
    """Weight of each picture's squared error; timesteps: (batch,) int; returns (batch,) float32.

    Raises:
        UserError: unknown weighting; debiased with zero terminal SNR, where 1 / sqrt(SNR) is infinite.
    """
    if weighting not in WEIGHTINGS:
        raise unknown_name("loss weighting", weighting, WEIGHTINGS)
    if weighting == "debiased" and schedule.zero_terminal_snr:
        raise UserError("weighting 'debiased' divides by the SNR, which is 0 here; take 'min_snr' or 'none'")
    return WEIGHTINGS[weighting](schedule.snr(timesteps), prediction).float()


# Noise and timesteps: always drawn from a generator the caller keys by (seed, step).


def sample_noise(shape: tuple[int, ...], generator: torch.Generator, *, offset: float = 0.0) -> Tensor:
    """Standard normal noise (batch, channels, height, width), float32 on the generator's device.

    ``offset`` adds one normal number per picture and channel (offset noise, Guttenberg 2023), so that
    overall brightness is learned.
    """
    noise = torch.randn(shape, generator=generator, device=generator.device)
    if offset:
        noise = noise + offset * torch.randn(
            shape[:2] + (1,) * (len(shape) - 2), generator=generator, device=generator.device
        )
    return noise


def perturb(noise: Tensor, generator: torch.Generator, gamma: float) -> Tensor:
    """Input perturbation (Ning et al. 2023, 2301.11706): x_t is made with noise + γ ξ, while the
    target keeps the clean noise.
    """
    if not gamma:
        return noise
    return noise + gamma * torch.randn(noise.shape, generator=generator, device=generator.device).to(noise)


def sample_timesteps(
    batch: int,
    steps: int,
    generator: torch.Generator,
    *,
    low: int = 0,
    high: int | None = None,
    method: str = "uniform",
) -> Tensor:
    """Timesteps (batch,) int64 in [low, high).

    ``uniform`` draws each alone; ``stratified`` spreads the batch evenly over the range in a random
    order, which lowers the variance of the loss; ``logit_normal`` favours the middle (Esser et al.
    2024, section 3.1).

    Raises:
        UserError: an empty or impossible range, or an unknown method.
    """
    high = steps if high is None else high
    if not 0 <= low < high <= steps:
        raise UserError(f"timesteps {low} to {high} are not within 0 to {steps}")
    if method == "uniform":
        share = torch.rand(batch, generator=generator, device=generator.device)
    elif method == "stratified":
        cell = torch.randperm(batch, generator=generator, device=generator.device)
        share = (cell + torch.rand(batch, generator=generator, device=generator.device)) / batch
    elif method == "logit_normal":
        share = torch.randn(batch, generator=generator, device=generator.device).sigmoid()
    else:
        raise unknown_name("timestep sampling", method, ("uniform", "stratified", "logit_normal"))
    return (low + share.double() * (high - low)).long().clamp(max=high - 1)
