"""What a prompt means, and pictures made from it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperbrush.generation.comparison import Grid as Grid
    from hyperbrush.generation.comparison import compare as compare
    from hyperbrush.generation.infotext import Infotext as Infotext
    from hyperbrush.generation.infotext import read_infotext as read_infotext
    from hyperbrush.generation.infotext import write_infotext as write_infotext
    from hyperbrush.generation.opened import OpenedModel as OpenedModel
    from hyperbrush.generation.opened import open_model as open_model
    from hyperbrush.generation.picture_files import settings_text as settings_text
    from hyperbrush.generation.repeat import Repeat as Repeat
    from hyperbrush.generation.repeat import repeat_of as repeat_of
    from hyperbrush.generation.tags import HypernetworkTag as HypernetworkTag
    from hyperbrush.generation.tags import parse_tags as parse_tags
    from hyperbrush.generation.text_to_image import Picture as Picture
    from hyperbrush.generation.text_to_image import generate as generate

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

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
