"""Charts: laid out once, drawn as SVG and as pixels."""

import itertools
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from hyperbrush.errors import UserError
from hyperbrush.training.report.charts import COLOURS, MOST, Chart, Line, Mark

LINE = Line("loss", [(0, 1.0), (50, 2.0), (100, 4.0)])


def points(svg: str) -> list[list[tuple[float, float]]]:
    found = ElementTree.fromstring(svg).findall("polyline")
    return [[tuple(map(float, p.split(","))) for p in line.attrib["points"].split()] for line in found]


def words(svg: str) -> list[str]:
    return [text.text for text in ElementTree.fromstring(svg).findall("text")]


def test_values_are_where_they_belong() -> None:
    [[first, middle, last]] = points(Chart("x", [LINE]).svg(720, 300))
    assert (first[0], last[0]) == (56, 704)
    assert middle[0] == (56 + 704) / 2
    assert first[1] > middle[1] > last[1]  # up is less in SVG
    assert (first[1] - middle[1]) / (middle[1] - last[1]) == pytest.approx(0.5, abs=0.01)


def test_a_wide_range_is_logarithmic() -> None:
    wide = Line("loss", [(0, 0.01), (50, 0.1), (100, 1.0)])
    [[first, middle, last]] = points(Chart("x", [wide]).svg())
    assert first[1] - middle[1] == pytest.approx(middle[1] - last[1], abs=0.2)
    [[first, middle, last]] = points(
        Chart("x", [Line("a", [(1e-4, 1.0), (1e-3, 2.0), (1e-2, 3.0)])], log_x=True).svg()
    )
    assert middle[0] - first[0] == pytest.approx(last[0] - middle[0], abs=0.2)


@pytest.mark.parametrize("values", [(0.09, 0.2), (0, 1e-3), (3, 3), (-5, 7), (1e-5, 9e-5), (1, 9e5)])
def test_ticks_are_round_and_enough(values: tuple[float, float]) -> None:
    root = ElementTree.fromstring(Chart("x", [Line("loss", list(enumerate(values)))]).svg())
    left = [float(text.text) for text in root.findall("text") if text.get("text-anchor") == "end"]
    assert 2 <= len(left) <= 8
    assert left == sorted(left)


def test_words_are_escaped_and_the_title_is_said() -> None:
    svg = Chart('<a> "b"', [Line("<loss>", LINE.points)], x_label="a & b").svg()
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == '<a> "b"'
    assert root.attrib["role"] == "img"
    assert "<loss>" in words(svg)
    assert "a & b" in words(svg)


def test_a_file_of_its_own(tmp_path: Path) -> None:
    chart = Chart("x", [LINE])
    root = ElementTree.parse(chart.save(tmp_path / "a.svg")).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert COLOURS["blue"] in (tmp_path / "a.svg").read_text()
    with Image.open(chart.save(tmp_path / "a.png")) as picture:
        blue = tuple(int(COLOURS["blue"][n : n + 2], 16) for n in (1, 3, 5))
        assert any(colour == blue for _, colour in picture.getcolors(1 << 20))
    for path, lines, message in (
        ("a.jpg", [LINE], "expected a name in .svg or .png"),
        ("b.svg", [], "no figures"),
    ):
        with pytest.raises(UserError, match=message):
            Chart("x", lines).save(tmp_path / path)
    assert chart.picture(300, 200, scale=1).size == (300, 200)
    assert Chart("x", []).picture() is None


def test_dashes_and_faint_lines_show() -> None:
    def ink(**change: object) -> int:
        page = Chart("x", [Line("", LINE.points, **change)]).picture(scale=1)
        return sum(count for count, colour in page.getcolors(1 << 20) if colour != (255, 255, 255))

    assert ink(dash=(4, 8)) < ink(dash=(8, 4)) < ink()
    assert ink(faint=True) < ink()
    svg = Chart("x", [Line("a", LINE.points, "red", (6, 3)), Line("b", LINE.points, faint=True)]).svg()
    assert 'stroke-dasharray="6 3"' in svg
    assert len(ElementTree.fromstring(svg).findall("path")) == 2  # the line and its key
    assert len(points(svg)) == 1


def test_a_faint_line_does_not_set_the_range() -> None:
    noise = Line("noise", [(0, 1.0), (50, 1000.0), (100, 1.0)], faint=True)
    assert points(Chart("x", [LINE, noise]).svg()) == points(
        Chart("x", [LINE, Line("n", LINE.points, faint=True)]).svg()
    )


def test_long_lines_are_thinned() -> None:
    long = [(n, math.sin(n / 50)) for n in range(20_000)]
    [kept] = points(Chart("x", [Line("a", long)]).svg())
    assert len(kept) <= MOST + 1
    assert kept[-1][0] == 704
    noise = [(n, float(n == 777)) for n in range(20_000)]
    svg = Chart("x", [Line("a", long), Line("b", noise, faint=True)]).svg()
    way = ElementTree.fromstring(svg).find("path").attrib["d"]
    heights = [float(p.split()[1]) for p in way[1:].split("L")]
    assert min(heights) < min(y for _, y in kept) + 5  # the one peak is still there


def test_marks_that_touch_keep_the_first_words() -> None:
    chart = Chart("x", [LINE], [Mark(50, "first words"), Mark(51, "second words"), Mark(100, "third")])
    said = words(chart.svg())
    assert "first words" in said
    assert "second words" not in said
    assert "third" in said
    lines = [x for x in ElementTree.fromstring(chart.svg()).findall("line") if x.get("class") == "green"]
    assert len(lines) == 3


def test_the_legend_wraps_on_narrow_pages() -> None:
    lines = [Line(f"a line number {n}", LINE.points) for n in range(4)]

    def rows(width: int) -> int:
        root = ElementTree.fromstring(Chart("x", lines).svg(width, 300))
        return len({text.get("y") for text in root.findall("text") if text.text.startswith("a line")})

    assert rows(720) == 1
    assert 2 <= rows(360) <= 4


def test_nothing_that_is_not_a_number_is_drawn() -> None:
    bad = [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]
    [kept] = points(Chart("x", [Line("a", bad)]).svg())
    assert len(kept) == 2
    assert Chart("x", [Line("a", [(0, math.nan)])]).svg() == ""
    for first, second in itertools.product((0, 5, 1e9), repeat=2):
        assert "nan" not in Chart("x", [Line("a", [(first, second)])]).svg()
