"""The gallery: every picture that was drawn."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse

from hyperbrush.app.gallery import service as gallery
from hyperbrush.app.gallery.index import Kind
from hyperbrush.app.gallery.index import Query as Wanted
from hyperbrush.app.requests import Request
from hyperbrush.app.site import Site

KEPT = {"Cache-Control": "private, max-age=31536000, immutable"}  # its address changes with it
PICTURE: dict[int | str, Any] = {200: {"content": {"image/png": {}, "image/jpeg": {}, "image/webp": {}}}}


class StarRequest(Request):
    """What may be changed of a picture."""

    starred: bool


def add(router: APIRouter, site: Site) -> None:
    """Add the routes of this room."""

    @router.get("/gallery")
    def listed(
        words: Annotated[str, Query(max_length=1000, description="all of them stand in its settings")] = "",
        kind: Annotated[Kind | None, Query(description="drawing, grid or style; all if left out")] = None,
        starred: bool = False,
        first: Annotated[int, Query(ge=0, le=10**9)] = 0,
        most: Annotated[int, Query(ge=1, le=1000)] = 60,
    ) -> dict[str, Any]:
        """Pictures of Create, Compare, Styles and the command line, the newest first, and how many there are in all."""
        site.gallery.refresh()
        count, found = site.gallery.find(Wanted(words, kind or "", starred), first, most)
        return {"count": count, "pictures": [one.as_dict() for one in found]}

    @router.get("/gallery/{picture}")
    def one(picture: str) -> dict[str, Any]:
        """One picture: its settings, its addresses."""
        return site.gallery.get(picture).as_dict()

    @router.get("/gallery/{picture}/file", response_class=FileResponse, responses=PICTURE)
    def file(picture: str) -> FileResponse:
        """The picture itself."""
        found = site.gallery.get(picture)
        return FileResponse(found.path, headers=KEPT)

    @router.get("/gallery/{picture}/thumbnail", response_class=FileResponse, responses=PICTURE)
    def thumbnail(picture: str) -> FileResponse:
        """The picture, at most 384 pixels wide and high."""
        return FileResponse(gallery.thumbnail(site, picture), headers=KEPT)

    @router.get("/gallery/{picture}/settings")
    def settings(picture: str, use: Literal["all", "prompt", "seed"] = "all") -> dict[str, Any]:
        """What it was drawn with, as fields of POST /draw."""
        return gallery.settings(site, picture, use)

    @router.patch("/gallery/{picture}")
    def star(picture: str, changes: StarRequest) -> dict[str, Any]:
        """Star it, or no more."""
        return gallery.star(site, picture, changes.starred).as_dict()

    @router.delete("/gallery/{picture}")
    def delete(picture: str) -> dict[str, Any]:
        """Into the bin; the answer says what restores it."""
        site.gallery.get(picture)
        return gallery.delete(site, [picture])[0].as_dict()

    @router.get("/bin/drawings")
    def binned() -> list[dict[str, Any]]:
        """Deleted pictures, the last first."""
        return [item.as_dict() for item in site.workspace.trash.items("drawing")]

    @router.post("/bin/drawings/{item}/restore")
    def restore(item: str) -> dict[str, Any]:
        """Back to where it was; where that is taken, under a number."""
        return gallery.restore(site, item).as_dict()

    @router.delete("/bin/drawings/{item}")
    def remove(item: str) -> dict[str, Any]:
        """Gone for good."""
        return gallery.erase(site, item).as_dict()
