"""Grids: the same prompt with one to three of its settings varied."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse

from hyperbrush.app.compare import service as comparing
from hyperbrush.app.requests import CompareRequest
from hyperbrush.app.site import Site


def add(router: APIRouter, site: Site) -> None:
    """Add the routes of this room."""

    @router.post("/compare")
    def compare(request: CompareRequest) -> dict[str, Any]:
        """Draw a grid; follow the job at /jobs/{job}/events."""
        return comparing.begin(site, request).as_dict()

    @router.post("/compare/outlook")
    def outlook(request: CompareRequest) -> dict[str, Any]:
        """How many cells and different pictures it has, and how long they take; nothing is drawn."""
        return dict(comparing.estimate(site.workspace, site.device, request).as_dict())

    @router.get(
        "/jobs/{job}/grid", response_class=FileResponse, responses={200: {"content": {"image/png": {}}}}
    )
    def grid(job: str) -> FileResponse:
        """The grid (PNG, its settings inside)."""
        path = comparing.grid_file(site, job)
        return FileResponse(path, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})
