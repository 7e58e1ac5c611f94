"""What the webui's clients send to draw, and ours of theirs.

What would change the picture and is not drawn here (scripts, other upscalers …) is refused, never ignored.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hyperbrush.app.requests import MOST_SEED, DrawRequest, checked
from hyperbrush.app.site import Site
from hyperbrush.app.webui.options import drawn_with, model_source
from hyperbrush.errors import UserError, unknown_name
from hyperbrush.generation.settings import MAX_PADDING

# Of a request: what it must be, or the picture would be another than the one that was asked for.
ONLY: dict[str, tuple[Any, ...]] = {
    "enable_hr": (False,),  # of img2img
    # of a second pass
    "hr_resize_x": (0,),
    "hr_resize_y": (0,),
    "hr_checkpoint_name": ("", "Use same checkpoint"),
    "hr_sampler_name": ("", "Use same sampler"),
    "hr_scheduler": ("", "Use same scheduler"),
    "hr_prompt": ("",),
    "hr_negative_prompt": ("",),
    "seed_resize_from_w": (0, -1),
    "seed_resize_from_h": (0, -1),
    "restore_faces": (False,),
    "tiling": (False,),
    "styles": ([],),
    "script_name": ("",),
    "alwayson_scripts": ({},),
    "refiner_checkpoint": ("", "None"),
    "s_churn": (0,),
    "s_noise": (1,),
    "s_min_uncond": (0,),
    "firstphase_width": (0,),
    "firstphase_height": (0,),
    # of img2img
    "resize_mode": (0,),
    "mask_blur": (4,),
    "mask_blur_x": (4,),
    "mask_blur_y": (4,),
    "inpainting_fill": (0, 1),
    "initial_noise_multiplier": (1,),
    "latent_mask": (),
}
# These count where there is a mask alone.
OF_A_MASK = ("mask_blur", "mask_blur_x", "mask_blur_y", "inpainting_fill")
# And these where there is a second pass.
OF_HIRES = tuple(name for name in ONLY if name.startswith("hr_"))
# What changes no picture, or nothing where `ONLY` holds.
PASSED = re.compile(
    r"save_images|do_not_save_samples|do_not_save_grid|override_settings_restore_afterwards|comments|"
    r"force_task_id|hr_\w+|refiner_switch_at|script_args|s_tmin|s_tmax|image_cfg_scale|include_init_images|"
    r"mask_round|use_async|resize_mode_name|seed_enable_extras|id_task"
)


class Txt2Img(BaseModel):
    """A request as the webui's clients send it; null is as good as nothing."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field("", max_length=20_000)
    negative_prompt: str = Field("", max_length=20_000)
    seed: int = Field(-1, ge=-1, le=MOST_SEED)
    subseed: int = Field(-1, ge=-1, le=MOST_SEED, description="variation seed; counts with a strength alone")
    subseed_strength: float = Field(0.0, ge=0, le=1)
    steps: int = Field(50, ge=1, le=500)
    cfg_scale: float = Field(7.0, ge=0, le=100)
    width: int | None = Field(None, ge=8, le=4096, description="the model's own by default")
    height: int | None = Field(None, ge=8, le=4096)
    batch_size: int = Field(1, ge=1, le=64)
    n_iter: int = Field(1, ge=1, le=64)
    sampler_name: str | None = Field(None, max_length=60)
    sampler_index: str | None = Field(None, max_length=60)
    scheduler: str | None = Field(
        None, max_length=60, description="Automatic (the sampler's own, as in the webui), Karras, Uniform, …"
    )
    eta: float | None = Field(None, description="0 or nothing for DDIM, 1 or nothing for samplers called 'a'")
    denoising_strength: float | None = Field(None, ge=0, le=1, description="of img2img; else not used")
    infotext: str | None = Field(
        None, max_length=100_000, description="a picture's parameters, for what is not given"
    )
    disable_extra_networks: bool = Field(False, description="draw without the tags' networks")
    override_settings: dict[str, Any] | None = None
    send_images: bool = True

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {name: value for name, value in values.items() if value is not None}


class Hires(Txt2Img):
    """As `Txt2Img`, with a second pass (hires fix), of which pictures from a picture know nothing."""

    enable_hr: bool = False
    hr_scale: float = 2.0
    hr_upscaler: str | None = Field(None, max_length=60, description="Latent by default")
    hr_second_pass_steps: int = Field(0, description="0: as many as steps")


