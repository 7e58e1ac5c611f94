"""What may be asked of the app, as pages, API and worker all read it."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError

from hyperbrush.errors import UserError
from hyperbrush.generation.settings import MAX_PADDING, Settings
from hyperbrush.setting_errors import wrong_settings

Text = Field(max_length=20_000)
MOST_SEED = 2**53 - 1  # whole numbers of JSON and browsers are exact to there
STRONGEST = 100.0  # what any page, field or request takes as a strength or a weight, either way
MOST_RANK = 4096
Strength = Annotated[FiniteFloat, Field(ge=-STRONGEST, le=STRONGEST)]
SKIP = "skip.json"  # in a drawing's folder: somebody asks to leave out the pictures at hand


class Request(BaseModel):
    """Unknown keys are refused: a typing error must not be silent."""

    model_config = ConfigDict(extra="forbid")


class DrawingRequest(Request):
    """How pictures are drawn, whoever asks; see `hyperbrush.generation.settings.Settings`."""

    prompt: str = Field(min_length=1, max_length=20_000, description="with <hypernet:NAME:STRENGTH> tags")
    negative: str = Field(Settings.negative, max_length=20_000)
    sampler: str = Field(Settings.sampler, max_length=60)
    steps: int = Field(Settings.steps, ge=1, le=500)
    guidance_scale: float = Field(Settings.guidance_scale, ge=0, le=100)
    seed: int | None = Field(None, ge=0, le=MOST_SEED, description="of the first picture; drawn if left out")
    width: int | None = Field(None, ge=8, le=4096, description="in pixels; the model's own by default")
    height: int | None = Field(None, ge=8, le=4096)
    clip_skip: int = Field(Settings.clip_skip, ge=1, le=12)
    model: str = Field("", max_length=1000, description="another base model than the preferred one")

    def settings(
        self, size: tuple[int, int] | None = None, *, image: Any = None, mask: Any = None
    ) -> Settings:
        """As they are drawn with; size: (height, width), the model's own by default.

        Raises:
            UserError: an unknown sampler or discretisation, a mask without an image.
        """
        own = self.model_dump(include={field.name for field in fields(Settings)})
        if mask is None:
            own.pop("mask_padding", None)
        return Settings(**{**own, "size": size, "image": image, "mask": mask})


class DrawRequest(DrawingRequest):
    """Pictures from a prompt; see `hyperbrush.generation.generate`."""

    count: int = Field(1, ge=1, le=64)
    discretisation: str = Field(Settings.discretisation, max_length=20)
    image: str = Field("", max_length=64, description="id of an upload to start from")
    mask: str = Field("", max_length=64, description="id of an upload, white where `image` is drawn anew")
    image_strength: float = Field(
        Settings.image_strength, gt=0, le=1, description="how much of `image` is drawn anew"
    )
    mask_padding: int | None = Field(
        None,
        ge=0,
        le=MAX_PADDING,
        description="draw the white region of `mask` alone, with so many pixels around it, and put it back",
    )
    subseed: int | None = Field(
        None, ge=0, le=MOST_SEED, description="variation seed of the first picture; drawn if left out"
    )
    subseed_strength: float = Field(
        Settings.subseed_strength,
        ge=0,
        le=1,
        description="how far the noise of `seed`, then of all pictures, goes to that of the variation seeds",
    )
    hires_scale: float | None = Field(
        None, ge=1.05, le=4, description="draw on, so many times as wide and high, in a second pass"
    )
    hires_strength: float = Field(
        Settings.hires_strength, ge=0.05, le=1, description="how much that pass draws anew"
    )
    hires_steps: int = Field(
        Settings.hires_steps, ge=0, le=500, description="of that pass; 0: as many as `steps`"
    )
    hires_upscaler: str = Field(
        Settings.hires_upscaler, max_length=60, description="Latent, Latent (nearest), …, Lanczos"
    )
    missing: Literal["error", "warn"] = "error"


class CompareRequest(DrawingRequest):
    """A grid; axes as on the command line, "strength=0,0.5,1"."""

    axes: list[Annotated[str, Field(max_length=100_000)]] = Field(min_length=1, max_length=3)


def limits(request: type[Request], name: str) -> tuple[Any, Any, Any]:
    """(default, least, most) of a number that is asked for."""
    field = request.model_fields[name]
    least, most = ([getattr(one, key) for one in field.metadata if hasattr(one, key)] for key in ("ge", "le"))
    return field.default, *least, *most


class StyleRequest(Request):
    """An adapter from one to sixteen pictures or a text, in one pass."""

    images: list[Annotated[str, Field(max_length=64)]] = Field(
        [], max_length=16, description="ids of uploads"
    )
    text: str = Field("", max_length=2000)
    name: str = Field("style", min_length=1, max_length=100, pattern=r"^[^/\\:<>\x00-\x1f]+$")
    prompts: list[Annotated[str, Field(max_length=20_000)]] = Field(
        [], max_length=8, description="drawn without and with it, to see it"
    )
    strength: Strength = 1.0
    seed: int = Field(0, ge=0, le=MOST_SEED)
    steps: int = Field(15, ge=1, le=200)
    generator: str = Field("", max_length=200, description="name of a generator; the model's own by default")
    captions: list[Annotated[str, Field(max_length=20_000)]] = Field(
        [], max_length=16, description="what is on each of the pictures, for tuning"
    )
    adapter: str = Field(
        "",
        max_length=64,
        description="id of an earlier style: its adapter is drawn again, at another strength",
    )
    keep: bool = Field(False, description="put it among the hypernetworks at once")


class TrainRequest(Request):
    """A training; settings as in a run's config.yaml, which wins over the presets."""

    settings: dict[str, Any]
    presets: str = Field("", max_length=100, description="such as quick,style")


