"""The three layouts of LoRA files: diffusers, PEFT and kohya's.

diffusers: ``unet.PATH.to_k.lora_A.weight`` (of a transformer ``transformer.PATH…``) and ``lora_B.weight`` (``lora_B.bias`` beside them), one safetensors
file for ``pipe.load_lora_weights``.  PEFT: ``base_model.model.PATH…`` in a folder with adapter_config.json for
``PeftModel.from_pretrained(unet, folder)``.  kohya: ``lora_unet_PATH_WITH_UNDERSCORES.lora_down.weight``,
``lora_up.weight``, ``alpha``, and ``diff_b`` for to_out's bias; of transformers see `lora_transformers`.
"""

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_folder, atomic_path
from hyperbrush.hypernetworks.files import lora_transformers
from hyperbrush.hypernetworks.files.generated import architecture as architecture_of
from hyperbrush.hypernetworks.files.generated import factors_of, finite_copy
from hyperbrush.hypernetworks.files.headers import MAX_CONFIG, header_of, read_tensors, sort_header
from hyperbrush.hypernetworks.files.lora_scales import PeftScales
from hyperbrush.hypernetworks.files.modelspec import tensors_hash
from hyperbrush.hypernetworks.weights.factors import Factors
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights
from hyperbrush.ldm.families import BY_ARCHITECTURE, SD2

