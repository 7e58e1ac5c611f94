"""The webui's own endpoints for users of hypernetworks, as its clients send them (modules/api/api.py, models.py).

What would change the picture and is not drawn here (scripts, other upscalers …) is refused, never ignored.
"""

import asyncio
import base64
import json
import logging
import threading
from typing import Any

from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, Field

from hyperbrush.app.create import service as drawings
from hyperbrush.app.jobs.jobs import Job
from hyperbrush.app.requests import SKIP
from hyperbrush.app.settings import service as choices
from hyperbrush.app.site import Site
from hyperbrush.app.train import service as trainings
from hyperbrush.app.webui import lists
from hyperbrush.app.webui import networks as webui_networks
from hyperbrush.app.webui.options import MODEL, OPTIONS, checked_options, model_source, taken, title
from hyperbrush.app.webui.requests import Hires, Img2Img, Txt2Img, content_of, draw_request
from hyperbrush.errors import NotThere, UserError
from hyperbrush.files import finite, read_json, write_json
from hyperbrush.hypernetworks.library.library import UnknownHypernetwork

log = logging.getLogger(__name__)


class PngInfo(BaseModel):
    """A picture to read settings out of."""

    image: str = Field(max_length=50_000_000, description="in base64")


def add(app: FastAPI, site: Site) -> None:
    """Add the webui's routes."""
    router = APIRouter(
        prefix="/sdapi/v1", tags=["webui"], responses={400: {"description": "`detail` says why"}}
    )
    lists.add(router, site)
    _add_options(router, site)
    _add_drawing(router, site)
    _add_networks(router, site)

    @router.api_route(
        "/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False
    )
    def nothing(rest: str) -> None:
        """Clients expect JSON where there is no such route, too."""
        raise NotThere(f"there is no /sdapi/v1/{rest[:100]} here; the routes are listed in /docs")

    app.include_router(router)


def _add_options(router: APIRouter, site: Site) -> None:
    kept = site.workspace.state / "webui-options.json"
    setting = threading.Lock()

    @router.get("/options")
    def options() -> dict[str, Any]:
        """What is set, under the webui's names."""
        return {**_options_now(site), MODEL: _title(site)}

    @router.post("/options")
    def set_options(values: dict[str, Any]) -> dict[str, Any]:
        """Set some of it; `ignored` names what is kept and shown, but concerns nothing here."""
        changed = checked_options({k: v for k, v in values.items() if k in OPTIONS})
        ignored = taken(values)
        if values.get(MODEL) is not None:
            choices.prefer(site, {"model": model_source(site, values[MODEL])})
        with setting:
            write_json(kept, read_json(kept) | ignored | changed)
        if ignored:
            log.info("options that change nothing here: %s", ", ".join(ignored))
        return {"ignored": sorted(ignored)}


def _options_now(site: Site) -> dict[str, Any]:
    return OPTIONS | read_json(site.workspace.state / "webui-options.json")


def _title(site: Site) -> str:
    from hyperbrush.app.model import service as base_models

    source = site.workspace.preferences.model
    try:
        model = base_models.describe(site.workspace, source)
        return title(model.name, base_models.hash_of(site.workspace, source))
    except UserError:
        return source


def _add_drawing(router: APIRouter, site: Site) -> None:
    @router.post("/txt2img")
    async def txt2img(request: Hires) -> dict[str, Any]:
        """Draw pictures; answered when they are done."""
        return await _drawn(site, request)

    @router.post("/img2img")
    async def img2img(request: Img2Img) -> dict[str, Any]:
        """Draw pictures from one; answered when they are done."""
        return await _drawn(site, request)

    @router.post("/png-info")
    def png_info(request: PngInfo) -> dict[str, Any]:
        """The settings a picture carries; empty where it has none."""
        return _png_info(request.image)

    @router.get("/progress")
    def progress(skip_current_image: bool = False) -> dict[str, Any]:
        """How far the present picture is."""
        return _progress(site, with_picture=not skip_current_image)

    @router.post("/interrupt")
    def interrupt() -> dict[str, Any]:
        """Stop the drawing at hand; who asked for it gets what is done."""
        for job in _running(site):
            site.ask(job.id, "stop")
        return {}

    @router.post("/skip")
    def skip() -> None:
        """Leave out the pictures at hand and go on with the next ones of the drawing."""
        for job in _running(site):
            write_json(site.jobs.folder / job.id / SKIP, {"how": "skip"})


def _add_networks(router: APIRouter, site: Site) -> None:
    @router.post("/create/hypernetwork")
    def create(request: webui_networks.CreateRequest) -> dict[str, str]:
        """Make a hypernetwork that knows nothing yet."""
        return webui_networks.create(site, request)

    @router.post("/train/hypernetwork")
    async def train(request: webui_networks.TrainHypernetwork) -> dict[str, str]:
        """Train a hypernetwork; answered when it is done."""

        def begin() -> Job:
            try:
                return trainings.start(site, webui_networks.training(request))
            except UnknownHypernetwork as error:
                raise UserError(str(error)) from error

        job = await _ended(site, await asyncio.to_thread(begin))
        if job.state != "done":
            raise UserError(job.error or f"the training was {job.state}")
        return {"info": f"train hypernetwork complete: filename: {request.hypernetwork_name} error: None"}


