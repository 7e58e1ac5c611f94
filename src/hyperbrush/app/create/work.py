"""Pictures from a prompt, with previews while they are sampled."""

import math
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.app.create.wildcards import FOLDER, filled
from hyperbrush.app.jobs.context import JobContext
from hyperbrush.app.model.work import opened
from hyperbrush.app.requests import SKIP, DrawRequest, checked
from hyperbrush.app.uploads import Uploads
from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path, read_json, write_json

if TYPE_CHECKING:
    from PIL.Image import Image

    from hyperbrush.generation import OpenedModel, Picture

PREVIEW_SHARE = 0.1  # of the time, that previews may take
PREVIEW_EVERY = 0.25  # seconds between two at least
LAST = "last-picture.json"  # in the app's state: the last number of a day
MOST_SIDE = 4096  # pixels, as of a `DrawRequest`
MOST_TOGETHER = 8  # pictures drawn in one batch,
TOGETHER_PIXELS = 512 * 512  # with so many pixels in all: one of 512 x 512


class Skipped(Exception):
    """The pictures at hand are to be left out, the next ones drawn."""


class Progress:
    """While pictures are sampled: tells steps, time left and what is done; writes preview.png now and then; stops where
    asked.
    """

    def __init__(self, context: JobContext, request: DrawRequest) -> None:
        self.context, self.request = context, request
        self.model: OpenedModel | None = None
        before = context.jobs.get(context.id).progress  # of a worker that died: what it drew is there
        seed = before.get("seed", request.seed)
        self.seed = random.randrange(2**31) if seed is None else int(seed)
        subseed = before.get("subseed", request.subseed)
        self.subseed = random.randrange(2**31) if subseed is None else int(subseed)
        self.pictures: list[dict[str, Any]] = list(before.get("pictures", []))
        self.left_out = int(before.get("left_out", 0))
        self._begun: float | None = None
        self._already = self.next
        self._next = 0.0
        self._number = 0

    def __call__(self, step: int, steps: int, latents: Any) -> None:
        """After each sampling step."""
        now = time.monotonic()
        if now >= self._next and step < steps:
            self._write(latents)
            took = time.monotonic() - now
            self._next = time.monotonic() + max(PREVIEW_EVERY, took / PREVIEW_SHARE)
        self.tell(step, steps, len(latents), now=step == steps)
        self.context.raise_if_requested()
        if (self.context.folder / SKIP).exists():
            (self.context.folder / SKIP).unlink(missing_ok=True)
            raise Skipped

    @property
    def next(self) -> int:
        """Place of the picture that comes next: behind those that are drawn or left out."""
        return len(self.pictures) + self.left_out

    def tell(self, step: int = 0, steps: int = 0, drawing: int = 0, *, now: bool = True) -> None:
        """Say how far it is; drawing: pictures at this step."""
        count, done = self.request.count, self.next
        here = done + drawing * step / max(steps, 1)
        share = (here - self._already) / max(count - self._already, 1)
        if self._begun is None:
            self._begun, self._share = time.monotonic(), share  # the first step also warms up
        gone = share - self._share
        left = (time.monotonic() - self._begun) / gone * (1 - share) if gone > 0 else None
        self.context.tell(
            now=now,
            stage="sampling",
            step=step,
            steps=steps,
            done=done,
            count=count,
            left=left,
            share=here / count,
            preview=self._number,
            seed=self.seed,
            subseed=self.subseed,
            pictures=self.pictures,
            left_out=self.left_out,
        )

    def _write(self, latents: Any) -> None:
        import torch

        from hyperbrush.ldm.pictures import grid, to_pictures

        assert self.model is not None
        with torch.no_grad():
            pictures = to_pictures(self.model.model.decode(latents).float().clamp(-1, 1) / 2 + 0.5)
        picture = grid(pictures, math.ceil(len(pictures) ** 0.5))
        with atomic_path(self.context.folder / "preview.png", sync=False) as path:
            picture.save(path, "PNG")
        self._number += 1


