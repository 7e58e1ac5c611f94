"""The page of hypernetworks in a real browser: what a person sees, edits, brings in and takes away."""

import base64
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from running import until

from hyperbrush.hypernetworks import AttentionHypernetwork, load

REFERENCE = Path(__file__).parents[1] / "hypernetworks" / "reference"
Open = Callable[..., Any]


def network(path: Path, seed: int = 0, **settings: Any) -> Path:
    torch.manual_seed(seed)
    settings = {"activation": "relu", "weight_init": "XavierNormal", "name": path.stem} | settings
    path.parent.mkdir(parents=True, exist_ok=True)
    return AttentionHypernetwork((8,), **settings).save(path)


@pytest.fixture
def folder(app: Any) -> Path:
    path = Path(app.root) / "models" / "hypernetworks"
    path.mkdir(parents=True, exist_ok=True)
    return path


def card_of(page: Any, name: str) -> Any:
    card = page.locator("article").filter(has=page.get_by_role("heading", name=name, exact=True))
    card.wait_for()
    return card


def until_file(path: Path, holds: Callable[[Path], bool]) -> None:
    until(lambda: path.exists() and holds(path), 20)


def test_cards_say_what_there_is_and_new_files_appear(app: Any, open_page: Open, folder: Path) -> None:
    network(folder / "page one.pt", step=12)
    (folder / "page one.json").write_text(
        '{"activation text": "one word", "preferred weight": 0.6, "notes": "N"}'
    )
    (folder / "page-broken.pt").write_bytes(b"<b>nothing</b>")
    page = open_page(app, "/hypernetworks")
    card = card_of(page, "page one")
    for badge in ("Hypernetwork", "8", "Step 12"):
        card.get_by_text(badge, exact=True).wait_for()
    assert card.get_by_label("Trigger words").input_value() == "one word"
    assert card.get_by_label("Strength").input_value() == "0.6"
    card_of(page, "page-broken").get_by_text("It cannot be used").wait_for()
    network(folder / "page late.safetensors")
    card_of(page, "page late")
    (folder / "page-broken.pt").unlink()
    page.get_by_role("heading", name="page-broken").wait_for(state="detached")


def test_a_click_leads_to_the_prompt(app: Any, open_page: Open, folder: Path) -> None:
    network(folder / "click & go.pt")
    page = open_page(app, "/hypernetworks")
    link = card_of(page, "click & go").get_by_role("link")
    assert link.get_attribute("href") == "/?add=click%20%26%20go"
    link.press("Enter")
    page.wait_for_url("**/?add=click*")


def test_notes_are_saved_as_they_are_typed_and_escape_takes_back(
    app: Any, open_page: Open, folder: Path
) -> None:
    network(folder / "typed.pt")
    side = folder / "typed.json"
    page, other = open_page(app, "/hypernetworks"), open_page(app, "/hypernetworks")
    card = card_of(page, "typed")
    words = card.get_by_label("Trigger words")
    words.press_sequentially("oil on canvas")
    until_file(side, lambda p: json.loads(p.read_text())["activation text"] == "oil on canvas")
    card.get_by_text("Saved").wait_for()
    words.blur()
    words.press("End")
    words.press_sequentially(", and more")
    until_file(side, lambda p: json.loads(p.read_text())["activation text"].endswith("more"))
    words.press("Escape")
    until_file(side, lambda p: json.loads(p.read_text())["activation text"] == "oil on canvas")
    card.get_by_label("Strength").fill("0.75")
    card.get_by_label("Notes").fill("seen in a museum")
    until_file(side, lambda p: json.loads(p.read_text())["preferred weight"] == 0.75)
    until_file(side, lambda p: json.loads(p.read_text())["notes"] == "seen in a museum")
    page.reload()
    assert card_of(page, "typed").get_by_label("Trigger words").input_value() == "oil on canvas"
    elsewhere = card_of(other, "typed").get_by_label("Notes")  # the other tab shows it by itself
    other.wait_for_function("e => e.value === 'seen in a museum'", arg=elsewhere.element_handle())


def test_search_and_sort(own_app: Any, open_page: Open) -> None:
    app = own_app()
    folder = app.root / "models" / "hypernetworks"
    network(folder / "alpha.pt")
    network(folder / "beta.pt", layer_structure=(1, 4, 4, 1))
    network(folder / "gamma.pt")
    (folder / "gamma.json").write_text('{"activation text": "mountains"}')
    page = open_page(app, "/hypernetworks")
    card_of(page, "gamma")
    names = page.locator("article h2")
    assert names.all_inner_texts() == ["alpha", "beta", "gamma"]
    page.get_by_label("Sort by").click()
    page.get_by_role("option", name="Largest first").click()
    page.wait_for_function("document.querySelector('article h2').innerText === 'beta'")
    search = page.get_by_label("Search names, words and models")
    search.fill("mountains")
    page.get_by_role("heading", name="beta").wait_for(state="detached")
    assert names.all_inner_texts() == ["gamma"]
    search.fill("nothing like it")
    page.get_by_text("Nothing fits “nothing like it”.").wait_for()
    search.fill("")
    card_of(page, "alpha")


