"""Finished adapters of both kinds: attention hypernetworks, and weights that a hypernetwork generated."""

from pathlib import Path
from typing import TYPE_CHECKING

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights

if TYPE_CHECKING:
    import torch

Adapter = AttentionHypernetwork | GeneratedWeights


def load(path: str | Path, dtype: "torch.dtype | None" = None) -> Adapter:
    """Read an adapter's file of either kind, on the CPU; nothing in it is executed.

    An attention hypernetwork of any known format (see `files.load_attention`), or generated weights in our safetensors
    form. LoRA files are read by `GeneratedWeights.load`, whole generators by `Hypernetwork.load`.
    dtype: to convert to; None: as in the file.

    Raises:
        UserError: as `files.load_attention` and `GeneratedWeights.load`.
    """
    from hyperbrush.hypernetworks.files import load_attention

    path = Path(path)
    if is_generated_file(path):
        weights = GeneratedWeights.load(path)
        weights.name = path.stem
        return weights if dtype is None else weights.to(dtype)
    return load_attention(path, dtype)


def is_generated_file(path: Path) -> bool:
    """Whether a file says of itself that it holds generated weights; damaged ones say nothing.

    Raises:
        UserError: it is a whole generator, or of a version this hyperbrush does not read.
    """
    from hyperbrush.hypernetworks.files.generated import is_generated
    from hyperbrush.hypernetworks.files.native import FORMAT_KEY, header_of

    if path.suffix.lower() != ".safetensors" or "\0" in str(path):
        return False
    try:
        header, _ = header_of(path)
    except (UserError, OSError):
        return False  # whoever reads it next says what is wrong
    if header.get(FORMAT_KEY, "").startswith("hypernetwork/"):
        raise UserError(
            f"{path} is a hypernetwork that generates adapters, not an adapter: open it with Hypernetwork.load, and "
            "let it generate one"
        )
    return is_generated(header)
