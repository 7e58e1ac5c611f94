"""What an attention site is, whatever model it is of."""

from dataclasses import dataclass
from typing import Any

from hyperbrush.errors import UserError, unknown_name

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Projection:
    """One linear map of an attention: ``weight`` is (out_width, in_width).

    layer: the layer that computes it, where that has another name: "add_k_proj" is the "to_k" of a text stream.
    rows: first and last + 1 of that layer's outputs, where it computes more than this; None: all of them.
    """

    name: str  # what it is for: "to_q", "to_k", "to_v" or "to_out.0"
    in_width: int
    out_width: int
    layer: str = ""
    rows: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.layer:
            object.__setattr__(self, "layer", self.name)


@dataclass(frozen=True)
class AttentionSite:
    """One context of one attention: a UNet's attention has one, a joint attention of a transformer two.

    stream: what the context is made of, "picture" or "text". shared: other rows of the same layers' input are another
    site's. lasting: a prompt's context is the same at every step of a sampling.
    family: of a diffusion transformer ("Flux.1"); empty for a UNet.
    """

    path: str  # "down_blocks.1.attentions.0.transformer_blocks.0.attn2", "transformer_blocks.0.attn.text"
    kind: str  # "attn1" (reads the picture) or "attn2" (reads the text); of `transformer_layers` others too
    block: str  # "down.1", "mid", "up.2"; of a transformer "transformer_blocks.3", "layers.0"
    depth: int  # which transformer block, counted from the model's input: 0, 1, …
    heads: int
    query_width: int  # what to_q sees
    context_width: int  # what to_k and to_v see
    projections: tuple[Projection, ...]
    stream: str = ""
    shared: bool = False
    lasting: bool = False
    family: str = ""

    def projection(self, name: str) -> Projection:
        """The projection called ``name``.

        Raises:
            UserError: the attention has no such projection.
        """
        for projection in self.projections:
            if projection.name == name:
                return projection
        raise unknown_name("projection", name, [p.name for p in self.projections])


def linear_widths(layer: Any) -> tuple[int, int]:
    """In and out width of a linear layer, however many adapters stand around it.

    Raises:
        UserError: there is no linear layer inside.
    """
    while not isinstance(getattr(layer, "in_features", None), int):
        inner = getattr(layer, "base_layer", None) or next(layer.children(), None)
        if inner is None:
            raise UserError(
                f"cannot read the widths of {type(layer).__name__}: expected a linear layer, "
                "or a wrapper with in_features and out_features or with the layer inside"
            )
        layer = inner
    return layer.in_features, layer.out_features
