"""Hypernetworks: networks on the context of a UNet's attention, their files, and attaching them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperbrush.hypernetworks.attention import AttentionHypernetwork
    from hyperbrush.hypernetworks.formats import load, save
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
    from hyperbrush.hypernetworks.injection import Attached, Use, attach
    from hyperbrush.hypernetworks.library import Entry, HypernetworkLibrary
    from hyperbrush.hypernetworks.sidecars import Notes
    from hyperbrush.hypernetworks.strengths import PerPicture, Ramp, Window


_HOMES = {
    "Attached": "injection",
    "AttentionHypernetwork": "attention",
    "Entry": "library",
    "GeneratedWeights": "generator",
    "Hypernetwork": "generator",
    "HypernetworkDecoder": "generator",
    "HypernetworkEncoder": "generator",
    "HypernetworkLibrary": "library",
    "ImageCondition": "generator",
    "Notes": "sidecars",
    "PerPicture": "strengths",
    "Ramp": "strengths",
    "TargetNetwork": "generator",
    "TaskCondition": "generator",
    "TextCondition": "generator",
    "Use": "injection",
    "WeightGenerator": "generator",
    "Window": "strengths",
    "attach": "injection",
    "load": "formats",
    "save": "formats",
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
    "ImageCondition",
    "Notes",
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
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for: torch takes seconds to load."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
