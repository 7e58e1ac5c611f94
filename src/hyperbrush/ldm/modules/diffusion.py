"""The diffusion process as small pure functions.

Notation: x0 data, eps noise, x_t = sqrt(a_t) x0 + sqrt(1 - a_t) eps, where a_t is the cumulative
product of 1 - beta ("alphas_cumprod" in the field's code) and SNR(t) = a_t / (1 - a_t). What takes a `Process` does
the same for a rectified flow, whose notation is in `flow`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.ldm.modules import flow
from hyperbrush.ldm.modules.draws import perturb as perturb
from hyperbrush.ldm.modules.draws import sample_noise as sample_noise
from hyperbrush.ldm.modules.draws import sample_timesteps as sample_timesteps
from hyperbrush.ldm.modules.flow import FlowSchedule

Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample", "flow_prediction")


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

    def told(self, timesteps: Tensor) -> Tensor:
        """What the network is told of timesteps: their numbers."""
        return timesteps


Process = NoiseSchedule | FlowSchedule


def check_prediction(prediction: str, schedule: Process) -> None:
    """Refuse pairs of target and schedule that cannot work.

    Raises:
        UserError: unknown prediction type; eps where the last step is pure noise; a flow's velocity of a process that
            is no flow, or anything else of a flow.
    """
    if prediction not in PREDICTIONS:
        raise unknown_name("prediction type", prediction, PREDICTIONS)
    if (prediction == "flow_prediction") != isinstance(schedule, FlowSchedule):
        kind = "a rectified flow" if isinstance(schedule, FlowSchedule) else "a variance-preserving process"
        raise UserError(
            f"prediction type {prediction!r} is not of {kind}: a flow is trained by 'flow_prediction', a "
            "variance-preserving process by one of 'epsilon', 'v_prediction' and 'sample'"
        )
    if prediction == "epsilon" and schedule.zero_terminal_snr:
        raise UserError(
            "prediction type 'epsilon' cannot be used with zero terminal SNR: at the last step the "
            "picture cannot be recovered from the noise (0/0). Take 'v_prediction'"
        )


def add_noise(schedule: Process, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Forward step q(x_t | x_0): x_t = sqrt(a) x0 + sqrt(1 - a) eps (Ho et al. 2020, equation 4), of a flow
    (1 - sigma) x0 + sigma eps.

    x0, noise: (batch, …); timesteps: (batch,) int.
    """
    signal, sigma = schedule.rates(timesteps, x0)
    return signal * x0 + sigma * noise


def target(schedule: Process, prediction: str, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network is to predict: eps, x0, v = sqrt(a) eps - sqrt(1 - a) x0 (Salimans & Ho 2022, section 4), or the
    velocity eps - x0 of a flow; shapes as in `add_noise`.

    On a flow v is that of the variance-preserving process at the same SNR.
    """
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return x0
    if prediction == "flow_prediction":
        return noise - x0
    if prediction == "v_prediction":
        signal, sigma = schedule.rates(timesteps, x0)
        if isinstance(schedule, FlowSchedule):
            signal, sigma = _unit_length(signal, sigma)
        return signal * noise - sigma * x0
    raise unknown_name("prediction type", prediction, PREDICTIONS)


def _unit_length(signal: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The rates of the variance-preserving process at the same SNR; its x_t is the other one by their length."""
    length = torch.hypot(signal, sigma)
    return signal / length, sigma / length


def to_x0_and_noise(
    schedule: Process, prediction: str, output: Tensor, x_t: Tensor, timesteps: Tensor
) -> tuple[Tensor, Tensor]:
    """Both x0 and eps from a network's output, exactly, for every prediction type.

    output, x_t: (batch, …); timesteps: (batch,) int.
    """
    signal, sigma = schedule.rates(timesteps, x_t)
    if prediction == "flow_prediction":  # the rates of a flow add up to 1
        whole = signal + sigma
        return (x_t - sigma * output) / whole, (x_t + signal * output) / whole
    if prediction == "v_prediction":
        if isinstance(schedule, FlowSchedule):
            x_t = x_t / torch.hypot(signal, sigma)
            signal, sigma = _unit_length(signal, sigma)
        return signal * x_t - sigma * output, sigma * x_t + signal * output
    if prediction == "epsilon":
        return (x_t - sigma * output) / signal, output
    if prediction == "sample":
        return output, (x_t - signal * output) / sigma
    raise unknown_name("prediction type", prediction, PREDICTIONS)


def convert(
    schedule: Process, output: Tensor, x_t: Tensor, timesteps: Tensor, *, source: str, to: str
) -> Tensor:
    """Restate a network's output of one prediction type as another, at the same x_t and SNR."""
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


def weighting_names() -> tuple[str, ...]:
    """All weightings, of both kinds of process."""
    return (*WEIGHTINGS, *(name for name in flow.WEIGHTINGS if name not in WEIGHTINGS))


def check_weighting(weighting: str, schedule: Process | None = None) -> None:
    """Refuse a weighting that a process does not have; schedule: None while the model is not known.

    Raises:
        UserError: unknown, or of the other kind of process; debiased with zero terminal SNR, where 1 / sqrt(SNR) is
            infinite.
    """
    if weighting not in weighting_names():
        raise unknown_name("loss weighting", weighting, weighting_names())
    if schedule is None:
        return
    is_flow = isinstance(schedule, FlowSchedule)
    own = flow.WEIGHTINGS if is_flow else WEIGHTINGS
    if weighting not in own:
        kind = "by flow matching" if is_flow else "on a variance-preserving process"
        raise UserError(
            f"weighting {weighting!r} is not defined for a model trained {kind}: take one of {', '.join(own)}"
        )
    if weighting == "debiased" and schedule.zero_terminal_snr:
        raise UserError("weighting 'debiased' divides by the SNR, which is 0 here; take 'min_snr' or 'none'")


def loss_weight(schedule: Process, prediction: str, timesteps: Tensor, weighting: str = "none") -> Tensor:
    """Weight of each picture's squared error; timesteps: (batch,) int; returns (batch,) float32.

    Raises:
        UserError: see `check_weighting`.
    """
    check_weighting(weighting, schedule)
    if isinstance(schedule, FlowSchedule):
        return flow.WEIGHTINGS[weighting](schedule.sigmas[timesteps.cpu()]).float()
    return WEIGHTINGS[weighting](schedule.snr(timesteps), prediction).float()
