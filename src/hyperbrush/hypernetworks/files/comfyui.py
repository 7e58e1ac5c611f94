"""A ``.pt`` that the webui and ComfyUI read alike.

The two disagree where a file leaves something open: ComfyUI takes a missing ``activate_output`` for
False, knows nine activations, always activates the last layer when LayerNorm follows it, never switches dropout
off, and reads every key that is a number as a width.
"""

import logging
from pathlib import Path
from typing import Any

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.hypernetworks.files.torch_writing import write_content
from hyperbrush.hypernetworks.files.webui import content_of

ACTIVATIONS = ("linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "softsign", "mish")
# The one name outside of the list that means the same function as one in it.
_SAME = {"hardswish": "swish"}
_SETTINGS = (
    "step",
    "name",
    "layer_structure",
    "activation_func",
    "is_layer_norm",
    "weight_initialization",
    "activate_output",
    "use_dropout",
    "dropout_structure",
    "last_layer_dropout",
    "sd_checkpoint",
    "sd_checkpoint_name",
    "optional_info",
)
_log = logging.getLogger(__name__)


def comfyui_reason(hypernetwork: AttentionHypernetwork) -> str | None:
    """Why no file of this hypernetwork can be read alike by the webui and ComfyUI; None if one can.

    Dropout is no reason: it only acts in training and is left out of such a file.
    """
    settings = hypernetwork.settings
    activation = _SAME.get(settings.activation, settings.activation)
    if hypernetwork.sites:
        return "it has networks per site, and both programs know one network per width only"
    if settings.skip_connection:
        return (
            "it has residual layers (skip_connection), which only the webui's MonkeyPatch extension computes"
        )
    if activation not in ACTIVATIONS:
        return f"ComfyUI has no activation {activation!r}; it has {', '.join(ACTIVATIONS)}"
    if settings.layer_norm and activation != "linear" and not settings.activate_output:
        return (
            f"it has LayerNorm and the activation {activation!r}, and ComfyUI activates the last layer of such "
            "a network though the file says not to"
        )
    return None


def write_comfyui(hypernetwork: AttentionHypernetwork, path: str | Path, *, legacy_zip: bool = False) -> Path:
    """Write a ``.pt`` that the webui and ComfyUI read alike, whole or not at all.

    legacy_zip: torch's form before 2020, without a zip. Dropout and metadata beyond the webui's own are left out; a warning is logged where the file loses
    dropout.

    Raises:
        UserError: no such file is possible (`comfyui_reason`), another suffix, or it cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".pt":
        raise UserError(f"cannot write {path}: both programs look for the suffix .pt, not {path.suffix!r}")
    reason = comfyui_reason(hypernetwork)
    if reason is not None:
        raise UserError(
            f"{hypernetwork.name!r} cannot be written so that ComfyUI and the webui read it alike: {reason}. "
            "A plain .pt or a LoRA may serve"
        )
    content = content_of(hypernetwork, dropout=False)
    kept: dict[int | str, Any] = {k: v for k, v in content.items() if isinstance(k, int) or k in _SETTINGS}
    activation = hypernetwork.settings.activation
    kept["activation_func"] = _SAME.get(activation, activation)
    if hypernetwork.use_dropout:
        _log.warning(
            "%s: dropout only acts in training, where ComfyUI would not switch it off: left out", path
        )
    write_content(kept, path, legacy_zip=legacy_zip)
    return path
