"""Model and Settings: what there is, what is chosen, what is refused, workers and the doctor."""

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import App, until

from hyperbrush.files import write_json

API = "/api/v1"


def header_only(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A .safetensors file with zeros of these shapes."""
    from safetensors.torch import save_file
    from torch import zeros

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: zeros(shape) for name, shape in shapes.items()}, path)


def diffusers_folder(path: Path, *, context: int, channels: int = 4) -> None:
    """What a diffusers folder says of itself, with weights of one number."""
    for part in ("unet", "vae"):
        (path / part).mkdir(parents=True)
    (path / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline", "unet": [], "vae": []})
    )
    unet = {
        "cross_attention_dim": context,
        "in_channels": channels,
        "sample_size": 64,
        "block_out_channels": [320, 640],
    }
    (path / "unet" / "config.json").write_text(json.dumps(unet))
    (path / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [1, 2, 3, 4]}))
    header_only(path / "unet" / "diffusion_pytorch_model.safetensors", {"x": (1,)})


@pytest.fixture(scope="module")
def models(app: App) -> Path:
    """A models folder with sound and broken ones."""
    folder = app.root / "models/stable-diffusion"
    diffusers_folder(folder / "first", context=768)
    diffusers_folder(folder / "deep/large", context=2048)
    diffusers_folder(folder / "paint", context=768, channels=8)
    sd1 = {
        "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    }
    header_only(folder / "old.safetensors", sd1)
    header_only(folder / "lora.safetensors", {"lora_unet_x.lora_down.weight": (4, 4)})
    (folder / "cut.safetensors").write_bytes(struct.pack("<Q", 999) + b"{")
    return folder


def test_a_model_whose_opening_was_stopped_is_told_so(app: App, open_page: Callable[..., Any]) -> None:
    job = f"{int(time.time() * 1e6):014x}beef"
    folder = app.root / ".hyperbrush/jobs" / job
    about = {"kind": "try-model", "arguments": {"model": "some/one"}, "device": "cpu", "created": 1.0}
    write_json(folder / "job.json", about)
    write_json(folder / "state.json", {"state": "stopped", "ended": 2.0})
    page = open_page(app, f"/model?job={job}")
    page.get_by_text("some/one is not used: opening it was stopped.").wait_for()


def test_models_are_told_by_config_and_header(app: App, models: Path) -> None:
    found = {m["source"]: m for m in app.call(f"{API}/models?hashes=true")}
    at = "models/stable-diffusion/"
    assert found["emoji"]["form"] == "embedded"
    assert found["emoji"]["context"] == 128
    assert found["emoji"]["image_size"] == 64
    assert len(found["emoji"]["hash"]) == 10
    assert found[at + "first"]["kind"] == "sd1"
    assert found[at + "first"]["image_size"] == 512
    assert found[at + "deep/large"]["kind"] == "sdxl"
    assert found[at + "old.safetensors"]["kind"] == "sd1"
    assert found[at + "old.safetensors"]["form"] == "file"
    assert "8 channels" in found[at + "paint"]["error"]
    assert "a LoRA" in found[at + "lora.safetensors"]["error"]
    assert "truncated or corrupt" in found[at + "cut.safetensors"]["error"]
    assert at + "first/unet/diffusion_pytorch_model.safetensors" not in found


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("/etc/passwd", "outside of the workspace"),
        ("../elsewhere", "outside of the workspace"),
        (".hyperbrush/preferences.yaml", "outside of the workspace"),
        ("models/stable-diffusion/lora.safetensors", "a LoRA"),
        ("models/stable-diffusion/none.safetensors", "unknown model"),
        ("emojy", "did you mean 'emoji'"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(app: App, models: Path, source: str, why: str) -> None:
    for path, body, method in (
        ("/models/use", {"model": source}, "POST"),
        ("/preferences", {"model": source}, "PATCH"),
    ):
        answer = app.call(API + path, body, method)
        assert answer["status"] == 400
        assert why in json.loads(answer["detail"])["detail"]
    assert app.call(f"{API}/preferences")["model"] == "emoji"


def test_no_other_file_is_opened(app: App) -> None:
    asked = {"prompt": "cat", "axes": ["seed=1"], "model": "/etc/passwd", "steps": 1}
    refused = app.call(f"{API}/compare", asked)
    assert refused["status"] == 400
    assert "there is no model '/etc/passwd'" in refused["detail"]


def test_a_model_is_used_from_the_page(own_app: Callable[..., App], open_page: Callable[..., Any]) -> None:
    import shutil

    from hyperbrush.assets import model_folder

    app = own_app()
    folder = app.root / "models/stable-diffusion"
    shutil.copytree(model_folder("emoji"), folder / "mine")
    shutil.copytree(model_folder("emoji"), folder / "cut")
    (folder / "cut/unet/diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    page = open_page(app, "/model")
    page.get_by_text("2ecdcd09b9").first.wait_for()
    page.get_by_role("button", name="Use mine").click()
    page.get_by_text("mine is in use:").wait_for(timeout=90_000)
    assert app.call(f"{API}/preferences")["model"] == "models/stable-diffusion/mine"
    page.reload()
    page.get_by_text("mine is in use:").wait_for()
    page.get_by_label("Path or hub id").fill("nonsense/none.ckpt")
    page.get_by_label("Path or hub id").press("Enter")
    page.get_by_text("unknown model 'nonsense/none.ckpt'").wait_for()
    page.get_by_role("button", name="Use cut").click()
    page.get_by_text("cut cannot be opened, so it is not used: cannot open the model").wait_for(
        timeout=90_000
    )
    assert app.call(f"{API}/preferences")["model"] == "models/stable-diffusion/mine"


@pytest.mark.main
def test_settings_are_saved_together_and_stay(
    own_app: Callable[..., App], open_page: Callable[..., Any]
) -> None:
    app = own_app()
    page = open_page(app, "/settings")
    page.get_by_label("Drawn pictures").fill("drawn/by me")
    choose(page, "Precision of the model", "bf16: half the memory, wide range")
    choose(page, "Theme here", "Dark")
    choose(page, "Language here", "한국어")
    page.get_by_role("button", name="Save").click()
    page.get_by_text("저장했습니다.").wait_for()
    assert page.locator("body.body--dark").count() == 1
    said = app.call(f"{API}/preferences")
    assert (said["outputs"], said["precision"], said["theme"]) == ("drawn/by me", "bf16", "auto")
    choose(page, "이 브라우저의 언어", "위와 같음")
    page.get_by_role("button", name="저장").click()
    page.get_by_text("Saved.").wait_for()


def test_what_another_page_saved_meanwhile_stays(
    own_app: Callable[..., App], open_page: Callable[..., Any]
) -> None:
    app = own_app()
    page = open_page(app, "/settings")
    app.call(f"{API}/preferences", {"runs": "trained"}, "PATCH")
    page.get_by_label("Drawn pictures").fill("drawn/by me")
    page.get_by_role("button", name="Save").click()
    page.get_by_text("Saved.").wait_for()
    said = app.call(f"{API}/preferences")
    assert (said["runs"], said["outputs"]) == ("trained", "drawn/by me")
    assert page.get_by_label("Trainings").input_value() == "trained"


def test_bad_settings_are_refused_and_nothing_changes(app: App, open_page: Callable[..., Any]) -> None:
    (app.root / "a file").write_text("")
    before = app.call(f"{API}/preferences")
    page = open_page(app, "/settings")
    page.get_by_label("Trainings").fill("a file")
    page.get_by_label("Training pictures").fill("..")
    page.get_by_role("button", name="Save").click()
    wrong = page.locator(".q-field--error")  # each at its field, and nowhere else
    wrong.filter(has=page.get_by_label("Trainings")).get_by_text("is a file; expected a folder").wait_for()
    wrong.filter(has=page.get_by_label("Training pictures")).get_by_text("'..' cannot be it").wait_for()
    assert wrong.count() == 2
    assert page.locator(".q-notification").count() == 0
    assert app.call(f"{API}/preferences") == before


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"device": "cuda:9"}, "cuda"),
        ({"device": "tpu"}, "expected auto, cpu, cuda"),
        ({"precision": "fp16"}, "not computed on"),
        ({"outputs": ".hyperbrush/x"}, "expected a folder of its own"),
        ({"outputs": "../../../etc"}, "leaves the folder of the app"),
        ({"colour": "red"}, "colour"),
        ({"theme": "pink"}, "theme"),
    ],
)
def test_impossible_preferences_are_refused(app: App, changes: dict[str, str], why: str) -> None:
    before = app.call(f"{API}/preferences")
    answer = app.call(f"{API}/preferences", changes, "PATCH")
    assert answer["status"] == 400
    assert why in answer["detail"]
    assert app.call(f"{API}/preferences") == before


def test_a_worker_is_restarted(own_app: Callable[..., App], open_page: Callable[..., Any]) -> None:
    app = own_app()
    first = until(lambda: app.worker.get("pid"))
    page = open_page(app, "/settings")
    page.get_by_text(f"process {first}").wait_for()
    page.get_by_role("button", name="Restart (cpu)").click()
    until(lambda: app.worker.get("pid") not in (None, first))
    page.get_by_text(f"process {app.worker['pid']}").wait_for()
    assert app.call(f"{API}/status")["deaths"] == []  # it was asked to
    assert app.call(f"{API}/workers/tpu/restart", {}, "POST")["status"] == 404
    again = until(lambda: app.worker.get("pid"))
    assert app.call(f"{API}/workers/cpu/restart?now=true", {}, "POST")["pid"] == again
    until(lambda: app.call(f"{API}/status")["deaths"])


def test_the_doctor_reports(app: App, open_page: Callable[..., Any]) -> None:
    page = open_page(app, "/settings")
    page.get_by_role("button", name="Look at this machine").click()
    page.get_by_text("Everything holds.").wait_for(timeout=90_000)
    page.get_by_text("bit-equal").first.wait_for()
    job = page.url.split("doctor=")[1]
    assert app.call(f"{API}/jobs/{job}/doctor/page").startswith(b"# hyperbrush doctor")
    assert app.call(f"{API}/jobs/{job}/doctor/picture").startswith(b"\x89PNG")
    page.reload()
    page.get_by_text("bit-equal").first.wait_for()


def choose(page: Any, label: str, option: str) -> None:
    """Choose from a Quasar select."""
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def test_devices_and_workers_are_told(app: App) -> None:
    found = {one["device"]: one["precisions"] for one in app.call("/api/v1/devices")}
    assert "fp32" in found["cpu"]
    assert "fp16" not in found["cpu"], "too slow there: the page offers it no more than this"
    until(lambda: app.worker)
    workers = {one["device"]: one for one in app.call("/api/v1/workers")}
    assert workers["cpu"]["alive"]
