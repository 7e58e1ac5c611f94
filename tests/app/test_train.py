"""The page "Train": from pictures to a run in the queue."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from running import until
from test_accessibility import findings

from hyperbrush.app.ui.browser import COOKIE
from hyperbrush.assets import style_folder
from hyperbrush.files import read_json

Open = Callable[..., Any]
EXAMPLE = "fluent-high-contrast"


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(file, "PNG")
    return file.getvalue()


def files(*names: str) -> list[dict[str, Any]]:
    return [{"name": f"{n}.png", "mimeType": "image/png", "buffer": picture(n.split()[0])} for n in names]


@pytest.fixture
def train(app: Any, open_page: Open) -> Open:
    """Opens the page on an empty draft, that of a new browser."""

    def opened(**options: Any) -> Any:
        return open_page(app, "/train", **options)

    return opened


def draft_of(app: Any, page: Any) -> Path:
    """Where the draft of a page's browser is kept."""
    [cookie] = [one for one in page.context.cookies() if one["name"] == COOKIE]
    return Path(app.root / ".hyperbrush" / "drafts" / f"{cookie['value']}.json")


def drop(page: Any, *names: str) -> None:
    page.get_by_label("Add pictures").set_input_files(files(*names))


def choose(page: Any, label: str, option: str) -> None:
    page.get_by_role("combobox", name=label).click()
    page.get_by_role("option", name=option, exact=True).click()


def name(page: Any) -> Any:
    return page.get_by_label("Name", exact=True)


def make(app: Any, dataset: str, *names: str) -> Path:
    folder = Path(app.root / "datasets" / dataset)
    folder.mkdir(parents=True, exist_ok=True)
    for file in files(*names):
        (folder / file["name"]).write_bytes(file["buffer"])
    return folder


@pytest.mark.main
def test_from_dropped_pictures_to_a_run_in_the_queue(app: Any, train: Open) -> None:
    page = train()
    drop(page, "red square", "green square", "blue square", "gold square")
    page.get_by_text("Pictures added: 4").wait_for()
    page.get_by_text("1–4 of 4").wait_for()
    page.get_by_role("button", name="Start training").click()
    page.get_by_role("listitem").get_by_text("Give the hypernetwork a name").wait_for()
    name(page).fill("page-run")
    page.get_by_role("listitem").get_by_text("Give the hypernetwork a name").wait_for(state="hidden")
    page.get_by_label("Steps").fill("2")
    page.get_by_label("Preview prompts").fill("cat face\nred heart")
    page.get_by_text("More settings").click()
    page.get_by_label("batch_size").fill("2")
    page.get_by_role("button", name="Make the plan").click()
    page.get_by_text("2 of 2 pictures; each is seen 1.0 times").wait_for(timeout=90_000)
    page.get_by_text("4 to train on, 0 held out").wait_for()
    page.get_by_role("button", name="Start training").click()
    page.wait_for_url("**/runs/page-run")
    (job,) = (j for j in app.call("/api/v1/jobs") if j["arguments"].get("run") == "page-run")
    assert app.wait_for(job["id"])["state"] == "done"
    config = (app.root / "runs" / "page-run" / "config.yaml").read_text()
    assert "- cat face\n  - red heart" in config


def test_the_example_is_copied_when_it_is_chosen(app: Any, train: Open) -> None:
    page = train()
    choose(page, "Folder of pictures", "Example: Fluent High Contrast (48 pictures)")
    page.get_by_text("1–24 of 48").wait_for()
    page.get_by_role("button", name="Next").click()
    page.get_by_text("25–48 of 48").wait_for()
    shown = page.locator(".train-picture img").first
    shown.scroll_into_view_if_needed()
    page.wait_for_function("e => e.complete && e.naturalWidth > 0", arg=shown.element_handle())
    copied = {path.name for path in (app.root / "datasets" / EXAMPLE).glob("*.png")}
    assert copied == {path.name for path in (style_folder() / "train").iterdir()}


