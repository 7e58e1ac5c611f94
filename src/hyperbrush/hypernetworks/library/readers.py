"""Which programs read a hypernetwork file, and how: in a few words each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hyperbrush.hypernetworks.attention.activations import OVER_THE_BATCH
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.hypernetworks.files import WEBUI_SUFFIXES
from hyperbrush.hypernetworks.files.comfyui import comfyui_reason
from hyperbrush.hypernetworks.files.torch_writing import foreign_members

WEBUI, COMFYUI, DIFFUSERS, LORA = "webui", "ComfyUI", "diffusers", "LoRA"


def readers(
    path: Path, hypernetwork: AttentionHypernetwork, given: Mapping[str, Any], affine: bool
) -> dict[str, str]:
    """Program → "yes", or how, or why not.

    given: the settings that stand in the file. affine: whether no network has a non-linearity.
    """
    return {
        WEBUI: _webui(path, hypernetwork),
        COMFYUI: _comfyui(path, hypernetwork, given),
        DIFFUSERS: "yes, through hyperbrush: hyperbrush.attach(pipe, hyperbrush.load(FILE))",
        LORA: _lora(hypernetwork, affine),
    }


def _webui(path: Path, hypernetwork: AttentionHypernetwork) -> str:
    if hypernetwork.sites:
        return "no: it has networks per site, and the webui knows one network per width only"
    if hypernetwork.settings.skip_connection:
        return "only with its MonkeyPatch extension: it has residual layers"
    if path.suffix.lower() not in WEBUI_SUFFIXES:
        return "after hyperbrush convert --to webui"
    if foreign := foreign_members(path):
        return (
            f"no: its check refuses {foreign[0]!r:.60} in the zip, as newer versions of torch write it; "
            "after hyperbrush convert --to webui"
        )
    name = "" if path.suffix == ".pt" else ", once its name ends in .pt"
    if any(parameter.dtype == torch.bfloat16 for parameter in hypernetwork.parameters()):
        return f"since 2023, for its bfloat16 numbers{name}"
    return f"yes{name}"


def _comfyui(path: Path, hypernetwork: AttentionHypernetwork, given: Mapping[str, Any]) -> str:
    reason = comfyui_reason(hypernetwork)
    if reason is not None:
        return f"no: {reason}"
    after = "after hyperbrush convert --to comfyui"
    if path.suffix.lower() not in WEBUI_SUFFIXES:
        return after
    if "activate_output" not in given and hypernetwork.settings.activation != "linear":
        return (
            f"differently: the file does not say activate_output, which ComfyUI takes for no; alike {after}"
        )
    if hypernetwork.use_dropout:
        return f"differently: it never switches the file's dropout off; alike {after}"
    if hypernetwork.settings.activation == "hardswish":
        return f"{after}: it knows hardswish as swish"
    return "yes"


def _lora(hypernetwork: AttentionHypernetwork, affine: bool) -> str:
    if affine:
        return "exactly, up to the rank (hyperbrush convert --to lora-diffusers); it fuses exactly too"
    if hypernetwork.settings.activation in OVER_THE_BATCH:
        return f"no: {hypernetwork.settings.activation} networks mix the rows of a batch"
    return "approximately, by least squares (hyperbrush convert --to lora-diffusers prints the error)"
