"""An opened model together with what pictures say it was: its name and hash."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hyperbrush.errors import UserError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from hyperbrush.ldm.models import LatentDiffusion

# The UNet's weights in a diffusers folder, in the order in which they are looked for.
UNET_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.safetensors.index.json",
)


@dataclass(frozen=True)
class OpenedModel:
    """A model to draw with.

    Args:
        model: the model itself.
        name: what pictures call it; "" says nothing.
        file: whose sha256 is the model's hash: a single-file checkpoint, or the UNet's weights of a folder.
    """

    model: "LatentDiffusion"
    name: str = ""
    file: Path | None = None


def open_model(
    source: "str | Path | LatentDiffusion | OpenedModel | DiffusionPipeline",
    *,
    device: str = "auto",
    precision: str = "auto",
    attention: str = "auto",
) -> OpenedModel:
    """Open a model by name, folder, file or hub id; what is opened already stays as it is.

    A diffusers pipeline's parts are used where they are, with whatever is loaded onto them. device, precision, attention: see
    `ldm.models.device.placement`.

    Raises:
        UserError: there is no such model, or it cannot be used here; an attention other than "auto" of a transformer's
            pipeline.
    """
    import torch

    from hyperbrush.ldm.models import LatentDiffusion
    from hyperbrush.ldm.models.device import place, placement
    from hyperbrush.ldm.models.pipelines import PipelineDiffusion, as_model, open_any

    if isinstance(source, OpenedModel):
        return source
    if isinstance(source, LatentDiffusion):
        return OpenedModel(source)
    if not isinstance(source, str | Path):
        model = as_model(source)
        path = getattr(source, "name_or_path", None) or ""
        return OpenedModel(model, *(named(path) if path else ()))
    where = placement(device, precision, attention)
    free = precision == "auto" and where.device.type != "cpu"
    half = torch.bfloat16 if free else where.dtype  # fp16 is too narrow for transformers' text encoders
    model = open_any(source, half)
    if isinstance(model, PipelineDiffusion):
        if attention != "auto":
            raise UserError(
                f"attention {attention!r}: {type(model.pipe).__name__} keeps its own attentions; take 'auto', or set them in diffusers"
            )
        return OpenedModel(model.to(where.device, half), *named(source))
    return OpenedModel(place(model, where), *named(source))


def named(source: str | Path) -> tuple[str, Path | None]:
    """What pictures call a model, and the file whose hash they carry, without opening it."""
    return _name(Path(source)), weights_file(source)


def weights_file(source: str | Path) -> Path | None:
    """The file whose sha256 names a model; None for a hub id."""
    from hyperbrush.assets import MODELS, model_folder

    path = Path(source)
    if str(source) in MODELS and not path.exists():
        path = model_folder(str(source))
    if path.is_file():
        return path
    parts = [path / part / name for part in ("unet", "transformer") for name in UNET_FILES]
    return next((file for file in parts if file.is_file()), None)


def file_hash(path: Path, like: str = "") -> str:
    """A file's hash as pictures carry it: the first 10 hex digits of its sha256, or, where ``like`` has 8
    digits, the webui's first kind: 8 digits of the sha256 of the 64 KiB that begin at 1 MiB.

    Raises:
        UserError: it cannot be read.
    """
    import hashlib

    from hyperbrush.file_cache import FileCache
    from hyperbrush.hypernetworks.files.packed import file_of

    path = file_of(path)
    if len(like) == 8:
        try:
            with path.open("rb") as file:
                file.seek(0x100000)
                return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    cache = FileCache()
    digest = cache.sha256(path)[:10]
    cache.save()
    return digest


def _name(path: Path) -> str:
    if path.is_file():
        return path.stem
    return (path.resolve() if path.is_dir() else path).name
