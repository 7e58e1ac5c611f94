"""The webui's options: those that are obeyed, those that would change pictures, and those that concern another program."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from hyperbrush.app.site import Site
from hyperbrush.errors import UserError, unknown_name
from hyperbrush.files import finite

OPTIONS: dict[str, Any] = {
    "sd_hypernetwork": "None",
    "sd_hypernetwork_strength": 1.0,
    "CLIP_stop_at_last_layers": 1,
}
MODEL = "sd_model_checkpoint"
# What must be so, or pictures would be others than those that were asked for.
ONLY: dict[str, tuple[Any, ...]] = {
    "sd_vae": ("Automatic", "None", "auto", ""),
    "eta_noise_seed_delta": (0,),
    "eta_ddim": (0,),
    "eta_ancestral": (1,),
    "s_churn": (0,),
    "s_noise": (1,),
    "s_min_uncond": (0,),
    "token_merging_ratio": (0,),
    "token_merging_ratio_img2img": (0,),
    "use_old_emphasis_implementation": (False,),
    "enable_emphasis": (True,),
    "emphasis": ("Original",),
    "use_old_karras_scheduler_sigmas": (False,),
    "use_old_scheduling": (False,),
    "comma_padding_backtrack": (20,),
    "initial_noise_multiplier": (1,),
    "always_discard_next_to_last_sigma": (False,),
    "sgm_noise_multiplier": (False,),
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
MOST = 500  # options of another program that are kept


def drawn_with(options: Mapping[str, Any], overriding: Mapping[str, Any]) -> dict[str, Any]:
    """Options with those that one request overrides.

    Raises:
        UserError: one that is unknown here, that would change the picture, or of another kind.
    """
    for name, value in overriding.items():
        if name not in OPTIONS and name not in ONLY:
            raise unknown_name("override_settings key", str(name)[:100], {*OPTIONS, MODEL})
        _check_only(name, value)
    return {**options, **checked_options({k: v for k, v in overriding.items() if k in OPTIONS})}


def checked_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the right kind; null is what they are by default.

    Raises:
        UserError: one is not.
    """
    found = {}
    for name, value in values.items():
        value = OPTIONS[name] if value is None else value
        kind = type(OPTIONS[name])
        wanted = (int, float) if kind is float else kind
        if not isinstance(value, wanted) or isinstance(value, bool) or finite(value) is None:
            raise UserError(f"option {name}: expected {kind.__name__}, got {value!r:.60}")
        if isinstance(value, str) and not value.isprintable():  # nor could halves of characters be written
            raise UserError(f"option {name}: {value!r:.60} is no name")
        found[name] = value
    return found


def taken(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the webui that change nothing here, to be kept and shown as they were set.

    Raises:
        UserError: a name that is nearly one of ours or none at all, or a value that would change pictures.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name in OPTIONS or name == MODEL:
            continue
        near = get_close_matches(str(name), [*OPTIONS, MODEL], n=1, cutoff=0.85)
        if not _NAME.fullmatch(str(name)) or near:
            raise unknown_name("option", str(name)[:100], {*OPTIONS, MODEL})
        _check_only(name, value)
        if len(repr(value)) > 2000:
            raise UserError(f"option {name}: its value is too long to keep")
        if finite(value) is None and value is not None:
            raise UserError(f"option {name}: {value!r:.60} cannot be kept")
        found[name] = finite(value)
    if len(found) > MOST:
        raise UserError(f"{len(found)} options are more than {MOST}; send those that are to be set")
    return found


def _check_only(name: str, value: Any) -> None:
    allowed = ONLY.get(name)
    if allowed is not None and value is not None and value not in allowed:
        raise UserError(
            f"option {name} = {value!r:.60} would change pictures and is not drawn here: leave it out, or send "
            + " or ".join(repr(one) for one in allowed)
        )


def model_source(site: Site, named: Any) -> str:
    """A base model by the webui's title, its name or hash, or as we call it; "" for none.

    Raises:
        UserError: it is no text.
    """
    if named in (None, ""):
        return ""
    if not isinstance(named, str):
        raise UserError(f"{MODEL}: expected a name, got {named!r:.60}")
    from hyperbrush.app.model import service as base_models

    plain = re.sub(r"\s*\[[0-9a-f]{8,10}\]$", "", named)
    for model in base_models.found(site.workspace):
        if plain in (model.source, model.name):
            return model.source
    return named


def title(name: str, digest: str) -> str:
    """What the webui calls a checkpoint."""
    return f"{name} [{digest}]" if digest else name
