"""Previews over time, in one picture."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from hyperbrush.errors import UserError
from hyperbrush.generation.infotext import read_infotext
from hyperbrush.generation.picture_files import settings_text
from hyperbrush.ldm.pictures import grid
from hyperbrush.training.report.contact_sheet import (
    chosen_steps,
    contact_sheet,
    find_previews,
    open_previews,
    run_name,
    save_previews,
    sheet_text,
)

PROMPTS = ["a red cat", "a blue, round dog"]


def tint(step: int, number: int) -> tuple[int, int, int]:
    return (step % 256, 40 + 60 * number, 200)


def pictures(step: int, count: int = 2, size: tuple[int, int] = (64, 64)) -> list[Image.Image]:
    return [Image.new("RGB", size, tint(step, number)) for number in range(count)]


@pytest.fixture(params=["folders", "grids"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Previews at seven steps, in the one layout or the other."""
    folder = tmp_path / "ink"
    (folder / "previews").mkdir(parents=True)
    config = {"name": "ink style", "model": "emoji", "training": {"learning_rate": 1e-3, "prompts": PROMPTS}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for step in (20, 40, 60, 80, 100, 120, 130):
        if request.param == "folders":
            save_previews(folder, step, pictures(step), PROMPTS, [7] * len(PROMPTS), steps=15)
        else:
            grid(pictures(step), columns=2).save(folder / f"previews/step-{step:08d}.png")
    return folder


def colours(page: Image.Image) -> set[tuple[int, int, int]]:
    found = page.getcolors(1 << 20)
    assert found is not None
    return {colour for count, colour in found if count >= 128 * 128}


def test_rows_are_prompts_and_columns_steps(run: Path) -> None:
    page = contact_sheet(run)
    assert page is not None
    steps = (20, 40, 60, 80, 100, 120, 130)
    assert colours(page) - {(255, 255, 255)} == {tint(s, n) for s in steps for n in (0, 1)}
    place = {colour: min(_where(page, colour)) for colour in colours(page)}
    lefts = [place[tint(step, 0)][0] for step in steps]
    assert lefts == sorted(set(lefts))
    assert all(place[tint(s, 0)][1] < place[tint(s, 1)][1] for s in steps)
    assert all(place[tint(s, 0)][0] == place[tint(s, 1)][0] for s in steps)


def test_a_generators_page_of_styles_stays_whole(tmp_path: Path) -> None:
    (tmp_path / "previews").mkdir()
    about = {"name": "maker", "kind": "generator", "training": {"prompts": PROMPTS}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(about))
    page = grid(pictures(20, 4) * 2, columns=2 + len(PROMPTS))  # two styles
    page.save(tmp_path / "previews/step-00000020.png")
    sheet = contact_sheet(tmp_path)
    assert sheet is not None
    assert sheet.height < 2 * page.height, "one row"
    assert len({tint(20, n) for n in range(4)} & {colour for _, colour in sheet.getcolors(1 << 20)}) == 4


def _where(page: Image.Image, colour: tuple[int, int, int]) -> list[tuple[int, int]]:
    data = page.load()
    return [(x, y) for x in range(0, page.width, 4) for y in range(0, page.height, 4) if data[x, y] == colour]


def test_few_columns_keep_the_first_and_the_last(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperbrush.training.report.contact_sheet.COLUMNS", 3)
    page = contact_sheet(run)
    assert page is not None
    assert colours(page) - {(255, 255, 255)} == {tint(s, n) for s in (20, 80, 130) for n in (0, 1)}
    for columns in range(2, 12):
        chosen = chosen_steps(range(1, 8), columns)
        assert len(chosen) == min(7, columns)
        assert (chosen[0], chosen[-1]) == (1, 7)
        assert chosen == sorted(set(chosen))
    assert chosen_steps([5], 4) == [5]
    assert chosen_steps([], 4) == []


def test_the_best_is_named(run: Path) -> None:
    base = contact_sheet(run)
    assert base is not None
    assert contact_sheet(run, best=60).tobytes() != base.tobytes()
    assert contact_sheet(run, best=61).tobytes() == base.tobytes()


def test_its_text_says_what_it_is(run: Path) -> None:
    found = read_infotext(sheet_text(run))
    assert found.prompt == "\n".join(PROMPTS)
    assert found.model == "emoji"
    assert found.fields["Run"] == "ink style"
    assert json.loads(found.fields["Training"]) == {"learning_rate": 1e-3}


def test_each_preview_says_what_it_is(tmp_path: Path) -> None:
    folder = save_previews(tmp_path / "a", 100, pictures(1), PROMPTS, [7] * len(PROMPTS), steps=15)
    assert folder == tmp_path / "a/previews/step-00000100"
    assert sorted(p.name for p in folder.iterdir()) == ["prompt-0.png", "prompt-1.png"]
    found = read_infotext(settings_text(folder / "prompt-1.png"))
    assert (found.prompt, found.seed, found.steps, found.size) == (PROMPTS[1], 7, 15, (64, 64))
    assert (found.fields["Run"], found.fields["Training step"]) == ("a", "100")
    save_previews(tmp_path / "a", 100, pictures(2, 1))  # a resumed run draws it again
    assert sorted(p.name for p in folder.iterdir()) == ["prompt-0.png"]
    with pytest.raises(UserError, match="1 previews for 2 prompts"):
        save_previews(tmp_path / "a", 100, pictures(2, 1), PROMPTS)


def test_grids_are_cut_by_the_number_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "previews/step-00000001.png"
    path.parent.mkdir()
    made = pictures(3, 11, (24, 16))
    grid(made, columns=8).save(path)
    assert [p.tobytes() for p in open_previews(path, 11)] == [p.tobytes() for p in made]
    assert [p.size for p in open_previews(path, 5)] == [grid(made, columns=8).size]
    assert len(open_previews(path)) == 1
    assert contact_sheet(tmp_path) is not None  # no prompts are known: the grid is one cell


def test_eleven_pictures_are_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    made = pictures(3, 11)
    opened = open_previews(save_previews(tmp_path, 1, made))
    assert [p.tobytes() for p in opened] == [p.tobytes() for p in made]


def test_what_is_damaged_or_foreign_is_left_out(
    run: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperbrush.training.report.contact_sheet.COLUMNS", 20)
    (run / "previews/notes.txt").write_text("mine")
    (run / "previews/step-x.png").write_text("mine")
    (run / "previews/step-00000150").mkdir()  # nothing in it
    (run / "previews/step-00000140.png").write_bytes(b"\x89PNG half")
    assert list(find_previews(run)) == [20, 40, 60, 80, 100, 120, 130, 140, 150]
    page = contact_sheet(run)
    assert page is not None
    assert len(colours(page) - {(255, 255, 255)}) == 14
    assert "cannot read the preview" in caplog.text
    assert "its column is left out" in caplog.text


def test_a_step_with_fewer_pictures_has_room_left(tmp_path: Path) -> None:
    save_previews(tmp_path, 1, pictures(1, 1))
    save_previews(tmp_path, 2, pictures(2, 3))
    page = contact_sheet(tmp_path)
    assert page is not None
    assert colours(page) - {(255, 255, 255)} == {tint(1, 0), tint(2, 0), tint(2, 1), tint(2, 2)}


def test_without_previews_there_is_no_sheet(tmp_path: Path) -> None:
    assert contact_sheet(tmp_path) is None
    assert not list(tmp_path.iterdir())
    (tmp_path / "config.yaml").write_text("a: [")
    assert run_name(tmp_path) == tmp_path.name
