"""Training pictures that were removed: put into the bin (.hyperbrush/bin) with their captions, and back."""

import glob
import secrets
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hyperbrush.app.errors import NotThere
from hyperbrush.app.train import captions
from hyperbrush.app.train.datasets import Datasets, writing
from hyperbrush.errors import UserError
from hyperbrush.files import read_json, write_json, write_text

ABOUT = "from.json"


@dataclass(frozen=True)
class BinnedPicture:
    """A picture in the bin: its place there, the dataset and the name it had, when it was removed (since 1970)."""

    id: str
    dataset: str
    picture: str
    deleted: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def items(datasets: Datasets) -> list[BinnedPicture]:
    """What is in the bin, what was removed last first."""
    root = _folder(datasets)
    found = [_read(path) for path in root.iterdir()] if root.is_dir() else []
    return sorted((one for one in found if one is not None), key=lambda one: (-one.deleted, one.id))


def put(datasets: Datasets, name: str, index: int, expected: str = "") -> BinnedPicture:
    """Move a picture with its caption and mask to the bin.

    Raises:
        UserError: as `Datasets.picture`; it cannot be moved.
    """
    with writing:
        folder, path = datasets.folder(name), datasets.picture(name, index, expected)
        shown = captions.place(folder, path)
        caption = captions.read(folder, [path], [path])[0]
        where = _folder(datasets) / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        text = captions.text_of(path)
        shared = any(
            p != path and p.stem == path.stem for p in datasets.files(name) if p.parent == path.parent
        )
        # A mask left behind would be a training picture of its own.
        masks = [] if shared else path.parent.glob(glob.escape(f"{path.stem}.mask") + ".*")
        object_ = path.with_suffix(".json")
        beside = [one for one in (text, object_) if one is not None and one.is_file() and not shared]
        own = [path, *beside, *sorted(masks)]
        try:
            write_json(where / ABOUT, {"dataset": name, "picture": shown})
            if text is None and caption.source == "metadata":
                write_text(where / path.with_suffix(".txt").name, caption.text)
            for file in own:
                shutil.move(file, where / file.name)
            captions.without_row(folder, path)
        except (OSError, UserError) as error:
            for file in own:
                if not file.exists():
                    shutil.move(where / file.name, file)
            shutil.rmtree(where, ignore_errors=True)
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UserError(f"cannot move {shown!r} to the bin: {reason}") from error
    return BinnedPicture(where.name, name, shown, time.time())


def restore(datasets: Datasets, item: str) -> BinnedPicture:
    """Bring a picture back from the bin.

    Raises:
        NotThere: it is not there, or its dataset is gone.
        UserError: its place is taken, or it cannot be moved.
    """
    with writing:
        found = next((one for one in items(datasets) if one.id == item), None)
        if found is None:
            raise NotThere("this picture is not in the bin any more")
        where = _folder(datasets) / found.id
        target = (datasets.folder(found.dataset) / found.picture).parent
        files = [path for path in where.iterdir() if path.name != ABOUT]
        if any((target / path.name).exists() for path in files):
            raise UserError(f"there is another {found.picture!r} now")
        try:
            target.mkdir(parents=True, exist_ok=True)
            for path in files:
                shutil.move(path, target / path.name)
        except OSError as error:
            raise UserError(f"cannot bring {found.picture!r} back: {error.strerror or error}") from error
        shutil.rmtree(where, ignore_errors=True)
    return found


def _folder(datasets: Datasets) -> Path:
    return datasets.workspace.state / "bin"


def _read(path: Path) -> BinnedPicture | None:
    said = read_json(path / ABOUT)
    try:
        when = (path / ABOUT).stat().st_mtime
        return BinnedPicture(path.name, str(said["dataset"]), str(said["picture"]), when)
    except (OSError, KeyError):  # a hypernetwork, or a run
        return None
