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
from running import until

import hyperbrush as hb
from hyperbrush.app.create.wildcards import filled
from hyperbrush.app.webui import requests as webui_requests
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
    assert (info["subseed"], info["sd_model_name"]) == (-1, "emoji")
    assert f"Model hash: {info['sd_model_hash']}," in info["infotexts"][0]


def test_each_picture_tells_the_prompt_it_was_drawn_with(app: Any) -> None:
    (app.root / "wildcards").mkdir(exist_ok=True)
    (app.root / "wildcards/webuicolour.txt").write_text("red\ngreen\nblue\n")
    asked = {"prompt": "__webuicolour__ heart", "seed": 5, "steps": 1, "n_iter": 3}
    info = json.loads(app.call("/sdapi/v1/txt2img", asked)["info"])
    folder = app.root / "wildcards"
    assert info["all_prompts"] == [filled(asked["prompt"], folder, seed) for seed in (5, 6, 7)]


def test_variations_and_the_second_pass_as_in_the_library(app: Any) -> None:
    asked = {"prompt": "cat face", "seed": 5, "steps": 2, "cfg_scale": 3, "sampler_name": "Euler"}
    asked |= {
        "subseed": 9,
        "subseed_strength": 0.25,
        "enable_hr": True,
        "hr_scale": 1.5,
        "hr_upscaler": "Latent",
    }
    answer = app.call("/sdapi/v1/txt2img", asked | {"hr_second_pass_steps": 1, "denoising_strength": 0.5})
    own = generate(
        "cat face", seed=5, steps=2, guidance_scale=3, sampler="Euler", discretisation="webui", subseed=9,
        subseed_strength=0.25, hires_scale=1.5, hires_steps=1, hires_strength=0.5,
    )  # fmt: skip
    assert drawn(answer).tobytes() == own[0].image.tobytes()
    assert drawn(answer).size == (96, 96)
    [info] = json.loads(answer["info"])["infotexts"]
    assert (
        "Variation seed: 9, Variation seed strength: 0.25, Denoising strength: 0.5, Hires upscale: 1.5"
        in info
    )


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
        ({"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"}, "R-ESRGAN 4x+"),
        ({"enable_hr": True, "hr_prompt": "another"}, "hr_prompt"),
        ({"alwayson_scripts": {"controlnet": {}}}, "alwayson_scripts"),
        ({"seed_resize_from_w": 512}, "seed_resize_from_w"),
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


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sd_hypernetwrk": "x"}, "sd_hypernetwork"),
        ({"no such thing": 1}, "no such thing"),
        ({"eta_noise_seed_delta": 31337}, "eta_noise_seed_delta = 31337 would change pictures"),
        ({"sd_vae": "vae-ft-mse-840000-ema-pruned.safetensors"}, "sd_vae"),
    ],
)
def test_an_option_that_cannot_be_obeyed_is_refused(app: Any, values: dict[str, Any], said: str) -> None:
    before = app.call("/sdapi/v1/options")
    answer = app.call("/sdapi/v1/options", {"samples_save": False, **values})
    assert answer["status"] == 400
    assert said in answer["detail"]
    assert app.call("/sdapi/v1/options") == before


def test_options_that_concern_nothing_here_are_taken_and_told(app: Any) -> None:
    told = app.call("/sdapi/v1/options", {"samples_format": "webp", "sd_vae": "Automatic"})
    assert told == {"ignored": ["samples_format", "sd_vae"]}
    every = app.call("/sdapi/v1/options")
    assert every["samples_format"] == "webp"
    assert app.call("/sdapi/v1/options", every)["ignored"], "what was read can be written back"


def test_the_tag_counts_where_the_option_names_its_network_too(app: Any) -> None:
    network(app.root / "models/hypernetworks")
    asked = {"prompt": "cat face <hypernet:webui-net:0.8>", "seed": 2, "steps": 2}
    tagged = app.call("/sdapi/v1/txt2img", asked)
    options = {"sd_hypernetwork": "webui-net", "sd_hypernetwork_strength": 0.5}
    both = app.call("/sdapi/v1/txt2img", asked | {"override_settings": options})
    assert both["images"] == tagged["images"]


def sampler_of(answer: Any) -> str:
    return json.loads(answer["info"])["sampler_name"]


