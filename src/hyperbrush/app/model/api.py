"""Base models, and a look at this machine."""

from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import FileResponse
from pydantic import Field

from hyperbrush.app.model import service as base_models
from hyperbrush.app.requests import Request
from hyperbrush.app.settings import service as choices
from hyperbrush.app.site import Site


class UseRequest(Request):
    """A base model to draw and train with."""

    model: str = Field(
        min_length=1, max_length=1000, description="a name or path of GET /models, or a hub id"
    )


def add(router: APIRouter, site: Site) -> None:
    """Add the routes of this room."""

    @router.get("/models")
    def models(hashes: bool = False) -> list[dict[str, Any]]:
        """Base models by their configs and headers; hashes: with each one's hash, which reads new files whole."""
        return [one.as_dict() for one in base_models.found(site.workspace, hashes=hashes)]

    @router.post("/models/use")
    def use(request: UseRequest) -> dict[str, Any]:
        """Open a model in the worker and prefer it if it draws: the job says whether, and how fast."""
        return choices.use_model(site, request.model).as_dict()

    @router.post("/doctor")
    def doctor() -> dict[str, Any]:
        """Look at this machine, the preferred model and the first hypernetworks, as `hyperbrush doctor` does."""
        return site.submit("doctor", {}).as_dict()

    @router.get("/jobs/{job}/doctor/{what}", response_class=FileResponse)
    def report(job: str, what: Literal["page", "picture"]) -> FileResponse:
        """What the doctor found: a page (Markdown) to paste, and its pictures (PNG)."""
        kind = {"page": "text/markdown; charset=utf-8", "picture": "image/png"}[what]
        return FileResponse(choices.doctor_file(site, job, what), media_type=kind)
