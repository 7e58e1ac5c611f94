"""The docs as a site: built strictly (every link and anchor), three languages on the main path, searchable, nobody else asked."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MAIN_PATH = ["index", *(f"guide/{name}" for name in ("old-files", "train", "generate", "web-app", "models"))]
LOADED = re.compile(
    r"""<(?:script|img|link|iframe|source|video)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"' >]+)"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 60
    asked = {(page.name, url) for page in pages for url in LOADED.findall(page.read_text(encoding="utf-8"))}
    assert asked == set()
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.findall(r"(?:@import|url\()\s*[\"']?https?:", styles)


def test_the_main_path_is_written_in_three_languages(site: Path) -> None:
    for page in MAIN_PATH:
        english = (DOCS / f"{page}.md").read_text(encoding="utf-8")
        code = re.findall(r"```(?:sh|python)\n.*?```", english, re.S)
        for language, letters in (("ko", r"[\uac00-\ud7a3]"), ("zh", r"[\u4e00-\u9fff]")):
            own = (DOCS / f"{page}.{language}.md").read_text(encoding="utf-8")
            assert re.findall(r"```(?:sh|python)\n.*?```", own, re.S) == code, (page, language)
            assert own.count("\n#") == english.count("\n#"), (page, language)
            shown = (site / language / f"{page}.html").read_text(encoding="utf-8")
            assert f'lang="{language}"' in shown
            assert len(re.findall(letters, shown)) > 200, (page, language)


def test_it_is_searched_and_read_by_programs(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    places = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {"guide/train.html", "api.html", "messages.html", "ko/guide/train.html"} <= places
    names = re.findall(r"\]\(([^)]+)\)", (site / "llms.txt").read_text(encoding="utf-8"))
    assert "guide/train.md" in names
    assert all((site / name).is_file() for name in names)


def test_what_python_offers_is_in_the_reference(site: Path) -> None:
    import hyperbrush

    shown = (site / "api.html").read_text(encoding="utf-8")
    for name in hyperbrush.__all__:
        if name != "__version__":
            home = getattr(hyperbrush, name)
            assert f'id="{home.__module__}.{home.__qualname__}"' in shown, name
