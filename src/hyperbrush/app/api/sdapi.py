"""The webui's own endpoints for users of hypernetworks, as its clients send them (modules/api/api.py, models.py).

What would change the picture and is not drawn here (hires fix, scripts, variation seeds …) is refused, never ignored.
"""

import asyncio
import base64
import json
import re
import threading
from typing import Any

from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, ConfigDict, Field

from hyperbrush.app import choices, drawings
from hyperbrush.app.jobs import Job
from hyperbrush.app.requests import DrawRequest, checked
from hyperbrush.app.runs import finite
from hyperbrush.app.site import Site
from hyperbrush.errors import UserError, unknown_name
from hyperbrush.files import read_json, write_json
from hyperbrush.hypernetworks.library import UnknownHypernetwork

# Of a request: what it must be, or the picture would be another than the one that was asked for.
ONLY: dict[str, tuple[Any, ...]] = {
    "enable_hr": (None, False),
    "subseed_strength": (None, 0, 0.0),
    "seed_resize_from_w": (None, 0, -1),
    "seed_resize_from_h": (None, 0, -1),
    "restore_faces": (None, False),
    "tiling": (None, False),
    "styles": (None, []),
    "script_name": (None, ""),
    "alwayson_scripts": (None, {}),
    "refiner_checkpoint": (None, "", "None"),
    "eta": (None, 0, 0.0, 1, 1.0),
    "s_churn": (None, 0, 0.0),
    "s_min_uncond": (None, 0, 0.0),
    "firstphase_width": (None, 0),
    "firstphase_height": (None, 0),
}
OPTIONS: dict[str, Any] = {
    "sd_hypernetwork": "None",
    "sd_hypernetwork_strength": 1.0,
    "CLIP_stop_at_last_layers": 1,
}


class Txt2Img(BaseModel):
    """A request as the webui's clients send it; keys that change no picture are passed over."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field("", max_length=20_000)
    negative_prompt: str = Field("", max_length=20_000)
    seed: int = Field(-1, ge=-1, le=2**32 - 1)
    steps: int = Field(50, ge=1, le=500)
    cfg_scale: float = Field(7.0, ge=0, le=100)
    width: int | None = Field(None, ge=8, le=4096, description="the model's own by default")
    height: int | None = Field(None, ge=8, le=4096)
    batch_size: int = Field(1, ge=1, le=64)
    n_iter: int = Field(1, ge=1, le=64)
    sampler_name: str | None = Field(None, max_length=60)
    sampler_index: str | None = Field(None, max_length=60)
    scheduler: str | None = Field(None, max_length=60)
    override_settings: dict[str, Any] | None = None
    send_images: bool = True


def add(app: FastAPI, site: Site) -> None:
    """Add the webui's routes."""
    router = APIRouter(
        prefix="/sdapi/v1", tags=["webui"], responses={400: {"description": "`detail` says why"}}
    )
    kept = site.workspace.state / "webui-options.json"
    setting = threading.Lock()

    @router.get("/hypernetworks")
    def hypernetworks() -> list[dict[str, str]]:
        """Names and files."""
        from hyperbrush.hypernetworks import HypernetworkLibrary

        library = HypernetworkLibrary(site.workspace.folder("hypernetworks"))
        return [{"name": name, "path": str(library.find(name))} for name in library.names()]

    @router.get("/samplers")
    def samplers() -> list[dict[str, Any]]:
        """Names of the samplers."""
        from hyperbrush.ldm.sampling import sampler_names

        return [{"name": name, "aliases": [], "options": {}} for name in sampler_names()]

    @router.get("/options")
    def options() -> dict[str, Any]:
        """What is set, under the webui's names."""
        return {"sd_model_checkpoint": site.workspace.preferences.model, **OPTIONS, **read_json(kept)}

    @router.post("/options")
    def set_options(values: dict[str, Any]) -> None:
        """Set some of it."""
        known = {"sd_model_checkpoint", *OPTIONS}
        for name in values:
            if name not in known:
                raise unknown_name("option", str(name)[:100], known)
        changed = _options({k: v for k, v in values.items() if k != "sd_model_checkpoint"})
        if "sd_model_checkpoint" in values:
            choices.prefer(site, {"model": values["sd_model_checkpoint"]})
        with setting:
            write_json(kept, read_json(kept) | changed)

    @router.post("/txt2img")
    async def txt2img(request: Txt2Img) -> dict[str, Any]:
        """Draw pictures; answered when they are done."""

        def begin() -> Job:
            try:
                return drawings.ask(site, _draw(request, OPTIONS | read_json(kept)))
            except UnknownHypernetwork as error:  # to these clients 404 means that there is no such route
                raise UserError(str(error)) from error

        job, seen = await asyncio.to_thread(begin), -1  # what touches files stands beside the pages' loop
        while (stands := await asyncio.to_thread(site.jobs.get, job.id)).is_open:
            seen = await site.wait(f"job:{job.id}", seen, timeout=2.0)
        if stands.state != "done":
            raise UserError(stands.error or f"the job was {stands.state}")
        return await asyncio.to_thread(_answer, site, stands, request)

    @router.get("/progress")
    def progress(skip_current_image: bool = False) -> dict[str, Any]:
        """How far the present picture is."""
        return _progress(site, with_picture=not skip_current_image)

    app.include_router(router)