def test_import_keeps_what_is_sound(app: Any, open_page: Open, folder: Path) -> None:
    page = open_page(app, "/hypernetworks")
    field = page.locator("input[type=file]")
    field.set_input_files(str(REFERENCE / "webui-009-swish.pt"))
    page.get_by_text("webui-009-swish.pt is sound and kept as webui-009-swish.").wait_for()
    card_of(page, "webui-009-swish")
    field.set_input_files(str(REFERENCE / "webui-009-swish.pt"))
    card_of(page, "webui-009-swish-2")
    assert (folder / "webui-009-swish-2.pt").read_bytes() == (REFERENCE / "webui-009-swish.pt").read_bytes()


def test_each_imported_file_has_a_line_and_those_refused_come_first(app: Any, open_page: Open) -> None:
    page = open_page(app, "/hypernetworks")
    sound = (REFERENCE / "webui-009-swish.pt").read_bytes()
    files = [
        {"name": f"many-{number}.pt", "mimeType": "", "buffer": b"nothing" if number in (1, 3) else sound}
        for number in range(5)
    ]
    page.locator("input[type=file]").set_input_files(files)
    page.get_by_text("3 of 5 kept, 2 refused").wait_for()
    said = page.locator(".file-lines li").all_inner_texts()
    assert [line.split()[0] for line in said] == [f"many-{n}.pt" for n in (1, 3, 0, 2, 4)]
    assert all("was not kept" in line for line in said[:2])
    assert all("is sound and kept as" in line for line in said[2:])
    page.bad.clear()  # the browser's console tells of the refusals (400) too
    page.locator("input[type=file]").set_input_files(files[:1])
    page.locator(".file-lines").get_by_text("many-3.pt").wait_for(state="detached")
    page.get_by_text("many-0.pt is sound and kept as many-0-2.").wait_for()


