"""Generated weights written as the file another program reads: low-rank already, so a LoRA of them is exact."""

from pathlib import Path

import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attaching.strengths import finite
from hyperbrush.hypernetworks.generator import GeneratedWeights


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
