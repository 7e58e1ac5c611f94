"""An adapter from a few pictures or a text, and what it does beside the plain model."""

import contextlib
import shutil
import time
from typing import Any

from hyperbrush.app.jobs.context import JobContext
from hyperbrush.app.model.work import opened
from hyperbrush.app.requests import StyleRequest, checked
from hyperbrush.app.styles import generators
from hyperbrush.app.styles.service import ADAPTER, SIDES, adapter_file, keep_as, refuse_taken
from hyperbrush.app.uploads import Uploads
from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path


def style(context: JobContext) -> dict[str, Any]:
    """Job "style": a `StyleRequest`; the adapter, and pictures without and with it, in the job's folder."""
    request: StyleRequest = checked(StyleRequest, context.arguments)
    is_kept = context.jobs.get(context.id).progress.get("kept") == request.name  # by a worker that died
    if request.keep and not is_kept:
        refuse_taken(context.workspace, request.name)
    done = _again(context, request) if request.adapter else _generated(context, request)
    if request.keep and not is_kept:
        keep_as(context.workspace, context.folder / ADAPTER, request.name, strength=request.strength)
    if request.keep:
        done["kept"] = request.name
    _draw(context, request, done)
    return done


def _generated(context: JobContext, request: StyleRequest) -> dict[str, Any]:
    """The adapter, made in one pass."""
    from hyperbrush.hypernetworks.generator.generating import generate_adapter, open_generator
    from hyperbrush.ldm.data.pictures import opened as opened_picture

    model = opened(context)
    source = context.model
    context.tell(now=True, stage="generating")
    uploads = Uploads(context.workspace.state / "uploads")
    net = open_generator(generators.find(context.workspace, request.generator, source).path, model.model)
    begin = time.perf_counter()
    weights = generate_adapter(
        net,
        pictures=[opened_picture(uploads.open(image), "the picture") for image in request.images],
        text=request.text,
        name=request.name,
    )
    seconds = time.perf_counter() - begin
    file = weights.save(context.folder / ADAPTER)
    return {"seconds": seconds, "size": file.stat().st_size, "rank": weights.rank, "model": source}


def _again(context: JobContext, request: StyleRequest) -> dict[str, Any]:
    """The adapter of an earlier style, and its pictures without it where they would be the same."""
    before = context.jobs.get(request.adapter)
    source = adapter_file(context.jobs, before.id)
    result = before.result or before.progress
    if "seconds" not in result:
        raise UserError(f"style {before.id} was stopped before its adapter was whole: generate it again")
    (context.folder / ADAPTER).parent.mkdir(exist_ok=True)
    with atomic_path(context.folder / ADAPTER) as path:
        shutil.copyfile(source, path)
    same = ("prompts", "seed", "steps")
    if all(before.arguments.get(key) == context.arguments.get(key) for key in same):
        for name in result.get("pictures", {}).get(SIDES[0], []):
            with contextlib.suppress(FileNotFoundError):  # deleted in Gallery: it is drawn again
                shutil.copyfile(context.jobs.folder / before.id / name, context.folder / name)
    return {key: result[key] for key in ("seconds", "size", "rank", "model")}


def _draw(context: JobContext, request: StyleRequest, done: dict[str, Any]) -> None:
    """The prompts without and with the adapter, each from the same seed; reported as they come."""
    from hyperbrush.generation import generate

    model = opened(context, done["model"])
    pictures: dict[str, list[str]] = {side: [] for side in SIDES}
    done["pictures"] = pictures
    total = len(SIDES) * len(request.prompts)

    def tell() -> None:
        count = sum(map(len, pictures.values()))
        context.tell(now=True, stage="drawing", step=count, steps=total, **done)

    tell()
    for number, prompt in enumerate(request.prompts):
        for side, tag in zip(SIDES, ("", f" <hypernet:adapter:{request.strength:g}>"), strict=True):
            name = f"{side}-{number}.png"
            if not (side == SIDES[0] and (context.folder / name).is_file()):  # of an earlier strength
                [drawn] = generate(
                    prompt + tag,
                    model=model,
                    seed=request.seed,
                    steps=request.steps,
                    hypernetworks=(context.folder / ADAPTER).parent,
                    on_step=lambda *_: context.raise_if_requested(),
                )
                drawn.save(context.folder / name)
            pictures[side].append(name)
            tell()