def test_captions_are_written_at_once(app: Any, train: Open) -> None:
    folder = make(app, "page-captions", "red", "blue")
    page = train()
    choose(page, "Folder of pictures", "page-captions")
    page.get_by_label("Caption of red.png").fill("a red <b>square</b>")
    page.get_by_text("saved").wait_for()
    assert (folder / "red.txt").read_text() == "a red <b>square</b>\n"
    page.reload()
    page.wait_for_function("window.did_handshake")
    page.get_by_label("Caption of red.png").wait_for()
    assert page.get_by_label("Caption of red.png").input_value() == "a red <b>square</b>"
    assert page.get_by_label("Caption of blue.png").input_value() == "blue"


def test_a_removed_picture_comes_back(app: Any, train: Open) -> None:
    folder = make(app, "page-remove", "red", "blue")
    page = train()
    choose(page, "Folder of pictures", "page-remove")
    page.get_by_role("button", name="Remove blue.png").click()
    page.get_by_text("blue.png is in the bin").wait_for()
    page.get_by_text("1–1 of 1").wait_for()
    assert [p.name for p in folder.iterdir()] == ["red.png"]
    page.get_by_role("button", name="Undo").click()
    page.get_by_text("1–2 of 2").wait_for()
    assert sorted(p.name for p in folder.iterdir()) == ["blue.png", "red.png"]


def test_pictures_are_dropped_with_the_mouse(app: Any, train: Open) -> None:
    page = train()
    page.get_by_role("button", name="New folder").click()
    page.get_by_label("Name (a free one if left empty)").fill("page-mouse")
    page.get_by_role("button", name="Make it").click()
    page.get_by_text("Drop more pictures for page-mouse").wait_for()
    content = list(picture("red"))
    page.evaluate(
        """content => {
            const carried = new DataTransfer();
            carried.items.add(new File([new Uint8Array(content)], "a.png", {type: "image/png"}));
            carried.items.add(new File(["한글 캡션"], "a.txt", {type: "text/plain"}));
            carried.items.add(new File(["x"], "b.png", {type: "image/png"}));
            carried.items.add(new File(["x"], "c.zip"));
            document.querySelector(".drop").dispatchEvent(
                new DragEvent("drop", {dataTransfer: carried, bubbles: true, cancelable: true}));
        }""",
        content,
    )
    page.get_by_text("Pictures added: 1; captions: 1").wait_for()
    page.get_by_text("b.png: b.png cannot be read as a picture").wait_for()
    page.get_by_text("c.zip: no picture").wait_for()
    page.get_by_label("Caption of a.png").wait_for()
    assert page.get_by_label("Caption of a.png").input_value() == "한글 캡션"


@pytest.mark.main
def test_what_training_sees_of_a_picture_is_framed(app: Any, train: Open) -> None:
    folder = make(app, "page-crops", "red")
    Image.new("RGB", (400, 200), "blue").save(folder / "wide.png")
    page = train()
    choose(page, "Folder of pictures", "page-crops")
    page.get_by_text("The frame shows what training sees of a picture").wait_for()
    assert page.locator(".train-picture .frame:visible").count() == 1
    card = page.locator(".train-picture", has_text="wide.png")
    outer, inner = (card.locator(part).bounding_box() for part in (".whole", ".frame"))
    assert abs(inner["width"] - outer["width"] / 2) < 1.5  # the middle square of 2 : 1
    assert abs(inner["height"] - outer["height"] / 2) < 1.5
    assert abs(inner["x"] - outer["x"] - outer["width"] / 4) < 1.5
    page.get_by_text("More settings").click()
    page.get_by_label("Find a setting").fill("crop")
    choose(page, "crop", "none")
    page.get_by_text("The frame shows what training sees").wait_for(state="hidden")


