"""Labelled grids: where people would rather look than read."""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

INK, PAPER = "#222222", "white"
GAP = 6  # pixels between pictures
MOST_PIXELS = 16_000  # of a page's side; JPEG and many viewers stop at 65,535 and far before
_PILLOWS = "©«°±´·»‘’“”…"  # beside ASCII, in the font that Pillow brings
_SYSTEMS = (  # files of fonts with Chinese, Japanese and Korean letters, then one with European ones
    "NotoSansCJK-Regular.ttc",
    "NanumGothic.ttf",
    "wqy-microhei.ttc",
    "AppleSDGothicNeo.ttc",
    "PingFang.ttc",
    "Arial Unicode.ttf",
    "malgun.ttf",
    "msyh.ttc",
    "DejaVuSans.ttf",
)
_PEN = ImageDraw.Draw(Image.new("RGB", (1, 1)))


def labelled_grid(
    pictures: Sequence[Sequence[Image.Image]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    side: int = 128,
    title: str = "",
) -> Image.Image:
    """Pictures as rows of columns with labels above and to the left; long labels wrap, then shorten.

    pictures: one list a row; side: height of a cell in pixels, pictures are scaled to fit it (whole multiples
    keep their pixels sharp). Rows or columns whose labels are all empty get no room for them.
    """
    font = label_font(min(32, max(12, side // 9)), [title, *rows, *columns])
    line = _line(font)
    width = max(round(side * p.width / p.height) for row in pictures for p in row)
    above = [wrapped(label, font, max(width, 12 * font.size), 4) for label in columns]
    beside = [wrapped(label, font, 14 * font.size, max(1, side // line)) for label in rows]
    cell = max([width, *(_length(text, font) for label in above for text in label)]) + GAP
    left = max((_length(text, font) for label in beside for text in label), default=0)
    left = left + line if left else 0
    head = max((len(label) for label in above), default=0) * line
    begin = cell * len(columns)
    said = wrapped(title, font, left + begin - line, 3) if title else []
    top = len(said) * line + head + (GAP if head else 0)
    page = Image.new("RGB", (left + begin, top + (side + GAP) * len(rows)), PAPER)
    pen = ImageDraw.Draw(page)
    for i, text in enumerate(said):
        pen.text((line // 2, i * line + line // 5), text, INK, font)
    for x, label in enumerate(above):
        for i, text in enumerate(label):
            y = top - GAP - (len(label) - i - 0.5) * line
            pen.text((left + cell * x + width / 2, y), text, INK, font, anchor="mm")
    for y, row in enumerate(pictures):
        at = top + (side + GAP) * y
        for i, text in enumerate(beside[y]):
            middle = at + side / 2 + (i + 0.5 - len(beside[y]) / 2) * line
            pen.text((left - line / 2, middle), text, INK, font, anchor="rm")
        for x, picture in enumerate(row):
            scaled = _fitted(picture, width, side)
            place = left + cell * x + (width - scaled.width) // 2, at + (side - scaled.height) // 2
            page.paste(scaled, place)
    return page


def stacked(blocks: Sequence[Image.Image], *, side: int = 128, title: str = "") -> Image.Image:
    """Pages one below the other, under a title; side: as of `labelled_grid`, for the size of the letters."""
    font = label_font(min(32, max(12, side // 9)), [title])
    line = _line(font)
    width = max(block.width for block in blocks)
    said = wrapped(title, font, width - line, 3) if title else []
    top = len(said) * line + (line // 2 if said else 0)
    page = Image.new("RGB", (width, top + sum(b.height for b in blocks) + line * (len(blocks) - 1)), PAPER)
    pen = ImageDraw.Draw(page)
    for i, text in enumerate(said):
        pen.text((line // 2, i * line + line // 5), text, INK, font)
    for block in blocks:
        page.paste(block, (0, top))
        top += block.height + line
    return page


def wrapped(text: str, font: Any, width: float, lines: int) -> list[str]:
    """A text in at most so many lines of at most this width in pixels; what does not fit ends in "…".

    Words longer than a line are broken.
    """
    done: list[str] = []
    now = ""
    for word in text.split():
        if now and _length(f"{now} {word}", font) <= width:
            now = f"{now} {word}"
            continue
        if now:
            done.append(now)
        while _length(word, font) > width:
            part = next(n for n in range(len(word), 0, -1) if n == 1 or _length(word[:n], font) <= width)
            if part == len(word):
                break
            done.append(word[:part])
            word = word[part:]
        now = word
    if now:
        done.append(now)
    if len(done) > lines:
        last = done[lines - 1]
        while last and _length(f"{last}…", font) > width:
            last = last[:-1]
        done = [*done[: lines - 1], f"{last.rstrip()}…"]
    return done


def _fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """A picture scaled to fit, its shape kept."""
    scale = min(width / picture.width, height / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    if size == picture.size:
        return picture.convert("RGB")
    sharp = size[0] % picture.width == 0 and size[1] % picture.height == 0
    return picture.convert("RGB").resize(
        size, Image.Resampling.NEAREST if sharp else Image.Resampling.LANCZOS
    )


def label_font(size: int, texts: Iterable[str]) -> Any:
    """A font for labels: Pillow's own, or where that lacks letters of theirs (it has English alone), one of the system's."""
    if all(ord(letter) < 127 or letter in _PILLOWS for text in texts for letter in text):
        return ImageFont.load_default(size)
    for name in _SYSTEMS:
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def _line(font: Any) -> int:
    return int(font.size * 1.6)


def _length(text: str, font: Any) -> int:
    return int(-(-_PEN.textlength(text, font) // 1))
