"""The gallery without a browser: what its index knows, what is starred, deleted, restored, used and compared."""

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from hyperbrush.app.create.work import keep
from hyperbrush.app.gallery import index as gallery_index
from hyperbrush.app.gallery import service as gallery
from hyperbrush.app.gallery.index import Query
from hyperbrush.app.gallery.page import GalleryPage
from hyperbrush.app.jobs.context import JobContext
from hyperbrush.app.jobs.worker import Worker
from hyperbrush.app.site import Site
from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import NotThere, UserError
from hyperbrush.files import write_json
from hyperbrush.generation import Picture
from hyperbrush.generation.infotext import Infotext
from hyperbrush.generation.picture_files import save_picture

CAT = "a Cat, blue\nNegative prompt: dog\nSteps: 2, Sampler: Euler a, CFG scale: 4, Seed: {seed}, Size: 64x64, Version: hyperbrush"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(Workspace(tmp_path))


def picture(
    site: Site,
    name: str,
    text: str = CAT.format(seed=7),
    size: tuple[int, int] = (64, 64),
    age: float = 100.0,
) -> Path:
    """A drawn picture, so many seconds old."""
    path = site.workspace.folder("outputs") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(Image.new("RGB", size, "teal"), path, text)
    _date(path, age)
    return path


def _date(path: Path, age: float) -> None:
    when = time.time_ns() - int(age * 1e9)
    os.utime(path, ns=(when, when))


def job(site: Site, kind: str, *names: str) -> Path:
    """A finished job with pictures in its folder."""
    folder = site.jobs.folder / f"{int(time.time() * 1e6):014x}{len(site.jobs.ids()):04x}"
    write_json(folder / "job.json", {"kind": kind, "arguments": {}, "device": "cpu", "created": time.time()})
    write_json(folder / "state.json", {"state": "done", "started": 1.0, "attempts": 1, "ended": time.time()})
    for name in names:
        save_picture(Image.new("RGB", (32, 48), "red"), folder / name, f"{kind} of {name}\nSteps: 3, Seed: 1")
    return folder


def listed(site: Site, query: Query | None = None) -> list[str]:
    count, found = site.gallery.find(query or Query(), most=1000)
    assert count == len(found)
    return [one.place for one in found]


def only(site: Site) -> gallery_index.Shown:
    [one] = site.gallery.find(Query())[1]
    return one


def test_everything_drawn_is_there_the_newest_first(site: Site) -> None:
    picture(site, "2026-01-02/00001-7.png", age=10)
    picture(site, "2026-01-01/00000-3.png", age=20)
    picture(site, "from the shell.jpg", "a horse\nSteps: 9, Seed: 5", age=5)
    picture(site, "2026-01-01/old/bare.webp", "", age=30)
    grid = job(site, "compare", "grid.png", "preview.png")
    style = job(site, "style", "without-0.png", "with-0.png", "preview.png")
    job(site, "draw", "preview.png")
    (site.workspace.folder("outputs") / "notes.txt").write_text("no picture")
    odd = site.workspace.folder("outputs") / os.fsdecode(b"caf\xe9.png")
    odd.write_bytes((site.workspace.folder("outputs") / "2026-01-02/00001-7.png").read_bytes())
    (site.workspace.folder("outputs") / "broken.png").write_bytes(b"\x89PNG nothing")
    assert site.gallery.refresh()
    found = listed(site)
    assert found[-4:] == [
        "from the shell.jpg", "2026-01-02/00001-7.png", "2026-01-01/00000-3.png", "2026-01-01/old/bare.webp"
    ]  # fmt: skip
    assert set(found[:-4]) == {
        f"{grid.name}/grid.png", f"{style.name}/without-0.png", f"{style.name}/with-0.png"
    }  # fmt: skip
    assert listed(site, Query(kind="grid")) == [f"{grid.name}/grid.png"]
    _, [horse] = site.gallery.find(Query(words="HORSE steps:"))
    assert (horse.prompt, horse.width, horse.height, horse.job) == ("a horse", 64, 64, "")
    assert site.gallery.find(Query(kind="grid"))[1][0].job == grid.name
    assert listed(site, Query(words="blue cat")) == ["2026-01-02/00001-7.png", "2026-01-01/00000-3.png"]
    assert listed(site, Query(words="blue horse")) == []


