"""The pictures and captions of a training, from settings to datasets."""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import (
    Buckets,
    Captioning,
    FileNames,
    ImageFolder,
    Masks,
    Mixture,
    OriginalSizes,
    Part,
    PictureRows,
    Scan,
    Selection,
    read_templates,
    repeats_by_name,
    split,
)
from hyperbrush.ldm.data.captioning import check_append
from hyperbrush.ldm.data.examples import CaptionedExamples
from hyperbrush.ldm.data.mixture import MOST_REPEATS
from hyperbrush.ldm.data.pictures import Look
from hyperbrush.ldm.data.rows import is_rows
from hyperbrush.ldm.util import keyed_seed
from hyperbrush.training.loop.config import Place, Share, Strict

log = logging.getLogger(__name__)
Size = int | tuple[int, int]  # a side, or (height, width), in pixels
Pictures = ImageFolder | Selection | Mixture
LookAt = Callable[[Path], Look]


def _checked_append(value: Any) -> Any:
    check_append(value)
    return value


class FolderConfig(Strict):
    """One folder among several, or its path alone; `ldm.data.Part` says what the numbers do."""

    @model_validator(mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return {"path": str(value)} if isinstance(value, str | Path) else value

    path: Place = Field(
        description="the folder, captions beside the pictures; or one .tar (WebDataset), .parquet or .arrow"
    )
    repeats: int | None = Field(
        None,
        ge=1,
        description="times each picture counts in an epoch; by default 10 in folders in it named '10_cat', else 1",
    )
    share: float | None = Field(
        None, gt=0, description="its part of all examples, in place of repeats; for all folders or none"
    )
    loss_weight: float = Field(1.0, ge=0, description="what the loss of its pictures is multiplied with")
    keep_prior: bool = Field(
        False, description="pictures of the class, not of the subject, that hold the model to what it knew"
    )
    caption_suffix: str = Field("", description="joined to every caption of this folder")
    append: list[str] | dict[str, float] = Field(
        [], description="words like training.append, for this folder in place of those"
    )

    _append = field_validator("append", mode="before")(_checked_append)


class CaptionSettings(Strict):
    """Where captions come from and what is done to them; `ldm.data.scan` and `Captioning` have the details."""

    captions: Literal["auto", "metadata", "text", "filename", "none"] = Field(
        "auto",
        description="from metadata.jsonl (.csv, .parquet), else NAME.txt (.caption), else the file name; or one of them alone",
    )
    caption_lines: bool = Field(
        False, description="each line of a NAME.txt is a caption of its own, one is drawn each time"
    )
    first_caption: Share | None = Field(
        None,
        description="probability of the first of several captions, the others share the rest; all alike by default",
    )
    filename_drop_number: bool = Field(False, description="0012-red cat.png is 'red cat'")
    filename_words: str = Field("", description="a regular expression for the words of a file name")
    filename_join: str = Field(" ", description="stands between these words")
    templates: str = Field(
        "",
        description="sentences with [name] and [filewords]: style, style_filewords, subject, subject_filewords, "
        "hypernetwork, none, or a text file of your own",
    )
    trigger: str = Field("", description="what [name] in templates stands for")
    append: list[str] | dict[str, float] = Field(
        [],
        description="one of these words is joined to the caption each time, such as [', flat style', '']; "
        "{', flat style': 3, '': 1} gives weights; "
        "'a flat [filewords]' takes the caption in",
    )
    caption_suffix: str = Field("", description="joined to every caption, such as ', flat style'")
    shuffle_tags: bool = Field(False, description="tags of a caption come in a random order")
    drop_tags: Share = Field(0.0, description="share of tags left out, drawn anew each time")
    keep_tags: int = Field(0, ge=0, description="so many first tags stay where they are")
    tag_separator: str = Field(",", min_length=1, description="stands between the tags of a caption")

    _append = field_validator("append", mode="before")(_checked_append)

    @field_validator("filename_words")
    @classmethod
    def _regular(cls, value: str) -> str:
        FileNames(words=value)
        return value

    def captioning(self, suffix: str = "", append: Sequence[str] | Mapping[str, float] = ()) -> Captioning:
        """What is done to written captions; a folder's own suffix comes first, its own words in place of all others'."""
        return Captioning(
            templates=read_templates(self.templates) if self.templates else (),
            name=self.trigger,
            suffix=suffix + self.caption_suffix,
            shuffle_tags=self.shuffle_tags,
            drop_tags=self.drop_tags,
            keep_tags=self.keep_tags,
            separator=self.tag_separator,
            first_caption=self.first_caption,
            append=append or self.append,
        )

    def file_names(self) -> FileNames:
        """How file names become captions."""
        return FileNames(self.filename_drop_number, self.filename_words, self.filename_join)


class PictureSettings(CaptionSettings):
    """How pictures and captions become examples; `ldm.data.ImageFolder` and `Captioning` have the details."""

    size: (
        Annotated[int, Field(ge=8)] | tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]] | None
    ) = Field(None, description="side in pixels, or [height, width]; the model's own by default")
    buckets: Literal["none", "aspect", "original"] = Field(
        "none",
        description="none: one square shape; aspect: shapes of about the same area; original: each its own size",
    )
    bucket_step: int | None = Field(
        None, ge=1, description="what bucket sides are multiples of; a fitting one of the model by default"
    )
    bucket_ratio: float = Field(
        2.0, ge=1, description="of the longer to the shorter side of a bucket at most"
    )
    crop: Literal["center", "random", "none"] = Field(
        "center", description="none: the whole picture, squeezed"
    )
    crop_variants: int = Field(4, ge=1, description="random crops of a picture that are kept as latents")
    flip: Share = Field(0.5, description="share of mirrored pictures")
    jitter: Share = Field(
        0.0,
        description="most change of brightness, contrast and saturation, a share, drawn anew each time; 0.1 is usual. Pictures "
        "are then encoded in each step",
    )
    rotate: float = Field(
        0.0,
        ge=0,
        le=180,
        description="degrees a picture is turned by at most, either way, anew each time; pictures are then encoded in each step",
    )
    background: str = Field("white", description="colour behind transparent pictures")
    masks: Literal["none", "alpha", "files"] = Field(
        "none", description="weights of the loss: the pictures' transparency, or NAME.mask.png files"
    )
    mask_folder: Place | None = Field(
        None, description="masks of the pictures' names in a folder of their own"
    )
    mask_floor: Share = Field(0.0, description="weight where the mask is black")
    latent_sampling: Literal["deterministic", "once", "random"] = Field(
        "deterministic", description="the posterior's mean, one draw for good, or a new draw each time"
    )
    missing: Literal["random", "masks"] = Field(
        "random",
        description="what an inpainting model is to draw anew: a rectangle or an ellipse at random each time, or where the "
        "pictures' own masks are white",
    )
    classes: Literal["folders", "captions"] = Field(
        "folders",
        description="of models conditioned by classes: the folders in a folder of pictures, or the captions",
    )
    condition_folder: Place | None = Field(
        None,
        description="of models conditioned by pictures: these, of the same names; by default the pictures themselves, small",
    )
    validation_share: Share = Field(0.1, description="share of the pictures held out where none are given")

    @model_validator(mode="after")
    def _of_masks(self) -> Self:
        if self.mask_folder and self.masks != "files":
            raise ValueError("mask_folder is of masks: files; write that too, or leave it out")
        if self.mask_floor and self.masks == "none":
            raise ValueError("mask_floor is of masks, and there are none (masks: none): leave it out")
        return self

    @model_validator(mode="after")
    def _of_buckets(self) -> Self:
        if self.bucket_step is not None and self.buckets == "none":
            raise ValueError("bucket_step is of buckets, and there are none (buckets: none): leave it out")
        if self.bucket_ratio != 2 and self.buckets != "aspect":
            raise ValueError(
                f"bucket_ratio is of buckets: aspect, and they are {self.buckets!r}: leave it out"
            )
        return self

    def shapes(self, size: Size, multiple: int) -> Buckets | OriginalSizes | None:
        """Buckets for a model whose pictures' sides are multiples of ``multiple``.

        Raises:
            UserError: a size or a step that is none.
        """
        sides = (size, size) if isinstance(size, int) else size
        if self.buckets != "original" and any(side % multiple for side in sides):
            raise UserError(
                f"size is {size}; this model's pictures have sides that are multiples of {multiple}"
            )
        side = round(math.sqrt(math.prod(sides)))
        step = self.bucket_step or multiple
        if step % multiple:
            raise UserError(
                f"bucket_step is {step}; this model's pictures have sides that are multiples of {multiple}"
            )
        if self.buckets == "aspect":
            return Buckets(side - side % step or step, step, self.bucket_ratio)
        return OriginalSizes(step, largest=max(side, step)) if self.buckets == "original" else None

    def mask_settings(self, downscale: int) -> Masks | None:
        """Where loss weights come from; the diffusion loss divides them by their mean itself."""
        if self.masks == "none":
            return None
        return Masks(self.masks, self.mask_folder, downscale, self.mask_floor)