@pytest.mark.main
def test_a_dropped_file_is_imported_and_a_broken_one_refused(app: Any, open_page: Open, folder: Path) -> None:
    page = open_page(app, "/hypernetworks")
    before = sorted(folder.rglob("*"))
    drop = """([name, content]) => {
      const carried = new DataTransfer();
      carried.items.add(new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], name));
      document.querySelector(".network-drop").dispatchEvent(
        new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(drop, ["dropped <i>.pt", "bm90aGluZw=="])
    page.get_by_text("was not kept: dropped <i>.pt is damaged or no torch file").wait_for()
    page.bad.clear()  # the browser's console tells of the refusal (400) too
    assert sorted(folder.rglob("*")) == before
    page.evaluate(drop, ["dropped.pt", base64.b64encode((REFERENCE / "bare-2.pt").read_bytes()).decode()])
    card_of(page, "dropped")


def test_inspect_says_everything(app: Any, open_page: Open, folder: Path) -> None:
    network(folder / "looked at.pt", step=44)
    page = open_page(app, "/hypernetworks")
    card_of(page, "looked at").get_by_role("button", name="Inspect").click()
    dialog = page.get_by_role("dialog")
    for text in ("SHA-256", "Read by", "width", "8 → 16 → 8", "relu", "44"):
        dialog.get_by_text(text).first.wait_for()
    dialog.get_by_label("Description").fill("made for looking")
    until_file(folder / "looked at.txt", lambda p: p.read_text() == "made for looking\n")
    dialog.get_by_role("button", name="Close").click()
    card_of(page, "looked at").get_by_text("made for looking").wait_for()


def test_export_ends_in_a_download(app: Any, open_page: Open, folder: Path, tmp_path: Path) -> None:
    network(folder / "sent.pt", seed=3)
    page = open_page(app, "/hypernetworks")
    card_of(page, "sent").get_by_role("button", name="Export").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Format").click()
    page.get_by_role("option", name="hyperbrush (.safetensors)").click()
    with page.expect_download() as coming:
        dialog.get_by_role("button", name="Export").click()
    assert coming.value.suggested_filename == "sent.safetensors"
    coming.value.save_as(tmp_path / "sent.safetensors")
    for key, value in load(folder / "sent.pt").state_dict().items():
        torch.testing.assert_close(load(tmp_path / "sent.safetensors").state_dict()[key], value)
    page.reload()  # the export is still listed
    row = page.get_by_label("Exports").locator(".notice").filter(has_text="sent →")
    with page.expect_download() as again:
        row.get_by_role("link", name="Download").first.click()
    assert again.value.suggested_filename == "sent.safetensors"


@pytest.mark.slow
def test_export_of_a_lora_for_the_model(app: Any, open_page: Open, folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    AttentionHypernetwork(
        (128, 256), activation=None, layer_structure=(1, 1), weight_init="XavierNormal"
    ).save(folder / "carry.pt")
    page = open_page(app, "/hypernetworks")
    card_of(page, "carry").get_by_role("button", name="Export").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Format").click()
    page.get_by_role("option", name="LoRA for PEFT").click()
    dialog.get_by_label("Rank").fill("2")
    with page.expect_download(timeout=120_000) as coming:
        dialog.get_by_role("button", name="Export").click()
    coming.value.save_as(tmp_path / "x.zip")
    assert any(
        name.endswith("adapter_config.json") for name in zipfile.ZipFile(tmp_path / "x.zip").namelist()
    )


def test_merge_two(app: Any, open_page: Open, folder: Path) -> None:
    a, b = load(network(folder / "left.pt", 1)), load(network(folder / "right.pt", 2))
    page = open_page(app, "/hypernetworks")
    for name in ("left", "right"):
        card_of(page, name).get_by_role("checkbox").click()
    page.get_by_role("button", name="Merge the chosen…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Weight of left").fill("0.2")
    dialog.get_by_label("Weight of right").fill("0.8")
    dialog.get_by_label("Name").fill("both sides")
    dialog.get_by_role("button", name="Merge").click()
    card_of(page, "both sides")
    merged = load(folder / "both sides.safetensors").state_dict()
    for key, value in a.state_dict().items():
        torch.testing.assert_close(merged[key], 0.2 * value + 0.8 * b.state_dict()[key])
    page.get_by_role("button", name="Merge the chosen…").wait_for(state="hidden")


@pytest.mark.main
def test_several_at_once_are_tagged_moved_exported_and_deleted(
    app: Any, open_page: Open, folder: Path
) -> None:
    names = ("many one", "many two")
    for name in names:
        network(folder / f"{name}.pt")
    page = open_page(app, "/hypernetworks", width=390)
    page.get_by_label("Search names").fill("many")
    for name in names:
        card_of(page, name).get_by_role("checkbox").click()
    bar = page.locator(".network-chosen")
    bar.get_by_text("2 chosen: many one, many two").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    dialog = page.get_by_role("dialog")
    bar.get_by_role("button", name="Tag").click()
    dialog.get_by_label("New tags").fill("flat, ink")
    dialog.get_by_role("button", name="Tag").click()
    dialog.wait_for(state="hidden")
    for name in names:
        card_of(page, name).get_by_text("ink", exact=True).wait_for()
    bar.get_by_role("button", name="Export…").click()
    dialog.get_by_text("Export many one, many two").wait_for()
    with page.expect_download() as first, page.expect_download(lambda one: "two" in one.suggested_filename):
        dialog.get_by_role("button", name="Export").click()
    assert first.value.suggested_filename.startswith("many ")
    bar.get_by_role("button", name="Move").click()
    dialog.get_by_label("Folder").fill("together")
    dialog.get_by_role("button", name="Move").click()
    dialog.wait_for(state="hidden")
    until(lambda: len(list((folder / "together").glob("many *.pt"))) == 2)
    bar.wait_for(state="hidden")
    page.get_by_label("Search names").fill("many ink")  # tags are found
    for name in names:
        card_of(page, name).get_by_role("checkbox").click()
    bar.get_by_text("2 chosen: many one, many two").wait_for()
    bar.get_by_role("button", name="Delete").click()
    page.get_by_role("heading", name="many one").wait_for(state="detached")
    until(lambda: not list((folder / "together").glob("many *")))
    page.get_by_role("button", name="Undo").click()
    for name in names:
        card_of(page, name)
    assert len(list((folder / "together").glob("many *.pt"))) == 2


def more(page: Any, name: str, what: str) -> None:
    card_of(page, name).get_by_role("button", name=f"More for {name}").click()
    page.get_by_role("menu").get_by_text(what, exact=True).click()


@pytest.mark.main
def test_rename_delete_undo_and_the_bin(app: Any, open_page: Open, folder: Path) -> None:
    network(folder / "old name.pt")
    (folder / "old name.json").write_text('{"notes": "stays"}')
    page = open_page(app, "/hypernetworks")
    more(page, "old name", "Rename")
    field = page.get_by_role("dialog").get_by_label("Name")
    field.fill("bad/name")
    field.press("Enter")
    page.get_by_text("cannot be a file's").wait_for()
    field.fill("new name")
    field.press("Enter")
    assert card_of(page, "new name").get_by_label("Notes").input_value() == "stays"
    assert not (folder / "old name.json").exists()
    more(page, "new name", "Delete")
    page.get_by_role("heading", name="new name").wait_for(state="detached")
    assert not (folder / "new name.pt").exists()
    page.get_by_role("button", name="Undo").click()
    card_of(page, "new name")
    more(page, "new name", "Delete")
    page.get_by_role("heading", name="new name").wait_for(state="detached")
    page.reload()
    page.get_by_text("Bin (").click()
    page.get_by_role("button", name="Restore: new name").click()
    card_of(page, "new name")
    assert json.loads((folder / "new name.json").read_text())["notes"] == "stays"


def test_removed_for_good_only_after_a_question(app: Any, open_page: Open, folder: Path) -> None:
    network(folder / "rubbish.pt")
    page = open_page(app, "/hypernetworks")
    more(page, "rubbish", "Delete")
    page.get_by_text("Bin (").click()
    page.get_by_role("button", name="Remove for good: rubbish").click()
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    assert "rubbish" in [item["name"] for item in app.call("/api/v1/bin")]
    page.get_by_role("button", name="Remove for good: rubbish").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove for good").click()
    page.get_by_role("button", name="Remove for good: rubbish").wait_for(state="detached")
    assert "rubbish" not in [item["name"] for item in app.call("/api/v1/bin")]


def test_preview_from_a_drawing_and_from_a_file(
    app: Any, open_page: Open, folder: Path, tmp_path: Path
) -> None:
    network(folder / "pictured.pt")
    drawn = app.root / "outputs" / "2031-01-01" / "00000-9.png"
    drawn.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), "lime").save(drawn)
    page = open_page(app, "/hypernetworks")
    more(page, "pictured", "Set the preview")
    page.get_by_role("button", name="Picture 2031-01-01/00000-9.png").click()
    card_of(page, "pictured").get_by_alt_text("Preview of pictured").wait_for()
    assert Image.open(folder / "pictured.preview.png").getpixel((3, 3)) == (0, 255, 0)
    Image.new("RGB", (32, 32), "navy").save(tmp_path / "navy.jpg")
    more(page, "pictured", "Set the preview")
    dialog = page.get_by_role("dialog")
    dialog.locator("input[type=file]").set_input_files(str(tmp_path / "navy.jpg"))
    dialog.wait_for(state="detached")
    red, green, blue = Image.open(folder / "pictured.preview.png").convert("RGB").resize((1, 1)).tobytes()
    assert (red < 10, green < 10, blue > 100) == (True, True, True)


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_for_axe_and_no_sideways_scrolling(
    app: Any, open_page: Open, folder: Path, width: int, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    network(folder / ("a name that is long enough to be broken " + "x" * 60 + ".pt"))
    page = open_page(app, "/hypernetworks", width=width, color_scheme=scheme, reduced_motion="reduce")
    card_of(page, "a name that is long enough to be broken " + "x" * 60)
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    still = "[...document.querySelectorAll('.q-loading-bar')].every(bar => bar.getAttribute('aria-hidden'))"

    def serious() -> str:
        page.wait_for_function(still)
        found = axe.Axe().run(page).response["violations"]
        bad = [v for v in found if v["impact"] in ("serious", "critical")]
        return "\n".join(
            f"{v['id']} {n['html'][:200]} {n['failureSummary']}" for v in bad for n in v["nodes"]
        )

    assert not serious(), serious()
    if width > 1000:
        page.get_by_role("button", name="Export").first.click()
        page.get_by_role("dialog").get_by_label("Format").wait_for()
        page.wait_for_function("getComputedStyle(document.querySelector('.dialog')).opacity === '1'")
        assert not serious(), serious()


@pytest.mark.parametrize(
    ("locale", "word", "badge"), [("ko-KR", "트리거 단어", "하이퍼네트워크"), ("zh-CN", "触发词", "超网络")]
)
def test_other_languages(app: Any, open_page: Open, folder: Path, locale: str, word: str, badge: str) -> None:
    network(folder / "spoken.pt")
    page = open_page(app, "/hypernetworks", locale=locale)
    card = card_of(page, "spoken")
    card.get_by_label(word).wait_for()
    card.get_by_text(badge, exact=True).wait_for()
