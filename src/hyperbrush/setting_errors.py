"""What is wrong with settings, of pydantic's errors, in a person's words."""

import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def wrong_settings(model: type[BaseModel], error: ValidationError) -> list[str]:
    """Each thing that is wrong with a model's values, in a line."""
    return [_describe(model, e) for e in error.errors()]


def _describe(model: type[BaseModel], error: Any) -> str:
    place = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        close = _closest(model, error["loc"])
        guess = f", did you mean '{close}'?" if close else ""
        return f"unknown setting '{place}'{guess}"
    if error["type"] == "missing":
        return f"setting '{place}' is missing"
    message = in_words(error)
    return f"{place}: {message} (got {error.get('input')!r:.200})" if place else message


# pydantic's kinds of errors in a person's words; fields are those of an error's context.
WORDS = {
    "string_too_long": "longer than {max_length} characters",
    "string_type": "expected a text",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "finite_number": "expected a finite number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "dict_type": "expected a mapping",
    "model_type": "expected a mapping",
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected {ge} or more",
    "less_than": "expected less than {lt}",
    "less_than_equal": "expected {le} at most",
    "literal_error": "expected {expected}",
    "too_short": "expected {min_length} or more of them, there are {actual_length}",
    "too_long": "expected {max_length} of them at most, there are {actual_length}",
    "missing": "is missing",
    "extra_forbidden": "is not known",
}


def in_words(error: Any) -> str:
    """What is wrong, of one of pydantic's ``errors()``."""
    context, kind = error.get("ctx", {}), error["type"]
    if kind == "string_too_short":
        least = context["min_length"]
        return "must not be empty" if least == 1 else f"expected {least} characters or more"
    if kind == "string_pattern_mismatch" and (
        barred := re.fullmatch(r"\^\[\^(.+)\]\+\$", context["pattern"])
    ):
        shown = barred[1].replace("\\\\", "\\").replace(r"\x00-\x1f", "")
        return f"must have none of {' '.join(shown)} in it"
    if kind in WORDS:
        whole = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in context.items()}
        return WORDS[kind].format(**whole)
    return str(error["msg"]).removeprefix("Value error, ")


def _closest(model: type[BaseModel], place: tuple[int | str, ...]) -> str | None:
    """The known setting most like an unknown one: beside it, or else anywhere, by its full name."""
    from difflib import get_close_matches

    wrong, here = str(place[-1]), model
    for part in place[:-1]:
        here = here if isinstance(part, int) else _nested(here, part) or here
    if beside := get_close_matches(wrong, here.model_fields, n=1):
        return beside[0]
    anywhere = _all_keys(model)
    found = get_close_matches(wrong, [key.rpartition(".")[2] for key in anywhere], n=1)
    return next((key for key in anywhere if found and key.rpartition(".")[2] == found[0]), None)


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every setting by its full name."""
    keys: list[str] = []
    for name in model.model_fields:
        keys.append(prefix + name)
        if (inner := _nested(model, name)) is not None:
            keys += _all_keys(inner, f"{prefix}{name}.")
    return keys


def _nested(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model of a setting, or of the entries of a list of them."""
    field = model.model_fields.get(name)
    if field is None:
        return None
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
