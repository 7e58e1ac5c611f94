"""What a training can be told, validated at the edge."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class OptimizerConfig(Strict):
    """AdamW (Loshchilov & Hutter 2019)."""

    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    schedule: str = Field("constant", description="constant, linear, cosine, …, or '5e-5:100, 5e-6:1000'")
    warmup_steps: int = Field(0, ge=0, description="steps from 0 up to the learning rate")
    decay_from: float = Field(
        0.0, ge=0, lt=1, description="share of the steps before the schedule starts to fall"
    )
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = Field(1e-8, gt=0)
    max_grad_norm: float | None = Field(1.0, gt=0, description="clip the gradients' total norm; null: never")


class TrainerConfig(Strict):
    """The loop: how long, how large, how often it writes."""

    steps: int = Field(1000, ge=1, description="optimizer steps in all")
    batch_size: int = Field(8, ge=1, description="pictures per optimizer step, over all processes")
    gradient_accumulation: int = Field(1, ge=1, description="parts a batch is computed in, to save memory")
    seed: int = Field(0, ge=0, description="everything random follows from it")
    optimizer: OptimizerConfig = OptimizerConfig()
    ema_decay: float | None = Field(None, ge=0, lt=1, description="decay of the weights' moving average")
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    gradient_checkpointing: bool = False
    channels_last: bool = Field(False, description="memory layout that convolutions like")
    checkpoint_every: int = Field(500, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    validate_every: int = Field(500, ge=1)
    preview_every: int = Field(500, ge=1)
    log_every: int = Field(10, ge=1)
    keep_best: bool = Field(False, description="finish with the weights of the lowest validation loss")
    tensorboard: bool = Field(False, description="TensorBoard logs in the run folder")

    @model_validator(mode="after")
    def _parts(self) -> "TrainerConfig":
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be split into gradient_accumulation "
                f"{self.gradient_accumulation} equal parts"
            )
        return self


Share = Annotated[float, Field(ge=0, le=1)]
