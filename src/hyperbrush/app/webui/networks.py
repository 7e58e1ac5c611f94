"""The webui's endpoints that make and train hypernetworks."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from hyperbrush.app.names import plain_name
from hyperbrush.app.requests import TrainRequest
from hyperbrush.app.site import Site
from hyperbrush.errors import UserError, unknown_name

# Of a training: what is written for people or for its own screen, and changes no network.
PASSED = {
    "log_directory",
    "id_task",
    "preview_from_txt2img",
    "preview_width",
    "preview_height",
    "varsize_note",
}
NO_PREVIEWS = 10**9


class CreateRequest(BaseModel):
    """A new hypernetwork, as the webui's page makes one."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=100, pattern=r"^[^/\\:<>\x00-\x1f]+$")
    enable_sizes: list[int] = Field([768, 320, 640, 1280], min_length=1, max_length=64)
    overwrite_old: bool = False
    layer_structure: list[float] | str | None = None
    activation_func: str | None = Field(None, max_length=60)
    weight_init: str | None = Field(None, max_length=60)
    add_layer_norm: bool = False
    use_dropout: bool = False
    dropout_structure: list[float] | str | None = None


class TrainHypernetwork(BaseModel):
    """A training, as the webui's page begins one; answered when it is done."""

    model_config = ConfigDict(extra="allow")

    hypernetwork_name: str = Field(min_length=1, max_length=100)
    learn_rate: float | str = Field("0.00001", description="a number, or 5e-5:100, 5e-6:1000")
    batch_size: int = Field(1, ge=1, le=1024)
    gradient_step: int = Field(1, ge=1, le=1024)
    data_root: str = Field(
        min_length=1, max_length=1000, description="a dataset, or a folder of the workspace"
    )
    steps: int = Field(20_000, ge=1)
    training_width: int = Field(512, ge=8, le=4096)
    training_height: int = Field(512, ge=8, le=4096)
    varsize: bool = False
    clip_grad_mode: str | None = "disabled"
    clip_grad_value: float | str = "1.0"
    shuffle_tags: bool = False
    tag_drop_out: float = Field(0, ge=0, le=1)
    latent_sampling_method: str = "once"
    use_weight: bool = False
    create_image_every: int = Field(0, ge=0)
    save_hypernetwork_every: int = Field(0, ge=0)
    template_filename: str = Field("", max_length=200)
    preview_prompt: str = Field("", max_length=20_000)
    preview_negative_prompt: str = Field("", max_length=20_000)
    preview_steps: int = Field(20, ge=1, le=500)
    preview_sampler_name: str = Field("", max_length=60)
    preview_cfg_scale: float = Field(7.0, ge=0, le=100)
    preview_seed: int = -1


def create(site: Site, request: CreateRequest) -> dict[str, str]:
    """Make a file of a network that knows nothing yet.

    Raises:
        UserError: the name is taken, or a layer, activation or initialisation that there is not.
    """
    import torch

    from hyperbrush.hypernetworks import AttentionHypernetwork

    plain_name(request.name, "hypernetwork")
    folder = site.workspace.folder("hypernetworks")
    file = folder / f"{request.name}.pt"
    if file.exists() and not request.overwrite_old:
        raise UserError(f"there is a file {file} already: choose another name, or send overwrite_old")
    settings: dict[str, Any] = {
        "layer_structure": _numbers("layer_structure", request.layer_structure) or [1, 2, 1],
        "activation": request.activation_func or "linear",
        "weight_init": request.weight_init or "Normal",
        "layer_norm": request.add_layer_norm,
        "use_dropout": request.use_dropout,
    }
    if request.use_dropout and (dropout := _numbers("dropout_structure", request.dropout_structure)):
        settings["dropout_structure"] = dropout
    with torch.random.fork_rng(devices=[]):
        torch.seed()
        made = AttentionHypernetwork(request.enable_sizes, name=request.name, **settings)
    made.save(file)
    site.news("networks")
    return {"info": f"create hypernetwork filename: {file}"}


def training(request: TrainHypernetwork) -> TrainRequest:
    """A training of ours that does what was asked.

    Raises:
        UserError: something that is not done here.
    """
    for name, value in (request.model_extra or {}).items():
        if name not in PASSED and value not in (None, "", False, 0, []):
            raise unknown_name("key of the training", str(name)[:100], type(request).model_fields)
    settings: dict[str, Any] = {
        "batch_size": request.batch_size * request.gradient_step,
        "gradient_accumulation": request.gradient_step,
        "max_steps": request.steps,
        "shuffle_tags": request.shuffle_tags,
        "drop_tags": request.tag_drop_out,
        "latent_sampling": request.latent_sampling_method,
        "masks": "alpha" if request.use_weight else "none",
        "warmup_steps": 0,
        **_rate(request.learn_rate),
        **_clipping(request),
        **_size(request),
        "preview_every": request.create_image_every or NO_PREVIEWS,
        "save_every": request.save_hypernetwork_every or None,
    }
    if request.template_filename:
        settings["templates"] = request.template_filename.removesuffix(".txt")
    if request.preview_prompt:
        settings["prompts"] = [request.preview_prompt]
        settings["preview_negative"] = request.preview_negative_prompt
        settings["preview_steps"] = request.preview_steps
        settings["preview_guidance"] = request.preview_cfg_scale
        if request.preview_sampler_name:
            settings["preview_sampler"] = request.preview_sampler_name
        if request.preview_seed >= 0:
            settings["preview_seed"] = request.preview_seed
    name = request.hypernetwork_name
    return TrainRequest(
        settings={"name": name, "start_from": name, "data": [request.data_root], "training": settings}
    )


def _rate(text: float | str) -> dict[str, Any]:
    """A rate, or a schedule of them."""
    try:
        return {"learning_rate": float(text), "schedule": "constant"}
    except ValueError:
        return {"schedule": str(text)}


def _clipping(request: TrainHypernetwork) -> dict[str, Any]:
    mode = request.clip_grad_mode or "disabled"
    if mode == "disabled":
        return {"max_grad_norm": None}
    if mode not in ("value", "norm"):
        raise unknown_name("clip_grad_mode", mode, ("disabled", "value", "norm"))
    return {"clip": mode, "max_grad_norm": request.clip_grad_value}


def _size(request: TrainHypernetwork) -> dict[str, Any]:
    if request.varsize:
        return {"buckets": "original"}
    width, height = request.training_width, request.training_height
    return {"size": width if width == height else [height, width]}


def _numbers(name: str, given: list[float] | str | None) -> list[float]:
    if given is None or given in ("", []):
        return []
    try:
        return [float(one) for one in (given.split(",") if isinstance(given, str) else given)]
    except ValueError as error:
        raise UserError(f"{name}: expected numbers like 1, 2, 1, got {given!r:.60}") from error
