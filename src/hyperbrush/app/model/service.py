"""Base models: which there are, what each is by its config or header, and how the worker opens it."""

import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hyperbrush.app.workspace import Workspace
from hyperbrush.assets import MODELS, model_folder
from hyperbrush.errors import UserError, unknown_name
from hyperbrush.files import read_json, write_json
from hyperbrush.ldm.families import BY_CROSS_WIDTH

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".bin")
HUB_ID = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}")
DEPTH = 3  # folders within the models' folder that are looked into
MOST = 300  # models that are listed
FAR = 4  # times the area of the pictures a model learned from, beyond which it draws badly and slowly

Form = Literal["embedded", "folder", "file", "hub"]


@dataclass(frozen=True)
class BaseModel:
    """What is known of a model without its weights.

    Args:
        source: what the preference `model` and requests call it.
        name: what pictures call it.
        form: embedded, folder, file or hub.
        kind: sd1, sd2, sd2-v, sdxl, other (a latent diffusion model of another shape), or "" where it is not known.
        context: width of the text states its UNet reads.
        widths: of everything that keys and values are made of in it; empty where it is not known.
        image_size: side of its pictures in pixels.
        prediction: what its network predicts, as diffusers calls it; "" where it is not known.
        size: bytes on the disk.
        hash: first 10 digits of the sha256 of its file, or of its UNet's; see `hash_of`.
        error: why it cannot be used.
    """

    source: str
    name: str
    form: Form
    kind: str = ""
    context: int | None = None
    widths: tuple[int, ...] = ()
    image_size: int | None = None
    prediction: str = ""
    size: int | None = None
    hash: str = ""
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Pace:
    """How fast a model draws on a device: seconds of one sampling step of one picture of so many pixels."""

    seconds: float
    pixels: int


def place(workspace: Workspace, source: str) -> str:
    """A model's name as `open_model` takes it.

    source: an embedded model's name, a path within the workspace or its models' folder, or a hub id.

    Raises:
        UserError: it is nowhere, or lies elsewhere: from outside, no other file is opened.
    """
    if source in MODELS:
        return str(model_folder(source))
    path = _path(workspace, source)
    if path is not None and _is_there(path):
        return str(path)
    if HUB_ID.fullmatch(source) and not source.endswith(SUFFIXES):
        return source
    if path is None:
        raise UserError(
            f"the model {source!r:.200} lies outside of the workspace {workspace.root} and of its models' folder: "
            "put it (or a link to it) there, or choose another folder in Settings"
        )
    known = [model.source for model in found(workspace)]
    raise unknown_name(
        "model",
        source[:200],
        known,
        "; expected one of them, a path in the workspace, or a hub id owner/name",
    )


def refuse_elsewhere(workspace: Workspace, source: str) -> None:
    """Refuse a model that a request must not open: from outside, no other file is read, and nothing is fetched.

    A model of a hub is one that was chosen for the app: the preferred one.

    Raises:
        UserError: it is neither the preferred one nor an embedded one, nor lies in the workspace or its models' folder.
    """
    if source in ("", workspace.preferences.model, *MODELS):
        return
    path = _path(workspace, source)
    if path is None or not _is_there(path):
        raise UserError(
            f"there is no model {source!r:.200}; base models are looked for in {workspace.folder('models')}, one of a hub "
            "is chosen on the page Model first"
        )


def describe(workspace: Workspace, source: str) -> BaseModel:
    """What a model is, by its config or its file's header.

    Raises:
        UserError: as `place`; what is there but cannot be used says so in `BaseModel.error`.
    """
    where = place(workspace, source)
    path = Path(where)
    if not path.exists():
        return _of_hub(source)
    form: Form = "embedded" if source in MODELS else ("folder" if path.is_dir() else "file")
    plain = BaseModel(source, path.stem if path.is_file() else path.name, form, size=_size(path))
    try:
        return replace(plain, **(_of_folder(path) if path.is_dir() else _of_file(path)))
    except UserError as error:
        return replace(plain, error=_without(str(error), path))


def found(workspace: Workspace, *, hashes: bool = False) -> list[BaseModel]:
    """The embedded models, those in the workspace's models' folder, and the preferred one.

    hashes: with `hash_of` each, which reads files whole that were not read before.
    """
    sources = [*MODELS, *_sources(workspace)]
    chosen = workspace.preferences.model
    if chosen not in sources:
        sources.append(chosen)
    listed = []
    for source in sources:
        try:
            listed.append(describe(workspace, source))
        except UserError as error:
            if source == chosen:  # else it has just vanished
                listed.append(BaseModel(source, Path(source).name, "file", error=str(error)))
    if hashes:
        listed = [m if m.error else replace(m, hash=hash_of(workspace, m.source)) for m in listed]
    return listed


