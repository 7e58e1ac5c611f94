"""Hypernetworks: networks on the context of a UNet's attention, their files, and attaching them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperbrush.hypernetworks.attaching.attached import Attached, Use, attach
    from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
    from hyperbrush.hypernetworks.attention.strengths import PerPicture, Ramp, Window
    from hyperbrush.hypernetworks.files import save
    from hyperbrush.hypernetworks.files.adapters import load
    from hyperbrush.hypernetworks.files.pack import Pack
    from hyperbrush.hypernetworks.generator import (
        GeneratedWeights,
        Hypernetwork,
        HypernetworkDecoder,
        HypernetworkEncoder,
        ImageCondition,
        TargetNetwork,
        TaskCondition,
        TextCondition,
        WeightGenerator,
    )
    from hyperbrush.hypernetworks.library.library import Entry, HypernetworkLibrary
    from hyperbrush.hypernetworks.library.notes import Notes
    from hyperbrush.hypernetworks.loader_mixin import HypernetworkLoaderMixin, with_hypernetworks


_HOMES = {
    "Attached": "attaching.attached",
    "AttentionHypernetwork": "attention.hypernetwork",
    "Entry": "library.library",
    "GeneratedWeights": "generator",
    "Hypernetwork": "generator",
    "HypernetworkDecoder": "generator",
    "HypernetworkEncoder": "generator",
    "HypernetworkLibrary": "library.library",
    "HypernetworkLoaderMixin": "loader_mixin",
    "ImageCondition": "generator",
    "Notes": "library.notes",
    "Pack": "files.pack",
    "PerPicture": "attention.strengths",
    "Ramp": "attention.strengths",
    "TargetNetwork": "generator",
    "TaskCondition": "generator",
    "TextCondition": "generator",
    "Use": "attaching.attached",
    "WeightGenerator": "generator",
    "Window": "attention.strengths",
    "attach": "attaching.attached",
    "load": "files.adapters",
    "save": "files",
    "with_hypernetworks": "loader_mixin",
}

__all__ = [
    "Attached",
    "AttentionHypernetwork",
    "Entry",
    "GeneratedWeights",
    "Hypernetwork",
    "HypernetworkDecoder",
    "HypernetworkEncoder",
    "HypernetworkLibrary",
    "HypernetworkLoaderMixin",
    "ImageCondition",
    "Notes",
    "Pack",
    "PerPicture",
    "Ramp",
    "TargetNetwork",
    "TaskCondition",
    "TextCondition",
    "Use",
    "WeightGenerator",
    "Window",
    "attach",
    "load",
    "save",
    "with_hypernetworks",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for: torch takes seconds to load."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