def test_a_folder_is_listed_again_only_where_it_has_changed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(3):
        for number in range(4):
            picture(site, f"day{day}/{number}.png")
    outputs = site.workspace.folder("outputs")
    for folder in [*outputs.iterdir(), outputs]:
        _date(folder, 50)  # or it might change again within the clock's tick
    assert site.gallery.refresh()
    seen: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(
        gallery_index.os, "scandir", lambda path: (seen.append(Path(path).name), scan(path))[1]
    )
    assert not site.gallery.refresh()
    assert not Site(site.workspace).gallery.refresh()  # also after a restart
    assert seen == []
    (outputs / "day1/2.png").unlink()
    picture(site, "day1/4.png")
    assert site.gallery.refresh()
    assert seen == ["day1"]
    found = listed(site)
    assert "day1/4.png" in found
    assert "day1/2.png" not in found
    assert len(found) == 12


def test_what_is_replaced_removed_or_elsewhere_is_followed(site: Site, tmp_path: Path) -> None:
    path = picture(site, "a/1.png")
    site.gallery.refresh()
    picture(site, "a/1.png", "another thing\nSteps: 4, Seed: 5", age=50)
    assert site.gallery.refresh()
    assert only(site).prompt == "another thing"
    path.unlink()
    path.parent.rmdir()
    site.gallery.refresh()
    assert listed(site) == []
    picture(site, "b.png")
    site.gallery.refresh()
    site.workspace.prefer(outputs="elsewhere")
    picture(site, "c.png")
    site.gallery.refresh()
    assert listed(site) == ["c.png"]