async def _ended(site: Site, job: Job) -> Job:
    """A job once it has ended."""
    seen = -1
    while (stands := await asyncio.to_thread(site.jobs.get, job.id)).is_open:
        seen = await site.wait(f"job:{job.id}", seen, timeout=2.0)
    return stands


async def _drawn(site: Site, request: Txt2Img) -> dict[str, Any]:
    def begin() -> Job:
        try:
            return drawings.ask(site, draw_request(site, request, _options_now(site)))
        except NotThere as error:  # to these clients 404 means that there is no such route
            raise UserError(str(error)) from error

    # What touches files stands beside the pages' loop.
    stands = await _ended(site, await asyncio.to_thread(begin))
    if stands.state not in ("done", "stopped"):
        raise UserError(stands.error or f"the job was {stands.state}")
    return await asyncio.to_thread(_answer, site, stands, request)


def _answer(site: Site, job: Job, request: Txt2Img) -> dict[str, Any]:
    from hyperbrush.generation.infotext import fields_of

    pictures = [one.said for one in drawings.pictures_of(job)]
    outputs = site.workspace.folder("outputs")
    asked = job.arguments
    seeds = [picture["seed"] for picture in pictures]
    first = pictures[0] if pictures else {}
    fields = [fields_of(picture["parameters"]) for picture in pictures]
    model = fields[0] if fields else {}
    subseeds = [int(one.get("Variation seed", -1)) for one in fields]
    info = {
        "prompt": request.prompt or asked["prompt"],
        "all_prompts": [one["Prompt"] for one in fields],  # with what its wildcards stood for
        "negative_prompt": asked["negative"],
        "all_negative_prompts": [asked["negative"]] * len(pictures),
        "seed": seeds[0] if seeds else asked["seed"],
        "all_seeds": seeds,
        "subseed": subseeds[0] if subseeds else -1,
        "all_subseeds": subseeds,
        "subseed_strength": asked["subseed_strength"],
        "width": first.get("width", asked["width"]),
        "height": first.get("height", asked["height"]),
        "sampler_name": asked["sampler"],
        "cfg_scale": asked["guidance_scale"],
        "steps": asked["steps"],
        "batch_size": request.batch_size,
        "sd_model_name": model.get("Model", ""),
        "sd_model_hash": model.get("Model hash", ""),
        "clip_skip": asked["clip_skip"],
        "index_of_first_image": 0,
        "infotexts": [picture["parameters"] for picture in pictures],
        "comments": "\n".join(dict.fromkeys(note for picture in pictures for note in picture["notes"])),
        "interrupted": job.state == "stopped",
    }
    images = [
        base64.b64encode((outputs / picture["file"]).read_bytes()).decode()
        for picture in (pictures if request.send_images else [])
    ]
    parameters = request.model_dump(exclude={"init_images", "mask"})
    return {
        "images": images,
        "parameters": finite(parameters),
        "info": json.dumps(info, ensure_ascii=False),
    }


def _png_info(image: str) -> dict[str, Any]:
    from hyperbrush.app.uploads import open_picture
    from hyperbrush.generation.infotext import fields_of
    from hyperbrush.generation.picture_files import text_in

    content = content_of(image, "image")
    picture = open_picture(content, "image")
    try:
        text = text_in(picture, "image")
    except UserError:
        text = ""
    items = {k: v for k, v in picture.info.items() if isinstance(v, str) and k != "parameters"}
    return {"info": text, "items": items, "parameters": fields_of(text) if text else {}}


def _running(site: Site) -> list[Job]:
    return [job for job in site.jobs.open() if job.state == "running" and job.kind == "draw"]


def _progress(site: Site, *, with_picture: bool) -> dict[str, Any]:
    jobs = site.jobs.open()
    running = [job for job in jobs if job.state == "running" and job.kind == "draw"]
    waiting = sum(job.state == "queued" for job in jobs)
    step = steps = done = count = 0
    share = left = 0.0
    image = None
    job_name = ""
    skipped = interrupted = False
    if running:
        job = running[-1]
        job_name = job.id
        step, steps = int(job.progress.get("step", 0)), int(job.progress.get("steps", 0))
        done, count = int(job.progress.get("done", 0)), int(job.progress.get("count", 1))
        share, left = float(job.progress.get("share", 0)), float(job.progress.get("left") or 0)
        folder = site.jobs.folder / job.id
        skipped, interrupted = (folder / SKIP).exists(), (folder / "stop.json").exists()
        preview = folder / "preview.png"
        if with_picture and preview.is_file():
            image = base64.b64encode(preview.read_bytes()).decode()
    return {
        "progress": share,
        "eta_relative": left,
        "state": {
            "skipped": skipped,
            "interrupted": interrupted,
            "job": job_name,
            "job_count": count + waiting,
            "job_no": done,
            "sampling_step": step,
            "sampling_steps": steps,
        },
        "current_image": image,
        "textinfo": None,
    }