@pytest.mark.parametrize(
    ("sampler", "scheduler", "drawn"),
    [
        ("DPM++ 2M", None, "DPM++ 2M Karras"),
        ("DPM++ 2M", "Automatic", "DPM++ 2M Karras"),
        ("DPM++ 2M", "Uniform", "DPM++ 2M"),
        ("DPM++ 2M", "sgm_uniform", "DPM++ 2M SGM Uniform"),
        ("Euler", "Automatic", "Euler"),
        ("Euler", "Karras", "Euler Karras"),
        ("DPM++ 2M SDE", "Automatic", "DPM++ 2M SDE Exponential"),
    ],
)
def test_the_scheduler_is_obeyed(app: Any, sampler: str, scheduler: str | None, drawn: str) -> None:
    asked = {"prompt": "rocket", "seed": 1, "steps": 2, "sampler_name": sampler, "scheduler": scheduler}
    answer = app.call("/sdapi/v1/txt2img", asked)
    assert sampler_of(answer) == drawn
    assert f"Sampler: {drawn}," in json.loads(answer["info"])["infotexts"][0]


def test_null_is_as_good_as_nothing(app: Any) -> None:
    asked = {"prompt": "rocket", "seed": 1, "steps": 2}
    nothing = dict.fromkeys(
        ["negative_prompt", "sampler_name", "scheduler", "styles", "width", "eta", "s_noise", "cfg_scale"]
    )
    assert (
        app.call("/sdapi/v1/txt2img", asked | nothing)["images"]
        == app.call("/sdapi/v1/txt2img", asked)["images"]
    )


def test_infotext_fills_in_what_is_not_given(app: Any) -> None:
    text = "rocket\nNegative prompt: dog\nSteps: 2, Sampler: Euler a, CFG scale: 3, Seed: 9, Size: 64x64, Clip skip: 2"
    told = app.call("/sdapi/v1/txt2img", {"infotext": text, "seed": 4})
    plain = {"prompt": "rocket", "negative_prompt": "dog", "seed": 4, "steps": 2, "cfg_scale": 3}
    plain |= {"sampler_name": "Euler a", "width": 64, "height": 64}
    plain["override_settings"] = {"CLIP_stop_at_last_layers": 2}
    assert told["images"] == app.call("/sdapi/v1/txt2img", plain)["images"]


def test_prompt_editing_and_the_tags_left_out(app: Any) -> None:
    network(app.root / "models/hypernetworks")
    asked = {"seed": 1, "steps": 3, "sampler_name": "Euler"}
    [edited, plain, bare] = [
        app.call("/sdapi/v1/txt2img", asked | more)["images"][0]
        for more in (
            {"prompt": "[cat:dog:1] face"},
            {"prompt": "cat face"},
            {"prompt": "cat face <hypernet:webui-net:0.5>", "disable_extra_networks": True},
        )
    ]
    assert drawn({"images": [edited]}).tobytes() != drawn({"images": [plain]}).tobytes()
    assert drawn({"images": [bare]}).tobytes() == drawn({"images": [plain]}).tobytes()


def content(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def coded(picture: Image.Image) -> str:
    return base64.b64encode(content(picture)).decode()


MASK = coded(Image.new("L", (64, 64), 255))


def test_img2img_and_masks(app: Any) -> None:
    start = Image.new("RGB", (64, 64), "orange")
    asked: dict[str, Any] = {
        "prompt": "cat face",
        "seed": 5,
        "steps": 4,
        "cfg_scale": 3,
        "sampler_name": "Euler",
    }
    asked |= {"init_images": ["data:image/png;base64," + coded(start)], "denoising_strength": 0.5}
    answer = app.call("/sdapi/v1/img2img", asked)
    own = generate(
        "cat face",
        seed=5,
        steps=4,
        guidance_scale=3,
        sampler="Euler",
        discretisation="webui",
        image=start,
        image_strength=0.5,
    )
    assert drawn(answer).tobytes() == own[0].image.tobytes()
    assert "init_images" not in answer["parameters"]
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (32, 0, 64, 64))
    masked = drawn(app.call("/sdapi/v1/img2img", asked | {"mask": coded(half)}))
    other = drawn(app.call("/sdapi/v1/img2img", asked | {"mask": coded(half), "inpainting_mask_invert": 1}))
    assert masked.getpixel((2, 30)) == other.getpixel((61, 30)) == (255, 165, 0)
    assert masked.tobytes() != other.tobytes()