def draw(context: JobContext) -> dict[str, Any]:
    """Job "draw": a `DrawRequest`; the pictures a few at a time, each kept as soon as it is there.

    Raises:
        UserError: whatever cannot be drawn.
        StopRequested: the user stopped it; what was drawn stays in its progress.
    """
    import torch

    from hyperbrush.generation.text_to_image import draw as draw_pictures
    from hyperbrush.generation.text_to_image import pairs_of_seeds
    from hyperbrush.ldm.data.pictures import opened as opened_picture

    request: DrawRequest = checked(DrawRequest, context.arguments)
    uploads = Uploads(context.workspace.state / "uploads")
    image = opened_picture(uploads.open(request.image), "the start picture") if request.image else None
    mask = uploads.open(request.mask) if request.mask else None
    progress = Progress(context, request)
    progress.model = model = opened(context, request.model)
    height, width = size_of(
        request,
        model.model.image_size,
        model.model.size_unit,
        image if request.mask_padding is None else None,  # a region's drawing is not of the picture's form
    )
    settings = request.settings((height, width), image=image, mask=mask)
    scale = request.hires_scale or 1.0
    if max(height, width) * scale > MOST_SIDE:
        raise UserError(
            f"{int(width * scale)}x{int(height * scale)} pixels of the second pass are more than {MOST_SIDE} a side: take a smaller "
            "hires_scale"
        )
    library, lines = context.workspace.library, context.workspace.root / FOLDER
    progress.tell()
    together = max(1, min(MOST_TOGETHER, int(TOGETHER_PIXELS / (height * width * scale**2))))
    while (done := progress.next) < request.count:
        some = min(together, request.count - done)
        try:
            seeds, subseeds = (
                every[done : done + some]
                for every in pairs_of_seeds(
                    progress.seed, progress.subseed, request.count, request.subseed_strength
                )
            )
            pictures = draw_pictures(
                [filled(request.prompt, lines, seed) for seed in seeds],
                seeds,
                settings,
                lambda: model,
                library,
                missing=request.missing,
                subseeds=subseeds,
                on_step=progress,
            )
        except Skipped:
            progress.left_out += some
            progress.tell()
            continue
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{width}x{height} pixels do not fit into the memory of {context.worker.device}: take a smaller size, or the "
                "precision fp16 in Settings"
            ) from error
        progress.pictures += [keep(context, picture) for picture in pictures]
        progress.tell()
        context.got_further()
    return {"pictures": progress.pictures, "seed": progress.seed}


def size_of(request: DrawRequest, own: int, unit: int, image: "Image | None") -> tuple[int, int]:
    """(height, width) to draw at: what is asked for, else of the start picture's form, as large as the model's own.

    own: side of the model's own pictures; unit: what both sides must be multiples of.
    """
    height, width = request.height, request.width
    if height is not None and width is not None:
        return height, width
    wide = 1.0 if image is None else image.width / image.height

    def fitting(side: float) -> int:
        return max(unit, round(min(side, MOST_SIDE) / unit) * unit)  # of a start picture that is a mere line

    if height is not None:
        return height, own if image is None else fitting(height * wide)
    if width is not None:
        return own if image is None else fitting(width / wide), width
    return fitting(own / wide**0.5), fitting(own * wide**0.5)


def keep(context: JobContext, picture: "Picture") -> dict[str, Any]:
    """Save a picture under today's date and say where it is."""
    folder = context.workspace.folder("outputs") / time.strftime("%Y-%m-%d")
    path = picture.save(_free(folder, f"{picture.seed}.png", context.workspace.state / LAST))
    return {
        "file": path.relative_to(context.workspace.folder("outputs")).as_posix(),
        "seed": picture.seed,
        "width": picture.image.width,
        "height": picture.image.height,
        "parameters": picture.parameters,
        "notes": picture.notes,
    }


def _free(folder: Path, name: str, last: Path) -> Path:
    """NNNNN-name with the next number, as the webui does; one worker alone writes there.

    last: keeps the number, since a deleted picture's is not free: its job would show another's picture.
    """
    numbers = [int(p.name[:5]) for p in folder.glob("[0-9][0-9][0-9][0-9][0-9]-*")] if folder.is_dir() else []
    number = max([read_json(last).get(folder.name, -1), *numbers]) + 1
    write_json(last, {folder.name: number}, sync=False)
    return folder / f"{number:05d}-{name}"
