"""What the Create page keeps of each browser on the server's disk: the form and the last job."""

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


class Memory:
    """Of one browser, told by a cookie with a random name; made where there is none."""

    def __init__(self, site: Site, request: Request) -> None:
        name = request.cookies.get(COOKIE, "")
        if not re.fullmatch(r"[0-9a-f]{24}", name):
            name = secrets.token_hex(12)
            ui.add_head_html(
                f"<script>document.cookie = '{COOKIE}={name}; path=/; max-age={AGE}; samesite=strict'</script>"
            )
        self.folder: Path = site.workspace.state / "forms"
        self.path = self.folder / f"{name}.json"
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
            kept = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
            for path in kept[:-MOST]:
                path.unlink(missing_ok=True)
