"""What pages and API do with the pictures of the gallery: shown small, starred, deleted and restored, used again, compared."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hyperbrush.app.create.service import settings_in
from hyperbrush.app.gallery.index import Shown, id_of
from hyperbrush.app.names import free_name
from hyperbrush.app.site import Site
from hyperbrush.app.uploads import MOST_PIXELS, decoding
from hyperbrush.errors import NotThere, UserError
from hyperbrush.files import atomic_path
from hyperbrush.trash import TrashItem

SMALL = 384  # pixels of a thumbnail's longer side: shown at half of it, on fine screens at all of it
USES = ("all", "prompt", "seed")
STARRED = "starred"  # in the place of what is in the bin
NEWS = "pictures"


def thumbnail(site: Site, picture: str) -> Path:
    """A small file of a picture: its own where it is small; made once.

    Raises:
        NotThere: there is none of that id.
        UserError: it cannot be written.
    """
    from PIL import Image

    one = site.gallery.get(picture)
    if max(one.width, one.height) <= SMALL or one.width * one.height > MOST_PIXELS:
        return one.path
    small = _thumbnails(site) / f"{one.id}-{one.changed}.webp"
    if small.is_file():
        return small
    with decoding:
        try:
            with Image.open(one.path) as whole:
                shown = whole.convert("RGBA" if "A" in whole.getbands() else "RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{one.name} is damaged: {error!s:.160}") from error
        shown.thumbnail((SMALL, SMALL), Image.Resampling.LANCZOS)
        _forget_thumbnails(site, one.id)
        with atomic_path(small, sync=False) as path:
            shown.save(path, "WEBP", quality=82)
    return small


def settings(site: Site, picture: str, use: str = "all") -> dict[str, Any]:
    """What a picture says for the form of Create: {"settings": fields of a `DrawRequest`, "notes": …, "text": …}.

    use: one of `USES`: everything, its prompts, or its seed alone.

    Raises:
        NotThere: there is no such picture.
        UserError: it carries no settings, or they cannot be drawn here.
    """
    one = site.gallery.get(picture)
    if not one.parameters:
        raise UserError(f"{one.name} carries no settings: it was not drawn by hyperbrush or the webui")
    said = settings_in(site, one.parameters)
    wanted = {"prompt": ("prompt", "negative"), "seed": ("seed",)}.get(use)
    if wanted is not None:
        said["settings"] = {key: value for key, value in said["settings"].items() if key in wanted}
        said["notes"] = []
    return said


def star(site: Site, picture: str, starred: bool) -> Shown:
    """Like a picture, or no more.

    Raises:
        NotThere: there is no such picture.
        UserError: it cannot be written down.
    """
    site.gallery.get(picture)
    site.gallery.star(picture, starred)
    site.news(NEWS)
    return site.gallery.get(picture)


def delete(site: Site, pictures: Sequence[str]) -> list[TrashItem]:
    """Put pictures into the bin, each as an item of its own; those that are gone already are passed over.

    Raises:
        UserError: a file cannot be moved; what was moved before is in the bin.
    """
    items = []
    try:
        for picture in dict.fromkeys(pictures):
            with contextlib.suppress(NotThere):
                one = site.gallery.get(picture)
                place = f"{one.kind}:{STARRED if one.starred else ''}:{one.place}"
                items.append(site.workspace.trash.put("drawing", one.name, [one.path], place=place))
                site.gallery.star(one.id, False)  # its place may be another's before it is back
                _forget_thumbnails(site, one.id)
    finally:
        _look(site)
    return items


def restore(site: Site, item: str) -> Shown:
    """Take a picture out of the bin: to its place, where that is taken or gone, to the next free name of the outputs.

    Raises:
        NotThere: there is nothing of that id.
        UserError: it cannot be moved.
    """
    found = site.workspace.trash.get("drawing", item)
    kind, starred, place = ([*found.place.split(":", 2), "", ""])[:3]
    outputs = site.workspace.folder("outputs")
    root = outputs if kind == "drawing" else site.jobs.folder
    target = root / place
    if kind != "drawing" and not (target.parent / "job.json").is_file():  # the job was forgotten meanwhile
        kind, root = "drawing", outputs
        day = time.strftime("%Y-%m-%d", time.localtime(found.deleted))
        target = outputs / day / f"{place.partition('/')[0]}-{Path(place).name}"
    if not target.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{found.name} cannot be restored: its place {place!r:.100} is not in {root}")
    taken = {path.stem.casefold() for path in target.parent.glob("*")} if target.parent.is_dir() else set()
    target = target.with_stem(free_name(target.stem, taken))
    site.workspace.trash.restore(found, {found.files[0]: target})
    picture = id_of(kind, target.relative_to(root).as_posix())
    site.gallery.star(picture, starred == STARRED)
    _look(site)
    return site.gallery.get(picture)


def erase(site: Site, item: str) -> TrashItem:
    """Remove what is in the bin for good.

    Raises:
        NotThere: there is nothing of that id.
        UserError: it cannot be removed.
    """
    erased = site.workspace.trash.erase("drawing", item)
    site.news(NEWS)
    return erased


def differences(one: Shown, other: Shown) -> list[tuple[str, str, str]]:
    """What two pictures were not drawn alike with: (name as in their settings, of the one, of the other)."""
    first, second = _facts(one), _facts(other)
    names = dict.fromkeys([*first, *second])
    return [
        (name, first.get(name, ""), second.get(name, ""))
        for name in names
        if first.get(name, "") != second.get(name, "")
    ]


def _facts(one: Shown) -> dict[str, str]:
    from hyperbrush.generation.infotext import Infotext, read_infotext

    try:
        info = read_infotext(one.parameters)
    except UserError:
        info = Infotext(prompt=one.prompt)
    facts = {
        "Prompt": info.prompt,
        "Negative prompt": info.negative,
        "Sampler": info.sampler,
        "Steps": info.steps,
        "CFG scale": None if info.guidance_scale is None else f"{info.guidance_scale:g}",
        "Seed": info.seed,
        "Size": f"{one.width}×{one.height}",
        "Model": info.model,
        "Clip skip": info.clip_skip,
        "Hypernet hashes": ", ".join(f"{name}: {value}" for name, value in info.hypernet_hashes.items()),
        **info.fields,
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def _look(site: Site) -> None:
    site.gallery.refresh()
    site.news(NEWS)


def _thumbnails(site: Site) -> Path:
    return site.workspace.state / "thumbnails"


def _forget_thumbnails(site: Site, picture: str) -> None:
    for path in _thumbnails(site).glob(f"{picture}-*"):
        path.unlink(missing_ok=True)
