"""Seeding, initialisation, config loading and logging set-up."""

import hashlib
import logging
import re
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from pydantic import BaseModel, ValidationError
from torch import nn

from hyperbrush.errors import UserError
from hyperbrush.setting_errors import wrong_settings

log = logging.getLogger(__name__)
Config = TypeVar("Config", bound=BaseModel)


def keyed_seed(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of the key and on their order."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator for one purpose at one moment, say (seed, step): nothing to save for a resume."""
    return torch.Generator("cpu").manual_seed(keyed_seed(*key))


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, shared ones counted once."""
    return sum(p.numel() for p in module.parameters())


def load_config(model: type[Config], source: str | Path | dict[str, Any], **overrides: Any) -> Config:
    """Validate a YAML file (or a mapping) against a pydantic model, all errors shown together.

    Raises:
        UserError: missing file, broken YAML, or wrong keys and values, one line each with the
            closest known key.
    """
    where = "the configuration" if isinstance(source, dict) else str(source)
    values = source if isinstance(source, dict) else read_yaml(Path(source))
    given = {**values, **{k: v for k, v in overrides.items() if v is not None}}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise UserError(f"{where}: " + "; ".join(wrong_settings(model, error))) from error


class _Loader(yaml.SafeLoader):
    """YAML, but for 1:30, which is text and not YAML 1.1's sixty-based 90: "1:30" is a clip limit by steps."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0] and re.fullmatch(r"[-+]?[\d_.]+(:[\d_.]+)+", value):
            return "tag:yaml.org,2002:str"
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]


def parse_yaml(text: str) -> Any:
    """A value written in YAML.

    Raises:
        yaml.YAMLError: broken text.

    >>> parse_yaml("{limit: 1:30, rate: 0.5}")
    {'limit': '1:30', 'rate': 0.5}
    """
    return yaml.load(text, _Loader)


# Settings that name what is there already, a file or a folder, wherever in a YAML file they stand.
PLACES = frozenset(
    [
        "data",
        "validation",
        "path",
        "folders",
        "held_out",
        "first_stage",
        "start_from",
        "mask_folder",
        "condition_folder",
        "templates",
        "model",
    ]
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping (or nothing).

    Files and folders it names (`PLACES`) are looked for from the current folder, else beside the file; ~ is the home
    folder.

    Raises:
        UserError: missing file, broken YAML, or something else than a mapping.
    """
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"config file {path} does not exist")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}; expected a mapping of settings")
    found: dict[str, Any] = _placed(values, "", path)
    return found


def _placed(value: Any, key: str, file: Path) -> Any:
    """A value of a YAML file with the places it names as they are found from here."""
    if isinstance(value, dict):
        return {name: _placed(inner, str(name), file) for name, inner in value.items()}
    if isinstance(value, list):
        return [_placed(inner, key, file) for inner in value]
    if key not in PLACES or not isinstance(value, str) or not value or "\0" in value:
        return value
    if value.startswith("~"):
        return str(Path(value).expanduser())
    here, beside = Path(value), file.parent / value
    if here.is_absolute() or not beside.exists():
        return value
    if not here.exists():
        return str(beside)
    if not here.samefile(beside):
        log.warning("%s: %s: %s is %s, not %s beside the file", file, key, value, here.absolute(), beside)
    return value


def setup_logging(level: str = "WARNING") -> None:
    """Log through rich on stderr, and quiet the libraries' advice."""
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler], force=True)
    for name in ("diffusers", "transformers", "accelerate", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