METADATA_KEY = "hyperbrush.metadata"  # in the header: what the weights say of themselves, as JSON
FORMS = ("diffusers", "peft", "kohya")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_DIFFUSERS_CONFIG = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "lora_bias")
_PROJECTION = r"to_(?:q|k|v|out\.0)"
_PATH = rf"(?:down_blocks|mid_block|up_blocks)\..+\.attn[12]\.{_PROJECTION}"
_PEFT = re.compile(
    rf"(?:base_model\.model\.|unet\.|transformer\.)?(?P<layer>{_PATH}|{lora_transformers.LAYER})\."
    r"(?:(?P<part>lora_[AB]|lora\.(?:down|up)|lora_(?:down|up))(?:\.default)?\.weight|alpha)"
)
# diffusers of 2023 kept LoRA in the attentions' processors.
_PROCESSOR = re.compile(
    r"(?:unet\.)?(?P<path>(?:down_blocks|mid_block|up_blocks)\..+\.attn[12])\.processor\."
    r"(?P<projection>to_(?:q|k|v|out))_lora\.(?P<part>down|up)\.weight"
)
_KOHYA = re.compile(
    r"lora_unet_(?P<place>(?:down_blocks_\d+|mid_block|up_blocks_\d+)_attentions_\d+"
    r"|(?:input_blocks|output_blocks)_\d+_1|middle_block_1)_transformer_blocks_"
    r"(?P<j>\d+)_(?P<kind>attn[12])_(?P<projection>to_q|to_k|to_v|to_out_0)"
    r"\.(?P<part>lora_down\.weight|lora_up\.weight|alpha)"
)
_ORIGINAL = re.compile(
    rf"lora_unet_(?:double_blocks|single_blocks|joint_blocks|{'|'.join(lora_transformers.BLOCKS)})_\d"
)
_DOWN = ("lora_A", "lora.down", "lora_down", "lora_down.weight", "down")
# Of layers that are no attention's, in words: what their names begin with or hold.
_OTHERS = {
    "text encoder": re.compile(r"(?:base_model\.model\.)?(?:text_|lora_te)"),
    "feed-forward": re.compile(r".*[._]ff[._]net[._]"),
    "projections around attentions": re.compile(r".*[._]proj_(?:in|out)\."),
    "convolutions": re.compile(r".*(?:resnets|conv|samplers)[._]"),
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LowRank:
    """ΔW ≈ up · down in float64: down (rank, in), up (out, rank)."""

    down: Tensor
    up: Tensor
    energy: float  # share of ‖ΔW Σ^½‖² that is kept, Σ the weighting; 1 is all of it

    @property
    def rank(self) -> int:
        """Number of rows of ``down``."""
        return len(self.down)


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
    metadata: Mapping[str, Any] = MappingProxyType({}),
) -> LoraState:
    """Lay layers out in a form.

    bias: write the values' shift where a layer has one. title, about: for people. architecture: ModelSpec's
    name of the base model. metadata: for whoever reads it back here.

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
    if metadata:
        header[METADATA_KEY] = json.dumps(metadata, ensure_ascii=False, default=str, sort_keys=True)
    config = _config(layers, bias)
    if form == "kohya":
        header |= _kohya_header(rank, title, architecture, about)
    elif form == "diffusers" and config["rank_pattern"]:
        # Older diffusers take one alpha for layers of several ranks unless the header says so.
        adapter = {f"{_model_of(layers[0])}.{key}": config[key] for key in _DIFFUSERS_CONFIG}
        header["lora_adapter_metadata"] = json.dumps(adapter, sort_keys=True)
    return LoraState(form, tensors, header, config if form == "peft" else {})


def _as(value: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    tensor = value.to(dtype).contiguous().clone()
    if not torch.isfinite(tensor).all():
        raise UserError(f"{name} has numbers too large for {dtype}: write float32")
    return tensor


def _peft_keys(layer: LoraLayer, form: str, bias: bool) -> dict[str, Tensor]:
    prefix = _model_of(layer) if form == "diffusers" else "base_model.model"
    name = f"{prefix}.{layer.path}.{layer.projection}"
    keys = {f"{name}.lora_A.weight": layer.cut.down, f"{name}.lora_B.weight": layer.cut.up}
    if bias:  # PEFT has it for all layers or for none
        shift = layer.shift
        keys[f"{name}.lora_B.bias"] = torch.zeros(len(layer.cut.up)) if shift is None else shift
    return keys


def _model_of(layer: LoraLayer) -> str:
    """What a pipeline calls the model of a layer."""
    return "transformer" if lora_transformers.is_layer(f"{layer.path}.{layer.projection}") else "unet"


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


def write(weights: GeneratedWeights, path: Path, form: str, dtype: torch.dtype | None) -> Path:
    """Write one adapter in a form: "diffusers", "peft" (a folder) or "kohya"; see `weights_state`.

    Raises:
        UserError: the path does not fit; or as `weights_state`.
    """
    return weights_state(weights, form, dtype).save(path)


def weights_state(weights: GeneratedWeights, form: str, dtype: torch.dtype | None = None) -> LoraState:
    """One adapter in a form: "diffusers", "peft" or "kohya"; alpha = rank, scales in B.

    dtype: of the numbers; None: float32.

    Raises:
        UserError: the layers are not a UNet's or transformer's; numbers too large for the dtype; or as `kohya_layers`.
    """
    dtype = dtype or torch.float32
    factors = weights.folded().factors
    strange = [n for n in factors if not re.fullmatch(_PATH, n) and not lora_transformers.is_layer(n)]
    if strange:
        raise UserError(
            f"a LoRA changes a UNet's attentions or a transformer's layers, but {weights.name!r} changes {strange[0]}: save it "
            "as safetensors, or merge it into its hypernetwork (hyperbrush.hypernetworks.generator.merge_deltas)"
        )
    family = str(weights.metadata.get(lora_transformers.FAMILY, ""))
    if form == "kohya" and lora_transformers.is_layer(weights.layers[0]):
        factors = lora_transformers.kohya_layers(factors, family, weights.name)
    layers = []
    for name, own in factors.items():
        path_of, dot, projection = name.rpartition(".to_")
        if dot:
            projection = "to_" + projection
        else:
            path_of, _, projection = name.rpartition("." if "." in name else "_")
        written = projection.replace(".", "_") if form == "kohya" else projection
        down, up = (finite_copy(t, dtype, name) for t in (own.down, own.up))
        layers.append(LoraLayer(path_of, written, LowRank(down, up, 1.0), None, None))
    return lora_state(
        layers,
        form,
        dtype,
        bias=False,
        title=weights.name,
        architecture=architecture_of(weights),
        about=f"{weights.name}: weights generated by a hypernetwork",
        metadata=weights.metadata,
    )


def read(
    path: Path, header: Mapping[str, str], tensors: Mapping[str, Tensor], *, whole: bool = False
) -> GeneratedWeights:
    """What a LoRA changes in a UNet's attentions, in any of the layouts, or in a transformer's attentions and feed-forwards, in
    diffusers' or PEFT's; a warning names what else it changes, which ``whole`` refuses.

    Raises:
        UserError: it is none, changes none of these, or changes them by more than two matrices each; kohya's layout of
            a transformer.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    strange = []
    for name, value in tensors.items():
        layer, part = _place(name)
        if layer is None:
            strange.append(name)
        else:
            parts.setdefault(layer, {})[part] = value
    if not parts and any(_ORIGINAL.match(name) for name in strange):
        raise UserError(
            f"{path} is a LoRA of a transformer in kohya's layout, of whose layers several are one: it is read by "
            "pipe.load_lora_weights alone; load one in the layout of diffusers or PEFT"
        )
    if not parts:
        raise UserError(
            f"{path} is neither generated weights nor a LoRA of a UNet's attentions: it has {len(strange)} other "
            f"tensors, such as {next(iter(strange), 'none')!r:.100}"
        )
    of_layers = [name for name in strange if any(f".{layer}." in name for layer in parts)]
    if own := of_layers or [name for name in strange if re.search(r"attn[12]", name)]:
        raise UserError(
            f"{path} changes attentions by more than two matrices each: it has {own[0]!r:.100}; expected a plain LoRA "
            "(no DoRA, LoHa or LoKr, no biases)"
        )
    scales = PeftScales(path, header.get("lora_adapter_metadata"))
    made = {}
    for layer, matrices in parts.items():
        if not {"down", "up"} <= set(matrices):
            raise UserError(f"{path} is not whole: {layer} lacks one of its two matrices")
        factors = factors_of(path, matrices["down"], matrices["up"], layer)
        alpha = matrices.get("alpha")
        if alpha is not None and not (alpha.numel() == 1 and math.isfinite(float(alpha))):
            raise UserError(f"{path}: the alpha of {layer} is no finite number")
        scale = scales.of(layer, factors.rank) if alpha is None else float(alpha) / factors.rank
        made[layer] = Factors(factors.down, factors.up, scale).folded()
    if strange and whole:
        raise UserError(
            f"{path} is a LoRA of other layers too, which would be left out: {_in_words(strange)}"
        )
    if strange:
        _log.warning(
            "%s: taken are the %d layers of attentions; left out %s", path, len(made), _in_words(strange)
        )
    metadata = _metadata(header)
    if family := lora_transformers.family_of(made):
        metadata.setdefault(lora_transformers.FAMILY, family)
    return GeneratedWeights(made, name=header.get("modelspec.title") or path.stem, metadata=metadata)


