"""Styles generated from pictures or words: asked for, kept as hypernetworks, tuned into trainings."""

import shutil
import threading
from pathlib import Path
from typing import Any

from pydantic import Field

from hyperbrush.app.jobs.jobs import Job, Jobs
from hyperbrush.app.names import free_name, plain_name
from hyperbrush.app.requests import Request, StyleRequest, TrainRequest
from hyperbrush.app.site import Site
from hyperbrush.app.styles import generators
from hyperbrush.app.train.service import start as start_training
from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import NotThere, UserError
from hyperbrush.files import atomic_folder

ADAPTER = "networks/adapter.safetensors"  # in a style job's folder
START = "start.safetensors"  # of a tuning, beside its pictures
SIDES = ("without", "with")
_NAME = r"^[^/\\:<>\x00-\x1f]+$"
_keeping = threading.Lock()
_tuning = threading.Lock()


class KeepRequest(Request):
    """Put a style among the hypernetworks."""

    name: str = Field(min_length=1, max_length=100, pattern=_NAME, description="of no other hypernetwork")


class TuneRequest(Request):
    """Train on from a style, on the pictures it was made from."""

    name: str = Field(
        min_length=1, max_length=100, pattern=_NAME, description="of the run and the hypernetwork"
    )
    steps: int = Field(60, ge=1, le=100_000)
    rank: int = Field(8, ge=1, le=128, description="room to tune; at least the adapter's own is taken")
    captions: list[str] | None = Field(
        None, max_length=16, description="what is on each picture; those of the style where left out"
    )


def begin(site: Site, request: StyleRequest) -> Job:
    """Put a style into the queue, once all it needs is there.

    Raises:
        UserError: nothing to make it from, a picture or generator that is not there, a prompt that cannot be read, a name
            that is taken.
    """
    if request.adapter:
        adapter_file(site.jobs, request.adapter)
    elif not request.images and not request.text.strip():
        raise UserError(
            "nothing to generate from: give one to sixteen pictures, or describe the style in words"
        )
    else:
        generators.find(site.workspace, request.generator)
    for image in request.images:
        site.uploads.path(image)
    for prompt in request.prompts:
        if not prompt.strip():
            raise UserError("a prompt is empty: write what is to be drawn, or leave it out")
        _check_prompt(prompt)
    if request.keep:
        refuse_taken(site.workspace, request.name)
    return site.submit("style", request.model_dump())


def _check_prompt(prompt: str) -> None:
    from hyperbrush.generation.settings import check_text

    check_text(prompt)
    if "<hypernet:" in prompt:
        raise UserError(
            f"the prompt {prompt!r:.80} has a tag: a style is shown beside the plain model, without others"
        )


def adapter_file(jobs: Jobs, job: str) -> Path:
    """The adapter that a style job has made.

    Raises:
        NotThere: no such job, or it has made none (yet).
    """
    found = jobs.get(job)
    path = jobs.folder / found.id / ADAPTER
    if found.kind != "style" or not path.is_file():
        raise NotThere(f"job {job:.40} has no adapter: it is {found.kind}, {found.state}")
    return path


def drawn(job: Job, side: str) -> list[str]:
    """File names of the pictures without or with the style, those there are already."""
    told = job.result or job.progress
    pictures = told.get("pictures")
    return list(pictures.get(side, [])) if isinstance(pictures, dict) else []


def pictures_of(jobs: Jobs, job: str) -> list[str]:
    """Uploads that a style was made from; none where it was made from words alone."""
    return [str(image) for image in jobs.get(job).arguments.get("images", [])]


def picture_file(jobs: Jobs, job: str, side: str, number: int) -> Path:
    """One of a style's pictures.

    Raises:
        NotThere: no such job or picture, or its file was removed.
    """
    found = jobs.get(job)
    names = drawn(found, side)
    if not 0 <= number < len(names):
        raise NotThere(
            f"job {job:.40} has {len(names)} pictures {side} the style; there is no number {number}"
        )
    path = jobs.folder / found.id / names[number]
    if not path.is_file():
        raise NotThere(f"picture {number} of job {job} is no longer in {path.parent}")
    return path


def keep(site: Site, job: str, request: KeepRequest) -> dict[str, Any]:
    """Put a style's adapter among the hypernetworks, with a preview and the strength it was last seen at.

    Raises:
        UserError: there is no such adapter, the name is taken, or it cannot be written.
    """
    source = adapter_file(site.jobs, job)
    found = site.jobs.get(job)
    shown = drawn(found, SIDES[1])
    preview = site.jobs.folder / found.id / shown[0] if shown else None
    strength = float(found.arguments.get("strength", 1.0))
    keep_as(site.workspace, source, request.name, strength=strength, preview=preview)
    site.news("networks")
    return {"name": request.name, "strength": strength}


