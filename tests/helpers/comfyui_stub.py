"""What a node pack sees of ComfyUI, around a real UNet of diffusers: its ModelPatcher, its attentions, its folders.

No code of ComfyUI, which no package index has: written anew from how its `comfy/model_patcher.py`, `comfy/sd.py`,
`folder_paths.py` and `comfy/ldm/modules/attention.py` call others. An attention patch gets (q, k, v, extra_options) and gives q, k, v
for the next one; k and v are the contexts of to_k and to_v; extra_options are transformer_options without the patches.
"""

import copy
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F


class ComfyUNet(torch.nn.Module):
    """A diffusers UNet's attentions where ComfyUI's UNetModel has them, each calling the patches of its place."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self._bare = [unet]  # in a list: its modules are to be found under ComfyUI's names alone
        count = unet.config.layers_per_block
        self.num_res_blocks = [count] * len(unet.down_blocks)
        self.names: dict[str, str] = {}  # of a layer in diffusers → here
        self.input_blocks, self.output_blocks = torch.nn.ModuleList(), torch.nn.ModuleList()
        self._block(self.input_blocks, None, ("input", 0))
        for block in unet.down_blocks:
            attentions = getattr(block, "attentions", [None] * count)
            for attention in (*attentions, *(block.downsamplers or [])):
                there = attention if hasattr(attention, "transformer_blocks") else None
                self._block(self.input_blocks, there, ("input", len(self.input_blocks)))
        self.middle_block = self._sequence(unet.mid_block.attentions[0], ("middle", 0), "middle_block")
        for block in unet.up_blocks:
            for attention in getattr(block, "attentions", [None] * (count + 1)):
                self._block(self.output_blocks, attention, ("output", len(self.output_blocks)))
        theirs = {id(module): name for name, module in unet.named_modules()}
        self.names = {theirs[id(m)]: name for name, m in self.named_modules() if id(m) in theirs}

    def _block(self, blocks: torch.nn.ModuleList, attention: Any, place: tuple[str, int]) -> None:
        blocks.append(self._sequence(attention, place, f"{place[0]}_blocks.{place[1]}"))

    def _sequence(self, attention: Any, place: tuple[str, int], name: str) -> torch.nn.Sequential:
        if attention is None:
            return torch.nn.Sequential(torch.nn.Identity())
        transformer = torch.nn.Module()
        transformer.transformer_blocks = torch.nn.ModuleList(
            torch.nn.ModuleDict({"attn1": block.attn1, "attn2": block.attn2})
            for block in attention.transformer_blocks
        )
        for index, block in enumerate(attention.transformer_blocks):
            for kind in ("attn1", "attn2"):
                getattr(block, kind).set_processor(Patched(self, place, index, kind))
        return torch.nn.Sequential(torch.nn.Identity(), transformer)

    def forward(self, *args: Any, transformer_options: dict[str, Any], **kwargs: Any) -> torch.Tensor:
        self.options = transformer_options
        out: torch.Tensor = self._bare[0](*args, **kwargs).sample
        return out


class Patched:
    """An attention processor that calls ComfyUI's patches."""

    def __init__(self, unet: ComfyUNet, block: tuple[str, int], index: int, kind: str) -> None:
        self.unet, self.block, self.index, self.kind = [unet], block, index, kind

    def __call__(self, attn: Any, hidden: torch.Tensor, encoder_hidden_states: Any = None, **_: Any) -> Any:
        options = self.unet[0].options
        extra = {k: v for k, v in options.items() if k not in ("patches", "patches_replace")}
        extra |= {"block": self.block, "block_index": self.index, "n_heads": attn.heads}
        q, k, v = hidden, hidden, hidden
        if encoder_hidden_states is not None:
            k = v = encoder_hidden_states
        for patch in options.get("patches", {}).get(f"{self.kind}_patch", []):
            q, k, v = patch(q, k, v, extra)
        q, k, v = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_q, q), (attn.to_k, k), (attn.to_v, v))
        )
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))


class Model(torch.nn.Module):
    """What a ModelPatcher holds."""

    def __init__(self, diffusion_model: torch.nn.Module) -> None:
        super().__init__()
        self.diffusion_model = diffusion_model