def test_only_the_masked_region_is_drawn_as_in_the_webui(app: Any) -> None:
    """Its default, and what the client webuiapi sends: the region at the asked size, back in a picture of its own size."""
    start, mask = Image.new("RGB", (160, 100), "orange"), Image.new("L", (160, 100), 0)
    mask.paste(255, (100, 20, 140, 60))
    asked = {"prompt": "cat face", "seed": 5, "steps": 3, "width": 64, "height": 64, "mask": coded(mask)}
    asked |= {"init_images": [coded(start)], "sampler_name": "Euler", "denoising_strength": 1}
    region = drawn(app.call("/sdapi/v1/img2img", asked | {"inpaint_full_res_padding": 8}))
    [own] = generate(
        "cat face",
        seed=5,
        steps=3,
        guidance_scale=7,
        sampler="Euler",
        discretisation="webui",
        size=(64, 64),
        image=start,
        mask=mask,
        mask_padding=8,
        image_strength=1.0,
    )
    assert region.size == (160, 100)
    assert region.tobytes() == own.image.tobytes()
    assert drawn(app.call("/sdapi/v1/img2img", asked)).tobytes() != region.tobytes(), "no pixel around it"
    whole = drawn(app.call("/sdapi/v1/img2img", asked | {"inpaint_full_res": False}))
    assert whole.size == (64, 64)


def test_masked_content_may_be_filled_from_what_surrounds_it() -> None:
    """Left red, right blue, a white hole between: each side of it is filled from its own surroundings."""
    picture, hole = Image.new("RGB", (64, 64), "red"), Image.new("L", (64, 64), 0)
    picture.paste("blue", (32, 0, 64, 64))
    picture.paste("white", (16, 16, 48, 48))
    hole.paste(255, (16, 16, 48, 48))
    filled = Image.open(io.BytesIO(webui_requests._filled(content(picture), content(hole))))
    assert filled.getpixel((4, 32)) == (255, 0, 0)
    assert filled.getpixel((60, 32)) == (0, 0, 255)
    left, right = filled.getpixel((18, 32)), filled.getpixel((45, 32))
    assert left[0] > 200 > 60 > left[2]
    assert right[2] > 200 > 60 > right[0]
    assert max(left[1], right[1]) < 10  # nothing of the white


def test_models_are_unloaded_and_read_again(app: Any) -> None:
    asked = {"prompt": "cat", "steps": 1, "seed": 1, "width": 64, "height": 64}
    first = app.call("/sdapi/v1/txt2img", asked)["images"]
    before = app.call("/api/v1/workers")[0]
    assert app.call("/sdapi/v1/unload-checkpoint", {}) == {}
    until(lambda: app.call("/api/v1/workers")[0]["pid"] not in (None, before["pid"]))
    assert app.call("/sdapi/v1/reload-checkpoint", {}) == {}
    assert app.call("/sdapi/v1/txt2img", asked)["images"] == first
    assert app.call("/sdapi/v1/lycos") == app.call("/sdapi/v1/loras")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"init_images": []}, "init_images"),
        ({"init_images": ["http://example.org/a.png"]}, "not fetched"),
        ({"init_images": ["nonsense!"]}, "base64"),
        ({"denoising_strength": 0}, "denoising_strength"),
        ({"inpainting_fill": 2, "mask": MASK}, "inpainting_fill"),
        ({"inpaint_full_res_padding": -1, "mask": MASK}, "inpaint_full_res_padding"),
        ({"resize_mode": 1}, "resize_mode"),
        ({"s_noise": 0.5}, "s_noise"),
        ({"eta": 1.0, "sampler_name": "DDIM"}, "eta"),
        ({"eta": 0, "sampler_name": "Euler a"}, "eta"),
        ({"sampler_name": "Euler", "scheduler": "nonsense"}, "nonsense"),
        ({"sampler_name": "DDIM", "scheduler": "Karras"}, "DDIM"),
        ({"cfg_scal": 3}, "cfg_scale"),
        ({"prompt": "cat <hypernet:ink:1"}, "nearly"),
    ],
)
def test_what_img2img_does_not_draw_is_refused(app: Any, more: dict[str, Any], said: str) -> None:
    start = {"prompt": "cat", "steps": 2, "init_images": [coded(Image.new("RGB", (64, 64)))]}
    answer = app.call("/sdapi/v1/img2img", start | more)
    assert answer["status"] in (400, 422)
    assert said in str(answer["detail"])


