"""A run as one page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from PIL import Image

from hyperbrush.errors import UserError
from hyperbrush.training.report.contact_sheet import save_previews
from hyperbrush.training.report.report import (
    loss_chart,
    loss_curve,
    rate_chart,
    report_run,
    save_loss_curve,
    smoothed,
    write_report,
)
from hyperbrush.training.report.result import RunResult, keep_result

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


def run_of(folder: Path, *more: dict) -> Path:
    """A run of 600 steps with a validation that is best at 300, and previews."""
    rows = [
        {"step": n, "loss": 1 + 1 / n, "learning_rate": 1e-3, "seconds": n / 2, "validation_base": 2.0}
        | ({"validation_loss": 1 + abs(n - 300) / 1000} if n % 100 == 0 else {})
        for n in range(5, 601, 5)
    ]
    lines = sorted([*rows, *more], key=lambda row: row["step"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    config = {"name": "ink & co", "training": {"batch_size": 4, "prompts": ["red cat"], "betas": [0.9, 0.99]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for step in (100, 300, 600):
        save_previews(folder, step, [Image.new("RGB", (32, 32), (step % 256, 9, 9))], ["red cat"])
    return folder


EVENTS = (
    {"step": 200, "event": "out_of_memory", "message": "out of memory: 4 became 2"},
    {"step": 500, "event": "overfitting", "message": "step 500: it overfits"},
    {"step": 1, "event": "keep_best", "message": "<nothing> is held out"},
)


class Page(HTMLParser):
    """Collects tags, and checks that they close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "line", "path", "polyline", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def test_a_run_becomes_a_page_and_pictures(tmp_path: Path) -> None:
    run = run_of(tmp_path / "ink", *EVENTS)
    path = report_run(run, commands=["hyperbrush generate x"])
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    words = " ".join(page.words)
    for expected in (
        "Training of ink & co",
        "600",
        "5 min",
        "8.0",  # pictures a second
        "1.0000 at step 300, 50% below 2.0000 of the bare model",
        "step 200: out of memory: 4 became 2",
        "step 500: it overfits",
        "<nothing> is held out",
        "training.batch_size",
        "0.9, 0.99",
        "best: 300",
        "overfits",
        "hyperbrush generate x",
        "Learning rate",
    ):
        assert expected in words, expected
    assert "step 500: step 500" not in words
    assert not re.search(r"(src|href)=.?(?!.?data:)|url\(|@import|<script|<link|https?:", text)
    assert len(page.all("svg")) == 4  # two charts, each for wide pages and for phones
    for tag, names in (
        ("svg", {"role", "aria-label"}),
        ("img", {"alt", "width", "height"}),
        ("th", {"scope"}),
    ):
        assert all(names <= attrs.keys() for attrs in page.all(tag)), tag
    assert page.all("html") == [{"lang": "en"}]
    assert "initial-scale=1" in page.all("meta")[1]["content"]
    assert "prefers-color-scheme:dark" in text
    assert page.all("svg")[0]["aria-label"].startswith("loss over steps: training 1.2 to 1.0")
    assert sorted(p.name for p in run.iterdir() if p.is_file()) == [
        "config.yaml",
        "contact_sheet.png",
        "loss.png",
        "loss.svg",
        "metrics.csv",
        "metrics.jsonl",
        "report.html",
    ]
    assert ElementTree.parse(run / "loss.svg").getroot().tag.endswith("svg")
    with Image.open(run / "loss.png") as picture:
        assert picture.size == (1440, 600)


def test_a_run_without_validation_or_previews(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    text = report_run(tmp_path, title="one step").read_text()
    assert "one step" in text
    assert "Best validation" not in text
    assert "<img" not in text
    assert "Settings" not in text
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "event": "resume"}\n')
    with pytest.raises(UserError, match="has no figures to report yet"):
        report_run(tmp_path)
    with pytest.raises(UserError, match=r"loss.svg was not written: there are no figures"):
        save_loss_curve(tmp_path)
    assert not rate_chart([]).svg()


def test_smoothing_follows_without_a_bias() -> None:
    assert smoothed([(n, 3.0) for n in range(50)]) == [(n, pytest.approx(3.0)) for n in range(50)]
    noisy = [(n, 1.0 + (-1) ** n) for n in range(400)]
    last = [y for _, y in smoothed(noisy)][-50:]
    assert max(abs(y - 1) for y in last) < 0.1
    assert [x for x, _ in smoothed([(1, 1.0), (2, float("nan")), (3, 1.0)])] == [1, 3]


def test_marks_of_what_happened() -> None:
    rows = [{"step": n, "loss": 1.0, "validation_loss": 1.0 / n} for n in range(1, 100)]
    events = [{"step": n, "event": "back_off", "message": "x"} for n in range(1, 50)]
    other = [{"step": 3, "event": "keep_best", "message": "x"}]
    marks = loss_chart([*rows, *events, *other]).marks
    assert [mark.text for mark in marks[:2]] == ["best: 99", "rate lowered"]
    assert len(marks) == 13
    assert loss_chart(rows, 0.5, "the bare model").lines[-1].name == "the bare model"


def test_infinite_losses_are_left_out() -> None:
    rows = [{"step": n, "loss": float("inf") if n == 3 else 1.0} for n in range(1, 6)]
    assert "inf" not in loss_curve(rows)
    assert "nan" not in loss_curve(rows)


def test_a_file_that_cannot_go_to_the_library_stands_in_the_run(tmp_path: Path) -> None:
    result = RunResult(tmp_path, tmp_path / "library/a.safetensors", 5, 1.0, {}, True)

    def save(path: Path) -> None:
        if path.parent != tmp_path:
            raise UserError("no room")
        path.touch()

    with pytest.raises(
        UserError, match=r"no room\. The training is done and its file stands at .*elsewhere: x"
    ):
        keep_result(result, save, "x")
    assert (tmp_path / "a.safetensors").is_file()
