"""The preflight's findings about captions, words and sizes: each names files and says what to do."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hyperbrush.ldm.data.augment import Crop, place
from hyperbrush.ldm.data.scan import Item

Severity = Literal["error", "warning", "note"]

UPSCALED = 1.5  # a picture enlarged by more looks soft
TINY = 4.0  # … and by more than this, it teaches softness
HUGE = 40_000_000  # pixels; decoding takes a second and half a gigabyte
CUT_OFF = 1 / 3  # share of a picture that a crop may take away
SHORT_WORD, PIECES = 12, 4
NAMELESS = re.compile(
    r"(img|dsc[nf]?|image|photo|picture|pic|screenshot|untitled|scan|mvimg|pxl|copy|of)\b|[\W\d_]+"
)


@dataclass(frozen=True)
class Note:
    """One thing found: the files it is about (the one to mend first), words, and figures."""

    paths: tuple[Path, ...]
    what: str
    figures: Mapping[str, Any] = field(default_factory=dict)

    def text(self, folders: Sequence[Path] = ()) -> str:
        """One line; paths relative to the folder they are in, where there is one folder."""
        names = " = ".join(_shown(path, folders) for path in self.paths[:4])
        names += f" and {len(self.paths) - 4} more" if len(self.paths) > 4 else ""
        return ": ".join(part for part in (names, self.what) if part)


@dataclass(frozen=True)
class Finding:
    """All of one kind: "error" files are left out by the training, "warning" and "note" ones are not."""

    kind: str
    severity: Severity
    summary: str
    advice: str
    notes: tuple[Note, ...]

    @classmethod
    def of(
        cls, kind: str, severity: Severity, notes: Sequence[Note], what: str, advice: str
    ) -> "Finding | None":
        """A finding, its summary beginning with the number of notes; None where there are none."""
        return cls(kind, severity, f"{len(notes)} {what}", advice, tuple(notes)) if notes else None

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        notes = [{"paths": list(map(str, n.paths)), "what": n.what, **n.figures} for n in self.notes]
        head = {"kind": self.kind, "severity": self.severity, "summary": self.summary}
        return head | {"advice": self.advice, "notes": notes}


def captions_of(items: Sequence[Item]) -> Iterator[Finding | None]:
    """Captions that are missing, empty, or say the same of several pictures."""
    written = any(item.source in ("text", "metadata") for item in items)
    named = [item for item in items if item.source == "filename"]
    missing = [
        Note((item.path,), f"its file name {item.caption!r} is the caption")
        for item in named
        if written or not NAMELESS.sub("", item.caption.casefold())
    ]
    yield Finding.of(
        "missing_captions",
        "warning",
        missing,
        "pictures have no caption but their file name",
        "write NAME.txt beside them or a row of metadata.jsonl, or name them after what they show",
    )
    empty = [Note((item.path,), "") for item in items if item.source != "none" and not item.caption]
    yield Finding.of(
        "empty_captions",
        "warning",
        empty,
        "captions are empty",
        "these pictures teach what no words mean; write what they show",
    )
    same: dict[str, list[Path]] = {}
    for item in items:
        if item.caption and item.source != "none":
            same.setdefault(item.caption.casefold(), []).append(item.path)
    notes = [Note(tuple(p), repr(c), {"caption": c}) for c, p in same.items() if len(p) > 1]
    yield Finding.of(
        "identical_captions",
        "note",
        sorted(notes, key=lambda note: -len(note.paths)),
        "captions are those of several pictures",
        "what differs between these pictures cannot be asked for by words; fine for one subject or style",
    )


def words_of(captions: Mapping[Path, str], tokenizer: Any) -> Iterator[Finding | None]:
    """Captions the text encoder has no room for, and words its tokenizer takes apart.

    tokenizer: of transformers, with `model_max_length`, begin and end tokens included.
    """
    room = int(tokenizer.model_max_length) - tokenizer.num_special_tokens_to_add()
    cut = []
    for path, caption in captions.items():
        ids = tokenizer(caption, add_special_tokens=False, truncation=False, verbose=False).input_ids
        if len(ids) > room:
            lost = " ".join(str(tokenizer.decode(ids[room:])).split())
            figures = {"tokens": len(ids), "room": room, "cut": lost}
            cut.append(Note((path,), f"{len(ids)} tokens, cut: …{_short(lost)!r}", figures))
    yield Finding.of(
        "cut_captions",
        "warning",
        sorted(cut, key=lambda note: -int(note.figures["tokens"])),
        f"captions are longer than the text encoder's room of {room} tokens",
        "what is cut is not learnt: put what matters first, or shorten them",
    )
    counted: Counter[str] = Counter()
    where: dict[str, list[Path]] = {}
    for path, caption in captions.items():
        for word in re.findall(r"[^\W\d_]+", caption.casefold()):
            counted[word] += 1
            if not where.setdefault(word, []) or where[word][-1] != path:
                where[word].append(path)
    odd = []
    for word, times in counted.most_common():
        if not 3 <= len(word) <= SHORT_WORD:
            continue
        pieces = [str(piece).removesuffix("</w>") for piece in tokenizer.tokenize(word)]
        if len(pieces) >= PIECES or all(len(piece) == 1 for piece in pieces):
            shown = "·".join(pieces)
            figures = {"word": word, "pieces": pieces, "times": times}
            odd.append(Note(tuple(where[word]), f"{word!r} is {shown} ({times}×)", figures))
    yield Finding.of(
        "odd_words",
        "note",
        odd,
        f"words of up to {SHORT_WORD} letters fall into {PIECES} pieces or more, or into single letters",
        "the text encoder hardly knows them: take a commoner word, or expect to train longer",
    )


def shapes_of(
    items: Sequence[Item], shapes: Sequence[tuple[int, int]], crop: Crop, batch_size: int | None
) -> Iterator[Finding | None]:
    """Pictures too small, too large or too long for the shape (height, width) each is brought to."""
    enlarged: list[tuple[float, Note]] = []
    huge, long = [], []
    for item, shape in zip(items, shapes, strict=True):
        size, (height, width) = f"{item.width}×{item.height} pixels", shape
        scale = max(height / item.height, width / item.width)
        if scale > UPSCALED:
            what = f"{size}, enlarged {scale:.1f}×" + (", far too small" if scale > TINY else "")
            enlarged.append((scale, Note((item.path,), what, {"scale": round(scale, 3)})))
        if item.width * item.height > HUGE:
            huge.append(Note((item.path,), size, {"width": item.width, "height": item.height}))
        _, (left, top, right, bottom) = place((item.width, item.height), shape, "center")
        lost = 1 - (right - left) * (bottom - top) / (item.width * item.height)
        if lost > CUT_OFF:
            said = "squeezed out of shape" if crop == "none" else f"{lost:.0%} of it outside the crop"
            long.append(Note((item.path,), f"{size}, {said}", {"lost": round(lost, 3)}))
    yield Finding.of(
        "upscaled",
        "warning",
        [note for _, note in sorted(enlarged, key=lambda found: -found[0])],
        f"pictures are smaller than the training's size (enlarged more than {UPSCALED}×)",
        "find larger originals or train at a smaller size: the model learns their softness",
    )
    yield Finding.of(
        "aspect",
        "warning",
        long,
        "pictures are much longer than wide, or wider",
        "cut them yourself to what matters, or use buckets",
    )
    yield Finding.of(
        "huge",
        "note",
        huge,
        f"pictures have more than {HUGE // 1_000_000} million pixels",
        "save smaller copies: they take long to read and much memory",
    )
    counts = Counter(shapes)
    few = [
        Note(tuple(i.path for i, s in zip(items, shapes, strict=True) if s == (h, w)), f"{w}×{h}: {n}")
        for (h, w), n in sorted(counts.items())
        if batch_size is not None and n < batch_size
    ]
    yield Finding.of(
        "small_buckets",
        "note",
        few,
        f"shapes have fewer pictures than a batch ({batch_size})",
        "a batch of them repeats pictures: fewer buckets, a smaller batch, or more pictures",
    )


def _short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _shown(path: Path, folders: Sequence[Path]) -> str:
    for folder in folders if len(folders) == 1 else ():
        if path.is_relative_to(folder):
            path = path.relative_to(folder)
    # Names that are not UTF-8 must not break the terminal that shows them.
    return str(path).encode("utf-8", "replace").decode()
