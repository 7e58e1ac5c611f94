"""Hypernetworks: the library, its files, and the bin."""

from typing import Annotated, Any

from fastapi import APIRouter, File, Form, UploadFile
from fastapi.responses import FileResponse

from hyperbrush.app.networks import bulk, loras, pictures
from hyperbrush.app.networks import service as networks
from hyperbrush.app.requests import (
    ExportRequest,
    MergeRequest,
    MoveRequest,
    NotesRequest,
    RenameRequest,
    TagRequest,
)
from hyperbrush.app.site import Site
from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.files import packed


def add(router: APIRouter, site: Site) -> None:
    """Add the routes of this room; {which} is an id or a name as listed."""
    _add_bin(router, site)
    _add_previews(router, site)

    @router.get("/hypernetworks")
    def listed() -> list[dict[str, Any]]:
        """Every hypernetwork with its notes; a broken one says why in `error`."""
        return [card.as_dict() for card in networks.cards(site.workspace)]

    @router.post("/hypernetworks", status_code=201)
    def take(
        file: Annotated[UploadFile, File(description=".pt, .bin, .ckpt or .safetensors")],
    ) -> dict[str, Any]:
        """Import one: it is read whole before it is kept, and a taken name gets a number."""
        return networks.take(site, file.file, file.filename or "").as_dict()

    @router.post("/hypernetworks/merge", status_code=201)
    def merge(request: MergeRequest) -> dict[str, Any]:
        """Several in one new file."""
        return networks.merge(site, request).as_dict()

    @router.get("/hypernetworks/{which:path}/file")
    def file(which: str) -> FileResponse:
        """The file itself; of a pack's member the pack."""
        path = packed.file_of(networks.file_of(site.workspace, which))
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    @router.get("/hypernetworks/{which:path}/inspection")
    def inspect(which: str) -> dict[str, Any]:
        """Everything about it, as `hyperbrush inspect --json` says it."""
        return networks.inspection(site.workspace, which)

    @router.post("/hypernetworks/{which:path}/export", status_code=202)
    def export(which: str, request: ExportRequest) -> dict[str, Any]:
        """A job that writes it for another program; its file is at /exports/{job}."""
        return networks.export(site, which, request).as_dict()

    @router.post("/hypernetworks/{which:path}/rename")
    def rename(which: str, request: RenameRequest) -> dict[str, Any]:
        """Another name, for its side files too; the id changes with it."""
        return networks.rename(site, which, request.name).as_dict()

    @router.get("/hypernetworks/{which:path}")
    def one(which: str) -> dict[str, Any]:
        """One hypernetwork."""
        return networks.card(site.workspace, which).as_dict()

    @router.patch("/hypernetworks/{which:path}")
    def annotate(which: str, changes: NotesRequest) -> dict[str, Any]:
        """Change some of its notes."""
        return networks.annotate(site, which, changes.model_dump(exclude_unset=True)).as_dict()

    @router.post("/hypernetworks/move")
    def move(request: MoveRequest) -> list[dict[str, Any]]:
        """Move several, with all their files, to a folder of the library: all of them or none."""
        return [card.as_dict() for card in bulk.move(site, request.networks, request.folder)]

    @router.post("/hypernetworks/tag")
    def tag(request: TagRequest) -> list[dict[str, Any]]:
        """Give several tags, and take others away."""
        return [card.as_dict() for card in bulk.tag(site, request.networks, request.add, request.remove)]

    @router.delete("/hypernetworks/{which:path}")
    def delete(which: str) -> dict[str, Any]:
        """Into the bin; the answer says what restores it."""
        return networks.delete(site, which).as_dict()


def _add_previews(router: APIRouter, site: Site) -> None:
    @router.get("/loras/{name:path}/preview")
    def lora_preview(name: str) -> FileResponse:
        """The picture beside a LoRA."""
        return FileResponse(loras.preview(site.workspace, name), headers={"Cache-Control": "no-cache"})

    @router.get("/hypernetworks/{which:path}/preview")
    def preview(which: str) -> FileResponse:
        """The picture beside it; where there is none, the last preview of the run that made it."""
        path = networks.preview(site.workspace, which)
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    @router.put("/hypernetworks/{which:path}/preview")
    def set_preview(
        which: str,
        image: Annotated[UploadFile | None, File(description="a picture")] = None,
        picture: Annotated[
            str, Form(max_length=1000, description="or a drawn one: its place in the outputs")
        ] = "",
    ) -> dict[str, Any]:
        """Give it a picture: an uploaded one, or one that was drawn."""
        from hyperbrush.app.uploads import MOST_BYTES, open_picture

        if (image is None) == (not picture):
            raise UserError("give either image (a file) or picture (the place of a drawn one)")
        if image is None:
            found = pictures.open_drawn(site.workspace, picture)
        else:
            found = open_picture(image.file.read(MOST_BYTES + 1), image.filename or "the picture")
        return networks.set_preview(site, which, found).as_dict()


def _add_bin(router: APIRouter, site: Site) -> None:
    @router.get("/exports/{job}")
    def exported(job: str) -> FileResponse:
        """What an export wrote."""
        path = networks.exported(site, job)
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    @router.get("/bin")
    def binned() -> list[dict[str, Any]]:
        """What was deleted, the last first."""
        return [item.as_dict() for item in site.workspace.trash.items("hypernetwork")]

    @router.post("/bin/{item}/restore")
    def restore(item: str) -> dict[str, Any]:
        """Back to where it was; where the name is taken, under a number."""
        return networks.restore(site, item).as_dict()

    @router.delete("/bin/{item}")
    def remove(item: str) -> dict[str, Any]:
        """Gone for good."""
        return networks.erase(site, item).as_dict()
