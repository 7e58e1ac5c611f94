"""Seeding, initialisation, config loading and logging set-up."""

import hashlib
import logging
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from pydantic import BaseModel, ValidationError
from torch import nn

from hyperbrush.errors import UserError

Config = TypeVar("Config", bound=BaseModel)


def keyed_seed(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of the key and on their order."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator for one purpose at one moment, say (seed, step): nothing to save for a resume."""
    return torch.Generator("cpu").manual_seed(keyed_seed(*key))


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, for code outside our control that uses the global generators."""
    import random

    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def zero_module(module: nn.Module) -> nn.Module:
    """Set every parameter to zero (a residual branch that starts as the identity)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def count_parameters(module: nn.Module, *, trainable_only: bool = False) -> int:
    """Number of parameters, shared ones counted once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


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
        raise UserError(f"{where}: " + "; ".join(_describe(model, e) for e in error.errors())) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping (or nothing).

    Raises:
        UserError: missing file, broken YAML, or something else than a mapping.
    """
    if not path.is_file():
        raise UserError(f"config file {path} does not exist")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}; expected a mapping of settings")
    return values


def _describe(model: type[BaseModel], error: Any) -> str:
    from difflib import get_close_matches

    place = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        close = get_close_matches(str(error["loc"][-1]), _all_keys(model), n=1)
        guess = f", did you mean '{close[0]}'?" if close else ""
        return f"unknown setting '{place}'{guess}"
    if error["type"] == "missing":
        return f"setting '{place}' is missing"
    got = error.get("input")
    message = error["msg"].removeprefix("Value error, ")
    return f"{place or 'settings'}: {message} (got {got!r})" if place else message


def _all_keys(model: type[BaseModel]) -> list[str]:
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(name)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += _all_keys(inner)
    return keys


def setup_logging(level: str = "WARNING") -> None:
    """Log through rich on stderr, and quiet the libraries' advice."""
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler], force=True)
    for name in ("diffusers", "transformers", "accelerate", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
