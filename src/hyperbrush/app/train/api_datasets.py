"""Training pictures: datasets, their pictures by index, captions."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, File, Query, UploadFile
from fastapi.responses import FileResponse
from pydantic import Field

from hyperbrush.app.names import LONGEST_NAME
from hyperbrush.app.requests import Request
from hyperbrush.app.site import Site
from hyperbrush.app.train.caption_edits import CaptionEdit, tags
from hyperbrush.app.train.datasets import Datasets
from hyperbrush.trash import TrashItem

MOST = 2**31 - 1
Expected = Annotated[str, Query(max_length=1000, description="file name it has in the listing, to be sure")]
KINDS = {
    ".png": "png",
    ".webp": "webp",
    ".bmp": "bmp",
    ".gif": "gif",
    ".avif": "avif",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".jp2": "jp2",
    ".j2k": "jp2",
    ".jpx": "jpx",
    ".ico": "x-icon",
    ".tga": "x-tga",
    ".ppm": "x-portable-pixmap",
    ".pgm": "x-portable-graymap",
    ".pbm": "x-portable-bitmap",
    ".pnm": "x-portable-anymap",
    ".heic": "heic",
    ".heif": "heif",
    ".hif": "heif",
    ".jxl": "jxl",
}


class NewDataset(Request):
    """A dataset to be made; without a name, a free one is taken."""

    name: str = Field("", max_length=LONGEST_NAME)


class NewCaption(Request):
    """A picture's caption; name: its file name in the listing, to be sure that it is still the same."""

    caption: str = Field(max_length=20_000)
    name: str = Field("", max_length=1000)


class EditedCaptions(Request):
    """A change of all captions; see `hyperbrush.app.train.caption_edits.CaptionEdit`."""

    find: str = Field("", max_length=1000)
    replace: str = Field("", max_length=1000)
    drop: list[Annotated[str, Field(max_length=1000)]] = Field([], max_length=1000, description="tags")
    prefix: str = Field("", max_length=1000)
    suffix: str = Field("", max_length=1000)
    dry_run: bool = Field(False, description="say what would change, and write nothing")


def add(router: APIRouter, site: Site) -> None:
    """Add the routes of this room."""
    datasets = Datasets(site.workspace)

    @router.get("/datasets")
    def all_datasets() -> list[dict[str, Any]]:
        """The datasets and how many pictures each has."""
        return [{"name": name, "pictures": len(datasets.files(name))} for name in datasets.folders()]

    @router.post("/datasets", status_code=201)
    def create(request: NewDataset) -> dict[str, str]:
        """Make an empty one."""
        return {"name": datasets.create(request.name)}

    @router.post("/datasets/example", status_code=201)
    def example() -> dict[str, str]:
        """The bundled pictures as a dataset, copied when they are first asked for."""
        return {"name": datasets.example()}

    @router.get("/datasets/{name}")
    def pictures(
        name: str, start: int = Query(0, ge=0, le=MOST), count: int = Query(1000, ge=1, le=1000)
    ) -> dict[str, Any]:
        """Its pictures from `start` on, with captions; their index is what other routes take."""
        total, found = datasets.pictures(name, start, count)
        return {"name": name, "count": total, "pictures": [picture.as_dict() for picture in found]}

    @router.post("/datasets/{name}/pictures", status_code=201)
    def put(name: str, files: Annotated[list[UploadFile], File(max_length=1000)]) -> dict[str, Any]:
        """Add pictures (32 MiB and 40 million pixels each at most) with .txt or .caption captions and .mask.png masks
        of their names, folders included (10_cat/1.png, 10_cat/1.txt), and captions in metadata.jsonl, .csv or .parquet.
        """
        return datasets.add(name, ((file.filename or "picture", file.file) for file in files)).as_dict()

    @router.get("/datasets/{name}/tags")
    def all_tags(name: str) -> list[dict[str, Any]]:
        """What stands between the commas of its captions, with how many pictures have it, the most frequent first."""
        _, found = datasets.pictures(name)
        return [{"tag": tag, "pictures": count} for tag, count in tags(p.said for p in found)]

    @router.post("/datasets/{name}/captions")
    def edit(name: str, request: EditedCaptions) -> dict[str, Any]:
        """Change all its captions at once, or with `dry_run` say what would change."""
        wanted = CaptionEdit(**request.model_dump(exclude={"dry_run", "drop"}), drop=tuple(request.drop))
        changes = (
            datasets.caption_changes(name, wanted)
            if request.dry_run
            else datasets.edit_captions(name, wanted)[0]
        )
        return {"changed": len(changes), "captions": [asdict(change) for change in changes[:1000]]}

    @router.get("/datasets/{name}/pictures/{index}")
    def picture(
        name: str, index: int, size: int | None = Query(None, ge=1, le=1024, description="of a thumbnail")
    ) -> FileResponse:
        """A picture's file, or a thumbnail (WebP)."""
        if size is not None:
            path = datasets.thumbnail(name, index, size)
            return FileResponse(
                path, media_type="image/webp", headers={"Cache-Control": "private, max-age=3600"}
            )
        path = datasets.picture(name, index)
        return FileResponse(path, media_type=f"image/{KINDS.get(path.suffix.lower(), 'jpeg')}")

    @router.patch("/datasets/{name}/pictures/{index}")
    def caption(name: str, index: int, request: NewCaption) -> dict[str, Any]:
        """Write its caption: to its row of a metadata.jsonl where it has one, else to its .txt."""
        datasets.write_caption(name, index, request.caption, request.name)
        return datasets.pictures(name, index, 1)[1][0].as_dict()

    @router.delete("/datasets/{name}/pictures/{index}")
    def remove(name: str, index: int, expected: Expected = "") -> dict[str, str]:
        """Move it to the bin with its caption; the answer says what POST /bin/pictures/{bin}/restore takes."""
        return {"bin": datasets.remove(name, index, expected).id}

    @router.get("/bin/pictures")
    def binned() -> list[dict[str, Any]]:
        """Pictures that were removed, the last first."""
        return [_binned(item) for item in site.workspace.trash.items("picture")]

    @router.post("/bin/pictures/{item}/restore")
    def restore(item: str) -> dict[str, Any]:
        """Back to its dataset, with its caption."""
        return _binned(datasets.restore(item))


def _binned(item: TrashItem) -> dict[str, Any]:
    return {"id": item.id, "dataset": item.place, "picture": item.name, "deleted": item.deleted}
