"""What belongs to one browser, told by a cookie with a random name: its forms, not the workspace's."""

import re
import secrets
from pathlib import Path
from typing import Any

from fastapi import Request
from nicegui import ui

from hyperbrush.app.site import Site
from hyperbrush.files import read_json, write_json

COOKIE = "hyperbrush_browser"
AGE = 365 * 86400
MOST = 500  # browsers that are remembered


def browser_name(request: Request) -> tuple[str, bool]:
    """The browser's name, and whether it is a new one that `remember` or a response must give it."""
    name = request.cookies.get(COOKIE, "")
    return (name, False) if re.fullmatch(r"[0-9a-f]{24}", name) else (secrets.token_hex(12), True)


def remember(name: str) -> None:
    """Have the page that is being built give the browser its name."""
    ui.add_head_html(
        f"<script>document.cookie = '{COOKIE}={name}; path=/; max-age={AGE}; samesite=strict'</script>"
    )


class Memory:
    """The form and job of one page in one browser; folder: that page's, in the app's state."""

    def __init__(self, site: Site, request: Request, folder: str) -> None:
        name, is_new = browser_name(request)
        if is_new:
            remember(name)
        self.path: Path = site.workspace.state / folder / f"{name}.json"
        said = read_json(self.path)
        self.form: dict[str, Any] = said["form"] if isinstance(said.get("form"), dict) else {}
        self.job = str(said.get("job", ""))

    def keep(self, form: dict[str, Any], job: str) -> None:
        """Write both, where either has changed.

        Raises:
            UserError: they cannot be written.
        """
        if (form, job) == (self.form, self.job):
            return
        self.form, self.job = dict(form), job  # what cannot be written is told once
        is_new = not self.path.exists()
        write_json(self.path, {"form": form, "job": job}, sync=False)
        if is_new:
            drop_oldest(self.path.parent)


def drop_oldest(folder: Path) -> None:
    """Forget the browsers that were away longest, beyond `MOST`."""
    kept = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in kept[:-MOST]:
        path.unlink(missing_ok=True)