def folders_of(source: Any) -> list[FolderConfig] | None:
    """Folders a person named: a path, several, or `FolderConfig`s; None: it is a dataset already."""
    if isinstance(source, str | Path):
        return [FolderConfig(path=str(source))]
    if (
        isinstance(source, Sequence)
        and source
        and all(isinstance(s, str | Path | FolderConfig) for s in source)
    ):
        return [s if isinstance(s, FolderConfig) else FolderConfig(path=str(s)) for s in source]
    return None


def open_pictures(
    source: Any,
    settings: PictureSettings,
    *,
    size: Size,
    downscale: int,
    multiple: int,
    seed: int,
    held_out: bool = False,
    look: LookAt | None = None,
) -> ImageFolder | Mixture:
    """Folders, or a dataset of one's own (see `PictureRows`), as a dataset, unusable pictures set aside; an `ImageFolder`
    or `Mixture` passes through.

    size, downscale, multiple: of the model: its side in pixels, pixels for each place of its latent map, what sides
    of pictures must be multiples of. held_out: to judge by, where no mask is needed and names say no repeats.
    look: as of `ldm.data.scan`, where folders are.

    Raises:
        UserError: neither; a folder without a usable picture; a setting that makes no sense.
    """
    if isinstance(source, ImageFolder | Mixture):
        return source
    folders = folders_of(source)
    if folders is None:
        if not is_rows(source) and not isinstance(source, Mapping):
            raise UserError(
                "dataset: expected a folder, several, or an ImageFolder, or a dataset of your own (see PictureRows), got "
                f"{type(source).__name__}"
            )
        masks = settings.mask_settings(downscale)
        rows = PictureRows(
            source,
            **_options(settings, size, multiple),
            seed=seed,
            captions=settings.captions,
            captioning=settings.captioning(),
            masks=replace(masks, needed=False) if masks is not None and held_out else masks,
            on_problem="skip",
        )
        if rows.problems:
            report = Scan(rows.folder, (), rows.problems).report(5)
            log.warning("%d examples are left out:\n%s", len(rows.problems), report)
        return rows
    found = as_mixture(
        folders,
        settings,
        size=size,
        downscale=downscale,
        multiple=multiple,
        seed=seed,
        held_out=held_out,
        look=look,
    )
    only = found.parts[0]
    if len(found.parts) > 1 or only.repeats != 1 or only.loss_weight != 1:
        return found
    assert isinstance(only.data, ImageFolder)
    return only.data


