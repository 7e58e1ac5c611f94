"""Runs: how they stand, what they have shown so far, and what the user asks of them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from fastapi import Request as Asked
from fastapi.responses import FileResponse, PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import Field

from hyperbrush.app.messages import language_of
from hyperbrush.app.requests import Request
from hyperbrush.app.runs import control as run_control
from hyperbrush.app.runs.report_page import in_language
from hyperbrush.app.runs.run import OPEN
from hyperbrush.app.runs.view import KEEP, MOST, compared, contact_sheet, sparkline, view_of
from hyperbrush.app.site import Site
from hyperbrush.app.train import service as trainings
from hyperbrush.errors import NotThere
from hyperbrush.trash import TrashItem

# A report asks nothing of the network and runs nothing; pictures and style are inside of it.
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)
PICTURE = {"Cache-Control": "private, max-age=3600"}  # pages ask for them with a version
NEWEST = {"Cache-Control": "no-cache"}  # of whatever run has the name now

NOTHING = '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'


class Rollback(Request):
    """Where to go back to."""

    step: int = Field(ge=0, le=10**9, description="of a checkpoint")


def add(router: APIRouter, site: Site) -> None:
    """Add the routes of this room."""
    _add_pictures(router, site)
    _add_events(router, site)
    _add_changes(router, site)

    @router.get("/runs")
    def runs(search: str = Query("", max_length=200)) -> list[dict[str, Any]]:
        """Every run, those that train or wait first, then the newest; without their settings."""
        return [run.summary() for run in site.runs.all() if search.lower() in run.name.lower()]

    @router.get("/run-comparison")
    def compare(
        run: Annotated[list[str], Query(min_length=1, max_length=MOST, description="names, each its own")],
        smoothing: float = Query(KEEP, ge=0, le=0.99, description="share of the old in each new value"),
    ) -> dict[str, Any]:
        """Several runs in one chart: their curves, their figures, and what differs in their settings."""
        return compared([view_of(site, name) for name in dict.fromkeys(run)], smoothing)

    @router.get("/runs/{name}")
    def run(name: str) -> dict[str, Any]:
        """How one run stands."""
        return site.runs.get(name).as_dict()

    @router.get("/runs/{name}/clone")
    def clone(name: str) -> dict[str, Any]:
        """Its settings for a new run of the next free name, as POST /trainings takes them."""
        return {"settings": trainings.cloned(site.workspace, site.runs.get(name).config), "presets": ""}

    @router.get("/runs/{name}/metrics")
    def metrics(name: str, after: int = Query(0, ge=0, le=10**9)) -> list[dict[str, Any]]:
        """Its figures and events, line by line, after a step."""
        return site.runs.metrics(name, after)

    @router.get("/runs/{name}/log", response_class=PlainTextResponse)
    def log(name: str) -> str:
        """The end of its log."""
        return site.runs.log(name)

    @router.get("/runs/{name}/report", response_class=FileResponse)
    def report(name: str, request: Asked) -> Response:
        """Its report, a page without scripts, in the language that is asked for."""
        path = site.runs.folder(name) / "report.html"
        if not path.is_file():
            raise NotThere(f"run {name!r} has no report yet: it is written when the run ends")
        page = path.read_text(encoding="utf-8")
        language = language_of(request, site.workspace.preferences.language)
        headers = {"Content-Security-Policy": REPORT_POLICY, "Cache-Control": "no-store"}
        return Response(in_language(page, language), media_type="text/html", headers=headers)


def _add_pictures(router: APIRouter, site: Site) -> None:
    @router.get("/runs/{name}/previews")
    def previews(name: str) -> list[dict[str, Any]]:
        """Its preview pictures by step and prompt; prompt is None where one file shows all prompts."""
        prompts = view_of(site, name).prompts
        return [
            {"index": i, "step": p.step, "prompt": p.prompt, "text": text_of(prompts, p.prompt)}
            for i, p in enumerate(site.runs.previews(name))
        ]

    @router.get("/runs/{name}/previews/{index}", response_class=FileResponse)
    def preview(name: str, index: int) -> FileResponse:
        """One of them (PNG)."""
        found = site.runs.previews(name)
        if not 0 <= index < len(found):
            raise NotThere(f"run {name!r} has {len(found)} previews; there is no number {index}")
        return FileResponse(found[index].path, media_type="image/png", headers=PICTURE)

    @router.get("/runs/{name}/picture", response_class=Response)
    def picture(name: str) -> Response:
        """What it drew last (PNG), the first of its prompts; an empty picture (SVG) before."""
        found = site.runs.previews(name)
        newest = next((p for p in found if p.step == found[-1].step), None)
        if newest is None:
            return Response(NOTHING, media_type="image/svg+xml", headers=NEWEST)
        return FileResponse(newest.path, media_type="image/png", headers=NEWEST)

    @router.get("/runs/{name}/contact-sheet", response_class=Response)
    def sheet(name: str) -> Response:
        """Its previews over time in one picture (PNG)."""
        return Response(contact_sheet(site, name), media_type="image/png", headers=PICTURE)

    @router.get("/runs/{name}/sparkline", response_class=Response)
    def spark(name: str) -> Response:
        """Its smoothed loss as a small line (SVG)."""
        return Response(sparkline(view_of(site, name).curves), media_type="image/svg+xml", headers=NEWEST)


def _add_events(router: APIRouter, site: Site) -> None:
    def found(name: str) -> str:
        return site.runs.get(name).name

    @router.get("/runs/{name}/events", response_class=EventSourceResponse)
    async def events(name: Annotated[str, Depends(found)]) -> AsyncIterator[ServerSentEvent]:
        """Server-sent events: "live" with its state and live.json at each change, until it trains no more."""
        told: Any = None
        while True:
            seen = site.version("runs")
            try:
                run = (await asyncio.to_thread(view_of, site, name)).run
            except NotThere:  # put into the bin
                return
            stands = {"state": run.state, "stage": run.stage, "error": run.error, **run.live}
            if stands != told:
                told = stands
                yield ServerSentEvent(event="live", data=stands)
            if run.state not in OPEN:
                return
            while await site.wait("runs", seen) == seen:
                yield ServerSentEvent(comment="still there")


def _add_changes(router: APIRouter, site: Site) -> None:
    @router.post("/runs/{name}/rollback")
    def rollback(name: str, to: Rollback) -> dict[str, Any]:
        """Drop what came after a checkpoint, and train on from there."""
        return run_control.roll_back(site, name, to.step).as_dict()

    @router.post("/runs/{name}/resume")
    def resume(name: str) -> dict[str, Any]:
        """Go on from the newest checkpoint."""
        return run_control.resume(site, name).as_dict()

    @router.post("/runs/{name}/{how}")
    def ask(name: str, how: Literal["pause", "stop", "finish"]) -> dict[str, Any]:
        """Pause it, stop it, or end it and keep what it learned."""
        return run_control.ask(site, name, how).as_dict()

    @router.delete("/runs/{name}")
    def remove(name: str) -> dict[str, str]:
        """Put it into the bin; the answer says where it lies, and the id that restores it."""
        item = run_control.remove(site, name)
        return {"bin": item.files[0].relative_to(site.workspace.root).as_posix(), "id": item.id}

    @router.get("/bin/runs")
    def binned() -> list[dict[str, Any]]:
        """Runs that were removed, the last first."""
        return [_binned(item) for item in site.workspace.trash.items("run")]

    @router.post("/bin/runs/{item}/restore")
    def restore(item: str) -> dict[str, Any]:
        """Back among the runs, as it was."""
        return run_control.restore(site, item).as_dict()

    @router.delete("/bin/runs/{item}")
    def erase(item: str) -> dict[str, Any]:
        """Gone for good."""
        return _binned(run_control.erase(site, item))


def text_of(prompts: Sequence[str], number: int | None) -> str:
    """A preview's prompt in words."""
    if number is None:
        return " / ".join(prompts)
    return prompts[number] if number < len(prompts) else ""


def _binned(item: TrashItem) -> dict[str, Any]:
    return {key: value for key, value in item.as_dict().items() if key != "place"}
