"""Notes that other programs keep beside a network: trigger words, descriptions and strengths.

NAME.civitai.info is the Civitai extension's of the webui (the site's answer), NAME.metadata.json the LoRA
Manager's of ComfyUI, NAME.cm-info.json Stability Matrix's.  They are read and never written.
"""

import html
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

MAX_LETTERS = 5_000  # of a description, which a page made


def from_civitai(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `notes.Notes` that a version of a model on Civitai has."""
    model = _mapping(content.get("model"))
    return _fields(content.get("trainedWords"), content.get("description") or model.get("description"))


def from_lora_manager(content: Mapping[str, Any]) -> dict[str, Any]:
    """The same of the LoRA Manager's file, which has Civitai's answer in it and what a user added."""
    site = _mapping(content.get("civitai"))
    description = content.get("modelDescription") or site.get("description")
    fields = _fields(site.get("trainedWords"), description)
    if isinstance(content.get("notes"), str) and content["notes"].strip():
        fields["notes"] = content["notes"].strip()
    tips = content.get("usage_tips")
    try:
        strength = _mapping(json.loads(tips) if isinstance(tips, str) else tips).get("strength")
    except (ValueError, RecursionError):
        strength = None
    if isinstance(strength, int | float) and not isinstance(strength, bool) and math.isfinite(strength):
        fields |= {"preferred_weight": strength} if strength else {}
    return fields


def from_stability_matrix(content: Mapping[str, Any]) -> dict[str, Any]:
    """The same of Stability Matrix's file."""
    return _fields(
        content.get("TrainedWords"), content.get("ModelDescription") or content.get("VersionDescription")
    )


FOREIGN: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    ".civitai.info": from_civitai,
    ".metadata.json": from_lora_manager,
    ".cm-info.json": from_stability_matrix,
}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _fields(words: Any, description: Any) -> dict[str, Any]:
    fields = {}
    if isinstance(words, list):
        parts = [word.strip().strip(",").strip() for word in words if isinstance(word, str)]
        if text := ", ".join(dict.fromkeys(part for part in parts if part)):
            fields["activation_text"] = text
    if isinstance(description, str):
        lines = html.unescape(re.sub(r"<[^<>]*>", "\n", description)).splitlines()
        if text := "\n".join(line.strip() for line in lines if line.strip()):
            fields["description"] = text[:MAX_LETTERS]
    return fields
