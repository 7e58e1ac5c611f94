"""Examples for models that are told of more than captions: what is beside the pictures or their latents."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import ImageFolder, folders_in, over_folders
from hyperbrush.ldm.data.examples import CaptionedExamples
from hyperbrush.ldm.data.pictures import SUFFIXES
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.autoencoder import downsampling
from hyperbrush.ldm.models.inpainting import random_mask
from hyperbrush.ldm.util import keyed_generator

Beside = Callable[
    [int, int, Mapping[str, Any]], dict[str, Tensor]
]  # (index, epoch, example) → what is beside it
CONDITION_CHANNELS = 3  # of the pictures that models conditioned by pictures are told of: RGB


class ConditionedExamples(Dataset[dict[str, Any]]):
    """A dataset's examples, each with what ``beside`` says of it."""

    def __init__(self, data: CaptionedExamples, beside: Beside) -> None:
        self.data, self.beside = data, beside
        self.captions, self.paths, self.groups = data.captions, data.paths, data.groups

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.example(index, epoch=0)

    @property
    def sources(self) -> list[CaptionedExamples]:
        """The datasets that an example is made of."""
        pictures = getattr(self.beside, "pictures", None)
        return [self.data, *([] if pictures is None else [pictures])]

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """The dataset's example and what is beside; a function of (seed, epoch, index) alone."""
        example = self.data.example(index, epoch)
        return example | self.beside(index, epoch, example)

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

    def __call__(self, index: int, epoch: int, example: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the example has beside."""
        image = self.pictures.example(index, epoch)["image"]
        generator = keyed_generator(self.seed, "missing", epoch, index)
        return {"image": image, "inpaint_mask": random_mask(image.shape[1:], generator)}


@dataclass(frozen=True)
class OwnMasks:
    """As `DrawnMasks`, with the pictures' own masks pixel by pixel, white where they are missing."""

    pictures: CaptionedExamples

    def __call__(self, index: int, epoch: int, example: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the example has beside."""
        seen = self.pictures.example(index, epoch)
        return {"image": seen["image"], "inpaint_mask": (seen["mask"] >= 0.5).float()}


@dataclass(frozen=True)
class Labels:
    """For models conditioned by classes: "class_label" of an example, by its path."""

    by_path: Mapping[str, int]

    def __call__(self, index: int, epoch: int, example: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the example has beside."""
        return {"class_label": torch.tensor(self.by_path[example["path"]])}


@dataclass(frozen=True)
class SmallPictures:
    """For models conditioned by pictures: "condition_image" (3, H / factor, W / factor) in [-1, 1], the mean of each square.

    pictures: what it shows, in the view that the example has in the same (index, epoch).
    """

    pictures: CaptionedExamples
    factor: int

    def __call__(self, index: int, epoch: int, example: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the example has beside."""
        return {"condition_image": F.avg_pool2d(self.pictures.example(index, epoch)["image"], self.factor)}


def conditioned(
    model: LatentDiffusion,
    data: CaptionedExamples,
    pictures: CaptionedExamples,
    *,
    seed: int = 0,
    missing: str = "random",
    classes: str = "folders",
    condition_folder: str | Path | None = None,
) -> CaptionedExamples:
    """Examples with what a model is told beside the captions; as they are for a model that is told captions alone.

    data: pictures or their latents; pictures: the pictures themselves, in the same order.
    missing: of inpainting models, "random" (`DrawnMasks`) or "masks" (`OwnMasks`).
    classes: see `class_names_of`. condition_folder: pictures of the same names that a model conditioned by pictures is
        told of; by default the pictures themselves, small, as for super-resolution (Rombach et al. 2022, section 4.4).

    Raises:
        UserError: what is asked for is not there, or the model is not told of such a thing.
    """
    if missing != "random" and not model.inpaints:
        raise UserError(
            f"missing is {missing!r}, and this model is none for inpainting: its UNet reads no masks; leave it out"
        )
    if classes != "folders" and model.conditioning != "class":
        raise UserError(
            f"classes is for models conditioned by classes, and this one is by {model.conditioning!r}; leave it out"
        )
    if condition_folder and model.conditioning != "image":
        raise UserError(
            f"condition_folder is for models conditioned by pictures, and this one is by {model.conditioning!r}; leave it out"
        )
    if model.inpaints:
        masks = OwnMasks(_with_whole_masks(pictures)) if missing == "masks" else DrawnMasks(pictures, seed)
        return ConditionedExamples(data, masks)
    if model.conditioning == "class":
        names = _names_by_path(pictures, classes)
        known = model.class_names or [str(number) for number in range(model.null_label)]
        if stray := sorted(set(names.values()) - set(known)):
            raise UserError(
                f"pictures of the classes {', '.join(stray[:5])}, which the model does not have; it has {', '.join(known[:20])}"
            )
        numbers = {name: number for number, name in enumerate(known)}
        return ConditionedExamples(data, Labels({path: numbers[name] for path, name in names.items()}))
    if model.conditioning == "image":
        config: Any = model.unet.config
        if (read := config.in_channels - config.out_channels) != CONDITION_CHANNELS:
            raise UserError(
                f"this model is told pictures of {read} channels; folders have such of {CONDITION_CHANNELS}, red, green, blue"
            )
        shown = (
            _of_folder(pictures, Path(condition_folder))
            if condition_folder
            else over_folders(pictures, _uncoloured)
        )
        return ConditionedExamples(data, SmallPictures(shown, downsampling(model.first_stage)))
    return data


def class_names_of(data: CaptionedExamples, classes: str = "folders") -> list[str]:
    """The classes of pictures, sorted by name.

    classes: "folders", the folder in the dataset's folder that a picture lies in (or that folder itself); "captions", the
        caption as it is written.

    Raises:
        UserError: one class alone, of which nothing can be learnt.
    """
    names = sorted(set(_names_by_path(data, classes).values()))
    if len(names) < 2:
        where = "folders within it, one for each class" if classes == "folders" else "captions that differ"
        raise UserError(f"all pictures are of one class, {names[0]!r}: expected {where}")
    return names


def _names_by_path(data: Any, classes: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for folder in folders_in(data):
        for path, caption in zip(folder.paths, folder.captions, strict=True):
            inside = Path(path).relative_to(folder.folder).parts
            name = caption if classes == "captions" else inside[0] if len(inside) > 1 else folder.folder.name
            if not name:
                raise UserError(f"the picture {path} has no caption, which is to be its class")
            found[path] = name
    return found


def _with_whole_masks(data: Any) -> Any:
    """The same pictures with masks pixel by pixel, as they were drawn."""

    def whole(folder: ImageFolder) -> ImageFolder:
        if folder.masks is None:
            raise UserError(
                "what is missing is to be taken from the pictures' masks, and there are none: expected masks "
                "'alpha' or 'files', or missing 'random'"
            )
        same = copy.copy(folder)
        same.masks = replace(folder.masks, downscale=1, floor=0.0, normalise=False)
        return same

    return over_folders(data, whole)


def _uncoloured(folder: ImageFolder) -> ImageFolder:
    """The same pictures turned and cut in the same way, in their own colours."""
    same = copy.copy(folder)
    same.jitter, same.transform, same.masks = 0.0, None, None
    return same


def _of_folder(data: Any, source: Path) -> Any:
    """Pictures of the same names in another folder, in the place of a dataset's."""
    if not source.is_dir():
        raise UserError(f"condition_folder: there is no folder {source}")
    found = {
        str(path.relative_to(source).with_suffix("")): str(path)
        for path in sorted(source.rglob("*"))
        if path.suffix.lower() in SUFFIXES
    }

    def other(folder: ImageFolder) -> ImageFolder:
        if type(folder) is not ImageFolder:
            raise UserError(
                f"condition_folder is for folders of pictures, and {folder.folder} is a {type(folder).__name__}: "
                "write its pictures into a folder"
            )
        names = [str(Path(path).relative_to(folder.folder).with_suffix("")) for path in folder.paths]
        if lacking := [name for name in names if name not in found]:
            raise UserError(
                f"condition_folder: {len(lacking)} of {len(names)} pictures in {folder.folder} have none of their name in "
                f"{source}, such as {lacking[0]}"
            )
        same = _uncoloured(folder)
        same.paths, same._memory = [found[name] for name in names], {}
        return same

    return over_folders(data, other)


def check_wanted(model: LatentDiffusion, wanted: Sequence[str]) -> None:
    """See that a model can draw what previews are asked for, before the first step.

    Raises:
        UserError: an unknown class; names for a model that reads none.
    """
    if model.conditioning == "class":
        for name in wanted:
            model.label_of(name)
    elif wanted and model.conditioning != "text":
        raise UserError(
            f"prompts {list(wanted)!r:.80} for a model conditioned by {model.conditioning!r}, which reads none: leave them out"
        )


def captions_shown(examples: CaptionedExamples | None, most: int) -> list[str]:
    """Captions from all over the examples, so many at most, each once: what previews show where nobody says it."""
    count = 0 if examples is None else len(examples)
    spread = [i * count // most for i in range(most)] if count > most else range(count)
    captions = [str(examples.example(i, 0)["caption"]) for i in spread] if examples is not None else []
    return [caption for caption in dict.fromkeys(captions) if caption]


def shown_conditions(
    model: LatentDiffusion, wanted: Sequence[str] | None, examples: CaptionedExamples | None, most: int = 8
) -> tuple[list[str], dict[str, Any]]:
    """What previews show: (their names, arguments of `LatentDiffusion.sample`); no names where there is nothing to draw.

    wanted: prompts, the examples' captions by default (None); or classes, the first ones by default; unconditional models
        and those that are told pictures, which take the first examples', read none. An empty list draws nothing.
    most: how many by default.

    Raises:
        UserError: as `check_wanted`.
    """
    check_wanted(model, wanted or [])
    if wanted is not None and not wanted:
        return [], {}
    if model.conditioning == "text":
        prompts = captions_shown(examples, most) if wanted is None else list(wanted)
        return prompts, {"captions": prompts}
    if model.conditioning == "class":
        known = model.class_names or [str(number) for number in range(model.null_label)]
        names = list(wanted or known[:most])
        return names, {"class_labels": [model.label_of(name) for name in names]}
    if model.conditioning == "none":
        return [f"seed {number}" for number in range(most // 2)], {"count": most // 2}
    if examples is None:
        return [], {}
    shape = examples.groups[0]
    same = [i for i, group in enumerate(examples.groups) if group == shape][:most]
    images = torch.stack([examples.example(i, 0)["condition_image"] for i in same])
    return [Path(examples.paths[i]).stem for i in same], {"condition_images": images, "size": shape}