def preferred(workspace: Workspace) -> BaseModel:
    """The preferred model, as far as it is known."""
    source = workspace.preferences.model
    try:
        return describe(workspace, source)
    except UserError as error:
        return BaseModel(source, source, "file", error=str(error))


def fitting_samplers(model: BaseModel, also: object = "") -> list[str]:
    """Names of the samplers that can draw with a model; all where it is not known.

    also: one that lists do not have ("Euler SGM Uniform"), put behind them where it can draw too.
    """
    from hyperbrush.ldm.sampling.names import find_sampler, sampler_names

    names = sampler_names(model.prediction) or sampler_names()
    if isinstance(also, str) and also and also not in names:
        with suppress(UserError):
            if model.prediction in ("", *find_sampler(also).predictions):
                names.append(also)
    return names


def far_size(own: int | None, pixels: int) -> str:
    """Of a picture of so many pixels far from ``own`` x ``own`` "size_large" or "size_small", messages of this page."""
    if not own or own * own <= pixels * FAR <= own * own * FAR**2:
        return ""
    return "size_large" if pixels > own * own else "size_small"


def context_width(workspace: Workspace, source: str) -> int | None:
    """Width of the text states a model reads where a small JSON file says it: quick, without torch."""
    try:
        folder = Path(place(workspace, source)) if source in MODELS or _path(workspace, source) else None
        value = read_json(folder / "unet" / "config.json").get("cross_attention_dim") if folder else None
    except UserError:
        return None
    return value if isinstance(value, int) else None


def known_words(workspace: Workspace, source: str = "") -> frozenset[str] | None:
    """Words that a model (by default the preferred one) was shown, where its folder lists them: quick, without torch."""
    try:
        folder = Path(place(workspace, source or workspace.preferences.model))
    except UserError:
        return None
    words = (
        read_json(folder / "hyperbrush.json").get("words") if folder.is_absolute() else None
    )  # else a hub id
    return frozenset(map(str, words)) if isinstance(words, list) else None


def hash_of(workspace: Workspace, source: str) -> str:
    """First 10 digits of the sha256 that pictures carry; "" for a hub id. Reads the whole file once.

    Raises:
        UserError: as `place`, or it cannot be read.
    """
    from hyperbrush.generation.opened import file_hash, weights_file

    file = weights_file(place(workspace, source))
    return "" if file is None else file_hash(file)


def pace_of(workspace: Workspace, device: str, source: str) -> Pace | None:
    """How fast a model drew on a device the last time; None where it never did."""
    told = read_json(_pace_file(workspace, device)).get(source or workspace.preferences.model)
    try:
        pace = Pace(float(told["seconds"]), int(told["pixels"]))  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        return None
    return pace if pace.seconds > 0 and pace.pixels > 0 else None


def note_pace(workspace: Workspace, device: str, source: str, pace: Pace) -> None:
    """Write down how fast a model drew, for the next estimate; the device's worker alone does."""
    file = _pace_file(workspace, device)
    told = read_json(file) | {source or workspace.preferences.model: asdict(pace)}
    write_json(file, told, sync=False)


def _pace_file(workspace: Workspace, device: str) -> Path:
    return workspace.state / f"pace-{device.replace(':', '-')}.json"


def _path(workspace: Workspace, source: str) -> Path | None:
    """Where a source would lie in the workspace or its models' folder; None elsewhere. Links may lead out."""
    if not source or "\0" in source or len(source) > 1000:
        return None
    path = Path(os.path.normpath(workspace.root / source))
    within = (workspace.root, Path(os.path.normpath(workspace.root / workspace.preferences.models)))
    hidden = path.is_relative_to(workspace.state)
    return path if not hidden and any(path.is_relative_to(folder) for folder in within) else None


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for the system
        return False


