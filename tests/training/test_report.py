"""A run as one page."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from hyperbrush.training.report import loss_curve, write_report

ROWS = [{"step": i, "loss": 1 / i} for i in range(1, 6)]


def test_the_curve_has_a_line_for_each_figure() -> None:
    rows = [*ROWS[:-1], ROWS[-1] | {"validation_loss": 0.5}]
    curve = ElementTree.fromstring(loss_curve(rows, base=0.9))
    assert len(curve.findall("polyline")) == 3
    words = "".join(curve.itertext())
    assert "validation" in words
    assert "without the hypernetwork" in words
    assert "without" not in loss_curve(ROWS)


@pytest.mark.parametrize("rows", [[], [{"step": 1}]], ids=["nothing", "no loss"])
def test_no_figures_make_no_curve(rows: list) -> None:
    assert loss_curve(rows) == ""
    assert loss_curve(rows, base=1.0) == ""


def test_one_step_and_a_flat_line_are_drawn() -> None:
    assert "nan" not in loss_curve([{"step": 1, "loss": 0.5}], base=0.5)


def test_the_page_holds_everything_and_escapes_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    page = write_report(
        tmp_path / "report.html",
        title="<b>ink</b>",
        figures=[("loss", "1 < 2")],
        run=tmp_path,
        pictures=[("cat & dog", Image.new("RGB", (4, 4)))],
        commands=["hyperbrush generate 'x' > y"],
    ).read_text(encoding="utf-8")
    for expected in (
        "&lt;b&gt;ink",
        "1 &lt; 2",
        'alt="cat &amp; dog"',
        "data:image/png;base64,",
        "&gt; y",
        "<svg",
    ):
        assert expected in page
    assert "<b>ink" not in page
    assert "http" not in page
