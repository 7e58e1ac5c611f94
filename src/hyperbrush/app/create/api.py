"""Drawing: pictures put in, settings read, jobs begun, results fetched."""

from typing import Annotated, Any

from fastapi import APIRouter, File, Path, Query, UploadFile
from fastapi.responses import FileResponse

from hyperbrush.app.create import prompts
from hyperbrush.app.create import service as drawings
from hyperbrush.app.create.prompts import PromptRequest
from hyperbrush.app.requests import DrawRequest
from hyperbrush.app.site import Site
from hyperbrush.app.uploads import MOST_BYTES

KEPT = {"Cache-Control": "private, max-age=31536000, immutable"}
PNG: dict[int | str, Any] = {200: {"content": {"image/png": {}}}}
Picture = Annotated[
    UploadFile, File(description="PNG, JPEG, WebP, TIFF, …, at most 32 MiB and 40 million pixels")
]


def add(router: APIRouter, site: Site) -> None:
    """Add the routes of this room."""

    @router.post("/uploads")
    def upload(file: Picture) -> dict[str, Any]:
        """Put in a picture to start from, or a mask; its id is for `image` and `mask` of POST /draw."""
        kept = site.uploads.keep(_read(file), _name(file))
        width, height = site.uploads.size(kept)
        return {"id": kept, "width": width, "height": height}

    @router.get("/uploads/{upload}", response_class=FileResponse, responses=PNG)
    def uploaded(upload: str) -> FileResponse:
        """A picture that was put in (PNG)."""
        return FileResponse(site.uploads.path(upload), media_type="image/png", headers=KEPT)

    @router.post("/settings-of")
    def settings_of(file: Picture) -> dict[str, Any]:
        """The settings a picture of hyperbrush or the webui carries, as fields of POST /draw; the picture is not kept."""
        return drawings.settings_of(site, _read(file), _name(file))

    @router.post("/draw")
    def draw(request: DrawRequest) -> dict[str, Any]:
        """Draw pictures; follow the job at /jobs/{job}/events."""
        return drawings.ask(site, request).as_dict()

    @router.get("/jobs/{job}/pictures/{number}", response_class=FileResponse, responses=PNG)
    def picture(job: str, number: Annotated[int, Path(ge=0, le=10_000)]) -> FileResponse:
        """A drawn picture (PNG, its settings inside), by its place in the job's result."""
        path = drawings.picture_file(site, job, number)
        return FileResponse(path, media_type="image/png", headers=KEPT)

    @router.get("/pictures")
    def pictures(last: int = Query(50, ge=1, le=1000)) -> list[dict[str, Any]]:
        """The pictures drawn last, the newest first."""
        return [one.as_dict() for one in drawings.last_pictures(site, last)]

    _add_prompts(router, site)


def _add_prompts(router: APIRouter, site: Site) -> None:
    @router.get("/prompts")
    def known_prompts() -> dict[str, Any]:
        """Prompts that were saved, and those drawn last; the wildcards __NAME__ of the workspace."""
        return {
            "saved": [one.as_dict() for one in prompts.saved(site)],
            "drawn": [one.as_dict() for one in prompts.drawn(site)],
            "wildcards": prompts.known_wildcards(site),
        }

    @router.put("/prompts/{name}")
    def save(name: str, request: PromptRequest) -> dict[str, str]:
        """Save a prompt under a name, in the place of what had it."""
        return prompts.save(site, name, request).as_dict()

    @router.delete("/prompts/{name}")
    def remove(name: str) -> dict[str, str]:
        """Forget a saved prompt; the answer says what it was."""
        return prompts.remove(site, name).as_dict()


def _read(file: UploadFile) -> bytes:
    return file.file.read(MOST_BYTES + 1)  # one byte more is refused, however many there are


def _name(file: UploadFile) -> str:
    return repr((file.filename or "the picture")[-60:])
