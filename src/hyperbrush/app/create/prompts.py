"""Prompts of before: those that were drawn last, and those that were saved under a name."""

import threading
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field

from hyperbrush.app.create import wildcards
from hyperbrush.app.requests import Request
from hyperbrush.app.site import Site
from hyperbrush.errors import NotThere, UserError
from hyperbrush.files import read_json, write_json

MOST_DRAWN = 50  # different prompts of before,
LOOKED_AT = 400  # out of so many drawings
MOST_SAVED = 1000
_writing = threading.Lock()


class PromptRequest(Request):
    """A prompt to save."""

    prompt: str = Field(min_length=1, max_length=20_000)
    negative: str = Field("", max_length=20_000)


@dataclass(frozen=True)
class Prompt:
    """A prompt with its negative; name: "" where it was drawn and not saved."""

    prompt: str
    negative: str = ""
    name: str = ""

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def drawn(site: Site) -> list[Prompt]:
    """What was drawn last, each once, the newest first."""
    found: dict[Prompt, None] = {}
    for job in site.jobs.all(kinds=("draw",), last=LOOKED_AT):
        one = Prompt(str(job.arguments.get("prompt", "")), str(job.arguments.get("negative", "")))
        if one.prompt.strip():
            found.setdefault(one)
        if len(found) == MOST_DRAWN:
            break
    return list(found)


def saved(site: Site) -> list[Prompt]:
    """What was saved, by name."""
    said = _read(site)
    return [_prompt(name, said[name]) for name in sorted(said, key=str.casefold)]


def save(site: Site, name: str, request: PromptRequest) -> Prompt:
    """Keep a prompt under a name, in the place of what had it.

    Raises:
        UserError: half a character, a name of blanks or too long, too many prompts, or it cannot be written.
    """
    from hyperbrush.generation.settings import check_text

    name = name.strip()
    for text in (name, request.prompt, request.negative):
        check_text(text)
    if not name or len(name) > 100:
        raise UserError(f"{name!r:.120} cannot be the name of a prompt; expected 1 to 100 characters")
    with _writing:
        said = _read(site)
        if len(said) >= MOST_SAVED and name not in said:
            raise UserError(f"there are {MOST_SAVED} saved prompts, which is the most: remove some first")
        said[name] = {"prompt": request.prompt, "negative": request.negative}
        write_json(_file(site), said)
    return _prompt(name, said[name])


def remove(site: Site, name: str) -> Prompt:
    """Forget a saved prompt; what it was.

    Raises:
        NotThere: there is none of that name.
        UserError: it cannot be written.
    """
    with _writing:
        said = _read(site)
        if name not in said:
            raise NotThere(f"there is no saved prompt {name!r:.120}")
        gone = _prompt(name, said.pop(name))
        write_json(_file(site), said)
    return gone


def known_wildcards(site: Site) -> list[str]:
    """Names of the workspace's wildcards."""
    return wildcards.names(site.workspace.root / wildcards.FOLDER)


def _file(site: Site) -> Any:
    return site.workspace.state / "prompts.json"


def _read(site: Site) -> dict[str, Any]:
    return {name: said for name, said in read_json(_file(site)).items() if isinstance(said, dict)}


def _prompt(name: str, said: dict[str, Any]) -> Prompt:
    return Prompt(str(said.get("prompt", "")), str(said.get("negative", "")), name)
