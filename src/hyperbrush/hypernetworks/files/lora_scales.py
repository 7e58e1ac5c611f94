"""What a LoRA's B·A is multiplied by, as PEFT's settings say it."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyperbrush.errors import UserError

_DEFAULT_ALPHA = 8.0  # PEFT's, where the settings do not say
_MODELS = ("unet.", "transformer.")
_LONGEST = 300  # characters of a pattern
_MOST_REPEATS = 3  # in a pattern: what a file can say must not keep us busy without end
# The others change the model's own weights too (PiSSA, OLoRA, …), so that B·A is not the whole change.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
# Settings of PEFT with which a layer computes more than B·A, or B·A somewhere else.
_MORE = (
    "use_dora",
    "lora_bias",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "velora_config",
    "monteclora_config",
    "arrow_config",
    "kasa_config",
)


class PeftScales:
    """alpha / rank, or alpha / √rank for rank-stabilised LoRA (Kalajdzievski 2023), of each layer.

    path: for messages. text: PEFT's config as JSON, or diffusers' ``lora_adapter_metadata`` (keys "unet.…" or "transformer.…");
    None: every scale is 1.

    Raises:
        UserError: damaged, or settings with which B·A is not the change.
    """

    def __init__(self, path: Path, text: str | None) -> None:
        self.path = path
        settings = _settings(path, text)
        self.given = settings is not None
        settings = settings or {}
        try:
            alpha = settings.get("lora_alpha")
            self.alpha = _DEFAULT_ALPHA if alpha is None else float(alpha)
            patterns = settings.get("alpha_pattern") or {}
            self.patterns = {_pattern(path, _bare(k)): float(v) for k, v in patterns.items()}
        except UserError:
            raise
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: its LoRA settings are damaged; expected PEFT's lora_alpha") from error
        if not all(math.isfinite(value) for value in (self.alpha, *self.patterns.values())):
            raise UserError(f"{path}: its LoRA settings are damaged; lora_alpha is not finite")
        self.root = bool(settings.get("use_rslora"))
        start = settings.get("init_lora_weights")
        if start not in _PLAIN_STARTS:
            raise UserError(
                f"{path} was begun with init_lora_weights {start!r:.40}, which changes the model's own weights too: "
                "convert it to a plain LoRA in PEFT first (path_initial_model_for_weight_conversion)"
            )
        for name in _MORE:
            if settings.get(name):
                raise UserError(
                    f"{path} has {name}, with which B·A alone is not the change: expected a plain LoRA"
                )

    def of(self, layer: str, rank: int) -> float:
        """The scale of one layer: the first pattern that its name ends in, as PEFT matches them, or alpha."""
        if not self.given:
            return 1.0
        alpha = self.alpha
        for pattern, value in self.patterns.items():
            if pattern.match(layer):
                alpha = value
                break
        return alpha / (math.sqrt(rank) if self.root else rank)


def _settings(path: Path, text: str | None) -> Mapping[str, Any] | None:
    if text is None:
        return None
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its LoRA settings are damaged; expected PEFT's lora_alpha") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: its LoRA settings are damaged; expected PEFT's lora_alpha")
    if not any("." in key for key in settings):
        return settings
    # diffusers keeps those of several models in one mapping.
    return {_bare(k): v for k, v in settings.items() if k.startswith(_MODELS)} or None


def _bare(key: str) -> str:
    """Without the name that a pipeline has for its model."""
    return key.removeprefix("unet.").removeprefix("transformer.")


def _pattern(path: Path, text: str) -> "re.Pattern[str]":
    """A key of alpha_pattern: a layer's name, the end of one, or a regular expression of it.

    Raises:
        UserError: no regular expression, or one that could take without end.
    """
    repeats = len(re.findall(r"[*+{?]", text))
    if len(text) > _LONGEST or repeats > _MOST_REPEATS or re.search(r"\)[*+{?]|\\[0-9]", text):
        raise UserError(f"{path}: its alpha_pattern {text!r:.80} is too involved; name the layers instead")
    try:
        return re.compile(rf"(.*\.)?({text})$")
    except re.error as error:
        raise UserError(f"{path}: its alpha_pattern {text!r:.80} is no regular expression") from error
