"""What is wrong, odd or worth knowing about training pictures, found before the first step."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import pictures
from hyperbrush.ldm.data.augment import Crop
from hyperbrush.ldm.data.buckets import Buckets, OriginalSizes
from hyperbrush.ldm.data.captioning import Captioning
from hyperbrush.ldm.data.captions import FileNames
from hyperbrush.ldm.data.masks import ORPHAN, Masks, find_masks
from hyperbrush.ldm.data.scan import Item, Problem, scan
from hyperbrush.training.before.findings import Finding, Note, captions_of, shapes_of, words_of
from hyperbrush.training.before.likeness import SIDE, Fingerprint, alike, fingerprint
from hyperbrush.training.data.pictures import FolderConfig, PictureSettings, Size, named_repeats, no_masks

Folders = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Preflight:
    """The report: `findings`, worst first, and the table of shapes.

    folders: looked at; found, usable: pictures in them, and those training can use; shapes: pictures of
    each shape (height, width) in pixels, after crop or bucketing. looks: what each picture is.
    """

    folders: tuple[Path, ...]
    found: int
    usable: int
    findings: tuple[Finding, ...]
    shapes: dict[tuple[int, int], int] = field(default_factory=dict)
    looks: Mapping[Path, pictures.Look] = field(default_factory=dict, repr=False, compare=False)

    def look(self, path: Path) -> pictures.Look:
        """What a picture is, without decoding it again; for `ldm.data.scan`.

        Raises:
            Exception: as `ldm.data.pictures.look`.
        """
        return self.looks[path] if path in self.looks else pictures.look(path)[0]

    @property
    def set_aside(self) -> tuple[Path, ...]:
        """Files that training leaves out (`ImageFolder(…, on_problem="skip")`); none is ever deleted."""
        errors = (finding for finding in self.findings if finding.severity == "error")
        return tuple(dict.fromkeys(note.paths[0] for finding in errors for note in finding.notes))

    def of(self, kind: str) -> Finding | None:
        """The finding of a kind, or None where all is well."""
        return next((finding for finding in self.findings if finding.kind == kind), None)

    def text(self, limit: int = 8) -> str:
        """For a person: a few lines a finding, its first `limit` files in full, then a count."""
        where = ", ".join(map(str, self.folders))
        lines = [f"{where}: {self.usable} of {self.found} pictures can be used"]
        for finding in self.findings:
            lines += ["", f"{finding.severity}: {finding.summary}", f"  → {finding.advice}"]
            lines += [f"  {note.text(self.folders)}" for note in finding.notes[:limit]]
            more = len(finding.notes) - limit
            lines += [f"  … and {more} more"] if more > 0 else []
        table = sorted(self.shapes.items(), key=lambda shape: (-shape[1], shape[0]))
        shown = [f"{width}×{height}: {count}" for (height, width), count in table[:24]]
        shown += [f"… and {len(table) - 24} more"] if len(table) > 24 else []
        lines += ["", "pictures of each shape (width×height): " + ", ".join(shown)] if table else []
        if not self.findings:
            lines.append("nothing to mend")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {
            "folders": [str(folder) for folder in self.folders],
            "found": self.found,
            "usable": self.usable,
            "set_aside": [str(path) for path in self.set_aside],
            "findings": [finding.as_dict() for finding in self.findings],
            "shapes": [
                {"height": height, "width": width, "pictures": count}
                for (height, width), count in sorted(self.shapes.items())
            ],
        }


def preflight(
    folders: Folders,
    *,
    validation: Folders | None = None,
    size: int | tuple[int, int] = 512,
    buckets: Buckets | OriginalSizes | None = None,
    crop: Crop = "center",
    captions: str = "auto",
    file_names: FileNames | None = None,
    caption_lines: bool = False,
    captioning: Captioning | Sequence[Captioning] | None = None,
    masks: Masks | None = None,
    tokenizer: Any = None,
    batch_size: int | None = None,
    distance: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Preflight:
    """Look at every picture and caption of one or several folders; nothing is changed.

    Args:
        folders: of the training pictures.
        validation: held-out pictures; those that are in the training folders too are named.
        size, buckets, crop, captions, file_names, caption_lines, captioning, masks: as for `ImageFolder`; captioning
            also one for each folder.
        tokenizer: the text encoder's own, such as `model.tokenizer`: its room is looked at, and the words
            it takes apart. None leaves that out.
        batch_size: tells of shapes with fewer pictures than a batch has.
        distance: pictures count as near-duplicates whose perceptual hashes differ in at most so many of
            64 bits (0: none but the same), colours being alike too; mirrored ones count.
        progress: called with (pictures looked at, pictures in all) for each folder in turn.

    Raises:
        UserError: a folder that is missing or holds no picture; an unknown option; masks asked for and
            none there.
    """
    if not 0 <= distance <= 32:
        raise UserError(f"distance is {distance}; expected 0 to 32 of the hash's 64 bits")
    shape = (size, size) if isinstance(size, int) else size
    looks: dict[Path, pictures.Look] = {}
    seen = _look(folders, captions, looks, progress, file_names, caption_lines, masks)
    items = seen.items
    if captioning is None or isinstance(captioning, Captioning):
        captioning = [captioning or Captioning()] * len(seen.folders)
    finished: dict[Path, str] = {}
    for item, folder in zip(items, seen.places, strict=True):
        said = (finished.get(item.path, ""), *captioning[folder].variants(item.written))
        finished[item.path] = max(said, key=len)
    shapes = [buckets.assign(item.width, item.height) if buckets else shape for item in items]
    findings = [
        *_unusable(seen.problems),
        _leaks(seen, validation, captions, looks, distance, progress),
        _duplicates(seen, distance),
        *captions_of(items),
        *(words_of(finished, tokenizer) if tokenizer is not None else ()),
        *shapes_of(items, shapes, crop, batch_size),
        _transparent(items, masks),
        _unmasked(seen),
    ]
    table = dict(sorted(Counter(shapes).items()))
    order = ("error", "warning", "note")
    present = sorted((f for f in findings if f is not None), key=lambda f: order.index(f.severity))
    return Preflight(seen.folders, seen.found, len(items), tuple(present), table, looks)


def preflight_of(
    folders: Sequence[FolderConfig],
    validation: Sequence[FolderConfig],
    settings: PictureSettings,
    *,
    size: Size,
    downscale: int,
    multiple: int,
    tokenizer: Any,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> Preflight:
    """The preflight of a run's pictures, as its training will see them.

    size, downscale, multiple: see `open_pictures`. The others: see `preflight`.
    """
    report = preflight(
        [folder.path for folder in folders],
        validation=[folder.path for folder in validation] or None,
        size=size,
        buckets=settings.shapes(size, multiple),
        crop=settings.crop,
        captions=settings.captions,
        file_names=settings.file_names(),
        caption_lines=settings.caption_lines,
        captioning=[settings.captioning(folder.caption_suffix, folder.append) for folder in folders],
        masks=settings.mask_settings(downscale),
        tokenizer=tokenizer,
        batch_size=batch_size,
        progress=progress,
    )
    repeats = Finding.of(
        "repeats",
        "note",
        [Note((path,), f"each picture counts {times} times") for path, times in named_repeats(folders)],
        "folders have repeats in their names",
        "as sd-scripts reads them; with repeats: 1 for the folder above, the names say nothing",
    )
    return replace(report, findings=(*report.findings, repeats)) if repeats else report


@dataclass
class _Seen:
    folders: tuple[Path, ...]
    items: list[Item]
    places: list[int]  # of each of them, its folder's number
    problems: list[Problem]
    prints: dict[Path, Fingerprint]
    found: int
    unmasked: list[Path]


def _look(
    folders: Folders,
    captions: str,
    looks: dict[Path, pictures.Look],
    progress: Callable[[int, int], None] | None,
    file_names: FileNames | None = None,
    caption_lines: bool = False,
    masks: Masks | None = None,
) -> _Seen:
    """Every picture of the folders, decoded once: what `scan` tells, and a fingerprint of each; ``looks`` is added to."""
    given = [folders] if isinstance(folders, str | Path) else list(folders)
    if not given:
        raise UserError("no folder to look at; expected one or more")
    total = _Seen(tuple(Path(folder).expanduser() for folder in given), [], [], [], {}, 0, [])
    counted = 0
    if masks is not None and len(given) > 1:
        masks = replace(masks, needed=False)

    def look(path: Path) -> pictures.Look:
        looks[path], small = pictures.look(path, SIDE)
        assert small is not None
        total.prints[path] = fingerprint(small, path)
        return looks[path]

    def count(done: int, of: int) -> None:
        nonlocal counted
        counted = of
        if progress is not None:
            progress(done, of)

    for number, folder in enumerate(total.folders):
        exclude = masks.folder if masks is not None else None
        scanned = scan(
            folder,
            captions,
            count,
            file_names=file_names,
            caption_lines=caption_lines,
            exclude=exclude,
            look=look,
        )
        items, problems = scanned.items, list(scanned.problems)
        if masks is not None and items:
            items, files, bad_masks = find_masks(masks, folder, items)
            problems += bad_masks
            total.unmasked += [item.path for item, file in zip(items, files, strict=True) if file is None]
        total.items += items
        total.places += [number] * len(items)
        total.problems += problems
        total.found += counted
    bad = any(problem.kind == "mask" and problem.reason != ORPHAN for problem in total.problems)
    if masks is not None and not masks.needed and len(total.unmasked) == len(total.items) and not bad:
        raise no_masks(masks, given)
    return total


UNUSABLE = {
    "picture": ("unreadable", "pictures cannot be used", "open and save them again, or take them away"),
    "caption": (
        "bad_captions",
        "captions cannot be used",
        "mend the files named, or their pictures are left out",
    ),
    "mask": ("bad_masks", "masks cannot be used", "mend the files named, or their pictures are left out"),
    "unread": (
        "unread",
        "files are not read",
        "those that are pictures or captions of some want another name or format; the others may stay",
    ),
}


def _unusable(problems: Sequence[Problem]) -> Iterator[Finding | None]:
    for kind, (name, what, advice) in UNUSABLE.items():
        notes = [Note((p.path,), p.reason) for p in problems if p.kind == kind]
        yield Finding.of(name, "warning" if kind == "unread" else "error", notes, what, advice)


def _duplicates(seen: _Seen, distance: int) -> Finding | None:
    paths = [item.path for item in seen.items]
    pairs = alike([seen.prints[path] for path in paths], None, distance)
    notes = [Note((paths[p.one], paths[p.other]), p.text, {"distance": p.distance}) for p in pairs]
    advice = (
        "keep one of each, or the model sees these more often than the others; "
        "for that on purpose, give repeats"
    )
    return Finding.of("duplicates", "warning", notes, "pictures are (nearly) the same as another", advice)


def _leaks(
    seen: _Seen,
    validation: Folders | None,
    captions: str,
    looks: dict[Path, pictures.Look],
    distance: int,
    progress: Callable[[int, int], None] | None,
) -> Finding | None:
    if validation is None:
        return None
    held = _look(validation, "none" if captions == "none" else "auto", looks, progress)
    paths, held_paths = [i.path for i in seen.items], [i.path for i in held.items]
    prints = [seen.prints[path] for path in paths]
    pairs = alike(prints, [held.prints[path] for path in held_paths], distance)
    notes = [Note((paths[p.one], held_paths[p.other]), p.text, {"distance": p.distance}) for p in pairs]
    return Finding.of(
        "leaks",
        "warning",
        notes,
        "held-out pictures are (nearly) among the training pictures",
        "take them out of one side: a loss on pictures that were trained on tells nothing",
    )


def _transparent(items: Sequence[Item], masks: Masks | None) -> Finding | None:
    if masks is not None and masks.source == "alpha":
        return None
    notes = [Note((item.path,), "") for item in items if item.transparent]
    advice = (
        'they are shown on the background (white by default); to train on what is seen alone, masks "alpha"'
    )
    return Finding.of("transparent", "note", notes, "pictures are transparent in places", advice)


def _unmasked(seen: _Seen) -> Finding | None:
    notes = [Note((path,), "") for path in seen.unmasked]
    return Finding.of(
        "unmasked",
        "note",
        notes,
        "pictures have no mask and count everywhere",
        "nothing to do, if that is meant",
    )
