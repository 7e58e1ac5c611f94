"""Pictures from a prompt, with previews while they are sampled."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.app.requests import DrawRequest, checked
from hyperbrush.app.uploads import Uploads
from hyperbrush.app.work.models import opened
from hyperbrush.app.worker import Asked, Desk
from hyperbrush.files import atomic_path

if TYPE_CHECKING:
    from hyperbrush.generation import OpenedModel, Picture

PREVIEW_SHARE = 0.1  # of the time, that previews may take
PREVIEW_EVERY = 0.25  # seconds between two at least


class Preview:
    """While a picture is sampled: tells the steps, and writes preview.png now and then; stops where asked."""

    def __init__(self, desk: Desk, model: "OpenedModel", **about: Any) -> None:
        self.desk, self.model, self.about = desk, model, about
        self._next = 0.0
        self._number = 0

    def __call__(self, step: int, steps: int, latents: Any) -> None:
        begin = time.monotonic()
        if begin >= self._next and step < steps:
            self._write(latents)
            took = time.monotonic() - begin
            self._next = time.monotonic() + max(PREVIEW_EVERY, took / PREVIEW_SHARE)
        self.desk.tell(now=step == steps, step=step, steps=steps, preview=self._number, **self.about)
        if how := self.desk.asked():
            raise Asked(how)

    def _write(self, latents: Any) -> None:
        import torch

        from hyperbrush.ldm.pictures import to_pictures

        with torch.no_grad():
            picture = to_pictures(self.model.model.decode(latents[:1]).float().clamp(-1, 1) / 2 + 0.5)[0]
        with atomic_path(self.desk.folder / "preview.png", sync=False) as path:
            picture.save(path, "PNG")
        self._number += 1


def draw(desk: Desk) -> dict[str, Any]:
    """Job "draw": a `DrawRequest`."""
    from hyperbrush.generation import generate

    request: DrawRequest = checked(DrawRequest, desk.arguments)
    uploads = Uploads(desk.workspace.state / "uploads")
    model = opened(desk, request.model)
    own = model.model.image_size
    size = (request.height or own, request.width or own) if request.height or request.width else None
    pictures = generate(
        request.prompt,
        model=model,
        negative=request.negative,
        seed=request.seed,
        count=request.count,
        steps=request.steps,
        sampler=request.sampler,
        guidance_scale=request.guidance_scale,
        size=size,
        clip_skip=request.clip_skip,
        discretisation=request.discretisation,
        image=uploads.open(request.image).convert("RGB") if request.image else None,
        image_strength=request.image_strength,
        hypernetworks=desk.workspace.folder("hypernetworks"),
        missing=request.missing,
        on_step=Preview(desk, model),
    )
    return {"pictures": [keep(desk, picture) for picture in pictures]}


def keep(desk: Desk, picture: "Picture") -> dict[str, Any]:
    """Save a picture under today's date and say where it is."""
    folder = desk.workspace.folder("outputs") / time.strftime("%Y-%m-%d")
    path = picture.save(_free(folder, f"{picture.seed}.png"))
    return {
        "file": path.relative_to(desk.workspace.folder("outputs")).as_posix(),
        "seed": picture.seed,
        "width": picture.image.width,
        "height": picture.image.height,
        "parameters": picture.parameters,
        "notes": picture.notes,
    }


def _free(folder: Path, name: str) -> Path:
    """NNNNN-name with the next number, as the webui does; one worker alone writes there."""
    numbers = [int(p.name[:5]) for p in folder.glob("[0-9][0-9][0-9][0-9][0-9]-*")] if folder.is_dir() else []
    return folder / f"{max(numbers, default=-1) + 1:05d}-{name}"
