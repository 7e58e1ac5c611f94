"""The one name `Hypernetwork` for both kinds: told apart by what it is made with."""

from collections.abc import Sequence
from typing import Any

import hyperbrush
from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork
from hyperbrush.hypernetworks.attention.hypernetwork import SD1_WIDTHS

# The webui's arguments → ours; only its kind has them.
_WEBUI = {
    "enable_sizes": "widths",
    "layer_structure": "layer_structure",
    "activation_func": "activation",
    "add_layer_norm": "layer_norm",
    "use_dropout": "use_dropout",
    "activate_output": "activate_output",
    "weight_init": "weight_init",
    "last_layer_dropout": "last_layer_dropout",
    "dropout_structure": "dropout_structure",
}
_ORDER = ("name", *list(_WEBUI)[:3], "weight_init", "add_layer_norm", "use_dropout", "activate_output")


class Hypernetwork(hyperbrush.Hypernetwork):
    """With the webui's arguments (a name or sizes first, ``layer_structure``, …) an `AttentionHypernetwork`; else the
    `hyperbrush.Hypernetwork` that generates weights.

    Raises:
        UserError: arguments of both kinds, or settings that are impossible.
    """

    def __new__(cls, *arguments: Any, **settings: Any) -> Any:
        """An `AttentionHypernetwork`, or a new object of this class."""
        webui = [key for key in settings if key in _WEBUI]
        if not webui and not (arguments and isinstance(arguments[0], str)):
            return super().__new__(cls)
        given = dict(zip(_ORDER, arguments, strict=False)) | settings
        foreign = [key for key in given if key not in _WEBUI and key != "name"]
        if foreign or len(arguments) > len(_ORDER):
            what = ", ".join(map(repr, foreign)) or f"{len(arguments)} arguments without names"
            raise UserError(
                f"the webui's Hypernetwork has no {what}: expected name, {', '.join(_WEBUI)}; or, for one that generates "
                "weights, none of these"
            )
        ours = {_WEBUI.get(key, key): value for key, value in given.items() if value is not None}
        # The webui begins with small random numbers, and names its missing name nothing.
        return AttentionHypernetwork(**({"widths": SD1_WIDTHS, "weight_init": "Normal"} | ours))


__all__: Sequence[str] = ("Hypernetwork",)
