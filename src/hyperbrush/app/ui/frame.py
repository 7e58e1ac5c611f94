"""What is around every page: menu, language, theme, and what all pages must tell."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from fastapi import Request
from nicegui import Client, run, ui

from hyperbrush.app.messages import NAMES, Messages, chosen_language
from hyperbrush.app.site import Site
from hyperbrush.app.styles.generators import fitting
from hyperbrush.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")

PLACES = (  # (message, address, icon)
    ("create", "/", "brush"),
    ("gallery", "/gallery", "photo_album"),
    ("networks", "/hypernetworks", "collections"),
    ("train", "/train", "model_training"),
    ("runs", "/runs", "timeline"),
    ("styles", "/styles", "auto_awesome"),
    ("compare", "/compare", "grid_on"),
    ("model", "/model", "memory"),
    ("settings", "/settings", "settings"),
)
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe & Ito: told apart by all
QUASAR: dict[str, Literal["en-US", "ko-KR", "zh-CN"]] = {"en": "en-US", "ko": "ko-KR", "zh": "zh-CN"}
CHOICE_AGE = 365 * 86400
FEW = 4  # open pages, beyond which each looks for news less often
TICK = 0.5  # seconds between the moments at which so many look
_messages: WeakKeyDictionary[Client, Messages] = WeakKeyDictionary()
PATIENCE = 60.0  # seconds that a page may take while the server is still waking up


def messages_for(site: Site, request: Request) -> Messages:
    """The messages in this browser's language."""
    accepted = request.headers.get("accept-language", "")
    preferred = site.workspace.preferences.language
    return Messages(chosen_language(request.cookies.get("language", ""), preferred, accepted))


@contextlib.contextmanager
def frame(site: Site, request: Request, place: str, *, title: str = "") -> Iterator[Messages]:
    """What is built within stands in the page's middle; yields its messages.

    place: one of `PLACES`.
    title: another than the place's.
    """
    t = _messages[ui.context.client] = messages_for(site, request)
    heading = title or t(f"frame.{place}")
    theme = request.cookies.get("theme") or site.workspace.preferences.theme
    ui.page_title(f"{heading} · hyperbrush")
    ui.add_head_html(
        '<link rel="stylesheet" href="/static/style.css"><script src="/static/frame.js" defer></script>'
        '<script src="/static/pictures.js"></script>'
    )
    ui.context.client.page.language = QUASAR[t.language]
    ui.dark_mode({"dark": True, "light": False}.get(theme))
    ui.colors(primary="#4338ca")
    with ui.header().classes("bar").style("padding: .4rem .8rem"):
        ui.link(t("frame.skip"), "#content").classes("skip")
        menu = ui.button(icon="menu").props(f'flat round color=inherit aria-label="{t("frame.menu")}"')
        ui.link("hyperbrush", "/").classes("brand")
        ui.space()
        activity = ui.link("", "/runs").classes("badge").props('aria-live="polite"')
        activity.set_visibility(False)  # until there is something to say
        _language(t)
    drawer = ui.left_drawer(value=False, bordered=True)  # open where there is room for it
    drawer.props('show-if-above width=220 breakpoint=900 role="presentation"')
    with drawer, ui.element("nav").classes("places").props(f'aria-label="{t("frame.menu")}"'):
        for name, address, icon in PLACES:
            if name == "styles" != place and not fitting(site.workspace):
                continue
            with ui.link(target=address) as link:
                ui.icon(icon).props('aria-hidden="true"')
                ui.label(t(f"frame.{name}"))
            if name == place:
                link.props('aria-current="page"')
    menu.on_click(drawer.toggle)
    with (
        ui.element("div")
        .props('id="content" tabindex="-1"')
        .style("display: flex; flex-direction: column; gap: 1rem; width: 100%")
    ):
        _notices(site, t)
        title_of(1, heading)
        yield t
    _tell_activity(site, t, activity)


def title_of(level: int, text: str) -> ui.element:
    """A heading h1, h2 or h3 of plain text."""
    with ui.element(f"h{level}") as element:
        ui.label(text).style("display: inline")
    return element


