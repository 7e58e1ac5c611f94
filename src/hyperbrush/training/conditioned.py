"""Examples for models that are told of more than captions: what is beside the pictures or their latents."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import ImageFolder, Mixture, Selection
from hyperbrush.ldm.data.examples import CaptionedExamples
from hyperbrush.ldm.models.inpainting import random_mask
from hyperbrush.ldm.util import keyed_generator

Beside = Callable[[int, int], dict[str, Tensor]]  # (index, epoch) → what an example has beside


class ConditionedExamples(Dataset[dict[str, Any]]):
    """A dataset's examples, each with what ``beside`` says of its (index, epoch)."""

    def __init__(self, data: CaptionedExamples, beside: Beside) -> None:
        self.data, self.beside = data, beside
        self.captions, self.paths, self.groups = data.captions, data.paths, data.groups

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.example(index, epoch=0)

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """The dataset's example and what is beside; a function of (seed, epoch, index) alone."""
        return self.data.example(index, epoch) | self.beside(index, epoch)

    def caption(self, index: int, epoch: int) -> str:
        """Caption of an example in an epoch: the dataset's."""
        return self.data.caption(index, epoch)

    def variants(self, index: int) -> list[str]:
        """Every caption an example may have: the dataset's."""
        return self.data.variants(index)


@dataclass(frozen=True)
class DrawnMasks:
    """For inpainting models: "image" (3, H, W), and "inpaint_mask" (1, H, W), 1 where it is missing: a rectangle or an
    ellipse drawn by (seed, epoch, index), see `random_mask`.

    The masked picture is encoded in the step, for it is another one each time, as in diffusers' example
    train_dreambooth_inpaint.py.  pictures: those the latents are of, which show the same view in the same (index, epoch).
    """

    pictures: CaptionedExamples
    seed: int

    def __call__(self, index: int, epoch: int) -> dict[str, Tensor]:
        """What the example has beside."""
        image = self.pictures.example(index, epoch)["image"]
        generator = keyed_generator(self.seed, "missing", epoch, index)
        return {"image": image, "inpaint_mask": random_mask(image.shape[1:], generator)}


@dataclass(frozen=True)
class OwnMasks:
    """As `DrawnMasks`, with the pictures' own masks, white where they are missing; see `with_whole_masks`."""

    pictures: CaptionedExamples

    def __call__(self, index: int, epoch: int) -> dict[str, Tensor]:
        """What the example has beside."""
        seen = self.pictures.example(index, epoch)
        return {"image": seen["image"], "inpaint_mask": (seen["mask"] >= 0.5).float()}


def with_missing(
    data: CaptionedExamples, pictures: CaptionedExamples, seed: int, missing: str = "random"
) -> ConditionedExamples:
    """Latents with what an inpainting model is told; missing: "random" (`DrawnMasks`) or "masks" (`OwnMasks`).

    Raises:
        UserError: the pictures' own masks, and they have none.
    """
    beside = DrawnMasks(pictures, seed) if missing == "random" else OwnMasks(_with_whole_masks(pictures))
    return ConditionedExamples(data, beside)


def over_folders(data: Any, change: Callable[[ImageFolder], Any]) -> Any:
    """The same dataset with each of its folders changed."""
    if isinstance(data, Mixture):
        return data.over(lambda part: over_folders(part, change))
    if isinstance(data, Selection):
        return Selection(over_folders(data.data, change), data.indices)
    if not isinstance(data, ImageFolder):
        raise UserError(f"dataset: expected folders of pictures, got {type(data).__name__}")
    return change(data)


def _with_whole_masks(data: Any) -> Any:
    """The same pictures with masks pixel by pixel, as they were drawn."""

    def whole(folder: ImageFolder) -> ImageFolder:
        if folder.masks is None:
            raise UserError(
                "what is missing is to be taken from the pictures' masks, and there are none: expected training.masks "
                "'alpha' or 'files', or training.missing 'random'"
            )
        same = copy.copy(folder)
        same.masks = replace(folder.masks, downscale=1, floor=0.0, normalise=False)
        return same

    return over_folders(data, whole)
