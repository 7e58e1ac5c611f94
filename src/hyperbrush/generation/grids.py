"""Labelled grids: where people would rather look than read."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

INK, PAPER = "#222222", "white"


def labelled_grid(
    pictures: Sequence[Sequence[Image.Image]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    side: int = 128,
    title: str = "",
) -> Image.Image:
    """Pictures as rows of columns with labels above and to the left.

    pictures: one list a row, all of one size; side: height of a cell in pixels, pictures are scaled to
    it (whole multiples keep their pixels sharp).
    """
    font = ImageFont.load_default(max(12, side // 9))
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    line = int(font.size * 1.6)  # type: ignore[union-attr]
    wide = max(pen.textlength(label, font) for label in rows) + line
    first = pictures[0][0]
    width = round(side * first.width / first.height)
    cell_width = max(width + 6, max(int(pen.textlength(c, font)) for c in columns) + 8)
    top = line * (2 if title else 1)
    page = Image.new("RGB", (int(wide) + cell_width * len(columns), top + (side + 6) * len(rows)), PAPER)
    pen = ImageDraw.Draw(page)
    if title:
        pen.text((line // 2, line // 5), title, INK, font)
    for x, label in enumerate(columns):
        middle = wide + cell_width * x + width / 2
        pen.text((middle, top - line / 2), label, INK, font, anchor="mm")
    sharp = side % first.height == 0
    for y, row in enumerate(pictures):
        middle = top + (side + 6) * y + side / 2
        pen.text((wide - line / 2, middle), rows[y], INK, font, anchor="rm")
        for x, picture in enumerate(row):
            scaled = picture.resize(
                (width, side), Image.Resampling.NEAREST if sharp else Image.Resampling.LANCZOS
            )
            page.paste(scaled, (int(wide) + cell_width * x, top + (side + 6) * y))
    return page
