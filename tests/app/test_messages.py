"""Every message is there in every language, and every one that is said exists."""

import json
import re
import string
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

import hyperbrush.app
import hyperbrush.training.loop
from hyperbrush.app.gallery.page_box import FACTS
from hyperbrush.app.messages import FOLDER, NAMES, Messages, catalogue, chosen_language
from hyperbrush.app.runs.report_page import in_language
from hyperbrush.app.ui.frame import PLACES
from hyperbrush.hypernetworks.convert.convert import TARGETS
from hyperbrush.ldm.models.single_file import KINDS
from hyperbrush.translation import LANGUAGES

APP = Path(hyperbrush.app.__file__).parent
SAID = re.compile(r"""\bt\(\s*f?["']([a-z_]+\.[a-z0-9_]*)([{"'])""")


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_says_the_same(language: str) -> None:
    english, own = catalogue("en"), catalogue(language)
    assert own.keys() == english.keys()
    for key, text in own.items():
        assert text.strip(), key
        assert fields(text) == fields(english[key]), key
    assert {f.name for f in (FOLDER / language).iterdir()} == {f.name for f in (FOLDER / "en").iterdir()}


@pytest.mark.parametrize("language", ["ko", "zh"])
def test_it_is_translated(language: str) -> None:
    english, own = catalogue("en"), catalogue(language)
    letters = {key for key, text in english.items() if re.search(r"[a-z]{3}", text.replace("hyperbrush", ""))}
    same = {key for key in letters if own[key] == english[key]}
    assert len(same) <= 0.05 * len(letters), sorted(same)  # CFG, LoRA and the like stay


def test_what_the_pages_say_exists() -> None:
    known, missing = catalogue("en"), []
    for path in APP.rglob("*.py"):
        for key, end in SAID.findall(path.read_text(encoding="utf-8")):
            begins = end == "{" or key[-1] in "._"  # the rest is only known when it is said
            if not (any(name.startswith(key) for name in known) if begins else key in known):
                missing.append(f"{path.name}: {key}")
    assert not missing


def test_facts_of_pictures_are_called_as_the_form_calls_them() -> None:
    assert {name: catalogue("en")[key] for name, key in FACTS.items()} == {name: name for name in FACTS}


def test_what_is_named_elsewhere_is_said() -> None:
    """Targets of conversions, models of single files and places of the navigation: their messages follow from a name."""
    known = catalogue("en")
    for target in TARGETS:
        assert {f"networks.to_{target}", f"networks.about_{target}"} <= known.keys()
    assert {f"model.kind_{kind.replace('-', '_')}" for kind in KINDS} <= known.keys()
    assert {f"frame.{name}" for name, _, _ in PLACES} <= known.keys()


def test_what_happens_in_trainings_is_said() -> None:
    loop = Path(hyperbrush.training.loop.__file__).parent
    noted = re.compile(r"""(?:_note\(|append\(\()\s*"([a-z_]+)",""")
    found = {name for path in loop.glob("*.py") for name in noted.findall(path.read_text(encoding="utf-8"))}
    assert {"pictures", "replanned", "renewed", "overfitting", "out_of_memory"} <= found
    said = {key.removeprefix("runs.event_") for key in catalogue("en") if key.startswith("runs.event_")}
    assert found == said


def test_one_thing_has_one_word() -> None:
    """Punctuation between Chinese is full-width; what the pages share is called the same on each."""
    half = re.compile(r"[\u4e00-\u9fff][,:;(](?! )|[,:;)][\u4e00-\u9fff]")
    assert not [key for key, text in catalogue("zh").items() if half.search(text)]
    for language in LANGUAGES:
        own = catalogue(language)
        assert own["create.clip_skip"] == own["compare.clip_skip"] == own["compare.kind_clip_skip"]
        assert own["create.guidance_scale"] == own["compare.guidance_scale"] == own["compare.kind_cfg"]
    korean = catalogue("ko")
    assert not [key for key, text in korean.items() if re.search("비교표|그리드|다운로드", text)]
    steps = {key for key, text in korean.items() if key.startswith("runs.") and "단계" in text}
    assert steps == {"runs.kind_first_stage"}


def test_the_language_is_chosen() -> None:
    assert chosen_language("", "", "de-DE,ko;q=0.9,en;q=0.8") == "ko"
    assert chosen_language("", "", "en;q=0.5, zh-TW;q=0.9") == "zh"
    assert chosen_language("zh", "ko", "en") == "zh"
    assert chosen_language("xx", "ko", "en") == "ko"
    assert chosen_language("", "", "") == "en"
    assert Messages("ko").language == "ko"
    assert set(NAMES) == set(LANGUAGES)


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("", "there is no run 'nowhere'"),
        ("ko-KR,ko;q=0.9", "실행 'nowhere'이(가) 없습니다"),
        ("zh-CN", "没有运行 'nowhere'"),
        ("de-DE", "there is no run 'nowhere'"),
    ],
)
def test_errors_come_in_the_language_that_is_asked_for(app: Any, language: str, said: str) -> None:
    request = Request(
        app.url + "/api/v1/runs/nowhere", headers={"Accept-Language": language} if language else {}
    )
    with pytest.raises(HTTPError) as refused:
        urlopen(request)
    assert refused.value.code == 404
    assert json.load(refused.value)["detail"] == said


def test_a_number_out_of_range_comes_in_words(app: Any) -> None:
    body = json.dumps({"prompt": "x", "steps": 0}).encode()
    head = {"Accept-Language": "ko", "Content-Type": "application/json"}
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(app.url + "/api/v1/draw", body, head))
    assert [e["msg"] for e in json.load(refused.value)["detail"]] == ["1 이상이어야 합니다"]


@pytest.mark.parametrize(
    ("language", "said"),
    [("en", "There is no such page"), ("ko", "없는 페이지입니다"), ("zh", "没有这个页面")],
)
def test_a_page_that_is_not_there(app: Any, language: str, said: str) -> None:
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(app.url + "/nowhere", headers={"Accept-Language": language}))
    assert refused.value.code == 404
    page = refused.value.read().decode()
    assert said in page
    assert "This page doesn" not in page


def test_a_report_in_another_language() -> None:
    page = (
        '<html lang="en"><style>main > p{content:"a b"}</style><h2>Best validation loss</h2>'
        '<td>0.1234 at step 5</td><svg aria-label="loss over steps: training 2 to 1; validation 3 to 1, lowest 1">'
        "<li>step 3: out of memory</li><td>A &quot;name&quot; &amp; more</td>"
    )
    assert in_language(page, "en") == page
    assert in_language(page, "zh") == (
        '<html lang="zh"><style>main > p{content:"a b"}</style><h2>最低验证损失</h2>'
        '<td>第 5 步为 0.1234</td><svg aria-label="各步的损失：训练 2 到 1; 验证 3 到 1，最低 1">'
        "<li>step 3: 内存不足</li><td>A &quot;name&quot; &amp; more</td>"
    )


@pytest.mark.main
def test_a_refusal_comes_in_the_page_s_language_and_once(app: Any, open_page: Any) -> None:
    page = open_page(app, "/model", locale="ko-KR")
    field = page.get_by_label("경로 또는 허브 ID")
    for name in ("../outside", "/etc"):
        field.fill(name)
        page.get_by_role("button", name="사용", exact=True).last.click()
        page.locator(".q-notification", has_text=name).wait_for()
    assert page.locator(".q-notification").count() == 1
    assert "작업 공간" in page.locator(".q-notification").inner_text()