def test_all_captions_are_changed_at_once_and_back(app: Any, train: Open) -> None:
    folder = make(app, "page-all", "red", "blue")
    (folder / "red.txt").write_text("kitty, blurry\n")
    page = train()
    choose(page, "Folder of pictures", "page-all")
    page.get_by_text("All captions at once").click()
    page.get_by_label("Put before").fill("ink, ")
    page.get_by_role("button", name="blurry 1").click()
    page.get_by_text("2 of 2 captions change:").wait_for()
    page.get_by_text("kitty, blurry → ink, kitty", exact=True).wait_for()
    assert not findings(page)
    page.get_by_role("button", name="Change captions").click()
    page.get_by_text("Captions changed: 2").wait_for()
    assert page.get_by_label("Caption of red.png").input_value() == "ink, kitty"
    assert (folder / "blue.txt").read_text() == "ink, blue\n"
    page.get_by_role("button", name="Undo").click()
    until(lambda: (folder / "red.txt").read_text() == "kitty, blurry\n", 10)
    until(lambda: not (folder / "blue.txt").exists(), 10)


def test_captions_of_every_kind_are_taken_or_refused_by_name(app: Any, train: Open) -> None:
    make(app, "page-kinds")
    page = train()
    choose(page, "Folder of pictures", "page-kinds")
    page.get_by_text("Drop more pictures for page-kinds").wait_for()
    rows = "\n".join(
        ['{"file_name": "blue.png", "text": "of the rows"}', '{"file_name": "none.png", "text": "x"}']
    )
    more = {
        "metadata.jsonl": rows,
        "red.caption": "of the caption",
        "green.txt": "of the text",
        "other.csv": "a,b",
    }
    texts = [{"name": n, "mimeType": "text/plain", "buffer": text.encode()} for n, text in more.items()]
    page.get_by_label("Add pictures").set_input_files([*texts, *files("red", "green", "blue")])
    page.get_by_text("Pictures added: 3; captions: 3").wait_for()
    for colour, said in (("red", "of the caption"), ("green", "of the text"), ("blue", "of the rows")):
        field = page.get_by_label(f"Caption of {colour}.png")
        field.wait_for()
        assert field.input_value() == said
    page.get_by_text("other.csv: no picture, and no caption (.txt, .caption, metadata.jsonl").wait_for()
    page.get_by_text("there is no picture 'none.png'").wait_for()
    assert page.locator(".file-lines li").count() == 2


def test_the_report_says_what_to_do_in_ones_language(app: Any, train: Open) -> None:
    folder = make(app, "page-report", "red", "blue")
    (folder / "again.png").write_bytes(picture("red"))
    (folder / "broken.png").write_bytes(b"no picture")
    page = train(locale="ko-KR")
    choose(page, "그림 폴더", "page-report")
    page.get_by_text("그림으로 읽을 수 없는 파일입니다").wait_for()
    page.get_by_role("button", name="그림 점검하기").click()
    page.get_by_text("그림 4장 중 3장을 쓸 수 있습니다").wait_for(timeout=60_000)
    page.get_by_text("그림 1장을 쓸 수 없습니다").wait_for()
    page.get_by_text("→ 열어서 다시 저장하거나 빼세요.").wait_for()
    page.get_by_text("(거의) 같은 그림이", exact=False).wait_for()
    assert page.get_by_text("broken.png").count() >= 2  # on its card and in the report
    page.reload()  # the report is still there
    page.get_by_text("그림 4장 중 3장을 쓸 수 있습니다").wait_for()


def test_a_reload_and_a_second_tab_lose_nothing(app: Any, train: Open, open_page: Open) -> None:
    make(app, "page-draft", "red")
    page = train()
    choose(page, "Folder of pictures", "page-draft")
    name(page).fill("kept")
    page.get_by_role("group", name="How long").get_by_text("Balanced").click()
    page.get_by_text("More settings").click()
    choose(page, "loss", "huber")
    draft = draft_of(app, page)
    wanted = {"data": [{"path": "page-draft"}], "name": "kept", "training": {"loss": "huber"}}
    until(lambda: read_json(draft).get("settings") == wanted)
    assert read_json(draft)["presets"] == "balanced"
    second = page.context.new_page()
    second.goto(app.url + "/train")
    for seen in (second, page):
        seen.reload()
        seen.get_by_text("1–1 of 1").wait_for()
        assert name(seen).input_value() == "kept"
        assert seen.get_by_label("Steps").get_attribute("placeholder") == "600"
    assert name(open_page(app, "/train")).input_value() == "", "another browser has a draft of its own"
    name(second).fill("changed")
    until(lambda: read_json(draft)["settings"]["name"] == "changed")
    for asked in ("Start training", "Make the plan"):
        page.get_by_role("button", name=asked).first.click()
        page.get_by_text("Another tab has changed this training").last.wait_for()
    name(second).fill("kept")
    until(lambda: read_json(draft)["settings"]["name"] == "kept")
    over = page.locator("#content").get_by_role("button", name="Start over")
    over.click()
    page.get_by_role("button", name="Keep the draft").click()
    page.get_by_role("dialog").wait_for(state="hidden")
    assert name(page).input_value() == "kept"
    over.click()
    page.get_by_role("dialog").get_by_role("button", name="Start over").click()
    page.get_by_text("Choose a folder, take the example").wait_for()
    assert name(page).input_value() == ""


