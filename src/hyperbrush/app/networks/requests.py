"""What may be asked of the room of hypernetworks."""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from hyperbrush.app.requests import Request

Target = Literal["webui", "safetensors", "comfyui", "lora-diffusers", "lora-peft", "lora-kohya"]
Name = Field(min_length=1, max_length=200)


class NotesRequest(Request):
    """What people write beside a network; what is left out stays."""

    description: str = Field("", max_length=20_000)
    activation_text: str = Field("", max_length=20_000, description="trigger words for prompts")
    preferred_weight: FiniteFloat | None = Field(None, ge=-100, le=100, description="strength; null: none")
    notes: str = Field("", max_length=20_000)


class RenameRequest(Request):
    """Another name; side files go with it."""

    name: str = Name


class MergePart(Request):
    """One of several to be merged."""

    name: str = Field(min_length=1, max_length=1000, description="name or id")
    weight: FiniteFloat = 1.0


class MergeRequest(Request):
    """Several in one; see `hyperbrush.hypernetworks.attention.merging.merge`."""

    parts: list[MergePart] = Field(min_length=2, max_length=32)
    how: Literal["auto", "average", "compose"] = "auto"
    name: str = Field("merged", min_length=1, max_length=200)


class ExportRequest(Request):
    """A file for another program, a LoRA for the preferred model; see `hyperbrush.hypernetworks.convert.convert`."""

    to: Target
    precision: Literal["", "fp32", "fp16", "bf16"] = Field(
        "", description="of the numbers; empty: as they are"
    )
    legacy_zip: bool = Field(False, description="webui: the form that old pickle checks accept")
    strength: FiniteFloat = Field(1.0, ge=-100, le=100, description="LoRA: folded into it")
    rank: Annotated[int, Field(ge=1, le=4096)] | Literal["full"] | None = Field(
        None, description="LoRA; 16 if left out"
    )
    bias: bool | None = Field(None, description="LoRA: carry the values' offset")
    prompts: list[str] = Field([], max_length=32, description="LoRA: drawn for contexts")
    steps: int | None = Field(None, ge=1, le=500, description="LoRA: sampling steps for contexts")
    seed: int | None = Field(None, ge=0, le=2**32 - 1)
