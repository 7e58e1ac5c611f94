"""A run's settings from everywhere they are given: presets, a file, flags, KEY=VALUE texts."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.files import write_text
from hyperbrush.ldm.util import load_config, parse_yaml

Run = TypeVar("Run", bound=BaseModel)
BY_STEPS = re.compile(r"[-+\d.eE]+\s*:[-+\d.eE:;,\s]*")  # "5e-5: 100, 1e-6", in which YAML sees a mapping


def merge_settings(
    model: type[Run],
    source: str | Path | None,
    values: Mapping[str, Any],
    /,
    *,
    first: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
    training: Mapping[str, Any] | None = None,
    **given: Any,
) -> Run:
    """Validated settings; what comes later wins.

    Args:
        model: with inner models such as "training".
        source, values: a file and what it holds; its stem is the name where it has none.
        first: what the file's settings lie over.
        settings: "KEY=VALUE" texts; a key is written whole ("network.activation") or, where that is clear, as its
            last part; values are YAML.
        training, given: settings by name; None, "" and empty lists say nothing.

    Raises:
        UserError: whatever is wrong with any of them.
    """
    named = {} if source is None else {"name": Path(source).stem}
    own = {key: value for key, value in (training or {}).items() if value is not None}
    said = {key: value for key, value in given.items() if value not in (None, "", [], ())}
    merged = _merged(_merged(first or {}, {**named, **values}), said | {"training": own})
    for text in settings:
        key, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"setting {text!r}: expected KEY=VALUE, such as loss=huber")
        try:
            parsed: Any = value if BY_STEPS.fullmatch(value) else parse_yaml(value)
        except yaml.YAMLError as error:
            raise UserError(f"setting {text!r}: {value!r} is not valid YAML") from error
        for part in reversed(_full_name(model, key.strip())):
            parsed = {part: parsed}
        merged = _merged(merged, parsed)
    return load_config(model, merged)


def save_run(config: BaseModel, run: Path) -> None:
    """Begin a run folder with its config.yaml.

    Raises:
        UserError: a run stands there already, so that nothing is lost by a name used twice.
    """
    if (run / "checkpoints").is_dir() and any((run / "checkpoints").iterdir()):
        raise UserError(
            f"{run} holds a run already; go on with --resume {run}, or take another --name or --run"
        )
    write_settings(config, run)


def write_settings(config: BaseModel, run: Path) -> None:
    """Write a run's config.yaml, which `read_settings` reads; only for whoever holds the run (`opened_run`)."""
    write_text(
        run / "config.yaml",
        yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )


def read_settings(model: type[Run], run: Path) -> Run:
    """The config of an existing run.

    Raises:
        UserError: no such run, or its config is broken.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no run folder: it has no config.yaml")
    return load_config(model, run / "config.yaml")


def names_of(model: type[BaseModel]) -> list[str]:
    """Every setting by its whole name, those of inner models last."""
    fields = {name: field.annotation for name, field in model.model_fields.items() if name != "kind"}
    inner = {n: a for n, a in fields.items() if isinstance(a, type) and issubclass(a, BaseModel)}
    top = [name for name in fields if name not in inner]
    return top + [f"{room}.{name}" for room, own in inner.items() for name in names_of(own)]


def _full_name(model: type[BaseModel], key: str) -> list[str]:
    names = names_of(model)
    found = [name for name in names if name == key or name.rpartition(".")[2] == key]
    if key in found:
        return key.split(".")
    if len(found) != 1:
        raise unknown_name("setting", key, [*names, *(n.rpartition(".")[2] for n in names)])
    return found[0].split(".")


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(below)
    for key, value in above.items():
        inside = found.get(key)
        found[key] = _merged(inside, value) if isinstance(inside, dict) and isinstance(value, dict) else value
    return found