def _sources(workspace: Workspace) -> list[str]:
    """What lies in the models' folder: diffusers folders, and single files beside them."""
    root = workspace.folder("models")
    listed: list[Path] = []
    for parent, folders, files in os.walk(root, followlinks=True):
        here = Path(parent)
        names = sorted(name for name in folders if not name.startswith("."))
        whole = [name for name in names if (here / name / "model_index.json").is_file()]
        listed += [here / name for name in whole]
        listed += [
            here / name
            for name in sorted(files)
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
        deep = len(here.relative_to(root).parts) + 1 >= DEPTH
        folders[:] = [] if deep or len(listed) >= MOST else [name for name in names if name not in whole]
    inside = root.is_relative_to(workspace.root)
    return [p.relative_to(workspace.root).as_posix() if inside else str(p) for p in listed[:MOST]]


def _of_folder(path: Path) -> dict[str, Any]:
    from hyperbrush.generation.opened import weights_file

    if not (path / "model_index.json").is_file():
        raise UserError("it is no model: a diffusers folder has a model_index.json")
    index = read_json(path / "model_index.json")
    if "unet" not in index or "vae" not in index:
        raise UserError(
            f"{index.get('_class_name', 'it')!s:.80} has no UNet and VAE; Stable Diffusion 1, 2 and XL do"
        )
    unet, vae = read_json(path / "unet" / "config.json"), read_json(path / "vae" / "config.json")
    if not unet:
        raise UserError("its unet/config.json is missing or damaged: fetch the folder again")
    if weights_file(path) is None:
        raise UserError("its UNet has no weights (unet/diffusion_pytorch_model.safetensors): fetch them")
    if unet.get("in_channels") not in (4, 9):
        raise UserError(
            f"its UNet takes {unet.get('in_channels')!r:.20} channels (a special model): expected 4, or 9 for inpainting"
        )
    conditioning = read_json(path / "hyperbrush.json").get("conditioning", "text")
    if conditioning != "text":
        raise UserError(f"it does not read text but {conditioning!r:.40}: it cannot draw from prompts")
    context = unet.get("cross_attention_dim")
    blocks, side = vae.get("block_out_channels"), unet.get("sample_size")
    kind = BY_CROSS_WIDTH[context].key if isinstance(context, int) and context in BY_CROSS_WIDTH else "other"
    widths = unet.get("block_out_channels")
    if not isinstance(widths, list) or widths[:1] != [320]:
        kind = "other"
    process = read_json(path / "scheduler" / "scheduler_config.json")
    prediction = process.get("prediction_type", "epsilon")
    if str(process.get("_class_name", "")).startswith("FlowMatch"):
        prediction = "flow_prediction"
    scale = 2 ** (len(blocks) - 1) if isinstance(blocks, list) and 1 <= len(blocks) <= 8 else None
    return {
        "kind": "sd2-v" if kind == "sd2" and prediction == "v_prediction" else kind,
        "context": context if isinstance(context, int) else None,
        "widths": _widths(unet),
        "image_size": side * scale if isinstance(side, int) and scale else None,
        "prediction": str(prediction),
    }


def _of_file(path: Path) -> dict[str, Any]:
    from hyperbrush.ldm.models.single_file import (
        CONFIGS,
        UNET,
        architecture,
        looks_like,
        prediction_type,
        read_header,
    )

    checkpoint = read_header(path)
    if len(checkpoint.shapes.get(UNET + "input_blocks.0.0.weight", ())) != 4:
        raise UserError(
            f"it is no Stable Diffusion checkpoint: it looks like {looks_like(checkpoint.shapes)}"
        )
    kind = architecture(checkpoint)
    prediction = prediction_type(checkpoint, kind)
    if (kind, prediction) == ("sd2", "v_prediction"):
        kind = "sd2-v"
    unet = read_json(CONFIGS / kind / "unet" / "config.json")
    return {
        "kind": kind,
        "context": unet.get("cross_attention_dim"),
        "widths": _widths(unet),
        "image_size": 8 * int(unet.get("sample_size", 64)),
        "prediction": prediction,
    }


def _widths(unet: dict[str, Any]) -> tuple[int, ...]:
    """Of the contexts of a UNet's attentions, by its config; empty where that is odd."""
    context, channels, kinds = (
        unet.get(key) for key in ("cross_attention_dim", "block_out_channels", "down_block_types")
    )
    if not (isinstance(context, int) and isinstance(channels, list) and isinstance(kinds, list)):
        return ()
    own = [width for width, kind in zip(channels, kinds, strict=False) if "CrossAttn" in str(kind)]
    return tuple(sorted({context, *own, *channels[-1:]}))


def _of_hub(source: str) -> BaseModel:
    """A hub id: what this machine's cache of the hub says; nothing is fetched for it."""
    from huggingface_hub import try_to_load_from_cache

    model = BaseModel(source, source.split("/")[-1], "hub")
    index = try_to_load_from_cache(source, "model_index.json")
    if not isinstance(index, str):
        return model
    folder = Path(index).parent
    try:
        return replace(model, size=_size(folder), **_of_folder(folder))
    except UserError as error:
        return replace(model, error=str(error))


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _without(text: str, path: Path) -> str:
    """A reason without the file's own path before it: the page shows that already."""
    return text.removeprefix(f"{path} is ").removeprefix(f"{path} ").removeprefix(f"{path}: ")
