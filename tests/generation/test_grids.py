"""Pages of pictures: every picture and every label in its place, nothing cut, nothing overlapping."""

from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont

from hyperbrush.generation.grids import label_font, labelled_grid, stacked, wrapped

COLOURS = [["red", "green", "blue"], ["yellow", "cyan", "magenta"]]


def cells(size: tuple[int, int] = (8, 8)) -> list[list[Image.Image]]:
    return [[Image.new("RGB", size, c) for c in row] for row in COLOURS]


def ink(page: Image.Image) -> set[tuple[int, int]]:
    """Where letters are: grey pixels."""
    pixels = page.load()
    assert pixels is not None
    found = set()
    for x in range(page.width):
        for y in range(page.height):
            r, g, b = pixels[x, y]
            if r == g == b and r < 200:
                found.add((x, y))
    return found


def area(page: Image.Image, colour: str) -> tuple[int, int, int, int]:
    sample = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    mask = Image.new("1", page.size)
    mask.putdata([p == sample for p in page.getdata()])
    box = mask.getbbox()
    assert box is not None, f"{colour} is not on the page"
    assert sum(mask.getdata()) == (box[2] - box[0]) * (box[3] - box[1]), f"{colour} is written over"
    return box


def test_every_picture_is_whole_and_in_its_place() -> None:
    page = labelled_grid(
        cells((12, 8)), rows=["one", "two"], columns=["a", "a long label of b", "c"], side=32, title="title"
    )
    boxes = [[area(page, c) for c in row] for row in COLOURS]
    assert all((b[2] - b[0], b[3] - b[1]) == (48, 32) for row in boxes for b in row)
    for row in boxes:
        assert row[0][2] < row[1][0] < row[1][2] < row[2][0]
        assert len({b[1] for b in row}) == 1
    assert boxes[0][0][3] < boxes[1][0][1]


def test_labels_are_not_cut_and_stand_beside_what_they_name() -> None:
    names = ["g" * 60, "several words that go on and on and never end, so that nobody would read all of it"]
    page = labelled_grid(cells(), rows=names, columns=["x", names[1], "W" * 40], side=64, title=names[1] * 3)
    letters = ink(page)
    assert letters
    assert all(0 < x < page.width - 1 and 0 < y < page.height - 1 for x, y in letters), "at an edge"
    bare = labelled_grid(cells(), rows=["", ""], columns=["", "", ""], side=64)
    assert ink(bare) == set()
    assert bare.width < page.width
    first = area(page, "red")
    second = area(page, "yellow")
    beside = [y for x, y in letters if x < first[0]]
    assert any(first[1] <= y < first[3] for y in beside)
    assert any(second[1] <= y < second[3] for y in beside)
    assert not [y for y in beside if first[3] + 2 < y < second[1] - 2], "labels run into each other"


def test_pictures_of_one_page_may_differ_in_size() -> None:
    pictures = [[Image.new("RGB", (16, 8), "red"), Image.new("RGB", (8, 16), "blue")]]
    page = labelled_grid(pictures, rows=[""], columns=["a", "b"], side=32)
    red, blue = area(page, "red"), area(page, "blue")
    assert (red[2] - red[0], red[3] - red[1]) == (64, 32)
    assert (blue[2] - blue[0], blue[3] - blue[1]) == (16, 32)


def test_blocks_stand_below_each_other_with_their_titles() -> None:
    blocks = [
        labelled_grid([[Image.new("RGB", (8, 8), c)]], [""], [""], side=64, title="t") for c in COLOURS[0]
    ]
    page = stacked(blocks, side=64, title="a prompt")
    tops = [area(page, c)[1] for c in COLOURS[0]]
    assert tops == sorted(tops)
    assert min(y for _, y in ink(page)) < tops[0]
    assert page.width == blocks[0].width


def test_letters_that_pillows_own_font_lacks_come_from_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    opened = ImageFont.truetype

    def truetype(name: Any, size: int, **how: Any) -> Any:
        if not isinstance(name, str):  # Pillow's own
            return opened(name, size, **how)
        asked.append(name)
        if name != "NanumGothic.ttf":
            raise OSError(name)
        return f"{name} {size}"

    monkeypatch.setattr("PIL.ImageFont.truetype", truetype)
    assert label_font(14, ["수묵화", "ink"]) == "NanumGothic.ttf 14"
    assert asked == ["NotoSansCJK-Regular.ttc", "NanumGothic.ttf"]
    asked.clear()
    assert label_font(14, ["cat “face”…", "steps 3 ±1"]).getname() == ImageFont.load_default(14).getname()
    assert not asked


def test_wrapped_lines_fit() -> None:
    font = label_font(14, [])
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    for text in ("a few words in a row", "W" * 100, "", "a " * 300, "émoji 雨"):
        for width in (40, 90, 300):
            lines = wrapped(text, font, width, 3)
            assert len(lines) <= 3
            assert all(pen.textlength(line, font) <= width for line in lines)
            kept = "".join(lines).replace(" ", "")
            if kept.endswith("…"):
                assert text.replace(" ", "").startswith(kept[:-1])
            else:
                assert kept == text.replace(" ", "")
