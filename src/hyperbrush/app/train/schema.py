"""Every setting of a training as a form shows it, from the models that validate it."""

import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Kind = Literal["switch", "choice", "choices", "integer", "number", "text", "lines", "yaml"]
FILE = Path(__file__).with_name("settings_groups.yaml")


@dataclass(frozen=True)
class Setting:
    """One setting.

    Args:
        key: its whole name, such as training.loss.
        kind: of the input that fits; "yaml" takes what a file would hold, such as [1, 2, 1].
        default: what it is where nothing is said.
        choices: of "choice" and "choices".
        least, most: limits of a number; open: they themselves are not allowed.
        nullable: null is a value of it.
        help: what it does, in a sentence.
        webui: what the webui calls it; "" where it has no such setting.
        extension: that name is the MonkeyPatch extension's.
    """

    key: str
    kind: Kind
    default: Any
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    open: bool = False
    nullable: bool = False
    required: bool = False
    help: str = ""
    webui: str = ""
    extension: bool = False

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@cache
def settings() -> Mapping[str, Setting]:
    """Every setting of a hypernetwork's training by its key."""
    from hyperbrush.training.attention.run import HypernetworkRun

    return {setting.key: setting for setting in _of(HypernetworkRun, "")}


@cache
def folder_settings() -> tuple[Setting, ...]:
    """The settings of one folder of pictures."""
    from hyperbrush.training.data.pictures import FolderConfig

    return tuple(_of(FolderConfig, ""))


@cache
def groups() -> Mapping[str, tuple[str, ...]]:
    """Keys by group, in the order of the page; "first" ones are shown apart, the app itself sets the "fixed"."""
    known, said = list(settings()), _file()
    found = {"first": tuple(said["first"])}
    for group, patterns in said["groups"].items():
        keys = []
        for pattern in patterns:
            keys += [
                k for k in known if k == pattern or (pattern.endswith("*") and k.startswith(pattern[:-1]))
            ]
        found[group] = tuple(keys)
    named = {key for keys in found.values() for key in keys} | set(said["fixed"])
    other = tuple(key for key in known if key not in named)
    return {**found, **({"other": other} if other else {})}


def schema() -> dict[str, Any]:
    """For the API: groups of settings, those of a folder, and the presets."""
    from hyperbrush.training.attention.config import PRESETS

    known = settings()
    return {
        "groups": [
            {"name": name, "settings": [known[key].as_dict() for key in keys]}
            for name, keys in groups().items()
        ],
        "folder": [setting.as_dict() for setting in folder_settings()],
        "presets": {name: dict(values) for name, values in PRESETS.items()},
    }


@cache
def _file() -> Mapping[str, Any]:
    found: Mapping[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def _of(model: type[BaseModel], prefix: str) -> typing.Iterator[Setting]:
    webui, extension = _file()["webui"], _file()["monkeypatch"]
    for name, field in model.model_fields.items():
        key, inner = prefix + name, field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _of(inner, f"{key}.")
        elif key != "kind":
            kind, choices, nullable = _kind(inner)
            limits = {
                n: getattr(r, n) for r in field.metadata for n in ("ge", "gt", "le", "lt") if hasattr(r, n)
            }
            yield Setting(
                key,
                kind,
                _default(field),
                choices,
                limits.get("ge", limits.get("gt")),
                limits.get("le", limits.get("lt")),
                "gt" in limits or "lt" in limits,
                nullable,
                field.is_required(),
                field.description or "",
                webui.get(key, extension.get(key, "")),
                key in extension,
            )


def _default(field: FieldInfo) -> Any:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    return list(value) if isinstance(value, tuple) else value


def _kind(annotation: Any) -> tuple[Kind, tuple[str, ...], bool]:
    """(kind of input, choices, whether null is a value)."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        rest = [part for part in inner if part is not type(None)]
        nullable = len(rest) < len(inner)
        kind, choices, _ = _kind(rest[0]) if len(rest) == 1 else ("yaml", (), False)
        return kind, choices, nullable
    if origin is typing.Annotated:
        return _kind(inner[0])
    if origin is typing.Literal:
        return "choice", tuple(map(str, inner)), False
    if origin is list and typing.get_origin(inner[0]) is typing.Literal:
        return "choices", tuple(map(str, typing.get_args(inner[0]))), False
    if origin is list and inner[0] is str:
        return "lines", (), False
    kinds: dict[Any, Kind] = {bool: "switch", int: "integer", float: "number", str: "text"}
    return kinds.get(annotation, "yaml"), (), False


def suggestions(key: str) -> list[str]:
    """Names that a setting of free text knows."""
    from hyperbrush.hypernetworks.attention.activations import activation_names
    from hyperbrush.hypernetworks.attention.initialisation import WEIGHT_INITS
    from hyperbrush.ldm.data.templates import BUNDLED
    from hyperbrush.ldm.modules.diffusion import weighting_names
    from hyperbrush.ldm.modules.draws import TIMESTEP_SAMPLINGS
    from hyperbrush.ldm.sampling.samplers import sampler_names
    from hyperbrush.training.loop.optimizers import names

    known: Mapping[str, typing.Iterable[str]] = {
        "network.activation": activation_names(),
        "network.weight_init": WEIGHT_INITS,
        "training.templates": BUNDLED,
        "training.weighting": weighting_names(),
        "training.preview_sampler": sampler_names(),
        "training.optimizer": names(),
        "training.timestep_sampling": TIMESTEP_SAMPLINGS,
        "training.schedule": ("constant", "linear", "cosine", "cosine_with_restarts"),
    }
    return list(known.get(key, ()))