class Img2Img(Txt2Img):
    """As `Txt2Img`, from a picture."""

    init_images: list[str] = Field(min_length=1, max_length=64, description="one, in base64")
    mask: str | None = Field(None, description="in base64: white where the picture is drawn anew")
    inpainting_mask_invert: int = Field(0, ge=0, le=1, description="1: black where it is drawn anew")
    inpaint_full_res: bool = Field(True, description="draw the mask's region alone, and put it back")
    inpaint_full_res_padding: int = Field(0, ge=0, le=MAX_PADDING, description="pixels around that region")


def draw_request(site: Site, request: Txt2Img, options: Mapping[str, Any]) -> DrawRequest:
    """Ours of theirs.

    options: as `webui_options` keeps them.

    Raises:
        UserError: something that is not drawn here.
    """
    _refuse(request)
    overriding = dict(request.override_settings or {})
    model = model_source(site, overriding.pop("sd_model_checkpoint", None))
    options = drawn_with(options, overriding)
    told = _from_infotext(request)
    asked = {**told, **_asked(request, str(told.get("sampler", "Euler")))}
    sampler = asked.pop("sampler", None) or _sampler(request, "Euler")
    _check_eta(request, sampler)
    prompt = asked.get("prompt", "")
    if request.disable_extra_networks:
        from hyperbrush.generation.tags import split_tags

        prompt = split_tags(prompt)[0]
    else:
        prompt = _with_option(prompt, options)
    values = {
        "steps": 50,
        "guidance_scale": 7.0,
        "discretisation": "webui",
        "clip_skip": options["CLIP_stop_at_last_layers"],
        **asked,
        "prompt": prompt,
        "sampler": sampler,
        "count": request.batch_size * request.n_iter,
        "model": model,
    }
    if isinstance(request, Img2Img):
        values |= {"hires_scale": None} | _start(site, request)
    if isinstance(request, Hires) and request.enable_hr:
        strength = 0.75 if request.denoising_strength is None else request.denoising_strength
        values |= {
            "hires_scale": request.hr_scale,
            "hires_strength": strength,
            "hires_steps": request.hr_second_pass_steps,
            "hires_upscaler": request.hr_upscaler or "Latent",
        }
    return checked(DrawRequest, values)  # type: ignore[no-any-return]


def _refuse(request: Txt2Img) -> None:
    """Refuse what would change the picture and is not drawn here, and what nobody knows."""
    masked, twice = bool(getattr(request, "mask", None)), bool(getattr(request, "enable_hr", False))
    for name, value in (request.model_extra or {}).items():
        idle = (name in OF_A_MASK and not masked) or (name in OF_HIRES and not twice)
        if idle or (name == "alwayson_scripts" and _idle(value)):
            continue
        if name in ONLY:
            plain = float(value) if isinstance(value, int) and not isinstance(value, bool) else value
            if not any(
                plain == one and isinstance(plain, bool) == isinstance(one, bool) for one in ONLY[name]
            ):
                only = " or ".join(repr(one) for one in ONLY[name])
                raise UserError(
                    f"{name} = {value!r:.60} is not drawn here: "
                    + (f"leave it out, or send {only}" if only else "leave it out")
                )
        elif not PASSED.fullmatch(name):
            known = {*type(request).model_fields, *ONLY}
            raise unknown_name("key of the request", str(name)[:100], known)


def _idle(scripts: Any) -> bool:
    """Whether the scripts a client names have nothing to do: some always name those that could."""
    if not isinstance(scripts, Mapping):
        return False
    return all(isinstance(one, Mapping) and one.get("args") in ([], [False]) for one in scripts.values())


def _asked(request: Txt2Img, sampler: str) -> dict[str, Any]:
    """Fields of a `DrawRequest` that a request itself gives; sampler: beside which a lone schedule stands."""
    given = request.model_fields_set
    names = {
        "prompt": "prompt",
        "negative_prompt": "negative",
        "steps": "steps",
        "cfg_scale": "guidance_scale",
        "width": "width",
        "height": "height",
    }
    found = {ours: getattr(request, theirs) for theirs, ours in names.items() if theirs in given}
    if "seed" in given:
        found["seed"] = None if request.seed < 0 else request.seed
    if request.subseed_strength:
        found["subseed_strength"] = request.subseed_strength
        found["subseed"] = None if request.subseed < 0 else request.subseed
    if given & {"sampler_name", "sampler_index", "scheduler"}:
        found["sampler"] = _sampler(request, sampler)
    return found


def _from_infotext(request: Txt2Img) -> dict[str, Any]:
    """Fields of a `DrawRequest` that the settings of another picture give."""
    if not request.infotext:
        return {}
    from hyperbrush.generation import read_infotext, repeat_of

    fields = dict(repeat_of(read_infotext(request.infotext)).arguments)
    height, width = fields.pop("size", None) or (None, None)
    found = {**fields, "width": width, "height": height}
    return {name: value for name, value in found.items() if value is not None}


