"""One call for every target: a hypernetwork written as the file another program reads."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.hypernetworks.attention.strengths import StrengthLike, finite
from hyperbrush.hypernetworks.convert.report import LoraReport
from hyperbrush.hypernetworks.files import SUFFIXES, WEBUI_SUFFIXES, save
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights

TARGETS = ("webui", "safetensors", "comfyui", "lora-diffusers", "lora-peft", "lora-kohya")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Converted:
    """Where it was written, and for a LoRA what it cost."""

    path: Path
    target: str
    report: LoraReport | None = None


def guess_target(path: str | Path) -> str:
    """The target a path's suffix means: .pt, .bin, .ckpt the webui's, .safetensors ours.

    >>> guess_target("water.pt")
    'webui'

    Raises:
        UserError: it means none.
    """
    suffix = Path(path).suffix.lower()
    if suffix in WEBUI_SUFFIXES:
        return "webui"
    if suffix == ".safetensors":
        return "safetensors"
    raise UserError(
        f"cannot tell what to convert to from {str(path)!r}: name a file ending in {', '.join(SUFFIXES)}, or say "
        f"--to {', '.join(TARGETS)}"
    )


def convert(
    hypernetwork: AttentionHypernetwork,
    path: str | Path,
    to: str | None = None,
    *,
    model: Any = None,
    overwrite: bool = False,
    legacy_zip: bool = False,
    dtype: torch.dtype | None = None,
    pictures: bool = False,
    prompts: Sequence[str] | None = None,
    strength: StrengthLike = 1.0,
    on_progress: Callable[[str, int, int], None] | None = None,
    **lora: Any,
) -> Converted:
    """Write a hypernetwork as ``to`` (one of `TARGETS`; None: by the suffix), whole or not at all.

    >>> from hyperbrush.hypernetworks import AttentionHypernetwork
    >>> convert(AttentionHypernetwork([8]), "water.pt", "comfyui").target
    'comfyui'

    model: for a LoRA, the pipeline, LatentDiffusion or UNet it is made for. overwrite: whether what stands
        at the path may go. legacy_zip: for "webui" and "comfyui", torch's form before 2020, without a zip.
    dtype: of the numbers; None: as they are, for a LoRA float32. strength, prompts, ``**lora``: as
        `lora.to_lora`. pictures: for a LoRA, draw a few with it and with the hypernetwork, and compare.

    Raises:
        UserError: an unknown target, or a path that does not fit it; something stands there already; an option
            of another target; or as `files.save`, `write_comfyui` and `to_lora`.
    """
    path = Path(path)
    target = guess_target(path) if to is None else to
    if target not in TARGETS:
        raise unknown_name("target", target, TARGETS)
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already: choose another name, or overwrite it (--overwrite)")
    check_path(path, target)
    if legacy_zip and target not in ("webui", "comfyui"):
        raise UserError(f"legacy_zip is a form of .pt, of the webui and ComfyUI, not of {target}")
    if not target.startswith("lora-"):
        wanted: Mapping[str, Any] = {
            "pictures": pictures or None,
            "prompts": prompts or None,
            "strength": None if strength == 1.0 else strength,
            **lora,
        }
        if stray := [name for name, value in wanted.items() if value is not None]:
            raise UserError(
                f"{stray[0]} is an option of the LoRA targets; {target} takes the networks as they are"
            )
        return Converted(_save(_as(hypernetwork, dtype), path, target, legacy_zip), target)
    if model is None:
        raise UserError("a LoRA holds a model's own weights: say which model it is for")
    from hyperbrush.hypernetworks.convert.lora import to_lora
    from hyperbrush.hypernetworks.convert.report import picture_errors

    form = target.removeprefix("lora-")
    found = to_lora(
        hypernetwork,
        model,
        form=form,
        dtype=dtype or torch.float32,
        strength=strength,
        prompts=prompts,
        on_progress=on_progress,
        **lora,
    )
    report = found.report
    if report.bias_carried and form != "kohya":
        _log.warning(
            "%s gets the values' offset as lora_bias, which pipe.fuse_lora() and PEFT's merge refuse: convert with "
            "bias=False (--no-bias) to fuse it",
            path,
        )
    if pictures:
        same = {key: lora[key] for key in ("attn", "blocks", "steps") if key in lora}
        drawn = picture_errors(model, hypernetwork, found.layers, strength=strength, prompts=prompts, **same)
        report = replace(report, pictures=drawn)
    return Converted(found.state.save(path), target, report)


def check_path(path: Path, target: str) -> None:
    """See, before hours of work, that a path fits its target.

    Raises:
        UserError: it does not.
    """
    suffix = path.suffix.lower()
    wanted = {"webui": WEBUI_SUFFIXES, "comfyui": (".pt",), "lora-peft": ("",)}.get(target, (".safetensors",))
    if target == "lora-peft":
        fits = suffix not in SUFFIXES and not path.is_file()
    else:
        fits = suffix in wanted and not path.is_dir()
    if not fits:
        shape = "a folder" if target == "lora-peft" else f"a file ending in {' or '.join(wanted)}"
        raise UserError(f"cannot write {path}: {target} is {shape}")


def _as(hypernetwork: AttentionHypernetwork, dtype: torch.dtype | None) -> AttentionHypernetwork:
    if dtype is None:
        return hypernetwork
    import copy

    from hyperbrush.hypernetworks.files.checks import converted

    return converted(hypernetwork.name, copy.deepcopy(hypernetwork), dtype)


def _save(hypernetwork: AttentionHypernetwork, path: Path, target: str, legacy_zip: bool) -> Path:
    if target == "comfyui":
        from hyperbrush.hypernetworks.files.comfyui import write_comfyui

        return write_comfyui(hypernetwork, path, legacy_zip=legacy_zip)
    return save(hypernetwork, path, legacy_zip=legacy_zip)


def convert_generated(
    path: Path,
    target: Path,
    to: str,
    *,
    rank: object = None,
    strength: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write generated weights as ``to``; only a rank that is cut costs something.

    path: their file. rank: a whole number cuts it by singular values; anything else leaves it.
    strength: folded into the numbers. dtype: of the numbers; None: as they are, float32 for a LoRA.

    Raises:
        UserError: ``to`` cannot hold them; or as `GeneratedWeights.load` and `GeneratedWeights.save`.
    """
    if to in ("webui", "comfyui"):
        raise UserError(
            f"{path} holds generated weights, which add to projections; a webui hypernetwork changes contexts and cannot "
            "hold them: use --to lora-kohya, which the webui and ComfyUI read"
        )
    weights = GeneratedWeights.load(path) * finite(strength)
    if isinstance(rank, int):
        weights = weights.truncate(rank)
    return weights.save(target, to, dtype=dtype)
