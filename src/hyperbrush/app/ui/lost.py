"""What is shown where there is no page, or where building one failed."""

import nicegui.nicegui
from nicegui import ui

from hyperbrush.app.site import Site
from hyperbrush.app.ui.frame import frame, messages_for


def add(site: Site) -> None:
    """Show it in the reader's language, with the way back."""

    def content(status_code: int, exception: str | Exception = "") -> None:  # which the log has
        request = ui.context.client.request
        kind = "not_found" if status_code < 500 else "broken"
        with frame(site, request, "", title=messages_for(site, request)(f"frame.{kind}")) as t:
            ui.label(t(f"frame.{kind}_help"))
            ui.link(t("frame.create"), "/")

    nicegui.nicegui.error_content = content  # type: ignore[attr-defined]