def _sampler(request: Txt2Img, usual: str) -> str:
    """Newer webuis name the noise schedule beside the sampler; Automatic is the sampler's own."""
    from hyperbrush.ldm.sampling.samplers import with_schedule

    return with_schedule(request.sampler_name or request.sampler_index or usual, request.scheduler or "")


def _check_eta(request: Txt2Img, sampler: str) -> None:
    """The webui's eta: DDIM draws without noise at 0, ancestral samplers with all of theirs at 1; elsewhere it counts not."""
    from hyperbrush.ldm.sampling.samplers import find_sampler

    if request.eta is None:
        return
    base = find_sampler(sampler)
    if base.name == "DDIM" and request.eta != 0:
        raise UserError(f"eta = {request.eta:g} with DDIM is not drawn here: leave it out, or send 0")
    if base.ancestral and request.eta != 1:
        raise UserError(f"eta = {request.eta:g} with {sampler} is not drawn here: leave it out, or send 1")


def _with_option(prompt: str, options: Mapping[str, Any]) -> str:
    """A prompt with the network of the options, unless it names that itself: as in the webui its own tag counts."""
    from hyperbrush.generation.tags import split_tags

    network, strength = str(options["sd_hypernetwork"]), float(options["sd_hypernetwork_strength"])
    if network in ("None", ""):
        return prompt
    name = re.sub(r"\([0-9a-f]{8,10}\)$", "", network).strip()  # "name(hash)", as the webui writes it
    named = {items[0] for kind, items in split_tags(prompt)[1] if kind == "hypernet"}
    return prompt if name in named else f"{prompt} <hypernet:{name}:{strength:g}>"


def _start(site: Site, request: Img2Img) -> dict[str, Any]:
    """The start picture and the mask of a request, kept as uploads."""
    if len(request.init_images) != 1:
        raise UserError(f"{len(request.init_images)} init_images are not drawn here: send one a request")
    strength = 0.75 if request.denoising_strength is None else request.denoising_strength
    if strength == 0:
        raise UserError("denoising_strength = 0 draws nothing: send more than 0, up to 1")
    image = content_of(request.init_images[0], "init_images")
    found: dict[str, Any] = {"image_strength": strength}
    if request.mask:
        mask = _mask(request)
        if request.inpaint_full_res:
            found["mask_padding"] = request.inpaint_full_res_padding
        found["mask"] = site.uploads.keep(mask, "mask")
        if (request.model_extra or {}).get("inpainting_fill") == 0:
            image = _filled(image, mask)
    return found | {"image": site.uploads.keep(image, "init_images")}


# Radii of the blurs a hole is filled with, coarse to fine, and how often each is laid over (modules/masking.py, fill).
FILLS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))


def _filled(image: bytes, mask: bytes) -> bytes:
    """A picture (PNG) whose masked part is made of what surrounds it, as the webui's masked content "fill"."""
    import io

    from PIL import Image, ImageFilter, ImageOps

    from hyperbrush.app.uploads import open_picture
    from hyperbrush.ldm.data.pictures import opened

    picture = opened(open_picture(image, "init_images"), "init_images")
    hole = opened(open_picture(mask, "mask"), "mask", mask=True).resize(picture.size)
    around = Image.new("RGBa", picture.size)
    around.paste(picture.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(hole))
    filled = Image.new("RGBA", picture.size)
    for radius, times in FILLS:
        blurred = around.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            filled.alpha_composite(blurred)
    out = io.BytesIO()
    filled.convert("RGB").save(out, "PNG")
    return out.getvalue()


def _mask(request: Img2Img) -> bytes:
    content = content_of(request.mask or "", "mask")
    if not request.inpainting_mask_invert:
        return content
    import io

    from PIL import ImageOps

    from hyperbrush.app.uploads import open_picture
    from hyperbrush.ldm.data.pictures import opened

    out = io.BytesIO()
    ImageOps.invert(opened(open_picture(content, "mask"), "mask", mask=True)).save(out, "PNG")
    return out.getvalue()


def content_of(text: str, name: str) -> bytes:
    """The bytes of a picture in base64, with or without "data:image/png;base64," before it.

    Raises:
        UserError: it is none, or an address, which is not fetched.
    """
    if re.match(r"https?://", text):
        raise UserError(f"{name}: an address is not fetched here; send the picture in base64")
    try:
        return base64.b64decode(text.rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{name} is no picture in base64 ({error})") from error
