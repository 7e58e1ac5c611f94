"""Settings of the loop, the optimizer and the draws, which all trainings through a frozen model share."""

from typing import Any

from pydantic import Field, model_validator

from hyperbrush.ldm.util import load_config
from hyperbrush.training.loop.config import LoopSettings, Share, StepSettings, TrainerConfig


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
    weighting: str = Field("none", description="of timesteps: none, min_snr, debiased, …")
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
        "uniform", description="stratified (spread evenly over each batch), uniform or logit_normal"
    )
    timestep_range: tuple[Share, Share] | None = Field(
        None, description="train on these shares of the process alone; 0 is clean, 1 is noise"
    )
    prompts: list[str] = Field([], description="of the previews")
    preview_seed: int = Field(0, ge=0, description="of the first preview; the next ones follow")
    preview_steps: int = Field(15, ge=1, description="sampling steps of the previews")
    preview_sampler: str = Field("DPM++ 2M Karras", description="see docs/samplers.md")
    preview_guidance: float = Field(4.0, ge=0, description="guidance scale of the previews; 1 is none")
    preview_negative: str = Field("", description="what the previews move away from")

    @model_validator(mode="after")
    def _in_order(self) -> "AdapterSettings":
        if self.timestep_range is not None and self.timestep_range[0] >= self.timestep_range[1]:
            raise ValueError(f"timestep_range {self.timestep_range} is empty: write the lower share first")
        return self

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
