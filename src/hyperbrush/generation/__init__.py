"""What a prompt means, and pictures made from it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperbrush.generation.comparison import Grid, compare
    from hyperbrush.generation.infotext import Infotext, read_infotext, write_infotext
    from hyperbrush.generation.opened import OpenedModel, open_model
    from hyperbrush.generation.picture_files import settings_text
    from hyperbrush.generation.repeat import Repeat, repeat_of
    from hyperbrush.generation.tags import HypernetworkTag, parse_tags
    from hyperbrush.generation.text_to_image import Picture, generate

_HOMES = {
    "Grid": "comparison",
    "HypernetworkTag": "tags",
    "Infotext": "infotext",
    "OpenedModel": "opened",
    "Picture": "text_to_image",
    "Repeat": "repeat",
    "compare": "comparison",
    "generate": "text_to_image",
    "open_model": "opened",
    "parse_tags": "tags",
    "read_infotext": "infotext",
    "repeat_of": "repeat",
    "settings_text": "picture_files",
    "write_infotext": "infotext",
}

__all__ = [
    "Grid",
    "HypernetworkTag",
    "Infotext",
    "OpenedModel",
    "Picture",
    "Repeat",
    "compare",
    "generate",
    "open_model",
    "parse_tags",
    "read_infotext",
    "repeat_of",
    "settings_text",
    "write_infotext",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
