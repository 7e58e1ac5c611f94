"""Every setting of a hypernetwork's training, and the presets."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from hyperbrush.errors import unknown_name
from hyperbrush.training.data.pictures import PictureSettings
from hyperbrush.training.loop.adapter_settings import AdapterSettings
from hyperbrush.training.loop.config import Rate

RATE = 0.512  # times 1/width; measured on the embedded model, see docs/quality.md


def usual_rate(width: int) -> float:
    """AdamW's peak rate for networks of which the widest context is so wide: 2e-3 at 256, 4e-4 at 1280.

    Adam's best rate goes with 1/width (Yang et al. 2022, 2203.03466, table 8), so that one found for a small
    model is no danger to a large one.
    """
    return RATE / width


class HypernetworkConfig(PictureSettings, AdapterSettings):
    """Settings of `HypernetworkTrainer`, all with defaults."""

    DEFAULTS = {"timestep_sampling": "stratified"}

    max_epochs: int = Field(20, ge=1, description="times each picture is seen")
    target_layers: list[Literal["attn1", "attn2"]] = Field(
        ["attn1", "attn2"], min_length=1, description="self-attention, cross-attention or both"
    )
    blocks: list[str] | None = Field(
        None, description="parts of the UNet, such as mid, up, down.1, with per_site; all by default"
    )
    learning_rate: Rate | None = Field(
        None,
        gt=0,
        description="peak rate; by default adamw's falls with the model's width (2e-3 for the embedded model, "
        "4e-4 for Stable Diffusion 1) and the others have their usual one",
    )
    validation_pictures: int = Field(
        256, ge=1, description="held-out pictures that a validation looks at, at most; evenly spread"
    )
    loss: Literal["mse", "l1", "huber"] = Field(
        "mse", description="of predicted against true noise (or velocity)"
    )

    def steps(self, pictures: int) -> int:
        """Optimizer steps for so many pictures an epoch."""
        return self.max_steps or max(1, -(-pictures * self.max_epochs // self.batch_size))


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {"max_steps": 150, "batch_size": 16, "validate_every": 25, "preview_every": 50},
    "balanced": {"max_steps": 600, "batch_size": 16, "validate_every": 50, "patience": 6},
    "quality": {
        "max_steps": 2000,
        "batch_size": 16,
        "validate_every": 100,
        "patience": 6,
        "ema_decay": 0.995,
    },
    "style": {"templates": "style_filewords"},
    "subject": {"templates": "subject_filewords", "flip": 0.0},
}


def preset(names: str) -> dict[str, Any]:
    """Settings of one preset or of several joined by commas, such as "balanced,subject".

    Raises:
        UserError: an unknown one, with the closest names.
    """
    found: dict[str, Any] = {}
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in PRESETS:
            raise unknown_name("preset", name, PRESETS)
        found |= PRESETS[name]
    return found
