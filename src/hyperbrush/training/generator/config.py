"""Every setting of a generator's training."""

from typing import Any, Literal

from pydantic import Field, model_validator

from hyperbrush.training.loop.adapter_settings import AdapterSettings
from hyperbrush.training.loop.config import Rate, Share, Strict


class GeneratorNetwork(Strict):
    """The hypernetwork that generates weights; see `Hypernetwork`."""

    target_layers: list[str] = Field(
        ["attn1", "attn2"],
        min_length=1,
        description="layers that get weights: attn1, attn2, to_k, mid, …; of a transformer ff, text, add_k_proj, … too",
    )
    embedding_dim: int = Field(256, ge=8, description="width of the condition tokens")
    hidden_dim: int = Field(256, ge=8, description="width of the weight generator")
    rank: int = Field(4, ge=1, description="of each layer's change")
    output: Literal["lora", "basis", "core", "lightweight"] = Field(
        "lora", description="form of the factors; lightweight is HyperDreamBooth's"
    )
    init: Literal["bias", "hyperfan-in"] = Field("bias", description="where A's first values come from")
    trunk: Literal["perceiver", "mlp"] = Field("perceiver", description="what turns tokens into latents")
    depth: int = Field(3, ge=1, description="blocks of the trunk")
    heads: int = Field(8, ge=1, description="attention heads")
    iterations: int = Field(1, ge=1, description="times the trunk refines its latents")
    encoder_depth: int = Field(1, ge=0, description="layers over each picture's tokens")
    patch_size: int = Field(4, ge=1, description="side of a patch of latents that becomes a token")


class GeneratorConfig(AdapterSettings):
    """Settings of `HypernetworkTrainer` for a `Hypernetwork`, all with defaults."""

    DEFAULTS = {
        "warmup_steps": 50,
        "ema_decay": 0.99,
        "validate_every": 200,
        "preview_every": 500,
        "checkpoint_every": 200,
        "log_every": 10,
    }

    learning_rate: Rate | None = Field(
        3e-4, gt=0, description="peak rate; too high a one makes the weights the same for every condition"
    )
    batch_size: int = Field(32, ge=1, description="target pictures per optimizer step, over all processes")
    pictures_per_style: int = Field(
        2, ge=1, description="targets of each style in a batch: batch_size / this many styles"
    )
    max_steps: int | None = Field(2000, ge=1, description="optimizer steps; or give max_epochs")
    max_epochs: int | None = Field(
        None, ge=1, description="times each style's picture is drawn, in the place of max_steps"
    )
    shared_steps: int = Field(
        200, ge=0, description="first steps that train what all styles share alone; frozen afterwards"
    )
    shared_rate: float = Field(
        5.0,
        gt=0,
        description="what the learning rate is multiplied by for what all styles share, plain factors",
    )
    size: int | None = Field(
        None, ge=8, description="side of the pictures in pixels; by default the model's own"
    )
    references: int = Field(16, ge=1, description="pictures shown of a style at most; each octave as often")
    style_dropout: Share = Field(0.1, description="share of samples with the null condition")
    text_share: Share = Field(
        0.0, description="share of samples told by the style's words (style.txt) instead of pictures"
    )
    objective: Literal["denoising", "reconstruction", "mixed"] = Field(
        "denoising",
        description="draw other contents in the style; or match each style's finished adapter; or both",
    )
    reconstruction_weight: float = Field(0.1, ge=0, description="of the reconstruction in mixed training")
    retain: float = Field(
        0.0, ge=0, description="weight of ‖ΔW‖² of the null condition, which holds it to the model"
    )
    norm_weight: float = Field(0.0, ge=0, description="weight of ‖ΔW‖² of all samples")
    validation_styles: int = Field(24, ge=1, description="held-out styles a validation looks at, at most")
    validation_pictures: int = Field(8, ge=1, description="targets of each of them")
    validation_share: Share = Field(0.1, description="share of the styles held out where none are given")

    @model_validator(mode="before")
    @classmethod
    def _epochs(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("max_epochs") is None:
            return values
        return {"max_steps": None} | values

    @model_validator(mode="after")
    def _one_length(self) -> "GeneratorConfig":
        if self.max_epochs is not None and self.max_steps is not None:
            raise ValueError(
                f"max_steps {self.max_steps} and max_epochs {self.max_epochs} both say how long: set one of them to null"
            )
        return self

    @model_validator(mode="after")
    def _weighs(self) -> "GeneratorConfig":
        weight = GeneratorConfig.model_fields["reconstruction_weight"].default
        if self.reconstruction_weight != weight and self.objective != "mixed":
            raise ValueError(
                f"reconstruction_weight is of objective 'mixed', and it is {self.objective!r}: leave one out"
            )
        if self.retain and not self.style_dropout:
            raise ValueError(
                "retain is of the null condition, which style_dropout 0 never shows: leave one out"
            )
        return self

    def steps(self, pictures: int) -> int:
        """Optimizer steps for so many pictures of all styles an epoch."""
        if self.max_epochs is None:
            return super().steps(pictures)
        return max(1, -(-pictures * self.max_epochs // self.batch_size))
