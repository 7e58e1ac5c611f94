"""Wildcards, and prompts of before."""

import json
from pathlib import Path
from typing import Any

import pytest

from hyperbrush.app.create.wildcards import filled, first_of, names
from hyperbrush.errors import UserError

API = "/api/v1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    (tmp_path / "animal.txt").write_text("\ufeffcat\n# no animal\n\n dog \nhorse\n", encoding="utf-8")
    (tmp_path / "place/sea_side.txt").write_text("a beach with a __animal__\n")
    (tmp_path / "round.txt").write_text("__round__\n")
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "no name.txt").write_text("x")
    return tmp_path


def test_each_seed_chooses_and_always_the_same(folder: Path) -> None:
    found = [filled("a __animal__, blue", folder, seed) for seed in range(40)]
    assert found == [filled("a __animal__, blue", folder, seed) for seed in range(40)]
    assert set(found) == {"a cat, blue", "a dog, blue", "a horse, blue"}
    both = {filled("__animal__ __animal__", folder, seed) for seed in range(60)}
    assert len(both) == 9, "each is chosen for itself"
    assert filled("__place/sea_side__", folder, 1) in {f"a beach with a {a}" for a in ("cat", "dog", "horse")}


def test_other_underscores_stay(folder: Path) -> None:
    for text in ("snake_case __ __", "____", "a__animal__b", "(cat:1.2) [a:b:3] {x|y}"):
        assert filled(text, folder, 1) == text


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("an __animl__", "unknown wildcard 'animl'; did you mean 'animal'"),
        ("__round__", "more than 8 deep"),
        ("__empty__", "has no line to choose"),
        ("__latin__", "cannot be read"),
        ("__../secret__", None),
    ],
)
def test_what_cannot_be_put_in_is_told(folder: Path, prompt: str, message: str | None) -> None:
    if message is None:
        assert filled(prompt, folder, 1) == prompt  # no name of a wildcard has dots
        return
    with pytest.raises(UserError, match=message):
        filled(prompt, folder, 1)


def test_names(folder: Path, tmp_path: Path) -> None:
    assert names(folder) == ["animal", "empty", "latin", "place/sea_side", "round"]
    assert names(tmp_path / "nowhere") == []
    assert first_of("a __animal__ __round__") == "__animal__"
    assert first_of("a __ b __") == ""


def test_pictures_carry_what_was_put_in(app: Any) -> None:
    folder = Path(app.root) / "wildcards"
    folder.mkdir(exist_ok=True)
    (folder / "colour.txt").write_text("red\ngreen\nblue\n")
    request = {"prompt": "__colour__ heart", "steps": 1, "seed": 5, "count": 3}
    done = app.wait_for(app.call(f"{API}/draw", request)["id"])
    assert done["state"] == "done", done["error"]
    expected = [filled("__colour__ heart", folder, seed) for seed in (5, 6, 7)]
    assert [one["parameters"].partition("\n")[0] for one in done["result"]["pictures"]] == expected
    for change in ({"prompt": "a __colur__"}, {"negative": "__colour__"}):
        answer = app.call(f"{API}/draw", request | change)
        assert answer["status"] == 400
        assert "wildcard" in json.loads(answer["detail"])["detail"]
    answer = app.call(f"{API}/compare", {"prompt": "__colour__ heart", "axes": ["steps=1,2"]})
    assert "a comparison draws one prompt" in json.loads(answer["detail"])["detail"]


def test_prompts_of_before_over_the_api(app: Any) -> None:
    for _ in range(2):
        app.wait_for(app.call(f"{API}/draw", {"prompt": "prompts cat", "negative": "dog", "steps": 1})["id"])
    said = app.call(f"{API}/prompts")
    assert [one for one in said["drawn"] if one["prompt"] == "prompts cat"] == [
        {"prompt": "prompts cat", "negative": "dog", "name": ""}
    ]
    mine = {"prompt": "a/b", "negative": ""}
    assert app.call(f"{API}/prompts/my%20one", mine, "PUT") == {**mine, "name": "my one"}
    app.call(f"{API}/prompts/my%20one", {"prompt": "c"}, "PUT")
    assert [one for one in app.call(f"{API}/prompts")["saved"] if one["name"] == "my one"] == [
        {"prompt": "c", "negative": "", "name": "my one"}
    ]
    assert app.call(f"{API}/prompts/%20", mine, "PUT")["status"] == 400
    assert app.call(f"{API}/prompts/my%20one", method="DELETE")["prompt"] == "c"
    assert app.call(f"{API}/prompts/my%20one", method="DELETE")["status"] == 404
