"""Styles: an adapter from a few pictures or a text in one pass, seen, kept, tuned."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from fastapi.responses import FileResponse

from hyperbrush.app.requests import StyleRequest
from hyperbrush.app.site import Site
from hyperbrush.app.styles import generators
from hyperbrush.app.styles import service as styles


def add(router: APIRouter, site: Site) -> None:
    """Add the routes of this room."""

    @router.get("/generators")
    def every() -> list[dict[str, Any]]:
        """Generators of weights, with whether each is for the preferred model."""
        return [one.as_dict() for one in generators.generators(site.workspace)]

    @router.post("/styles")
    def style(request: StyleRequest) -> dict[str, Any]:
        """Make an adapter and draw with it; pictures are put in at POST /uploads, the job followed at /jobs/{job}/events."""
        return styles.begin(site, request).as_dict()

    @router.get(
        "/jobs/{job}/styles/{side}/{number}",
        response_class=FileResponse,
        responses={200: {"content": {"image/png": {}}}},
    )
    def picture(
        job: str, side: Literal["without", "with"], number: Annotated[int, Path(ge=0, le=1000)]
    ) -> FileResponse:
        """A picture (PNG) without or with the style, by its prompt's number."""
        path = styles.picture_file(site.jobs, job, side, number)
        return FileResponse(path, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    @router.post("/styles/{job}/keep")
    def keep(job: str, request: styles.KeepRequest) -> dict[str, Any]:
        """Put it among the hypernetworks; nothing is overwritten."""
        return styles.keep(site, job, request)

    @router.post("/styles/{job}/tune")
    def tune(job: str, request: styles.TuneRequest) -> dict[str, Any]:
        """Train on from it, on its pictures."""
        return {"run": styles.tune(site, job, request)}