def test_links_that_lead_out_are_not_followed(site: Site, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    save_picture(Image.new("RGB", (8, 8)), outside / "secret.png", "x")
    outputs = site.workspace.folder("outputs")
    (outputs / "linked").symlink_to(outside)
    (outputs / "one.png").symlink_to(outside / "secret.png")
    site.gallery.refresh()
    assert listed(site) == []


def test_a_damaged_index_is_made_anew(site: Site) -> None:
    picture(site, "1.png")
    site.gallery.refresh()
    site.gallery.file.write_bytes(b"this is no database" * 1000)
    again = Site(site.workspace)
    assert again.gallery.refresh()
    assert listed(again) == ["1.png"]
    assert again.gallery.file.with_suffix(".damaged").exists()


def test_an_index_of_another_version_keeps_its_stars(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(site, "1.png")
    site.gallery.refresh()
    gallery.star(site, only(site).id, True)
    monkeypatch.setattr(gallery_index, "VERSION", 99)
    again = Site(site.workspace)
    assert listed(again) == []
    again.gallery.refresh()
    assert only(again).starred


def test_stars(site: Site) -> None:
    picture(site, "1.png", age=10)
    picture(site, "2.png", age=20)
    style = job(site, "style", "with-0.png")
    site.gallery.refresh()
    ids = {one.place: one.id for one in site.gallery.find(Query())[1]}
    assert gallery.star(site, ids["2.png"], True).starred
    gallery.star(site, ids[f"{style.name}/with-0.png"], True)
    assert "2.png" in listed(site, Query(starred=True))
    assert site.gallery.starred_jobs() == {style.name}, "its job is not tidied away"
    assert not gallery.star(site, ids["2.png"], False).starred
    assert listed(site, Query(starred=True)) == [f"{style.name}/with-0.png"]
    with pytest.raises(NotThere, match="no picture 'nothing'"):
        gallery.star(site, "nothing", True)


def test_deleted_and_back_with_its_star(site: Site) -> None:
    path = picture(site, "2026-01-01/00000-7.png")
    content = path.read_bytes()
    site.gallery.refresh()
    one = only(site)
    gallery.star(site, one.id, True)
    [item] = gallery.delete(site, [one.id])
    assert not path.exists()
    assert listed(site) == []
    picture(site, "2026-01-01/00000-7.png", "in its place\nSteps: 1, Seed: 2")  # drawn meanwhile
    site.gallery.refresh()
    assert not only(site).starred
    back = gallery.restore(site, item.id)
    assert back.place == "2026-01-01/00000-7-2.png"
    assert back.starred
    assert back.path.read_bytes() == content
    with pytest.raises(NotThere):
        gallery.restore(site, item.id)
    [item] = gallery.delete(site, [back.id])
    gallery.erase(site, item.id)
    assert site.workspace.trash.items("drawing") == []


def test_a_grid_comes_back_to_its_job_or_where_that_is_gone_to_the_outputs(site: Site) -> None:
    folder = job(site, "compare", "grid.png")
    site.gallery.refresh()
    one = only(site)
    [item] = gallery.delete(site, [one.id])
    assert gallery.restore(site, item.id).path == folder / "grid.png"
    [item] = gallery.delete(site, [one.id])
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    back = gallery.restore(site, item.id)
    assert back.kind == "drawing"
    assert back.name == f"{folder.name}-grid.png"
    assert back.path.is_relative_to(site.workspace.folder("outputs"))


def test_nothing_is_restored_outside(site: Site) -> None:
    path = picture(site, "1.png")
    item = site.workspace.trash.put("drawing", "1.png", [path], place="drawing::../../evil.png")
    with pytest.raises(UserError, match="cannot be restored"):
        gallery.restore(site, item.id)


def test_what_is_gone_already_keeps_no_other_from_being_deleted(site: Site) -> None:
    gone, path = picture(site, "1.png", age=10), picture(site, "2.png", age=20)
    site.gallery.refresh()
    chosen = [one.id for one in site.gallery.find(Query())[1]]
    gone.unlink()
    assert [item.name for item in gallery.delete(site, chosen)] == ["2.png"]
    assert not path.exists()
    assert listed(site) == []


def test_a_slow_look_is_not_shown_after_a_later_one() -> None:
    """As a search for a letter that ends after that for the word."""
    ends = threading.Event()

    def read(_: Any) -> tuple[int, list[Any]]:
        first = page.view is slow
        if first:
            ends.wait(10)
        return (26 if first else 2), []

    shown: list[int] = []
    slow, quick = SimpleNamespace(read=read), SimpleNamespace(read=read)
    page: Any = SimpleNamespace(site=None, view=slow, _reads=0, _arrange=lambda count, _: shown.append(count))

    async def search() -> None:
        first = asyncio.create_task(GalleryPage._read(page))
        await asyncio.sleep(0.05)
        page.view = quick
        await GalleryPage._read(page)
        ends.set()
        await first

    with ThreadPoolExecutor(1) as threads:  # Playwright's own loop may be running in this one
        threads.submit(asyncio.run, search()).result()
    assert shown == [2]


def test_a_deleted_pictures_number_is_not_given_again(site: Site) -> None:
    worker = Worker(site.workspace, "cpu")
    context = JobContext(site.jobs, site.submit("draw", {"prompt": "cat"}).id, worker)
    drawn = Picture(Image.new("RGB", (32, 32), "teal"), Infotext(prompt="cat", seed=7))
    files = [keep(context, drawn)["file"]]
    site.gallery.refresh()
    [item] = gallery.delete(site, [only(site).id])
    files.append(keep(context, drawn)["file"])
    assert [Path(file).name for file in files] == ["00000-7.png", "00001-7.png"]
    assert gallery.restore(site, item.id).place == files[0], "its own place is free still"


def test_its_settings_are_for_the_form(site: Site) -> None:
    picture(site, "1.png")
    site.gallery.refresh()
    one = only(site)
    said = gallery.settings(site, one.id)["settings"]
    assert said == {
        "prompt": "a Cat, blue", "negative": "dog", "steps": 2, "sampler": "Euler a", "guidance_scale": 4.0,
        "seed": 7, "width": 64, "height": 64, "discretisation": "diffusers",
    }  # fmt: skip
    assert gallery.settings(site, one.id, "prompt")["settings"] == {
        "prompt": "a Cat, blue",
        "negative": "dog",
    }
    assert gallery.settings(site, one.id, "seed")["settings"] == {"seed": 7}
    picture(site, "1.png", "", age=1)
    site.gallery.refresh()
    with pytest.raises(UserError, match=r"1\.png carries no settings"):
        gallery.settings(site, one.id)


def test_thumbnails_are_small_and_made_once(site: Site) -> None:
    small = picture(site, "small.png", age=10)
    large = picture(site, "large.png", size=(1000, 500), age=20)
    site.gallery.refresh()
    ids = {one.place: one.id for one in site.gallery.find(Query())[1]}
    assert gallery.thumbnail(site, ids["small.png"]) == small
    made = gallery.thumbnail(site, ids["large.png"])
    with Image.open(made) as shown:
        assert shown.size == (384, 192)
    stamp = made.stat().st_mtime_ns
    assert gallery.thumbnail(site, ids["large.png"]).stat().st_mtime_ns == stamp
    picture(site, "large.png", size=(500, 1000), age=5)
    site.gallery.refresh()
    with Image.open(gallery.thumbnail(site, ids["large.png"])) as shown:
        assert shown.size == (192, 384)
    assert not made.exists(), "the old one is gone"
    gallery.delete(site, [ids["large.png"]])
    assert not list(made.parent.iterdir())
    assert large.parent.exists()


def test_neighbours_follow_the_search(site: Site) -> None:
    for number in range(5):
        picture(site, f"{number}.png", CAT.format(seed=number) if number % 2 == 0 else "dog", age=10 + number)
    site.gallery.refresh()
    query = Query(words="cat")
    _, found = site.gallery.find(query)
    assert [one.name for one in found] == ["0.png", "2.png", "4.png"]
    at, after = site.gallery.beside(query, found[1], 1)
    _, before = site.gallery.beside(query, found[1], -1)
    assert (at, before, after) == (1, found[0], found[2])
    assert site.gallery.beside(query, found[2], 1) == (2, None)
    assert site.gallery.beside(query, found[0], -1) == (0, None)


def test_what_differs(site: Site) -> None:
    picture(site, "1.png", age=10)
    picture(site, "2.png", CAT.format(seed=8).replace("blue", "red"), size=(32, 64), age=20)
    site.gallery.refresh()
    _, [one, other] = site.gallery.find(Query())
    assert gallery.differences(one, other) == [
        ("Prompt", "a Cat, blue", "a Cat, red"), ("Seed", "7", "8"), ("Size", "64×64", "32×64")
    ]  # fmt: skip
    assert gallery.differences(one, one) == []


API = "/api/v1"


def test_over_the_api(app: Any) -> None:
    drawn = app.wait_for(app.call(f"{API}/draw", {"prompt": "apigallery cat", "steps": 1, "seed": 3})["id"])
    said = app.call(f"{API}/gallery?words=apigallery")
    assert said["count"] == 1
    [one] = said["pictures"]
    assert one["place"] == drawn["result"]["pictures"][0]["file"]
    assert app.call(one["address"]) == app.call(f"{API}/jobs/{drawn['id']}/pictures/0")
    assert app.call(one["thumbnail"])[:4] == b"\x89PNG"
    assert app.call(f"{API}/gallery/{one['id']}/settings?use=seed")["settings"] == {"seed": 3}
    assert app.call(f"{API}/gallery/{one['id']}", {"starred": True}, "PATCH")["starred"]
    assert app.call(f"{API}/gallery?words=apigallery&starred=true")["count"] == 1
    item = app.call(f"{API}/gallery/{one['id']}", method="DELETE")
    assert app.call(f"{API}/gallery/{one['id']}")["status"] == 404
    assert app.call(f"{API}/gallery?words=apigallery")["count"] == 0
    assert item["id"] in [binned["id"] for binned in app.call(f"{API}/bin/drawings")]
    assert app.call(f"{API}/bin/drawings/{item['id']}/restore", {})["id"] == one["id"]
    item = app.call(f"{API}/gallery/{one['id']}", method="DELETE")
    assert app.call(f"{API}/bin/drawings/{item['id']}", method="DELETE")["name"] == one["name"]
