"""LoRA files of other programs named in prompts, loaded by diffusers and PEFT while their pictures are drawn."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.errors import UnknownHypernetwork, UserError, unknown_name
from hyperbrush.hypernetworks.files.adapters import is_generated_file
from hyperbrush.hypernetworks.files.packed import split

if TYPE_CHECKING:
    from hyperbrush.hypernetworks import HypernetworkLibrary
    from hyperbrush.ldm.models import LatentDiffusion

Strengths = tuple[float, float]  # in the text encoder, in the UNet


def find_lora(library: "HypernetworkLibrary", name: str) -> Path:
    """The file of a LoRA, by its name in a folder of them.

    Raises:
        UnknownHypernetwork: there is none of that name, or no such folder.
        UserError: several of that name, or one that is no safetensors file.
    """
    try:
        path = library.find(name)
    except UnknownHypernetwork as error:
        if not library.folder.is_dir():
            raise UnknownHypernetwork(
                f"no LoRA folder at {library.folder}, where {name!r} would be looked for: make it and put the files "
                "there (--loras names another)"
            ) from error
        known = unknown_name("LoRA", name, library.names(), hint=f"; looked in {library.folder}")
        raise UnknownHypernetwork(str(known)) from error
    if split(path) is None and path.suffix.lower() != ".safetensors":
        raise UserError(f"{path}: only .safetensors files of LoRAs are read; convert it first")
    return path


def is_plain_lora(path: Path) -> bool:
    """Whether a file is another program's LoRA, and not weights that a generator of ours made."""
    return not is_generated_file(path)


def lora_hash(path: Path) -> str:
    """A LoRA's hash as the webui's pictures carry it: 12 digits of the sha256 of all that follows the header.

    Raises:
        UserError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            while block := file.read(1 << 20):
                digest.update(block)
    except (OSError, OverflowError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def loras_at_work(model: "LatentDiffusion", loras: Mapping[Path, Strengths]) -> Iterator[list[str]]:
    """LoRAs loaded into a model's UNet or transformer and text encoders until the end; gives what to tell about them.

    Raises:
        UserError: PEFT is missing; the model has LoRAs loaded already or is no pipeline's; a file that is no LoRA, or
            one of another model.
    """
    if not loras:
        yield []
        return
    pipe: Any = model.pipeline()
    if not hasattr(pipe, "load_lora_weights"):
        raise UserError(
            f"<lora:{next(iter(loras)).stem}>: {type(pipe).__name__} loads no LoRAs in diffusers; leave it out, or convert it to "
            "safetensors and name it as <hypernet:…>"
        )
    from diffusers.utils import USE_PEFT_BACKEND

    if not USE_PEFT_BACKEND:
        raise UserError(f"<lora:{next(iter(loras)).stem}> needs the package peft: pip install peft")
    if before := pipe.get_list_adapters():
        raise UserError(
            f"the model has LoRAs loaded already ({before}): unload them, or leave <lora:…> out of the prompt"
        )
    training = {name: part.training for name, part in _parts(pipe).items()}
    try:
        for number, path in enumerate(loras):
            _load(pipe, path, f"lora{number}")
        loaded = {name for names in pipe.get_list_adapters().values() for name in names}
        notes = []
        for number, path in enumerate(loras):
            if f"lora{number}" not in loaded:
                raise UserError(
                    f"{path} changes nothing in this model: is it a LoRA, and for this kind of model?"
                )
            notes.append(f"{path.stem}: LoRA, {_reached(pipe, f'lora{number}')}")
        pipe.set_adapters(
            [f"lora{number}" for number in range(len(loras))],
            [_weights(pipe, strengths) for strengths in loras.values()],
        )
        yield notes
    finally:
        pipe.unload_lora_weights()
        for name, part in _parts(pipe).items():
            part.train(training[name])


def _load(pipe: Any, path: Path, name: str) -> None:
    try:
        pipe.load_lora_weights(
            str(path.parent), weight_name=path.name, adapter_name=name, local_files_only=True
        )
    except (ValueError, RuntimeError, KeyError, OSError, TypeError, IndexError, AttributeError) as error:
        reason = str(error).strip().splitlines()
        if any("size mismatch" in line for line in reason):
            raise UserError(f"{path} is a LoRA for another model: its layers have other sizes") from error
        raise UserError(
            f"cannot load {path} as a LoRA: {reason[0] if reason else type(error).__name__:.200}"
        ) from error


def _parts(pipe: Any) -> dict[str, Any]:
    names = ("unet", "transformer", "text_encoder", "text_encoder_2")
    return {name: part for name in names if (part := getattr(pipe, name, None)) is not None}


def _reached(pipe: Any, name: str) -> str:
    """How many layers of what a LoRA changes."""
    found = {
        part: sum(name in getattr(layer, "lora_A", {}) for layer in module.modules())
        for part, module in _parts(pipe).items()
    }
    return ", ".join(f"{count} layers of {part}" for part, count in found.items() if count)


def _weights(pipe: Any, strengths: Strengths) -> dict[str, float]:
    text, unet = strengths
    return {name: unet if name in ("unet", "transformer") else text for name in _parts(pipe)}
