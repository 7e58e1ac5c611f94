"""The three layouts of LoRA files: diffusers, PEFT and kohya's.

diffusers: ``unet.PATH.to_k.lora_A.weight`` and ``lora_B.weight`` (``lora_B.bias`` beside them), one safetensors
file for ``pipe.load_lora_weights``.  PEFT: ``base_model.model.PATH…`` in a folder with adapter_config.json for
``PeftModel.from_pretrained(unet, folder)``.  kohya: ``lora_unet_PATH_WITH_UNDERSCORES.lora_down.weight``,
``lora_up.weight``, ``alpha``, and ``diff_b`` for to_out's bias.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_folder, atomic_path
from hyperbrush.hypernetworks.convert.low_rank import LowRank
from hyperbrush.hypernetworks.files.modelspec import sort_header, tensors_hash
from hyperbrush.ldm.families import BY_ARCHITECTURE, SD2

FORMS = ("diffusers", "peft", "kohya")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_DIFFUSERS_CONFIG = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "lora_bias")


@dataclass(frozen=True)
class LoraLayer:
    """The change of one projection, in float64."""

    path: str  # of the attention
    projection: str  # "to_k" or "to_v"
    cut: LowRank
    shift: Tensor | None  # (out,), added to the projection's output
    out_bias: Tensor | None  # the same, passed through the attention: added to to_out's bias

    def add_to(self, context: Tensor, weight: Tensor) -> Tensor:
        """The projection's output with this layer: context (…, in), weight (out, in) → (…, out)."""
        own = context @ weight.T.to(context)
        out = own + (context @ self.cut.down.T.to(context)) @ self.cut.up.T.to(context)
        return out if self.shift is None else out + self.shift.to(context)


@dataclass(frozen=True)
class LoraState:
    """A LoRA in one layout: tensors, the header's texts, and for PEFT the config."""

    form: str
    tensors: Mapping[str, Tensor]
    header: Mapping[str, str]
    config: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """Write it, whole or not at all: a .safetensors file, for PEFT a folder.

        Raises:
            UserError: the path does not fit the form, or it cannot be written.
        """
        path = Path(path)
        if self.form == "peft":
            if path.suffix.lower() in (".safetensors", ".pt", ".bin") or path.is_file():
                raise UserError(f"cannot write {path}: a PEFT adapter is a folder; name one without a suffix")
            if path.is_dir() and any(path.iterdir()) and not (path / "adapter_config.json").is_file():
                raise UserError(f"cannot write {path}: the folder holds something else than a PEFT adapter")
            with atomic_folder(path) as folder:
                config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
                config.write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
                self._write(weights)
                weights.chmod(config.stat().st_mode)  # safetensors makes it readable for its owner alone
            return path
        if path.suffix.lower() != ".safetensors" or path.is_dir():
            raise UserError(f"cannot write {path}: a LoRA of {self.form}'s form is a file NAME.safetensors")
        with atomic_path(path) as temporary:
            self._write(temporary)
        return path

    def _write(self, path: Path) -> None:
        from safetensors.torch import save_file

        save_file(dict(self.tensors), path, metadata=dict(self.header))
        sort_header(path)


def lora_state(
    layers: Sequence[LoraLayer],
    form: str,
    dtype: torch.dtype,
    *,
    bias: bool,
    title: str,
    architecture: str,
    about: str,
) -> LoraState:
    """Lay layers out in a form.

    bias: write the values' shift where a layer has one. title, about: for people. architecture: ModelSpec's
    name of the base model.

    Raises:
        UserError: not one of `DTYPES`, or numbers too large for it.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype} is impossible for a LoRA: expected {', '.join(map(str, DTYPES))}")
    rank = _usual_rank(layers)
    tensors = {
        name: _as(value, dtype, name)
        for layer in layers
        for name, value in (
            _kohya_keys(layer, bias, rank) if form == "kohya" else _peft_keys(layer, form, bias)
        ).items()
    }
    header = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers"
        if form != "kohya"
        else "https://github.com/kohya-ss/sd-scripts",
        "modelspec.title": title,
        "modelspec.description": about,
        "modelspec.hash_sha256": "0x" + tensors_hash(tensors),
    }
    config = _config(layers, bias)
    if form == "kohya":
        header |= _kohya_header(rank, title, architecture, about)
    elif form == "diffusers" and config["rank_pattern"]:
        # Older diffusers take one alpha for layers of several ranks unless they are told.
        told = {f"unet.{key}": config[key] for key in _DIFFUSERS_CONFIG}
        header["lora_adapter_metadata"] = json.dumps(told, sort_keys=True)
    return LoraState(form, tensors, header, config if form == "peft" else {})


def _as(value: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    tensor = value.to(dtype).contiguous().clone()
    if not torch.isfinite(tensor).all():
        raise UserError(f"{name} has numbers too large for {dtype}: write float32")
    return tensor


def _peft_keys(layer: LoraLayer, form: str, bias: bool) -> dict[str, Tensor]:
    prefix = "unet." if form == "diffusers" else "base_model.model."
    name = f"{prefix}{layer.path}.{layer.projection}"
    keys = {f"{name}.lora_A.weight": layer.cut.down, f"{name}.lora_B.weight": layer.cut.up}
    if bias:  # PEFT has it for all layers or for none
        shift = layer.shift
        keys[f"{name}.lora_B.bias"] = torch.zeros(len(layer.cut.up)) if shift is None else shift
    return keys


def _kohya_keys(layer: LoraLayer, bias: bool, alpha: int) -> dict[str, Tensor]:
    """alpha: one for the whole file, its usual rank: diffusers ignores alphas that differ between layers."""
    attention = "lora_unet_" + layer.path.replace(".", "_")
    name = f"{attention}_{layer.projection}"
    keys = {
        f"{name}.lora_down.weight": layer.cut.down,
        f"{name}.lora_up.weight": layer.cut.up * (layer.cut.rank / alpha),
        f"{name}.alpha": torch.tensor(float(alpha)),
    }
    if bias and layer.out_bias is not None:
        keys[f"{attention}_to_out_0.diff_b"] = layer.out_bias
    return keys


def _config(layers: Sequence[LoraLayer], bias: bool) -> dict[str, Any]:
    """PEFT's LoraConfig: alpha = rank everywhere."""
    ranks = {f"{layer.path}.{layer.projection}": layer.cut.rank for layer in layers}
    most = _usual_rank(layers)
    pattern = {name: rank for name, rank in ranks.items() if rank != most}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "lora_bias": bias,
        "init_lora_weights": True,
    }


def _usual_rank(layers: Sequence[LoraLayer]) -> int:
    return Counter(layer.cut.rank for layer in layers).most_common(1)[0][0]


def _kohya_header(rank: int, title: str, architecture: str, about: str) -> dict[str, str]:
    family = BY_ARCHITECTURE.get(architecture)
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "ss_base_model_version": family.kohya if family else architecture,
        "ss_v2": str(family is SD2),
        "ss_output_name": title,
        "ss_training_comment": about,
    }
