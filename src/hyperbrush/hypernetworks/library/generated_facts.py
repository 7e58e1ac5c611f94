"""Everything a file of generated weights says, and how much they change."""

from pathlib import Path
from typing import Any

from hyperbrush.files import sha256
from hyperbrush.hypernetworks.generator import GeneratedWeights
from hyperbrush.hypernetworks.library.summaries import GENERATED


def generated_facts(path: Path) -> dict[str, Any]:
    """kind, name, format, layers, rank, numbers, size, sha256, norm, metadata, readers and norms by layer, for JSON.

    Raises:
        UserError: as `GeneratedWeights.load`.
    """
    weights = GeneratedWeights.load(path)
    return {
        "kind": GENERATED,
        "name": weights.name,
        "format": "hyperbrush safetensors",
        "layers": len(weights.layers),
        "rank": weights.rank,
        "numbers": weights.size,
        "size": path.stat().st_size,
        "sha256": sha256(path),
        "norm": round(float(weights.squared_norm()) ** 0.5, 6),
        "metadata": weights.metadata,
        "readers": "hyperbrush; as a LoRA (convert --to lora-kohya, lora-diffusers, lora-peft) diffusers, PEFT, webui, ComfyUI",
        "norms": {name: round(float(f.delta().norm()), 6) for name, f in weights.factors.items()},
    }