# What the client `webuiapi` 0.9.17 always sends.
CLIENT: dict[str, Any] = {
    "styles": [],
    "subseed": -1,
    "subseed_strength": 0.0,
    "seed_resize_from_h": 0,
    "seed_resize_from_w": 0,
    "restore_faces": False,
    "tiling": False,
    "do_not_save_samples": False,
    "do_not_save_grid": False,
    "negative_prompt": "",
    "eta": 1.0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 1,
    "override_settings": {},
    "override_settings_restore_afterwards": True,
    "sampler_name": "Euler a",
    "sampler_index": "Euler a",
    "scheduler": "automatic",
    "script_name": None,
    "script_args": [],
    "send_images": True,
    "save_images": False,
    "alwayson_scripts": {"ControlNet": {"args": []}},
}
OF_TXT2IMG = {
    "enable_hr": False,
    "hr_scale": 2,
    "hr_upscaler": "Latent",
    "hr_prompt": "",
    "hr_scheduler": None,
}
OF_TXT2IMG |= {"denoising_strength": 0.7, "firstphase_width": 0, "hr_second_pass_steps": 0}
OF_IMG2IMG = {"resize_mode": 0, "mask_blur": 4, "inpainting_fill": 0, "inpaint_full_res": True, "mask": None}
OF_IMG2IMG |= {"inpaint_full_res_padding": 0, "inpainting_mask_invert": 0, "initial_noise_multiplier": 1}
OF_IMG2IMG |= {"image_cfg_scale": 1.5, "include_init_images": False}


def test_what_a_client_always_sends(app: Any) -> None:
    asked = {"prompt": "cat face", "seed": 3, "steps": 2, "cfg_scale": 7.0, "width": 64, "height": 64}
    plain = app.call("/sdapi/v1/txt2img", asked | {"sampler_name": "Euler a"})
    assert app.call("/sdapi/v1/txt2img", CLIENT | OF_TXT2IMG | asked)["images"] == plain["images"]
    start = {"init_images": [coded(Image.new("RGB", (64, 64), "red"))], "denoising_strength": 0.75}
    answer = app.call("/sdapi/v1/img2img", CLIENT | OF_IMG2IMG | asked | start)
    assert drawn(answer).size == (64, 64)
    assert app.call("/sdapi/v1/memory")["ram"]["total"] > 0


def test_png_info(app: Any) -> None:
    answer = app.call(
        "/sdapi/v1/txt2img", {"prompt": "cat face", "seed": 5, "steps": 2, "width": 64, "height": 96}
    )
    told = app.call("/sdapi/v1/png-info", {"image": answer["images"][0]})
    assert told["info"] == json.loads(answer["info"])["infotexts"][0]
    wanted = {"Prompt": "cat face", "Seed": "5", "Size-1": "64", "Size-2": "96", "Steps": "2"}
    assert wanted.items() <= told["parameters"].items()
    assert app.call("/sdapi/v1/png-info", {"image": coded(Image.new("RGB", (4, 4)))})["info"] == ""


def test_lists(app: Any) -> None:
    network(app.root / "models/hypernetworks")
    assert {"Karras", "SGM Uniform", "Automatic"} <= {
        one["label"] for one in app.call("/sdapi/v1/schedulers")
    }
    [emoji] = [one for one in app.call("/sdapi/v1/sd-models") if one["model_name"] == "emoji"]
    assert (
        emoji["title"] == f"emoji [{emoji['hash']}]" == app.call("/sdapi/v1/options")["sd_model_checkpoint"]
    )
    app.call("/sdapi/v1/options", {"sd_model_checkpoint": emoji["title"]})
    assert app.call("/sdapi/v1/options")["sd_model_checkpoint"] == emoji["title"]
    found = app.call("/sdapi/v1/extra-networks?page=hypernetwork&name=webui-net")
    assert [one["prompt"] for one in found] == ["<hypernet:webui-net:1>"]
    assert [one["name"] for one in app.call("/sdapi/v1/upscalers")] == ["Lanczos"]
    assert {"name": "Latent (nearest)"} in app.call("/sdapi/v1/latent-upscale-modes")
    for empty in ("face-restorers", "prompt-styles", "loras"):
        assert app.call(f"/sdapi/v1/{empty}") == []
    assert app.call("/sdapi/v1/scripts") == {"txt2img": [], "img2img": []}
    assert app.call("/sdapi/v1/refresh-checkpoints", {}) is None