def as_mixture(
    folders: Sequence[FolderConfig],
    settings: PictureSettings,
    *,
    size: Size,
    downscale: int,
    multiple: int,
    seed: int,
    on_problem: Literal["raise", "skip"] = "skip",
    held_out: bool = False,
    look: LookAt | None = None,
) -> Mixture:
    """Folders as a mixture, whatever their number; see `open_pictures`.

    With masks, one folder at least has some; pictures without any count everywhere.
    """
    masks = settings.mask_settings(downscale)
    if masks is not None and (held_out or len(folders) > 1):
        masks = replace(masks, needed=False)
    opened = [
        ImageFolder(
            folder.path,
            **_options(settings, size, multiple),
            seed=seed if len(folders) == 1 else keyed_seed(seed, folder.path),
            captions=settings.captions,
            captioning=settings.captioning(folder.caption_suffix, folder.append),
            masks=masks,
            on_problem=on_problem,
            look=look,
        )
        for folder in folders
    ]
    if masks is not None and not held_out and not any(file for data in opened for file in data.mask_files):
        raise no_masks(masks, [folder.path for folder in folders])
    parts = [
        part
        for folder, data in zip(folders, opened, strict=True)
        for part in _parts(folder, data, by_name=not held_out)
    ]
    return Mixture(parts, seed)


