"""Write docs/settings.md from the config models: every setting, its type, default and meaning.

python docs/make_settings.py
"""

import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hyperbrush.files import write_text
from hyperbrush.training.attention.config import PRESETS, HypernetworkConfig
from hyperbrush.training.attention.run import HypernetworkRun, NetworkConfig
from hyperbrush.training.data.pictures import FolderConfig, PictureSettings
from hyperbrush.training.generator.config import GeneratorConfig, GeneratorNetwork
from hyperbrush.training.generator.run import GeneratorRun
from hyperbrush.training.ldm.config import (
    DataConfig,
    DiffusionRun,
    FirstStageConfig,
    FirstStageRun,
    LossConfig,
    ProcessConfig,
    TextConfig,
    TransformerConfig,
    UNetConfig,
)
from hyperbrush.training.loop.config import OptimizerConfig, TrainerConfig

PAGE = Path(__file__).with_name("settings.md")
ROOMS = {
    "Hypernetworks": "`hyperbrush train CONFIG.yaml`, or `-s KEY=VALUE` with the whole name or its last part.",
    "Generators of weights": "`hyperbrush hyper train CONFIG.yaml`, or `-s KEY=VALUE`.",
    "Latent diffusion models": "`hyperbrush ldm train CONFIG.yaml`, or `-s KEY=VALUE`.",
}
MODELS: dict[str, list[tuple[str, type[BaseModel], str]]] = {
    "Hypernetworks": [
        ("", HypernetworkRun, "The run"),
        ("data[].", FolderConfig, "One folder of pictures; a path alone is one too"),
        ("network.", NetworkConfig, "The hypernetwork"),
        ("training.", PictureSettings, "Pictures and captions"),
        ("training.", HypernetworkConfig, "Training"),
    ],
    "Generators of weights": [
        ("", GeneratorRun, "The run of a generator"),
        ("network.", GeneratorNetwork, "The generator"),
        ("training.", GeneratorConfig, "Its training"),
    ],
    "Latent diffusion models": [
        ("", FirstStageRun, "A first stage (`kind: first_stage`)"),
        ("model.", FirstStageConfig, "Its network"),
        ("loss.", LossConfig, "Its loss"),
        ("", DiffusionRun, "A diffusion model (`kind: diffusion`)"),
        ("text.", TextConfig, "Its text encoder"),
        ("unet.", UNetConfig, "Its UNet"),
        ("transformer.", TransformerConfig, "Its transformer, where that stands in the UNet's place"),
        ("process.", ProcessConfig, "Its process"),
        ("data.", DataConfig, "Pictures of both"),
        ("training.", TrainerConfig, "The loop of both"),
        ("training.optimizer.", OptimizerConfig, "The optimizer of both"),
    ],
}


def page() -> str:
    """The whole page as markdown."""
    parts = [
        "# Settings",
        "Made from the config models by `python docs/make_settings.py`; a test keeps it in step. An unknown name is an "
        "error with the closest known one.",
    ]
    for room, models in MODELS.items():
        parts += [f"## {room}", ROOMS[room]]
        for prefix, model, title in models:
            parts += [f"### {title}", table(prefix, model)]
        if room == "Hypernetworks":
            rows = [f"| `{name}` | {_code(values)} |" for name, values in PRESETS.items()]
            parts += [
                "### Presets",
                "`--preset balanced,subject`, or `preset:` in the file; what is given beside them wins.",
                "\n".join(["| preset | settings |", "|---|---|", *rows]),
            ]
    return "\n\n".join(parts) + "\n"


def table(prefix: str, model: type[BaseModel]) -> str:
    """One model's own fields; those that are models themselves have tables of their own."""
    inherited = set(PictureSettings.model_fields) if model is HypernetworkConfig else set()
    rows = [
        f"| `{prefix}{name}` | {_type(field)} | {_default(field)} | {_sentence(field)} |"
        for name, field in model.model_fields.items()
        if name not in inherited and not _is_model(field.annotation)
    ]
    return "\n".join(["| setting | values | default | meaning |", "|---|---|---|---|", *rows])


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _type(field: FieldInfo) -> str:
    limits = " ".join(
        f"{sign} {getattr(rule, name):g}"
        for rule in field.metadata
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if hasattr(rule, name)
    )
    return _escaped(f"{_name(field.annotation)} {limits}".strip())


def _name(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is typing.Literal:
        return " or ".join(map(str, inner))
    if origin is typing.Annotated:
        return _name(inner[0])
    if origin in (list, tuple):
        return f"list of {_name(inner[0])}"
    if origin is dict:
        return "mapping"
    if inner:
        return " or ".join(dict.fromkeys(map(_name, inner)))
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return names.get(annotation, "mapping")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    return _code(field.get_default(call_default_factory=True))


def _code(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"`{k}: {_plain(v)}`" for k, v in value.items()) or "`{}`"
    return f"`{_escaped(_plain(value))}`"


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return repr(value) if value == "" or (isinstance(value, str) and not value.strip(", ")) else str(value)


def _sentence(field: FieldInfo) -> str:
    return _escaped(field.description or "")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    write_text(PAGE, page())
