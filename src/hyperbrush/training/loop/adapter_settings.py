"""Settings of the loop, the optimizer and the draws, which all trainings through a frozen model share."""

import math
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from hyperbrush.ldm.util import load_config
from hyperbrush.training.loop.config import LoopSettings, Share, StepSettings, TrainerConfig

if TYPE_CHECKING:
    from hyperbrush.ldm.models import LatentDiffusion


class AdapterSettings(LoopSettings, StepSettings):
    """How long, how fast, how often; see `Trainer`."""

    DEFAULTS = {
        "batch_size": 16,
        "schedule": "cosine",
        "warmup_steps": 10,
        "ema_decay": 0.98,
        "validate_every": 25,
        "preview_every": 100,
        "checkpoint_every": 100,
        "log_every": 5,
        "keep_best": True,
        "on_divergence": "back_off",
    }

    max_steps: int | None = Field(None, ge=1, description="optimizer steps; else max_epochs")
    optimizer: str = Field(
        "adamw",
        description="adamw, adamw-8bit, prodigy, schedule-free, adafactor, d-adaptation, lion, muon, or a class of torch.optim",
    )
    optimizer_options: dict[str, Any] = Field({}, description="what else the optimizer's class takes")
    betas: tuple[float, float] | None = Field(
        None, description="decay of the optimizer's two moments; its usual ones by default"
    )
    compile: bool = Field(False, description="compile the UNet; pays in long trainings on GPUs")
    weighting: str = Field(
        "none",
        description="of timesteps: none, min_snr, debiased; on a flow-matching model none, sigma_sqrt, cosmap",
    )
    condition_dropout: Share = Field(0.1, description="share of pictures trained without their caption")
    offset_noise: float = Field(
        0.0,
        ge=0,
        description="noise of the whole picture, which lets it learn very dark and very light ones; 0.05 is usual",
    )
    perturbation: float = Field(
        0.0, ge=0, description="noise added to the input alone, against exposure bias; 0.1 is usual"
    )
    timestep_sampling: str = Field(
        "uniform", description="stratified (spread evenly over each batch), uniform, logit_normal or shifted"
    )
    timestep_options: dict[str, float] = Field(
        {}, description="what it is told: mean and std of logit_normal (0, 1), shift of shifted (3)"
    )
    timestep_range: tuple[Share, Share] | None = Field(
        None, description="train on these shares of the process alone; 0 is clean, 1 is noise"
    )
    prompts: list[str] | None = Field(
        None, description="of the previews; by default captions of four held-out pictures; [] draws none"
    )
    preview_seed: int = Field(0, ge=0, description="of the first preview; the next ones follow")
    preview_steps: int = Field(15, ge=1, description="sampling steps of the previews")
    preview_sampler: str = Field(
        "",
        description="see docs/samplers.md; by default DPM++ 2M Karras, on a flow-matching model Flow Euler",
    )
    preview_guidance: float = Field(4.0, ge=0, description="guidance scale of the previews; 1 is none")
    preview_negative: str = Field("", description="what the previews move away from")

    @model_validator(mode="after")
    def _in_order(self) -> "AdapterSettings":
        if self.timestep_range is not None and self.timestep_range[0] >= self.timestep_range[1]:
            raise ValueError(f"timestep_range {self.timestep_range} is empty: write the lower share first")
        return self

    def check_draws(self) -> None:
        """Refuse ways to weigh and draw timesteps that no model has.

        Raises:
            UserError: an unknown weighting, timestep sampling or option of it.
        """
        from hyperbrush.ldm.modules.diffusion import check_weighting
        from hyperbrush.ldm.modules.draws import timestep_options

        check_weighting(self.weighting)
        timestep_options(self.timestep_sampling, self.timestep_options)

    def check_model(self, model: "LatentDiffusion") -> None:
        """Refuse, before anything is encoded, what a model's process does not have.

        Raises:
            UserError: see `check_draws`; a weighting or a sampler of the previews of another kind of process.
        """
        from hyperbrush.ldm.modules.diffusion import check_weighting

        self.check_draws()
        check_weighting(self.weighting, model.diffusion.schedule)
        model.check_drawing(self.preview_sampler, self.preview_negative)

    def drawing(self, timesteps: int) -> dict[str, Any]:
        """How noise and timesteps are drawn, as `DiffusionModel.draw` takes it, of a process of so many timesteps."""
        chosen = None
        if self.timestep_range is not None:
            low, high = self.timestep_range
            first = math.floor(low * timesteps)
            chosen = (first, max(first + 1, math.ceil(high * timesteps)))
        return {
            "offset_noise": self.offset_noise,
            "perturbation": self.perturbation,
            "timestep_sampling": self.timestep_sampling,
            "timestep_options": self.timestep_options,
            "timestep_range": chosen,
        }

    def steps(self, pictures: int) -> int:
        """Optimizer steps for so many pictures an epoch."""
        return self.max_steps or 1000

    def trainer(self, pictures: int) -> TrainerConfig:
        """What the loop is told."""
        steps = self.steps(pictures)
        loop = {name: getattr(self, name) for name in LoopSettings.model_fields}
        optimizer = {name: getattr(self, name) for name in StepSettings.model_fields}
        optimizer |= {
            "name": self.optimizer,
            "options": self.optimizer_options,
            "warmup_steps": min(self.warmup_steps, steps // 2),
        }
        return load_config(TrainerConfig, loop | {"steps": steps, "optimizer": optimizer})