def _options(settings: PictureSettings, size: Size, multiple: int) -> dict[str, Any]:
    """What is done to pictures and captions, whatever they come from."""
    return {
        "size": size,
        "crop": settings.crop,
        "crop_variants": settings.crop_variants if settings.crop == "random" else None,
        "flip": settings.flip,
        "jitter": settings.jitter,
        "rotate": settings.rotate,
        "buckets": settings.shapes(size, multiple),
        "background": settings.background,
        "file_names": settings.file_names(),
        "caption_lines": settings.caption_lines,
    }


def no_masks(masks: Masks, folders: Sequence[str | Path]) -> UserError:
    """What to say where no picture of several folders has a mask."""
    wanted = "is transparent anywhere" if masks.source == "alpha" else "has a mask file"
    return UserError(f'masks="{masks.source}", but no picture of {", ".join(map(str, folders))} {wanted}')


def _parts(folder: FolderConfig, data: ImageFolder, *, by_name: bool) -> list[Part]:
    """A folder as parts of a mixture: one, or one for each number of repeats that names of folders in it say."""

    def part(examples: CaptionedExamples, repeats: int) -> Part:
        return Part(examples, repeats, folder.share, folder.loss_weight, folder.keep_prior)

    if folder.repeats is not None or folder.share is not None or not by_name:
        return [part(data, folder.repeats or 1)]
    found = repeats_by_name(data)
    if len(found) == 1:
        return [part(data, repeats) for repeats in found]
    return [part(Selection(data, indices), repeats) for repeats, indices in sorted(found.items())]


def named_repeats(folders: Sequence[FolderConfig]) -> list[tuple[Path, int]]:
    """Folders whose names say how often their pictures count, with that number; see `repeats_by_name`."""
    found = []
    for folder in folders:
        if folder.repeats is None and folder.share is None and Path(folder.path).is_dir():
            for path in sorted(Path(folder.path).glob("*_*")):
                number = re.match(r"(\d+)_", path.name)
                if number and path.is_dir() and 2 <= int(number[1]) <= MOST_REPEATS:
                    found.append((path, int(number[1])))
    return found


def hold_out(data: ImageFolder | Mixture, share: float, seed: int) -> tuple[Pictures, Pictures | None]:
    """Training and held-out pictures; nothing is held out of fewer than ten, or with a share of 0."""
    pictures = sum(len(part.data) for part in data.parts) if isinstance(data, Mixture) else len(data)
    if share == 0 or pictures < 10:  # whatever their repeats
        return data, None
    return split(data, share, seed)