def test_every_error_stands_beside_the_start(app: Any, train: Open) -> None:
    make(app, "page-errors", "red")
    page = train()
    choose(page, "Folder of pictures", "page-errors")
    page.get_by_label("Learning rate").fill("fast")
    page.get_by_text("More settings").click()
    page.get_by_role("textbox", name="batch_size").fill("0")
    page.get_by_role("textbox", name="weight_init").fill("one")
    page.get_by_role("button", name="Start training").click()
    alert = page.get_by_role("alert").filter(has_text="Mend this first")
    for said in ("Give the hypernetwork a name", "training.learning_rate", "training.batch_size"):
        alert.get_by_text(said).wait_for()
    wrong = page.locator(".q-field--error")  # and each at its field
    wrong.filter(has=page.get_by_label("Learning rate")).get_by_text(
        "expected a number (got 'fast')"
    ).wait_for()
    wrong.filter(has=page.get_by_role("textbox", name="batch_size")).get_by_text(
        "expected 1 or more"
    ).wait_for()
    page.get_by_label("Learning rate").fill("")
    page.get_by_role("textbox", name="batch_size").fill("")
    name(page).fill("page-errors")
    alert.get_by_text("unknown weight_init 'one'").wait_for()
    assert not (app.root / "runs" / "page-errors").exists()
    page.get_by_role("textbox", name="weight_init").fill("zero")
    alert.wait_for(state="hidden")


def test_a_setting_is_found_by_the_webuis_name(app: Any, train: Open) -> None:
    page = train()
    page.get_by_text("More settings").click()
    page.get_by_label("Find a setting").fill("PNG alpha")
    page.get_by_text("In the webui: Use PNG alpha as loss weight.").wait_for()
    page.get_by_label("layer_structure").wait_for(state="hidden")
    page.get_by_text("weights of the loss: the pictures' transparency").wait_for()


def test_a_run_is_cloned_into_the_form(app: Any, train: Open, open_page: Open) -> None:
    make(app, "page-clone", "red")
    training = {"loss": "l1", "max_steps": 1, "batch_size": 1}
    values = {"name": "cloned", "data": "page-clone", "training": training}
    job = app.call("/api/v1/trainings", {"settings": values})["job"]
    app.wait_for(job)
    page = open_page(app, "/train?clone=cloned")
    page.get_by_text("1–1 of 1").wait_for()
    assert name(page).input_value() == "cloned-2"
    assert page.get_by_label("Steps").input_value() == "1"
    assert page.url.endswith("/train")  # a reload clones nothing anew
    page.get_by_text("These are the settings of the run cloned").wait_for()
    apart = page.get_by_role("group", name="Also set")
    apart.get_by_text("training.loss").wait_for()
    apart.get_by_role("button", name="Leave training.loss at its default").click()
    apart.get_by_text("training.loss").wait_for(state="detached")
    apart.get_by_text("training.batch_size").wait_for()
    missing = open_page(app, "/train?clone=nope")
    missing.get_by_text("there is no run 'nope'").wait_for()


