"""Base models that stay open between jobs; trying one, and the doctor's look at it."""

import itertools
import time
from typing import TYPE_CHECKING, Any

from hyperbrush.app.model import service as base_models

if TYPE_CHECKING:
    from hyperbrush.app.jobs.context import JobContext
    from hyperbrush.generation import OpenedModel

TIMED_STEPS = 3  # sampling steps that are timed
FILES = 5  # hypernetworks that the doctor looks at


def opened(context: "JobContext", source: str = "", *, precision: str = "") -> "OpenedModel":
    """The model a job asks for, else the one preferred when it was asked for; the last one stays open.

    precision: another than the preferred one.

    Raises:
        UserError: it cannot be opened.
    """
    from hyperbrush.generation import open_model

    preferences = context.workspace.preferences
    where = base_models.place(context.workspace, source or context.model)
    key = (where, context.worker.device, precision or preferences.precision)
    if context.worker.kept.get("model_key") != key:
        context.worker.kept.clear()  # before the next is opened: two may not fit
        told = context.jobs.get(context.id).progress  # of a worker that died: what it did is still there
        context.tell(now=True, **{**told, "stage": "opening", "model": source or context.model})
        found = open_model(where, device=key[1], precision=key[2])
        context.worker.kept.update(model=found, model_key=key)
    model: OpenedModel = context.worker.kept["model"]
    return model


def try_model(context: "JobContext") -> dict[str, Any]:
    """Job "try-model": {"model": …, "use": prefer it from then on}; whether it opens and draws here, and how fast."""
    from hyperbrush.generation import generate

    source = str(context.arguments.get("model") or context.model)
    model = opened(context, source)
    times: list[float] = []
    context.tell(now=True, stage="trying", model=source)
    [picture] = generate(
        "cat", model=model, seed=0, steps=TIMED_STEPS, on_step=lambda *_: times.append(time.perf_counter())
    )
    seconds = min(b - a for a, b in itertools.pairwise(times))
    pixels = picture.image.width * picture.image.height
    base_models.note_pace(context.workspace, context.worker.device, source, base_models.Pace(seconds, pixels))
    if context.arguments.get("use"):
        context.workspace.prefer(model=source)
    return {"seconds": seconds, "image_size": model.model.image_size}


def doctor(context: "JobContext") -> dict[str, Any]:
    """Job "doctor": `hyperbrush doctor` on the preferred model and the first hypernetworks; page and pictures."""
    from hyperbrush.commands.doctor import examine

    library = context.workspace.library
    model = opened(context)

    def report(text: str) -> None:
        context.tell(now=True, stage=text)
        context.raise_if_requested()

    found = examine(
        model.model,
        list(library.files().values())[:FILES],
        name=model.name,
        steps=10,
        pairs=3,
        on_progress=report,
    )
    found.save(context.folder / "doctor.md")
    rows = {"": found.environment, **found.files}
    return {
        "page": "doctor.md",
        "picture": "doctor.png" if found.pictures is not None else "",
        "wrong": len(found.wrong),
        "rows": [
            {"about": about, "what": one.what, "found": one.found, "sound": one.sound}
            for about, findings in rows.items()
            for one in findings
        ],
    }
