"""Hypernetworks for Stable Diffusion: use, train and generate them.

Everything here is loaded when first used, so that ``import hyperbrush`` stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hyperbrush.errors import UserError as UserError
    from hyperbrush.generation import compare as compare
    from hyperbrush.generation import generate as generate
    from hyperbrush.hypernetworks import AttentionHypernetwork as AttentionHypernetwork
    from hyperbrush.hypernetworks import GeneratedWeights as GeneratedWeights
    from hyperbrush.hypernetworks import Hypernetwork as Hypernetwork
    from hyperbrush.hypernetworks import HypernetworkDecoder as HypernetworkDecoder
    from hyperbrush.hypernetworks import HypernetworkEncoder as HypernetworkEncoder
    from hyperbrush.hypernetworks import HypernetworkLibrary as HypernetworkLibrary
    from hyperbrush.hypernetworks import HypernetworkLoaderMixin as HypernetworkLoaderMixin
    from hyperbrush.hypernetworks import ImageCondition as ImageCondition
    from hyperbrush.hypernetworks import Pack as Pack
    from hyperbrush.hypernetworks import PerPicture as PerPicture
    from hyperbrush.hypernetworks import Ramp as Ramp
    from hyperbrush.hypernetworks import TargetNetwork as TargetNetwork
    from hyperbrush.hypernetworks import TaskCondition as TaskCondition
    from hyperbrush.hypernetworks import TextCondition as TextCondition
    from hyperbrush.hypernetworks import Use as Use
    from hyperbrush.hypernetworks import WeightGenerator as WeightGenerator
    from hyperbrush.hypernetworks import Window as Window
    from hyperbrush.hypernetworks import attach as attach
    from hyperbrush.hypernetworks import load as load
    from hyperbrush.hypernetworks import with_hypernetworks as with_hypernetworks
    from hyperbrush.training import HypernetworkTrainer as HypernetworkTrainer
    from hyperbrush.training import train_hypernetwork as train_hypernetwork

_HOMES = {
    "AttentionHypernetwork": "hypernetworks",
    "GeneratedWeights": "hypernetworks",
    "Hypernetwork": "hypernetworks",
    "HypernetworkDecoder": "hypernetworks",
    "HypernetworkEncoder": "hypernetworks",
    "HypernetworkLibrary": "hypernetworks",
    "HypernetworkLoaderMixin": "hypernetworks",
    "HypernetworkTrainer": "training",
    "ImageCondition": "hypernetworks",
    "Pack": "hypernetworks",
    "PerPicture": "hypernetworks",
    "Ramp": "hypernetworks",
    "TargetNetwork": "hypernetworks",
    "TaskCondition": "hypernetworks",
    "TextCondition": "hypernetworks",
    "Use": "hypernetworks",
    "UserError": "errors",
    "WeightGenerator": "hypernetworks",
    "Window": "hypernetworks",
    "attach": "hypernetworks",
    "compare": "generation",
    "generate": "generation",
    "load": "hypernetworks",
    "train_hypernetwork": "training",
    "with_hypernetworks": "hypernetworks",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hyperbrush' has no attribute {name!r}")
    return getattr(import_module(f"hyperbrush.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