def test_words_that_do_nothing_or_are_not_known_are_told_beforehand(train: Open) -> None:
    page = train()
    kind = page.get_by_role("group", name="What is learned")
    idle = page.get_by_text("no caption gets the trigger word")
    unseen = page.get_by_text("The model has never seen these words")
    kind.get_by_text("Captions as they are").click()
    page.get_by_label("Trigger word").fill("inkish")
    idle.wait_for()
    unseen.wait_for(state="hidden")
    kind.get_by_text("A style").click()
    unseen.filter(has_text="inkish").filter(has_text="manner").wait_for()
    idle.wait_for(state="hidden")
    kind.get_by_text("Captions as they are").click()
    unseen.wait_for(state="hidden")
    page.get_by_label("Preview prompts").fill("cat face in gouachery")
    unseen.filter(has_text="gouachery").wait_for()


def test_another_folder_counts_as_it_is_told(app: Any, train: Open) -> None:
    make(app, "page-folders-a", "red")
    make(app, "page-folders-b", "blue")
    page = train()
    choose(page, "Folder of pictures", "page-folders-a")
    page.get_by_text("1–1 of 1").wait_for()
    page.get_by_text("More settings").click()
    page.get_by_role("button", name="Add another folder").click()
    choose(page, "Folder 2", "page-folders-b")
    page.get_by_label("repeats").nth(1).fill("3")
    draft = draft_of(app, page)
    wanted = [{"path": "page-folders-a"}, {"path": "page-folders-b", "repeats": 3}]
    until(lambda: read_json(draft)["settings"]["data"] == wanted)
    make(app, "page-folders-c", "gold")
    page.reload()
    page.get_by_text("More settings", exact=True).click()
    choose(page, "Folder of pictures", "page-folders-c")
    page.get_by_text("Drop more pictures for page-folders-c").wait_for()
    page.locator(".folder").first.get_by_text("page-folders-c").wait_for()
    assert page.locator(".folder").count() == 2


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_with_everything_open(app: Any, train: Open, theme: str) -> None:
    make(app, "page-axe", "red", "blue")
    page = train(color_scheme=theme)
    choose(page, "Folder of pictures", "page-axe")
    page.get_by_text("1–2 of 2").wait_for()
    page.get_by_text("More settings").click()
    page.get_by_label("Find a setting").wait_for()
    page.get_by_role("button", name="Start training").click()
    page.get_by_role("listitem").get_by_text("Give the hypernetwork a name").wait_for()
    page.wait_for_timeout(300)  # transitions of Quasar's fields change colours
    assert not findings(page)


def test_a_phone_needs_no_sideways_scrolling_with_everything_open(app: Any, train: Open) -> None:
    make(app, "page-phone", "red", "blue")
    page = train(width=390)
    choose(page, "Folder of pictures", "page-phone")
    page.get_by_text("1–2 of 2").wait_for()
    page.get_by_text("More settings").click()
    page.get_by_label("Find a setting").wait_for()
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 1


def test_a_diffusion_model_is_trained_from_its_settings(app: Any, train: Open) -> None:
    make(app, "page-other", "red", "blue")
    page = train()
    choose(page, "Folder of pictures", "page-other")
    page.get_by_text("Drop more pictures for page-other").wait_for()
    page.get_by_text("Train something else").click()
    text = page.get_by_label("Settings (YAML)")
    page.wait_for_function("document.querySelector('.yaml textarea').value.includes('page-other')")
    begin = page.get_by_role("button", name="Start training").last
    assert begin.is_disabled()  # it has no name
    page.get_by_label("Name of the run").fill("page-model 100% #1")
    text.fill("kind: diffusion\nstart_from: emoji\nstepz: 1\ndata: {folders: [page-other]}\n")
    page.get_by_text("stepz").last.wait_for()
    short = "training: {steps: 1, batch_size: 2}"
    text.fill(f"kind: diffusion\nstart_from: emoji\ndata: {{folders: [page-other]}}\nprompts: []\n{short}\n")
    page.wait_for_function("![...document.querySelectorAll('button')].pop().disabled")
    assert not findings(page)
    begin.click()
    page.wait_for_url("**/runs/page-model%20100%25%20%231")
    until(lambda: (app.root / "runs/page-model 100% #1/model/model_index.json").is_file(), 60)
