"""What a hypernetwork's file says of itself, as people and caches keep it; `summarising` reads it."""

from dataclasses import asdict, dataclass
from typing import Any

KIND = "attention hypernetwork"
GENERATED = "generated"


@dataclass(frozen=True)
class Summary:
    """A file's header in words and numbers.

    Args:
        kind: "attention hypernetwork", or "generated": weights that a hypernetwork generated; what a kind
            does not have is empty or 0.
        format: "webui" or "safetensors".
        widths: context widths it has networks for.
        sites: number of attention sites with a network or weights of their own; 0 where networks go by width.
        structure: widths of the layers as multiples of the context's.
        activation: its name; "linear" for none.
        layer_norm: whether a LayerNorm follows every layer.
        parameters: how many numbers it has.
        step: of its training.
        trained_for: the checkpoint it names, else the family of models by its widths, else "".
    """

    kind: str
    format: str
    widths: tuple[int, ...]
    sites: int
    structure: tuple[float, ...]
    activation: str
    layer_norm: bool
    parameters: int
    step: int
    trained_for: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def summary_from(value: Any) -> Summary | None:
    """A summary out of JSON; None if it is none."""
    try:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        found = Summary(**values)
        sound = (
            all(isinstance(x, str) for x in (found.kind, found.format, found.activation, found.trained_for))
            and all(isinstance(x, int) for x in (found.sites, found.parameters, found.step, *found.widths))
            and all(isinstance(x, int | float) for x in found.structure)
            and isinstance(found.layer_norm, bool)
        )
    except (TypeError, AttributeError):
        return None
    return found if sound else None