def keep_as(
    workspace: Workspace, adapter: Path, name: str, *, strength: float = 1.0, preview: Path | None = None
) -> None:
    """Copy an adapter among the hypernetworks under a name of its own.

    Raises:
        UserError: the name is taken, or it cannot be written.
    """
    from PIL import Image

    from hyperbrush.hypernetworks.generator import GeneratedWeights
    from hyperbrush.hypernetworks.library.notes import Notes

    with _keeping:  # two requests for one name: the second is refused
        refuse_taken(workspace, name)
        weights = GeneratedWeights.load(adapter)
        weights.name = name
        weights.save(workspace.folder("hypernetworks") / f"{name}.safetensors")
    library = workspace.library
    if strength != 1:
        library.write_notes(name, Notes(preferred_weight=strength))
    if preview is not None and preview.is_file():  # not deleted in Gallery
        with Image.open(preview) as image:
            library.set_preview(name, image)


def refuse_taken(workspace: Workspace, name: str) -> None:
    """Refuse a name that a hypernetwork has, or that none can have.

    Raises:
        UserError: it is so; of a taken one, a free one is told.
    """
    plain_name(name, "hypernetwork")
    taken = names(workspace)
    if name.casefold() in taken:
        raise UserError(
            f"there is a hypernetwork {name!r} already: choose another name, such as {free_name(name, taken)!r}"
        )


def names(workspace: Workspace) -> set[str]:
    """Names in the hypernetworks' folder that a new file would meet, folded."""
    from hyperbrush.hypernetworks.files import SUFFIXES

    folder = workspace.folder("hypernetworks")
    return {p.stem.casefold() for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES}


def unused_name(workspace: Workspace, name: str = "style") -> str:
    """A name that neither a hypernetwork, a run nor a folder of pictures has."""
    others = [p.name for kind in ("runs", "datasets") for p in workspace.folder(kind).iterdir()]
    return free_name(name, names(workspace) | {other.casefold() for other in others})


def tune(site: Site, job: str, request: TuneRequest) -> str:
    """Begin a short training from a style's adapter on its pictures; returns the run's name.

    Raises:
        UserError: no such adapter, it was made from words alone, or the name is taken.
    """
    with _tuning:  # two requests for one name: the second must not take the first one's pictures away
        return _tune(site, job, request)


def _tune(site: Site, job: str, request: TuneRequest) -> str:
    source = adapter_file(site.jobs, job)
    style = site.jobs.get(job)
    if "rank" not in (style.result or style.progress):
        raise UserError(
            f"job {job:.40} has not told of its adapter (yet): it is {style.state}; generate it again"
        )
    images = pictures_of(site.jobs, job)
    if not images:
        raise UserError(
            "this style was made from words: tuning needs pictures of it; give some, and generate again"
        )
    pictures = [site.uploads.path(image) for image in images]
    captions = style.arguments.get("captions", []) if request.captions is None else request.captions
    refuse_taken(site.workspace, request.name)
    data = site.workspace.folder("datasets") / request.name
    if data.exists():
        raise UserError(f"there is a folder of pictures {request.name!r} already: choose another name")
    with atomic_folder(data) as folder:
        shutil.copyfile(source, folder / START)
        for number, picture in enumerate(pictures):
            shutil.copyfile(picture, folder / f"{number + 1:02d}.png")
            said = captions[number].strip() if number < len(captions) else ""
            (folder / f"{number + 1:02d}.txt").write_text(said, encoding="utf-8")
    try:
        start_training(site, TrainRequest(settings=_settings(style, request, data, len(pictures))))
    except BaseException:
        shutil.rmtree(data, ignore_errors=True)
        raise
    return request.name


def _settings(style: Job, request: TuneRequest, data: Path, pictures: int) -> dict[str, Any]:
    """Of the training, as a run's config.yaml has them."""
    adapter = int((style.result or style.progress)["rank"])
    every = max(1, request.steps // 4)
    return {
        "name": request.name,
        "model": str((style.result or style.progress)["model"]),
        "data": str(data),
        "start_from": str(data / START),
        "tune_rank": max(request.rank, adapter),
        "training": {
            "max_steps": request.steps,
            "batch_size": min(8, pictures),
            "checkpoint_every": every,
            "validate_every": every,
            "preview_every": every,
            **({"prompts": list(style.arguments["prompts"])} if style.arguments.get("prompts") else {}),
        },
    }
