"""Settings of the loop, the optimizer and the draws, which all trainings through a frozen model share."""

from typing import Any, Literal

from pydantic import Field, model_validator

from hyperbrush.ldm.util import load_config
from hyperbrush.training.loop.config import (
    Limit,
    OptimizerConfig,
    Rate,
    Schedule,
    Share,
    Strict,
    TrainerConfig,
    with_trackers,
)


class LoopSettings(Strict):
    """How long, how fast, how often; see `Trainer`."""

    learning_rate: Rate | None = Field(
        None, gt=0, description="peak rate; the optimizer's usual one by default (adamw: 1e-3)"
    )
    batch_size: int = Field(16, ge=1, description="pictures per optimizer step, over all processes")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps; else max_epochs")
    seed: int = Field(0, ge=0, description="everything random follows from it")
    optimizer: str = Field(
        "adamw",
        description="adamw, adamw-8bit, prodigy, schedule-free, adafactor, d-adaptation, lion, muon, or a class of torch.optim",
    )
    optimizer_options: dict[str, Any] = Field({}, description="what else the optimizer's class takes")
    schedule: Schedule = Field(
        "cosine", description="of the learning rate: constant, linear, cosine, …, or '5e-5:100, 5e-6:1000'"
    )
    warmup_steps: int = Field(10, ge=0, description="steps from 0 up to the learning rate")
    decay_from: float = Field(
        0.0, ge=0, lt=1, description="share of the steps before the schedule starts to fall"
    )
    num_cycles: int = Field(1, ge=1, description="of cosine_with_restarts")
    weight_decay: float | None = Field(None, ge=0, description="the optimizer's usual one by default")
    betas: tuple[float, float] | None = Field(
        None, description="decay of the optimizer's two moments; its usual ones by default"
    )
    eps: float | None = Field(
        None, gt=0, description="keeps its division from zero; its usual one by default"
    )
    clip: Literal["norm", "value"] = Field("norm", description="how gradients are clipped")
    max_grad_norm: Limit = Field(
        1.0, description="what they are clipped to; a number, '1.0:100, 0.5' by steps, or null: never"
    )
    ema_decay: float | None = Field(0.98, ge=0, lt=1, description="decay of the weights' moving average")
    gradient_accumulation: int = Field(1, ge=1, description="parts a batch is computed in, to save memory")
    gradient_checkpointing: bool = Field(
        False, description="compute activations twice instead of keeping them: less memory, a third slower"
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = Field(
        "no", description="of the frozen model in training; the hypernetwork itself stays in fp32"
    )
    channels_last: bool = Field(False, description="memory layout that convolutions like")
    compile: bool = Field(False, description="compile the UNet; pays in long trainings on GPUs")
    validate_every: int = Field(25, ge=1, description="steps between validations")
    preview_every: int = Field(100, ge=1, description="steps between previews")
    save_every: int | None = Field(
        None,
        ge=1,
        description="keep a usable copy (saved/step-N) every so many steps; null: at the end alone",
    )
    checkpoint_every: int = Field(100, ge=1, description="steps between states to resume from")
    keep_checkpoints: int = Field(2, ge=1, description="so many of them stay")
    log_every: int = Field(5, ge=1, description="steps between lines of metrics.jsonl")
    keep_best: bool = Field(True, description="finish with the weights of the lowest validation loss")
    patience: int | None = Field(
        None, ge=1, description="stop after so many validations without a lower loss; null: never"
    )
    on_divergence: Literal["stop", "back_off"] = Field(
        "back_off",
        description="when the loss explodes: stop, or go back to a good checkpoint with half the rate",
    )
    trackers: list[Literal["tensorboard", "trackio", "wandb"]] = Field(
        [], description="where else figures are logged"
    )
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
    timestep_sampling: str = Field("uniform", description="uniform, stratified or logit_normal")
    timestep_range: tuple[Share, Share] | None = Field(
        None, description="train on these shares of the process alone; 0 is clean, 1 is noise"
    )
    prompts: list[str] = Field([], description="of the previews")
    preview_seed: int = Field(0, ge=0, description="of the first preview; the next ones follow")
    preview_steps: int = Field(15, ge=1, description="sampling steps of the previews")
    preview_sampler: str = Field("DPM++ 2M Karras", description="see docs/samplers.md")
    preview_guidance: float = Field(4.0, ge=0, description="guidance scale of the previews; 1 is none")
    preview_negative: str = Field("", description="what the previews move away from")

    @model_validator(mode="before")
    @classmethod
    def _older(cls, values: Any) -> Any:
        return with_trackers(values)

    @model_validator(mode="after")
    def _in_order(self) -> "LoopSettings":
        if self.timestep_range is not None and self.timestep_range[0] >= self.timestep_range[1]:
            raise ValueError(f"timestep_range {self.timestep_range} is empty: write the lower share first")
        return self

    def steps(self, pictures: int) -> int:
        """Optimizer steps for so many pictures an epoch."""
        return self.max_steps or 1000

    def trainer(self, pictures: int) -> TrainerConfig:
        """The loop's share of the settings."""
        steps = self.steps(pictures)
        same = (
            "batch_size gradient_accumulation seed ema_decay mixed_precision channels_last validate_every "
            "preview_every save_every checkpoint_every keep_checkpoints log_every keep_best patience on_divergence trackers"
        )
        optimizer = OptimizerConfig(
            name=self.optimizer,
            options=self.optimizer_options,
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            warmup_steps=min(self.warmup_steps, steps // 2),
            decay_from=self.decay_from,
            num_cycles=self.num_cycles,
            weight_decay=self.weight_decay,
            betas=self.betas,
            eps=self.eps,
            clip=self.clip,
            max_grad_norm=self.max_grad_norm,
        )
        values = {name: getattr(self, name) for name in same.split()}
        return load_config(TrainerConfig, values | {"steps": steps, "optimizer": optimizer.model_dump()})
