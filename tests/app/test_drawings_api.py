"""The drawing routes, asked as programs ask them."""

import io
import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from PIL import Image

from hyperbrush.app.create.service import varied

API = "/api/v1"
QUICK = {"prompt": "cat face", "steps": 2, "seed": 5}


def put(app: Any, path: str, content: bytes, name: str = "a.png") -> Any:
    """A multipart POST of one file."""
    line = b"----together"
    body = (
        b"--" + line + b'\r\nContent-Disposition: form-data; name="file"; filename="' + name.encode()
        + b'"\r\nContent-Type: application/octet-stream\r\n\r\n' + content + b"\r\n--" + line + b"--\r\n"
    )  # fmt: skip
    request = urllib.request.Request(
        app.url + API + path, body, {"Content-Type": f"multipart/form-data; boundary={line.decode()}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return {"status": error.code, "detail": json.loads(error.read())["detail"]}


def png(size: tuple[int, int] = (64, 64), colour: object = "teal", mode: str = "RGB") -> bytes:
    made = io.BytesIO()
    Image.new(mode, size, colour).save(made, "PNG")  # type: ignore[arg-type]
    return made.getvalue()


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


@pytest.fixture(scope="module")
def drawn(app: Any) -> dict[str, Any]:
    """A finished job of two pictures."""
    job = app.call(f"{API}/draw", {**QUICK, "count": 2, "width": 64, "height": 96})
    assert job["state"] == "queued"
    return dict(app.wait_for(job["id"]))


def test_near_a_seed_and_larger_in_a_second_pass(app: Any) -> None:
    asked = {**QUICK, "count": 2, "subseed": 9, "subseed_strength": 0.3, "hires_scale": 1.5, "hires_steps": 1}
    job = app.wait_for(app.call(f"{API}/draw", asked)["id"])
    assert job["state"] == "done", job["error"]
    found = job["result"]["pictures"]
    assert [(said["seed"], said["width"], said["height"]) for said in found] == [(5, 96, 96)] * 2
    assert ["Variation seed: 10," in said["parameters"] for said in found] == [False, True]
    read = put(app, "/settings-of", app.call(f"{API}/jobs/{job['id']}/pictures/1"))
    assert read["notes"] == []
    wanted = {
        "seed": 5,
        "subseed": 10,
        "subseed_strength": 0.3,
        "hires_scale": 1.5,
        "hires_steps": 1,
        "width": 64,
    }
    assert wanted.items() <= read["settings"].items()
    for wrong, said in (
        ({"subseed": 9}, "without subseed_strength"),
        ({"hires_scale": 2, "hires_upscaler": "Latents"}, "did you mean 'Latent'"),
        ({"hires_scale": 2, "image": put(app, "/uploads", png())["id"]}, "drawn at the size given"),
    ):
        answer = app.call(f"{API}/draw", QUICK | wrong)
        assert answer["status"] == 400
        assert said in answer["detail"]


def test_a_drawing_ends_in_pictures_with_their_settings(app: Any, drawn: dict[str, Any]) -> None:
    assert drawn["state"] == "done", drawn["error"]
    assert [said["seed"] for said in drawn["result"]["pictures"]] == [5, 6]
    content = app.call(f"{API}/jobs/{drawn['id']}/pictures/1")
    assert opened(content).size == (64, 96)
    read = put(app, "/settings-of", content)
    assert read["notes"] == []
    assert read["settings"] == {
        "prompt": "cat face", "negative": "", "steps": 2, "sampler": "DPM++ 2M Karras", "guidance_scale": 4.0,
        "seed": 6, "width": 64, "height": 96, "discretisation": "diffusers",
    }  # fmt: skip
    again = app.wait_for(app.call(f"{API}/draw", read["settings"])["id"])
    difference = zip(
        opened(content).tobytes(),
        opened(app.call(f"{API}/jobs/{again['id']}/pictures/0")).tobytes(),
        strict=True,
    )
    assert max(abs(a - b) for a, b in difference) <= 1


def test_the_gallery_has_the_newest_first(app: Any, drawn: dict[str, Any]) -> None:
    found = [(one["job"], one["number"]) for one in app.call(f"{API}/pictures?last=1000")]
    assert found.index((drawn["id"], 1)) == found.index((drawn["id"], 0)) - 1
    assert len(app.call(f"{API}/pictures?last=1")) == 1


def test_a_masked_part_is_drawn_anew(app: Any) -> None:
    start = put(app, "/uploads", png())
    assert (start["width"], start["height"]) == (64, 64)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    content = io.BytesIO()
    mask.save(content, "PNG")
    painted = put(app, "/uploads", content.getvalue())["id"]
    request = {**QUICK, "image": start["id"], "mask": painted, "image_strength": 1.0}
    job = app.wait_for(app.call(f"{API}/draw", request)["id"])
    assert job["state"] == "done", job["error"]
    picture = opened(app.call(f"{API}/jobs/{job['id']}/pictures/0"))
    assert set(picture.crop((0, 0, 28, 64)).getdata()) == {(0, 128, 128)}
    assert len(set(picture.crop((36, 0, 64, 64)).getdata())) > 20


def test_what_was_drawn_in_part_is_varied_whole(app: Any) -> None:
    start = put(app, "/uploads", png((300, 150)))["id"]
    mask = Image.new("L", (300, 150))
    mask.paste(255, (150, 0, 300, 150))
    content = io.BytesIO()
    mask.save(content, "PNG")
    painted = put(app, "/uploads", content.getvalue())["id"]
    request = {
        **QUICK,
        "image": start,
        "mask": painted,
        "mask_padding": 8,
        "width": 64,
        "height": 64,
        "count": 2,
    }
    job = app.wait_for(app.call(f"{API}/draw", request)["id"])
    assert job["state"] == "done", job["error"]
    said = job["result"]["pictures"][0]
    assert (said["width"], said["height"]) == (300, 150)
    asked = varied(job["arguments"], said, start)
    assert (asked["mask"], asked["mask_padding"], asked["count"], asked["seed"]) == ("", None, 1, None)
    again = app.wait_for(app.call(f"{API}/draw", asked)["id"])
    assert again["state"] == "done", again["error"]
    [drawn] = again["result"]["pictures"]
    assert drawn["width"] * drawn["height"] == pytest.approx(64 * 64, rel=0.35)
    whole = varied({**job["arguments"], "mask_padding": None}, said, start)
    assert (whole["width"], whole["height"]) == (300, 150)


def test_a_start_picture_of_any_form_is_fitted_to_the_model(app: Any) -> None:
    start = put(app, "/uploads", png((300, 150)))["id"]
    job = app.wait_for(app.call(f"{API}/draw", {**QUICK, "image": start})["id"])
    assert job["state"] == "done", job["error"]
    [said] = job["result"]["pictures"]
    assert said["width"] == 2 * said["height"]
    assert said["width"] * said["height"] == pytest.approx(64 * 64, rel=0.35)


def test_an_upload_comes_back(app: Any) -> None:
    kept = put(app, "/uploads", png((7, 5), "red"))["id"]
    assert opened(app.call(f"{API}/uploads/{kept}")).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no picture", "cannot be read as a picture"), (b"", "cannot be read"), (png()[:60], "cannot be read")],
    ids=["text", "empty", "cut"],
)
def test_what_is_no_picture_is_refused(app: Any, content: bytes, message: str) -> None:
    answer = put(app, "/uploads", content, "<b>x.png")
    assert answer["status"] == 400
    assert message in answer["detail"]
    assert "'<b>x.png'" in answer["detail"]


def test_a_picture_without_settings_is_told(app: Any) -> None:
    answer = put(app, "/settings-of", png(), "bare.png")
    assert answer["status"] == 400
    assert "'bare.png' holds no settings" in answer["detail"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "cat <hypernet:nowhere>"}, "unknown hypernetwork 'nowhere'"),
        ({"prompt": "cat <hypernet:x:much>"}, "the strength 'much' is not a number"),
        ({"sampler": "Oiler"}, "unknown sampler 'Oiler'; did you mean 'Euler'"),
        ({"discretisation": "a1111"}, "unknown discretisation"),
        ({"mask": "0" * 24}, "a mask needs a picture to start from"),
        ({"image": "../../etc/passwd"}, "there is no uploaded picture"),
        ({"model": "/etc"}, "there is no model '/etc'"),
        ({"model": "someone/from-the-hub"}, "there is no model"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_what_cannot_be_drawn_is_refused_at_once(app: Any, change: dict[str, Any], message: str) -> None:
    answer = app.call(f"{API}/draw", {**QUICK, **change})
    assert answer["status"] in (400, 404)
    assert message in json.loads(answer["detail"])["detail"]


def test_unknown_keys_and_numbers_out_of_range(app: Any) -> None:
    for change in ({"stepz": 3}, {"steps": 0}, {"count": 65}, {"prompt": ""}):
        assert app.call(f"{API}/draw", {**QUICK, **change})["status"] == 422


def test_pictures_that_are_not_there(app: Any, drawn: dict[str, Any]) -> None:
    for path in (f"/jobs/{drawn['id']}/pictures/2", "/jobs/nothing/pictures/0", f"/uploads/{'a' * 24}"):
        assert app.call(API + path)["status"] == 404
    assert app.call(f"{API}/jobs/{drawn['id']}/pictures/-1")["status"] == 422


def test_a_size_the_model_cannot_make_is_told(app: Any) -> None:
    job = app.wait_for(app.call(f"{API}/draw", {**QUICK, "width": 63, "height": 64})["id"])
    assert job["state"] == "failed"
    assert "size 63x64 is not possible: both sides must be multiples" in job["error"]


def test_a_stopped_drawing_keeps_what_it_has(app: Any) -> None:
    job = app.call(f"{API}/draw", {**QUICK, "steps": 8, "count": 64})["id"]
    while len(app.call(f"{API}/jobs/{job}")["progress"].get("pictures", [])) < 8:
        assert app.call(f"{API}/jobs/{job}")["state"] in ("queued", "running")
    assert app.call(f"{API}/jobs/{job}/preview")[:4] == b"\x89PNG"
    app.call(f"{API}/jobs/{job}/stop", {})
    stands = app.wait_for(job)
    assert stands["state"] == "stopped"
    assert 8 <= len(stands["progress"]["pictures"]) < 64
    assert app.call(f"{API}/jobs/{job}/pictures/7")[:4] == b"\x89PNG"
