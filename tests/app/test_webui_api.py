"""The webui's own endpoints, as its clients ask them."""

import base64
import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import hyperbrush as hb
from hyperbrush.generation import generate


def network(folder: Path, name: str = "webui-net") -> None:
    torch.manual_seed(0)
    made = hb.AttentionHypernetwork([128], weight_init="Normal", name=name)
    for parameter in made.parameters():
        parameter.data.mul_(20)
    made.save(folder / f"{name}.pt")


def drawn(answer: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))


def test_txt2img_gives_the_picture_of_the_library(app: Any) -> None:
    asked = {"prompt": "cat face", "seed": 5, "steps": 4, "cfg_scale": 3, "sampler_name": "Euler a"}
    ignored = {"send_images": True, "save_images": False, "subseed": -1, "styles": [], "enable_hr": False}
    answer = app.call("/sdapi/v1/txt2img", asked | ignored)
    own = generate("cat face", seed=5, steps=4, guidance_scale=3, sampler="Euler a", discretisation="webui")
    assert drawn(answer).tobytes() == own[0].image.tobytes()
    info = json.loads(answer["info"])
    assert info["all_seeds"] == [5]
    assert info["infotexts"][0].startswith("cat face")


def test_batches_count_up(app: Any) -> None:
    asked = {"prompt": "red heart", "seed": 1, "steps": 2, "batch_size": 2, "n_iter": 2}
    answer = app.call("/sdapi/v1/txt2img", asked)
    assert len(answer["images"]) == 4
    assert json.loads(answer["info"])["all_seeds"] == [1, 2, 3, 4]


def test_hypernetworks_by_tag_and_by_option(app: Any) -> None:
    network(app.root / "models/hypernetworks")
    assert "webui-net" in [entry["name"] for entry in app.call("/sdapi/v1/hypernetworks")]
    asked = {"prompt": "cat face", "seed": 2, "steps": 2}
    plain = drawn(app.call("/sdapi/v1/txt2img", asked))
    tagged = drawn(app.call("/sdapi/v1/txt2img", asked | {"prompt": "cat face <hypernet:webui-net:0.5>"}))
    options = {"sd_hypernetwork": "webui-net(0123456789)", "sd_hypernetwork_strength": 0.5}
    overridden = drawn(app.call("/sdapi/v1/txt2img", asked | {"override_settings": options}))
    assert tagged.tobytes() != plain.tobytes()
    assert overridden.tobytes() == tagged.tobytes()
    app.call("/sdapi/v1/options", {"sd_hypernetwork": "webui-net", "sd_hypernetwork_strength": 0.5})
    try:
        assert app.call("/sdapi/v1/options")["sd_hypernetwork"] == "webui-net"
        assert drawn(app.call("/sdapi/v1/txt2img", asked)).tobytes() == tagged.tobytes()
    finally:
        app.call("/sdapi/v1/options", {"sd_hypernetwork": "None"})


def test_newer_clients_name_the_schedule_beside(app: Any) -> None:
    asked = {"prompt": "rocket", "seed": 1, "steps": 2}
    one = app.call("/sdapi/v1/txt2img", asked | {"sampler_name": "DPM++ 2M", "scheduler": "Karras"})
    other = app.call("/sdapi/v1/txt2img", asked | {"sampler_index": "DPM++ 2M Karras"})
    assert drawn(one).tobytes() == drawn(other).tobytes()
    names = [sampler["name"] for sampler in app.call("/sdapi/v1/samplers")]
    assert "DPM++ 2M Karras" in names


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"enable_hr": True}, "enable_hr"),
        ({"alwayson_scripts": {"controlnet": {}}}, "alwayson_scripts"),
        ({"subseed_strength": 0.3}, "subseed_strength"),
        ({"sampler_name": "Eulr"}, "Euler"),
        ({"override_settings": {"nonsense": 1}}, "nonsense"),
        ({"prompt": "cat <hypernet:nobody:1>"}, "nobody"),
        ({"override_settings": {"CLIP_stop_at_last_layers": "two"}}, "CLIP_stop_at_last_layers"),
    ],
)
def test_what_is_not_drawn_is_refused(app: Any, more: dict[str, Any], said: str) -> None:
    answer = app.call("/sdapi/v1/txt2img", {"prompt": "cat face", "steps": 2} | more)
    assert answer["status"] in (400, 404)  # 404: a network that is not there
    assert said in answer["detail"]


def test_an_unknown_option_is_refused(app: Any) -> None:
    answer = app.call("/sdapi/v1/options", {"sd_hypernetwrk": "x"})
    assert answer["status"] == 400
    assert "sd_hypernetwork" in answer["detail"]


def test_progress_is_told(app: Any) -> None:
    assert app.call("/sdapi/v1/progress")["progress"] == 0
    seen = []
    asked = {"prompt": "cat face", "seed": 5, "steps": 40}
    drawing = threading.Thread(target=lambda: app.call("/sdapi/v1/txt2img", asked))
    drawing.start()
    while drawing.is_alive():
        seen.append(app.call("/sdapi/v1/progress"))
    middle = [s for s in seen if 0 < s["progress"] < 1]
    assert middle
    assert any(s["current_image"] for s in middle)
    assert all(s["eta_relative"] > 0 for s in middle)
