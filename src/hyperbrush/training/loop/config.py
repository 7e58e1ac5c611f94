"""What a training can be told, validated at the edge; each setting is declared once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from hyperbrush.errors import UserError
from hyperbrush.ldm.piecewise import check_piecewise, is_piecewise


class Strict(BaseModel):
    """Settings; unknown keys are errors.

    DEFAULTS: of settings that a class inherits, where they are others than its base's.
    """

    DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    model_config = ConfigDict(extra="forbid")

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if defaults := vars(cls).get("DEFAULTS"):
            for name, value in defaults.items():
                cls.model_fields[name].default = value
            cls.model_rebuild(force=True)


def _one_rate(value: Any) -> Any:
    if isinstance(value, str) and ":" in value:
        raise UserError("one rate is expected; rates by steps are written in 'schedule'")
    return value


def _text(value: Any) -> Any:
    """What YAML makes of "schedule: 0.001" and of "schedule: {5e-5: 100, 1e-6: -1}" as the text it was."""
    if isinstance(value, dict):
        return ", ".join(f"{rate}:{step}" for rate, step in value.items())
    return str(value) if type(value) in (int, float) else value


def _sound_schedule(value: str) -> str:
    if is_piecewise(value):
        check_piecewise(value)
    return value


def _sound_limit(value: float | str | None) -> float | str | None:
    if isinstance(value, str) or (value is not None and not value > 0):
        from hyperbrush.training.loop.clipping import clip_schedule

        clip_schedule(value)
    return value


Limit = Annotated[float | str | None, AfterValidator(_sound_limit)]  # of gradients
Rate = Annotated[float, BeforeValidator(_one_rate)]  # a learning rate
Schedule = Annotated[str, BeforeValidator(_text), AfterValidator(_sound_schedule)]  # of learning rates


class StepSettings(Strict):
    """How an optimizer steps: its rate over the steps, its moments, clipping."""

    learning_rate: Rate | None = Field(
        None, gt=0, description="peak learning rate; the optimizer's usual one by default (adamw: 1e-3)"
    )
    schedule: Schedule = Field(
        "constant",
        description="of the learning rate: constant, linear, cosine, …, or '5e-5:100, 5e-6:1000'",
    )
    warmup_steps: int = Field(0, ge=0, description="steps from 0 up to the learning rate")
    decay_from: float = Field(
        0.0, ge=0, lt=1, description="share of the steps before the schedule starts to fall"
    )
    num_cycles: int = Field(1, ge=1, description="of cosine_with_restarts")
    weight_decay: float | None = Field(None, ge=0, description="the optimizer's usual one by default")
    betas: tuple[float, ...] | None = Field(
        None, description="decay of the optimizer's moments; its usual ones by default"
    )
    eps: float | None = Field(
        None, gt=0, description="keeps its division from zero; its usual one by default"
    )
    clip: Literal["norm", "value"] = Field("norm", description="how gradients are clipped")
    max_grad_norm: Limit = Field(
        1.0, description="what they are clipped to; a number, '1.0:100, 0.5' by steps, or null: never"
    )

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.decay_from and (is_piecewise(self.schedule) or self.schedule.startswith("constant")):
            raise ValueError(
                f"decay_from is when a schedule begins to fall, and {self.schedule!r} says all of it: leave one out"
            )
        if self.num_cycles > 1 and self.schedule.strip() != "cosine_with_restarts":
            raise ValueError(
                f"num_cycles is of cosine_with_restarts, and the schedule is {self.schedule!r}: leave one out"
            )
        return self


class OptimizerConfig(StepSettings):
    """Which optimizer (`optimizers.make_optimizer`), and how it steps."""

    name: str = Field("adamw", description="see `optimizers.METHODS`, or a class of torch.optim")
    options: dict[str, Any] = Field({}, description="what else the optimizer's class takes")


class LoopSettings(Strict):
    """What every loop is told: how large its steps are, how often it writes, when it stops or goes back."""

    batch_size: int = Field(8, ge=1, description="pictures per optimizer step, over all processes")
    gradient_accumulation: int = Field(1, ge=1, description="parts a batch is computed in, to save memory")
    seed: int = Field(0, ge=0, description="everything random follows from it")
    ema_decay: float | None = Field(None, ge=0, lt=1, description="decay of the weights' moving average")
    mixed_precision: Literal["no", "fp16", "bf16"] = Field(
        "no", description="of the computation; what is trained stays in fp32"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations twice instead of keeping them: less memory, a third slower"
    )
    channels_last: bool = Field(False, description="memory layout that convolutions like")
    checkpoint_every: int = Field(500, ge=1, description="steps between states to resume from")
    keep_checkpoints: int = Field(2, ge=1, description="so many of them stay")
    validate_every: int = Field(500, ge=1, description="steps between validations")
    preview_every: int = Field(500, ge=1, description="steps between previews")
    save_every: int | None = Field(
        None,
        ge=1,
        description="keep a usable copy (saved/step-N) every so many steps; null: at the end alone",
    )
    log_every: int = Field(10, ge=1, description="steps between lines of metrics.jsonl")
    keep_best: bool = Field(False, description="finish with the weights of the lowest validation loss")
    patience: int | None = Field(
        None, ge=1, description="stop after so many validations without a lower loss; null: never"
    )
    on_divergence: Literal["stop", "back_off"] = Field(
        "stop",
        description="when the loss is not finite: stop, or go back to the last good checkpoint with a lower "
        "rate (then also when it explodes)",
    )
    trackers: list[Literal["tensorboard", "trackio", "wandb"]] = Field(
        [], description="where else figures are logged; TensorBoard's files lie in the run folder"
    )

    @model_validator(mode="after")
    def _parts(self) -> Self:
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be split into gradient_accumulation "
                f"{self.gradient_accumulation} equal parts"
            )
        return self


class TrainerConfig(LoopSettings):
    """The loop: what a `Trainer` is told."""

    steps: int = Field(1000, ge=1, description="optimizer steps in all")
    optimizer: OptimizerConfig = OptimizerConfig()
    overfitting_after: int = Field(
        3, ge=1, description="warn when the validation loss has risen so many times in a row"
    )
    divergence_factor: float | None = Field(
        3.0, gt=1, description="warn when the loss is so many times its running median; null: never"
    )
    back_off_factor: float = Field(0.5, gt=0, lt=1, description="what the rate is multiplied by then")
    back_off_times: int = Field(3, ge=1, description="how often, before it stops all the same")


Share = Annotated[float, Field(ge=0, le=1)]


def _at_home(value: str) -> str:
    return str(Path(value).expanduser()) if value.startswith("~") else value


# A file or folder; ~ is the home folder, also where no shell says so.
Place = Annotated[str, AfterValidator(_at_home)]


def _name(value: str) -> str:
    from hyperbrush.hypernetworks.library.rename import check_name

    if value.strip().casefold() == "none":
        raise ValueError("'none' stands for no network, in compare and in prompts; take another name")
    return check_name(value)


# Of what is trained: the name that its file, its folder and its tag in a prompt will have.
TrainedName = Annotated[str, AfterValidator(_name)]