def _metadata(header: Mapping[str, str]) -> dict[str, Any]:
    """What our own files say of the weights; nothing of other programs', or where it is damaged."""
    text = header.get(METADATA_KEY, "{}")
    try:
        found = json.loads(text) if len(text) <= MAX_CONFIG else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _in_words(names: Sequence[str]) -> str:
    """Layers by kind: "72 of the text encoder, 32 feed-forward"."""
    layers = {re.split(r"[._]lora[._]|\.(?:lora_|alpha|diff)", name)[0]: name for name in names}
    kinds = Counter(
        next((kind for kind, of in _OTHERS.items() if of.match(name)), "others") for name in layers.values()
    )
    shown = ", ".join(f"{count} ({kind})" for kind, count in kinds.most_common())
    return f"{sum(kinds.values())} layers, such as {names[0]!r:.100}: {shown}"


def read_folder(path: Path, *, whole: bool = False) -> GeneratedWeights:
    """A PEFT adapter's folder.

    Raises:
        UserError: it holds none; see `read`.
    """
    config_file, file = path / "adapter_config.json", path / "adapter_model.safetensors"
    if not config_file.is_file() or not file.is_file():
        raise UserError(
            f"{path} is a folder without adapter_config.json and adapter_model.safetensors: expected a PEFT adapter, or a file"
        )
    header = header_of(file)[0] | {
        "lora_adapter_metadata": config_file.read_text(encoding="utf-8", errors="replace")
    }
    weights = read(file, header, read_tensors(file), whole=whole)
    weights.name = path.name
    return weights


def _place(name: str) -> tuple[str | None, str]:
    """Which layer a tensor belongs to, and as what: "down", "up" or "alpha"."""
    if match := _PEFT.fullmatch(name):
        part = match["part"]
        return match["layer"], "alpha" if part is None else "down" if part in _DOWN else "up"
    if match := _PROCESSOR.fullmatch(name):
        return f"{match['path']}.{match['projection']}".replace("to_out", "to_out.0"), match["part"]
    if match := _KOHYA.fullmatch(name):
        projection = match["projection"].replace("to_out_0", "to_out.0")
        layer = f"{_block(match['place'])}.transformer_blocks.{match['j']}.{match['kind']}.{projection}"
        part = match["part"]
        return layer, "alpha" if part == "alpha" else "down" if part in _DOWN else "up"
    return None, ""


def _block(place: str) -> str:
    """The name of a block's attentions in diffusers: "down_blocks_1_attentions_0" → "down_blocks.1.attentions.0".

    For Stable Diffusion XL kohya keeps the original names, which count three blocks a level: "input_blocks_4_1".
    """
    numbers = [int(n) for n in re.findall(r"\d+", place)]
    if place.startswith("input_blocks"):
        return f"down_blocks.{(numbers[0] - 1) // 3}.attentions.{(numbers[0] - 1) % 3}"
    if place.startswith("output_blocks"):
        return f"up_blocks.{numbers[0] // 3}.attentions.{numbers[0] % 3}"
    if place.startswith("middle_block"):
        return "mid_block.attentions.0"
    return re.sub(r"_(\d+)(?=_|$)", r".\1", place).replace("_attentions", ".attentions")