def on_news(
    site: Site, names: Callable[[], list[str]] | str, do: Callable[[], Any], *, every: float = 0.2
) -> ui.timer:
    """Call `do` within this page whenever there is news of a name; looked for a few times a second, see `pace`."""
    seen: dict[str, int] = {}

    async def look() -> None:
        timer.interval = pace(every, len(Client.instances), time.monotonic())
        wanted = [names] if isinstance(names, str) else names()
        found = {name: site.version(name) for name in wanted}
        if found != seen:
            seen.clear()
            seen.update(found)
            result = do()
            if hasattr(result, "__await__"):
                await result

    timer = ui.timer(every, look)
    return timer


def pace(every: float, pages: int, now: float) -> float:
    """Seconds until the next look of one of so many open pages.

    Many look less often, so that a running training loses less to them, and all at the same moments: each
    interruption costs it more than the work.
    """
    wait = every * math.pow(max(1.0, pages / FEW), 1.5)
    return wait if pages <= FEW else wait + -(now + wait) % TICK


async def in_thread(do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a function returns that reads or writes files, called in a thread.

    Raises:
        RuntimeError: the server ends.
    """
    found: list[T] | None = await run.io_bound(lambda: [do(*args, **kwargs)])
    if not found:
        raise RuntimeError("the server ends")
    return found[0]


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Tell the user what cannot be done, instead of failing."""
    try:
        yield
    except UserError as error:
        refuse(str(error))


def refuse(text: str) -> None:
    """Tell in the page's language what cannot be done: one at a time, the next in the place of the last."""
    said = page_messages().said(text)
    ui.notify(
        said,
        type="negative",
        position="top",
        multi_line=True,
        timeout=10_000,
        close_button="✕",
        group="refusal",
        badgeStyle="display: none",
    )


def mark(fields: Mapping[str, Any], wrong: Iterable[str]) -> list[str]:
    """Show each "FIELD: what is wrong" at its field, or that it is within, in the page's language; returns those of none."""
    at_fields: dict[str, str] = {}
    others = []
    for text in wrong:
        name, _, what = text.partition(": ")
        while name and name not in fields:  # "prompts.2" is of "prompts"
            name = name.rpartition(".")[0]
        if name:
            at_fields.setdefault(name, page_messages().said(what))
        else:
            others.append(text)
    for name, field in fields.items():
        field.error = at_fields.get(name)
    return others


def page_messages() -> Messages:
    """The messages of the page that an event is of."""
    return _messages.get(ui.context.client) or Messages("en")


def duration(seconds: float | None) -> str:
    """Seconds for the user: 1:23:45."""
    if seconds is None or seconds < 0:
        return "–"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def size_text(size: int) -> str:
    """Bytes for the user."""
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def _language(t: Messages) -> None:
    async def choose(event: Any) -> None:
        await ui.run_javascript(
            f"document.cookie = 'language={event.value}; path=/; max-age={CHOICE_AGE}; samesite=strict'; "
            "location.reload()"
        )

    ui.select(NAMES, value=t.language, on_change=choose).props(
        f'dense borderless options-dense aria-label="{t("frame.language")}"'
    )


def _notices(site: Site, t: Messages) -> None:
    """Workers that died, until the page is told that this was read."""
    place = ui.element("div").props('role="status" aria-live="assertive"').style("display: contents")
    told = site.keeper.crashes[-1:]

    def show() -> None:
        nonlocal told
        if site.keeper.crashes[-1:] == told:  # it is open, perhaps, and being read
            return
        told = site.keeper.crashes[-1:]
        crash = told[0]
        place.clear()
        with place, ui.element("div").classes("notice bad"):
            ui.label(t("frame.worker_died", device=crash.device)).classes("grow")
            with ui.expansion(t("frame.last_lines")).classes("grow"):
                ui.label(crash.log or t("frame.no_last_lines")).classes("mono")

    on_news(site, "workers", show)


def _tell_activity(site: Site, t: Messages, badge: ui.link) -> None:
    def show() -> None:
        jobs = site.jobs.open()
        running = [job for job in jobs if job.state == "running"]
        waiting = sum(job.state == "queued" for job in jobs)
        text = ""
        if running:
            job = running[-1]
            step, steps = job.progress.get("step"), job.progress.get("steps")
            text = t(f"frame.doing_{job.kind.replace('-', '_')}")
            if job.stopping:
                text += " · " + t("frame.stopping")
            if step is not None and steps:
                text += f" {step}/{steps}"
        if waiting:
            text += ("  " if text else "") + t("frame.waiting", count=waiting)
        badge.set_text(text)
        badge.set_visibility(bool(text))

    on_news(site, "jobs", show, every=0.5)
