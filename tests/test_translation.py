"""Every English text that the code can say is in the catalogues, with its fields, and is found again by what it becomes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from english import everything

from hyperbrush.cli import main
from hyperbrush.errors import unknown_name
from hyperbrush.translation import FOLDER, LANGUAGES, Catalogue, catalogue, say, terminal_language

OTHERS = LANGUAGES[1:]
PAIRS = re.compile(r"\{\d+\}")


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """English text → where it is said."""
    found = everything()
    assert found.untold == [], "no text was found for these errors: write it where it is raised"
    return found.templates


def said_in(language: str) -> dict[str, str]:
    return dict(json.loads((FOLDER / f"{language}.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("language", OTHERS)
def test_every_text_is_listed(language: str, texts: dict[str, str]) -> None:
    """A new error, or a note beside a picture: it goes into assets/translations, in each language."""
    own = said_in(language)
    assert sorted(f"{where}: {text}" for text, where in texts.items() if text not in own) == []
    assert sorted(own.keys() - texts.keys()) == [], "nothing says these any more"
    assert list(own) == sorted(own)


@pytest.mark.parametrize("language", OTHERS)
def test_it_is_translated_with_every_field(language: str) -> None:
    letters = r"[\uac00-\ud7a3]" if language == "ko" else r"[\u4e00-\u9fff]"
    foreign = [english for english, own in said_in(language).items() if not re.search(letters, own)]
    assert len(foreign) <= 20, foreign  # LoRA, names of settings and commands
    for english, own in said_in(language).items():
        assert sorted(PAIRS.findall(own)) == sorted(PAIRS.findall(english)), english


@pytest.mark.parametrize("language", OTHERS)
def test_what_is_filled_in_is_found(language: str) -> None:
    """Each text with names in its fields becomes its own translation, not that of another."""
    own, wrong = catalogue(language), []
    for english, translated in said_in(language).items():
        if not PAIRS.search(english) or english.startswith(("unknown {0}", "{0}: ")):
            continue
        filled = PAIRS.sub(lambda number: f"<x{number[0][1:-1]}>", english)
        expected = PAIRS.sub(lambda number: f"<x{number[0][1:-1]}>", translated)
        if own.say(filled) != expected:
            wrong.append((filled, own.say(filled)))
    assert len(wrong) <= 0.01 * len(said_in(language)), wrong


def test_fields_are_messages_too() -> None:
    text = "/a.pt is damaged: it is cut off: its header alone has 12 bytes. Copy or download it again"
    assert say(text, "ko") == (
        "/a.pt이(가) 손상되었습니다: 잘려 있습니다: 헤더만 12바이트입니다. 다시 복사하거나 내려받으세요"
    )
    assert say(text, "zh") == "/a.pt 已损坏：文件被截断：仅文件头就有 12 字节。请重新复制或下载"
    assert say(text, "en") == text
    assert say("something that nobody lists", "ko") == "something that nobody lists"


def test_joined_messages_and_lines() -> None:
    joined = (
        "learning_rate: expected more than 0 (got -1.0); cannot write /x: No space left on device; make room"
    )
    assert say(joined, "zh") == "learning_rate: 应大于 0（收到 -1.0）; 无法写入 /x：磁盘空间已满；请腾出空间"
    assert say("no prompt was given\nnothing to mend", "zh") == "没有给出提示词\n没有需要改正的"


def test_names_stay_as_they_are() -> None:
    """What a user wrote is no message, though it reads like one."""
    assert say("there is no run 'no prompt was given'", "ko") == "실행 'no prompt was given'이(가) 없습니다"
    assert say("cannot write model: x", "zh") == "无法写入 model：x"
    assert say("job 1 is running already", "zh") == "任务 1 已经是 运行中"


def test_unknown_names_keep_what_is_known() -> None:
    error = unknown_name("sampler", "Eulr", ["Euler", "DDIM"])
    assert say(str(error), "ko") == "알 수 없는 샘플러 'Eulr'. 혹시 'Euler'인가요? 있는 것: DDIM, Euler"
    assert say(str(unknown_name("preset", "zzz", ["quick"])), "zh") == "未知的预设 'zzz'。可用：quick"


def test_what_says_most_is_taken() -> None:
    own = Catalogue({"cannot read {0}": "1 {0}", "cannot read {0}: {1}; mend it": "2 {1} {0}"})
    assert own.say("cannot read a: b; mend it") == "2 b a"
    assert own.say("place: cannot read a") == "place: 1 a"


@pytest.mark.parametrize(
    ("variables", "language"),
    [
        ({"LANG": "ko_KR.UTF-8"}, "ko"),
        ({"LANG": "ko_KR.UTF-8", "LC_ALL": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "de_DE"}, "en"),
        ({"LANG": "ko_KR", "LC_MESSAGES": "C"}, "en"),
        ({}, "en"),
    ],
)
def test_the_language_of_a_terminal(
    variables: dict[str, str], language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert terminal_language() == language
    assert terminal_language("zh") == "zh"


def test_the_command_line_speaks_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, said in (
        (["--language", "ko", "compare", "x"], "hyperbrush: 바꿀 것이 없습니다: --x KIND=VALUES를 주세요"),
        (["--language", "zh", "compare"], "hyperbrush: 缺少参数 'prompt'。; 见 hyperbrush --help"),
        (["--language", "xx", "list"], "hyperbrush: unknown language 'xx'. Known: en, ko, zh"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert capsys.readouterr().err.startswith(said)
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    with pytest.raises(SystemExit):
        main(["compare", "x"])
    assert "바꿀 것이 없습니다" in capsys.readouterr().err


def test_nothing_is_read_before_it_is_said() -> None:
    program = "import sys, hyperbrush, hyperbrush.cli; from hyperbrush.translation import catalogue\n"
    program += "print(catalogue.cache_info().currsize, 'hyperbrush.translation' in sys.modules)"
    found = subprocess.check_output([sys.executable, "-c", program], text=True, cwd=Path(__file__).parent)
    assert found.split()[0] == "0"