def _options(values: dict[str, Any]) -> dict[str, Any]:
    """Options of the right kind.

    Raises:
        UserError: one is not.
    """
    for name, value in values.items():
        kind = type(OPTIONS[name])
        wanted = (int, float) if kind is float else kind
        if not isinstance(value, wanted) or isinstance(value, bool) or finite(value) is None:
            raise UserError(f"option {name}: expected {kind.__name__}, got {value!r:.60}")
        if isinstance(value, str) and not value.isprintable():  # nor could halves of characters be written
            raise UserError(f"option {name}: {value!r:.60} is no name")
    return values


def _draw(request: Txt2Img, options: dict[str, Any]) -> DrawRequest:
    """Ours of theirs.

    Raises:
        UserError: something that is not drawn here.
    """
    for name, allowed in ONLY.items():
        value = (request.model_extra or {}).get(name)
        if value not in allowed:
            raise UserError(f"{name} = {value!r:.60} is not drawn here: leave it out")
    overriding = dict(request.override_settings or {})
    overriding.pop("sd_model_checkpoint", None)
    for name in overriding:
        if name not in OPTIONS:
            raise unknown_name("override_settings key", str(name)[:100], OPTIONS)
    options = options | _options(overriding)
    prompt = request.prompt
    network, strength = str(options["sd_hypernetwork"]), float(options["sd_hypernetwork_strength"])
    if network not in ("None", ""):
        name = re.sub(r"\([0-9a-f]{8,10}\)$", "", network).strip()  # "name(hash)", as the webui writes it
        prompt = f"{prompt} <hypernet:{name}:{strength:g}>"
    return checked(  # type: ignore[no-any-return]
        DrawRequest,
        {
            "prompt": prompt,
            "negative": request.negative_prompt,
            "seed": None if request.seed < 0 else request.seed,
            "steps": request.steps,
            "guidance_scale": request.cfg_scale,
            "width": request.width,
            "height": request.height,
            "count": request.batch_size * request.n_iter,
            "sampler": _sampler(request),
            "clip_skip": options["CLIP_stop_at_last_layers"],
            "discretisation": "webui",
            "model": str((request.override_settings or {}).get("sd_model_checkpoint") or ""),
        },
    )


def _sampler(request: Txt2Img) -> str:
    """Newer webuis name the noise schedule beside the sampler."""
    from hyperbrush.ldm.sampling import sampler_names

    name = request.sampler_name or request.sampler_index or "Euler"
    if (request.scheduler or "").lower() == "karras" and f"{name} Karras" in sampler_names():
        return f"{name} Karras"
    return name


def _answer(site: Site, job: Job, request: Txt2Img) -> dict[str, Any]:
    pictures = job.result["pictures"]
    outputs = site.workspace.folder("outputs")
    seeds = [picture["seed"] for picture in pictures]
    first = pictures[0]
    info = {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * len(pictures),
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * len(pictures),
        "seed": seeds[0],
        "all_seeds": seeds,
        "width": first["width"],
        "height": first["height"],
        "sampler_name": job.arguments["sampler"],
        "cfg_scale": request.cfg_scale,
        "steps": request.steps,
        "batch_size": request.batch_size,
        "clip_skip": job.arguments["clip_skip"],
        "index_of_first_image": 0,
        "infotexts": [picture["parameters"] for picture in pictures],
    }
    images = [
        base64.b64encode((outputs / picture["file"]).read_bytes()).decode()
        for picture in (pictures if request.send_images else [])
    ]
    return {
        "images": images,
        "parameters": finite(request.model_dump()),
        "info": json.dumps(info, ensure_ascii=False),
    }


def _progress(site: Site, *, with_picture: bool) -> dict[str, Any]:
    import time

    jobs = site.jobs.open()
    running = [job for job in jobs if job.state == "running" and job.kind == "draw"]
    waiting = sum(job.state == "queued" for job in jobs)
    step = steps = 0
    share = left = 0.0
    image = None
    job_name = ""
    if running:
        job = running[-1]
        job_name = job.id
        step, steps = int(job.progress.get("step", 0)), int(job.progress.get("steps", 0))
        share = step / steps if steps else 0.0
        if share > 0 and job.started is not None:
            left = (time.time() - job.started) * (1 - share) / share
        preview = site.jobs.folder / job.id / "preview.png"
        if with_picture and preview.is_file():
            image = base64.b64encode(preview.read_bytes()).decode()
    return {
        "progress": share,
        "eta_relative": left,
        "state": {
            "skipped": False,
            "interrupted": False,
            "job": job_name,
            "job_count": len(running) + waiting,
            "job_no": 0,
            "sampling_step": step,
            "sampling_steps": steps,
        },
        "current_image": image,
        "textinfo": None,
    }