@pytest.mark.parametrize("path", ["/sdapi/v1/nothing", "/sdapi/v1/controlnet/model_list"])
def test_what_is_not_there_is_said_in_json(app: Any, path: str) -> None:
    for body in (None, {}):
        answer = app.call(path, body) if body is not None else app.call(path)
        assert answer["status"] == 404
        assert "there is no" in answer["detail"]


def test_a_network_is_made_and_trained(app: Any) -> None:
    made = {"name": "made", "enable_sizes": ["128"], "layer_structure": "1, 2, 1", "activation_func": "relu"}
    told = app.call("/sdapi/v1/create/hypernetwork", made)
    assert told["info"].startswith("create hypernetwork filename: ")
    assert "made" in [one["name"] for one in app.call("/sdapi/v1/hypernetworks")]
    again = app.call("/sdapi/v1/create/hypernetwork", made)
    assert again["status"] == 400
    assert "overwrite_old" in again["detail"]
    folder = app.root / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (64, 64), (80 * i, 40, 200)).save(folder / f"square {i}.png")
    asked = {"hypernetwork_name": "made", "data_root": "pictures", "steps": 2, "learn_rate": "1e-4：1, 1e-5"}
    asked |= {"training_width": 64, "training_height": 64, "template_filename": "hypernetwork.txt"}
    assert "colour" in app.call("/sdapi/v1/train/hypernetwork", asked | {"colour": 1})["detail"]
    for rate, said in (
        ("1e-4:1;1e-5", "did you mean '1e-4:1, 1e-5'"),
        ("0,0001:1", "did you mean '0.0001:1'"),
    ):
        refused = app.call("/sdapi/v1/train/hypernetwork", asked | {"learn_rate": rate})
        assert refused["status"] == 400
        assert "schedule" in str(refused["detail"])
        assert said in str(refused["detail"])
    told = app.call("/sdapi/v1/train/hypernetwork", asked)
    assert told["info"] == "train hypernetwork complete: filename: made error: None"
    assert hb.load(app.root / "models/hypernetworks/made.safetensors").step == 2


def test_interrupt_and_skip(app: Any) -> None:
    asked = {"prompt": "cat face", "seed": 5, "steps": 40, "batch_size": 1, "n_iter": 9}
    answers: list[Any] = []
    drawing = threading.Thread(target=lambda: answers.append(app.call("/sdapi/v1/txt2img", asked)))
    drawing.start()
    while not app.call("/sdapi/v1/progress")["state"]["sampling_step"]:
        assert drawing.is_alive()
    app.call("/sdapi/v1/skip", {})  # of nine, eight are drawn together
    drawing.join()
    assert json.loads(answers[0]["info"])["all_seeds"] == [13]
    drawing = threading.Thread(target=lambda: answers.append(app.call("/sdapi/v1/txt2img", asked)))
    drawing.start()
    while not app.call("/sdapi/v1/progress")["state"]["sampling_step"]:
        assert drawing.is_alive()
    assert app.call("/sdapi/v1/interrupt", {}) == {}
    drawing.join()
    assert answers[1]["images"] == []
    assert json.loads(answers[1]["info"])["interrupted"]


def test_progress_is_told(app: Any) -> None:
    assert app.call("/sdapi/v1/progress")["progress"] == 0
    seen = []
    asked = {"prompt": "cat face", "seed": 5, "steps": 15, "batch_size": 8, "n_iter": 2}
    drawing = threading.Thread(target=lambda: app.call("/sdapi/v1/txt2img", asked))
    drawing.start()
    while drawing.is_alive():
        seen.append(app.call("/sdapi/v1/progress"))
    middle = [s for s in seen if 0 < s["progress"] < 1]
    assert middle
    assert any(s["current_image"] for s in middle)
    assert all(s["eta_relative"] > 0 for s in middle)
    shares = [s["progress"] for s in seen if s["state"]["job"] == middle[0]["state"]["job"]]
    assert sorted(shares) == shares, "of all pictures, not of those at hand"
    assert {s["state"]["job_no"] for s in middle} == {0, 8}
    assert middle[0]["state"]["job_count"] == 16
