"""What the site has beside the written pages: every message that the program says, in its three languages, and llms.txt."""

import html
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

SHIM = "https://unpkg.com/iframe-worker/shim"
TRANSLATIONS = Path(__file__).parents[1] / "src/hyperbrush/assets/translations"


@event_priority(-100)  # after the languages, which want files of the disk
def on_files(files: Files, config: Any) -> Files:
    """Add the page of messages, once for each language the site is built in."""
    page = File.generated(config, "messages.md", content=messages())
    if (language := config.theme["language"]) != "en":
        page.dest_uri = f"{language}/{page.dest_uri}"
    files.append(page)
    return files


def on_post_page(output: str, page: Any, config: Any) -> str:
    """The offline plugin's one request to another host becomes a file of the site."""
    return output.replace(SHIM, "../" * page.url.count("/") + "iframe-worker.js")


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """The same of 404.html, which is shown under any address."""
    return output.replace(SHIM, "/iframe-worker.js")


def on_post_build(config: Any) -> None:
    """Write llms.txt (llmstxt.org): what there is, in the words of the pages' beginnings, with the Markdown itself beside."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    for section in config.nav:
        ((title, inside),) = section.items()
        lines += [f"## {title}", ""]
        for entry in [inside] if isinstance(inside, str) else inside:
            name = entry if isinstance(entry, str) else next(iter(entry.values()))
            source = Path(config.docs_dir) / name
            if not source.is_file():
                continue
            text = source.read_text("utf-8")
            target = Path(config.site_dir) / name
            target.write_text(text, "utf-8")
            head, first = re.match(r"# (.+)\n\n((?:[^\n].*\n)*)", text).groups()  # type: ignore[union-attr]
            first = re.sub(r"\[([^]]+)]\([^)]*\)", r"\1", " ".join(first.split()))
            lines.append(
                f"- [{head}]({name}): {first}"
                if not first.startswith(("```", "|"))
                else f"- [{head}]({name})"
            )
        lines.append("")
    (Path(config.site_dir) / "llms.txt").write_text("\n".join(lines), "utf-8")


def messages() -> str:
    """Tables by first letter: English, Korean, Chinese."""
    ko, zh = (json.loads((TRANSLATIONS / f"{name}.json").read_text("utf-8")) for name in ("ko", "zh"))
    letters: dict[str, list[str]] = {}
    for english in sorted(ko, key=str.casefold):
        first = next((sign.upper() for sign in english if sign.isalpha()), "")
        row = f"| {_cell(english)} | {_cell(ko[english])} | {_cell(zh[english])} |"
        letters.setdefault(first, []).append(row)
    lines = [
        "---\nsearch:\n  boost: 0.1\n---\n# Every message\n",
        "What the program says, `…` standing for names, numbers and files, by the first letter of its own words.",
    ]
    for letter, rows in sorted(letters.items()):
        lines += [f"\n## {letter}\n", "| English | 한국어 | 中文 |", "|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """A text of the catalogue with its fields as dots, safe in a table."""
    for number in range(12):
        text = text.replace(f"{{{number}}}", "…")
    text = html.escape(text, quote=False)
    for sign in "\\`*_[]|~$":
        text = text.replace(sign, f"&#{ord(sign)};")
    return text.replace("\n", "<br>")
