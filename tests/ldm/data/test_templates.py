import re

import pytest

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import read_templates
from hyperbrush.ldm.data.templates import BUNDLED, fill


def test_bundled_sets_have_the_placeholders_their_names_say():
    assert set(BUNDLED) == {
        "none", "hypernetwork", "style", "style_filewords", "subject", "subject_filewords",
    }  # fmt: skip
    for name, lines in BUNDLED.items():
        assert read_templates(name) == lines
        assert len(set(lines)) == len(lines)
        for line in lines:
            found = set(re.findall(r"\[(\w+)\]", line))
            wanted = {"name"} if name.startswith(("style", "subject")) else set()
            wanted |= {"filewords"} if name.endswith("filewords") or name == "hypernetwork" else set()
            assert found == wanted


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeffa [filewords]  by [name]\r\n\r\n[calm] été\n".encode())
    assert read_templates(path) == ("a [filewords] by [name]", "[calm] été")


def test_fill_does_not_look_at_what_it_filled_in():
    assert fill("[name] and [filewords]", "[filewords]", "[name]") == "[filewords] and [name]"
    assert fill("a portrait: [filewords]", "x", "") == "a portrait"


def test_errors(tmp_path):
    with pytest.raises(UserError, match="unknown set of prompt templates 'styl'; did you mean 'style'"):
        read_templates("styl")
    with pytest.raises(UserError, match=r"no file of prompt templates .*gone\.txt; .*subject_filewords"):
        read_templates(tmp_path / "gone.txt")
    path = tmp_path / "a.txt"
    path.write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8 \(byte 3\)"):
        read_templates(path)
    path.write_text("\n \n")
    with pytest.raises(UserError, match="holds no prompt template"):
        read_templates(path)
    path.write_text("ok\na [fileword]")
    with pytest.raises(UserError, match=r"has \[fileword\]; did you mean \[filewords\]"):
        read_templates(path)