class ModelPatcher:
    """A model with patches, which are its own though the weights are shared."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.patches: dict[str, list[tuple[float, torch.Tensor]]] = {}

    def clone(self) -> "ModelPatcher":
        """As of 2024; newer ones copy the dictionaries alone."""
        clone = ModelPatcher(self.model)
        clone.model_options = copy.deepcopy(self.model_options)
        clone.patches = {key: patches[:] for key, patches in self.patches.items()}
        return clone

    def set_model_patch(self, patch: Any, name: str) -> None:
        patches = self.model_options["transformer_options"].setdefault("patches", {})
        patches[name] = [*patches.get(name, []), patch]

    def set_model_attn1_patch(self, patch: Any) -> None:
        self.set_model_patch(patch, "attn1_patch")

    def set_model_attn2_patch(self, patch: Any) -> None:
        self.set_model_patch(patch, "attn2_patch")

    def model_patches_to(self, where: Any) -> None:
        """Before a sampling: to the device, and to the model's precision."""
        for patches in self.model_options["transformer_options"].get("patches", {}).values():
            patches[:] = [patch.to(where) if hasattr(patch, "to") else patch for patch in patches]

    @contextmanager
    def patched(self) -> Any:
        """With the weight patches in the weights."""
        with ExitStack() as undo:
            for key, patches in self.patches.items():
                weight = self.model.get_parameter(key)
                undo.callback(weight.data.copy_, weight.data.clone())
                for strength, delta in patches:
                    weight.data += strength * delta
            yield


def call(
    model: ModelPatcher,
    *args: Any,
    sides: Sequence[int] = (0,),
    sigmas: Sequence[float] | None = (10.0, 1.0, 0.0),
    sigma: float = 10.0,
    **kwargs: Any,
) -> torch.Tensor:
    """One forward pass as ComfyUI's samplers make it: the model's options, copied, with what this call is.

    sides: cond_or_uncond. sigmas: of the sampling, sample_sigmas; None: of a ComfyUI that does not tell.
    """
    options = model.model_options["transformer_options"].copy()
    options |= {"cond_or_uncond": list(sides), "sigmas": torch.full((1,), sigma)}
    if sigmas is not None:
        options["sample_sigmas"] = torch.tensor(sigmas)
    model.model_patches_to(torch.device("cpu"))
    model.model_patches_to(torch.float16)
    with torch.inference_mode(), model.patched():
        out: torch.Tensor = model.model.diffusion_model(*args, transformer_options=options, **kwargs)
    return out


def modules(folders: Sequence[Path]) -> dict[str, ModuleType]:
    """ComfyUI's modules by name: folder_paths with the hypernetworks of these folders, and comfy.sd."""
    paths, comfy, sd = (ModuleType(name) for name in ("folder_paths", "comfy", "comfy.sd"))

    def get_full_path(kind: str, name: str) -> str | None:
        assert kind == "hypernetworks"
        return next((str(folder / name) for folder in folders if (folder / name).is_file()), None)

    def get_filename_list(kind: str) -> list[str]:
        found = {str(path.relative_to(f)) for f in folders for path in f.rglob("*") if path.is_file()}
        return sorted(found)

    def load_lora_for_models(model: Any, clip: Any, lora: Any, strength: float, strength_clip: float) -> Any:
        """kohya's layout alone; what fits nothing is left out, as there with a warning."""
        clone = model.clone()
        ours = model.model.diffusion_model.names
        known = {f"lora_unet_{name.replace('.', '_')}": key for name, key in ours.items()}
        for name in {key.split(".")[0] for key in lora}:
            if name in known:
                up, down = lora[f"{name}.lora_up.weight"], lora[f"{name}.lora_down.weight"]
                delta = up @ down * (lora[f"{name}.alpha"].item() / len(down))
                key = f"diffusion_model.{known[name]}.weight"
                clone.patches.setdefault(key, []).append((strength, delta))
        return clone, clip

    paths.get_full_path, paths.get_filename_list = get_full_path, get_filename_list  # type: ignore[attr-defined]
    paths.get_folder_paths = lambda kind: [str(folder) for folder in folders]  # type: ignore[attr-defined]
    sd.load_lora_for_models, comfy.sd = load_lora_for_models, sd  # type: ignore[attr-defined]
    return {"folder_paths": paths, "comfy": comfy, "comfy.sd": sd}
