"""What belongs to one browser, told by a cookie with a random name: its forms, not the workspace's."""

import re
import secrets
from pathlib import Path

from fastapi import Request
from nicegui import ui

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


def drop_oldest(folder: Path) -> None:
    """Forget the browsers that were away longest, beyond `MOST`."""
    kept = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in kept[:-MOST]:
        path.unlink(missing_ok=True)
