"""Finished adapters of both kinds: attention hypernetworks, and weights that a hypernetwork generated."""

from pathlib import Path
from typing import TYPE_CHECKING

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attaching.uses import Adapter as Adapter
from hyperbrush.hypernetworks.files import generated, load_attention, lora, packed
from hyperbrush.hypernetworks.files.checks import all_finite, converted
from hyperbrush.hypernetworks.files.headers import FORMAT_KEY, header_of, read_tensors
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights

if TYPE_CHECKING:
    import torch


def load(path: str | Path, dtype: "torch.dtype | None" = None) -> Adapter:
    """Read an adapter's file of either kind, on the CPU; nothing in it is executed.

    >>> from hyperbrush.hypernetworks import AttentionHypernetwork
    >>> path = AttentionHypernetwork([8]).save("water.safetensors")
    >>> load(path).widths
    [8]

    An attention hypernetwork of any known format (see `files.load_attention`), or generated weights in our safetensors
    form, or one of a pack (looks.pack.safetensors/ink). LoRA files are read by `GeneratedWeights.load`, whole generators
    by `Hypernetwork.load`, whole packs by `Pack.load`.
    dtype: to convert to; None: as in the file.

    Raises:
        UserError: as `files.load_attention` and `GeneratedWeights.load`.
    """
    path = Path(path)
    if packed.split(path) is not None:
        from hyperbrush.hypernetworks.files.pack import read_member  # which gives both kinds back

        member = read_member(path)
        if isinstance(member, GeneratedWeights):
            return _converted(path, member, dtype)
        return member if dtype is None else converted(path, member, dtype)
    if is_generated_file(path):
        weights = read_weights(path)
        weights.name = path.stem
        return _converted(path, weights, dtype)
    return load_attention(path, dtype)


def _converted(path: Path, weights: GeneratedWeights, dtype: "torch.dtype | None") -> GeneratedWeights:
    """Weights in another precision; numbers too large for it are refused."""
    if dtype is None:
        return weights
    made = weights.to(dtype)
    for layer, factors in made.factors.items():
        if not (all_finite(factors.down) and all_finite(factors.up)):
            raise UserError(f"{path}: {layer} has numbers too large for {dtype}: load it in a wider type")
    return made


def is_generated_file(path: Path) -> bool:
    """Whether a file says of itself that it holds generated weights; damaged ones say nothing.

    Raises:
        UserError: it is a whole generator, or of a version this hyperbrush does not read.
    """
    if (found := packed.split(path)) is not None:
        return packed.members(found[0]).get(found[1]) == packed.GENERATED
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
    return generated.is_generated(header)


def read_weights(path: Path, *, whole: bool = False) -> GeneratedWeights:
    """Read generated weights in our form, or a LoRA of a UNet's attentions (`lora.read`; for PEFT the folder).

    whole: refuse a LoRA of which a part would be left out.

    Raises:
        UserError: no such file, damaged, or of another kind.
    """
    if packed.split(path) is not None:
        member = load(path)
        if not isinstance(member, GeneratedWeights):
            raise UserError(f"{path} is an attention hypernetwork: expected generated weights")
        return member
    try:
        if path.is_dir():
            return lora.read_folder(path, whole=whole)
        if path.suffix.lower() != ".safetensors":
            raise UserError(f"{path}: expected generated weights, a file ending in .safetensors")
        if not path.exists():
            raise UserError(
                f"{path} does not exist: expected generated weights; check the folder and the spelling"
            )
        header, _ = header_of(path)
        if generated.is_generated(header):
            return generated.read(path, header, read_tensors(path))
        return lora.read(path, header, read_tensors(path), whole=whole)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def write_weights(
    weights: GeneratedWeights, path: Path, form: str, dtype: "torch.dtype | None" = None
) -> Path:
    """Write one adapter: "safetensors", or "lora-" and one of `lora.FORMS`; see `GeneratedWeights.save`.

    Raises:
        UserError: as `generated.write` and `lora.write`.
    """
    if form == "safetensors":
        return generated.write(weights, path, dtype)
    return lora.write(weights, path, form.removeprefix("lora-"), dtype)
