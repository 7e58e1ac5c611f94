"""Jobs: what waits, what runs, and news of it as server-sent events."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import FileResponse, PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from hyperbrush.app.jobs.jobs import Job
from hyperbrush.app.site import Site
from hyperbrush.errors import NotThere
from hyperbrush.files import tail


def add(router: APIRouter, site: Site) -> None:
    """Add the routes of this room."""

    @router.get("/jobs")
    def jobs(last: int = Query(50, ge=1, le=1000)) -> list[dict[str, Any]]:
        """The last jobs, the newest first."""
        return [job.as_dict() for job in site.jobs.all(last=last)]

    @router.get("/jobs/{job}")
    def job(job: str) -> dict[str, Any]:
        """How one job stands."""
        return site.jobs.get(job).as_dict()

    @router.post("/jobs/{job}/move")
    def move(job: str, by: int = Query(-1, ge=-1000, le=1000)) -> list[str]:
        """Have a waiting job done earlier (by -1 place) or later (1) among those of its lane; ids in the order of their turn."""
        site.jobs.move(job, by)
        site.news("jobs", "runs")
        return [one.id for one in site.jobs.in_order()]

    @router.post("/jobs/{job}/{how}")
    def ask(job: str, how: Literal["pause", "stop", "finish"]) -> dict[str, Any]:
        """Pause it, stop it, or (a training) end it and keep what it learned."""
        return site.ask(job, how).as_dict()

    @router.get("/jobs/{job}/log", response_class=PlainTextResponse)
    def log(job: str) -> str:
        """What it wrote down."""
        return tail(site.jobs.path(job) / "log.txt", 100_000)

    @router.get("/jobs/{job}/preview")
    def preview(job: str) -> FileResponse:
        """The picture as it is being sampled (PNG)."""
        path = site.jobs.path(job) / "preview.png"
        if not path.is_file():
            raise NotThere(f"job {job} has no preview yet")
        return FileResponse(path, media_type="image/png", headers={"Cache-Control": "no-store"})

    def found(job: str) -> str:
        return site.jobs.get(job).id

    @router.get("/jobs/{job}/events", response_class=EventSourceResponse)
    async def events(job: Annotated[str, Depends(found)]) -> AsyncIterator[ServerSentEvent]:
        """Server-sent events: "job" with its state at each change, until it ends."""
        told: Job | None = None
        while True:
            seen = site.version(f"job:{job}")
            try:
                stands = await asyncio.to_thread(site.jobs.get, job)
            except NotThere:  # its folder was removed
                return
            if stands != told:
                told = stands
                yield ServerSentEvent(event="job", data=stands.as_dict())
            if not stands.is_open:
                return
            if await site.wait(f"job:{job}", seen) == seen:
                yield ServerSentEvent(comment="still there")