def checked(model: type[BaseModel], values: Any) -> Any:
    """A request from values.

    Raises:
        UserError: all that is wrong, in one line.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(wrong_settings(model, error))) from error


def sound(model: type[Request], values: Mapping[str, Any], **needed: Any) -> dict[str, Any]:
    """Those values that make sense by themselves; needed: in the place of what a request cannot do without."""
    found = {}
    for name in values.keys() & model.model_fields:
        with suppress(ValidationError):
            found[name] = getattr(model.model_validate({**needed, name: values[name]}), name)
    return found


Target = Literal["webui", "safetensors", "comfyui", "lora-diffusers", "lora-peft", "lora-kohya"]
Name = Field(min_length=1, max_length=200)


class NotesRequest(Request):
    """What people write beside a network; what is left out stays."""

    description: str = Field("", max_length=20_000)
    activation_text: str = Field("", max_length=20_000, description="trigger words for prompts")
    preferred_weight: Strength | None = Field(None, description="strength; null: none")
    notes: str = Field("", max_length=20_000)


class RenameRequest(Request):
    """Another name; side files go with it."""

    name: str = Name


Several = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(min_length=1, max_length=1000)
]
Tag = Annotated[str, Field(min_length=1, max_length=60)]


class MoveRequest(Request):
    """Several to another folder of the library; networks: names or ids."""

    networks: Several
    folder: str = Field(max_length=400, description='within it, "/" between folders; empty: its top')


class TagRequest(Request):
    """Words to find several by; networks: names or ids."""

    networks: Several
    add: list[Tag] = Field([], max_length=50)
    remove: list[Tag] = Field([], max_length=50)


class MergePart(Request):
    """One of several to be merged."""

    name: str = Field(min_length=1, max_length=1000, description="name or id")
    weight: Strength = 1.0


class MergeRequest(Request):
    """Several in one; see `hyperbrush.hypernetworks.convert.merging.merge`."""

    parts: list[MergePart] = Field(min_length=2, max_length=32)
    how: Literal["auto", "average", "compose"] = "auto"
    name: str = Field("merged", min_length=1, max_length=200)


def _rank(value: Any) -> Any:
    """One error, where a union would tell of each of its types."""
    if value is None or value == "full" or (isinstance(value, int) and 1 <= value <= MOST_RANK):
        return value
    raise ValueError(f"expected a whole number from 1 to {MOST_RANK}, or full")


class ExportRequest(Request):
    """A file for another program, a LoRA for the preferred model; see `hyperbrush.hypernetworks.convert.convert`."""

    to: Target
    precision: Literal["", "fp32", "fp16", "bf16"] = Field(
        "", description="of the numbers; empty: as they are"
    )
    legacy_zip: bool = Field(False, description="webui: the form that old pickle checks accept")
    strength: Strength = Field(1.0, description="LoRA: folded into it")
    rank: Annotated[int | Literal["full"] | None, BeforeValidator(_rank)] = Field(
        None, description="LoRA; 16 if left out"
    )
    bias: bool | None = Field(None, description="LoRA: carry the values' offset")
    prompts: list[str] = Field([], max_length=32, description="LoRA: drawn for contexts")
    steps: int | None = Field(None, ge=1, le=500, description="LoRA: sampling steps for contexts")
    seed: int | None = Field(None, ge=0, le=MOST_SEED)
