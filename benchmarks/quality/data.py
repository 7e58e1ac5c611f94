"""Styles and their pictures: 32 to train on, up to 200 to validate, no name in both."""

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_folder
from hyperbrush.ldm.data import ImageFolder
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.training.cached import Texts, cached_latents, cached_texts

# The UNet was trained on Noto alone, where there is no gap to close. What the study itself may look at
# (to tune rates, to try ideas) are two of the sets it never saw, as unlike as two can be.
SEEN = ("twemoji", "emojione-monotone")
UNSEEN = ("fluent-emoji-high-contrast", "streamline-emojis", "fxemoji")
STYLES = (*SEEN, *UNSEEN)
KNOWN = "noto"  # the names the model was trained on
TRAIN, VALIDATION = 32, 200


def squashed(name: str) -> str:
    """'slice-of-pizza', 'sliceofpizza' and 'slice-of-pizza-2' → 'sliceofpizza'."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"-\d+$", "", name).lower())


def split(icons: Path, style: str, train: int, validation: int) -> dict[str, dict[str, Path]]:
    """{"train": {name: file}, "validation": {name: file}} by a hash of the names, each name once.

    Only names the model was trained on in Noto's style, and under Noto's spelling: the loss then measures
    the style and not the words. (FxEmoji writes 'sliceofpizza', Streamline has several of one name.)

    Raises:
        UserError: the icons are not there, or too few of them.
    """
    known = {squashed(p.stem): p.stem for p in (icons / KNOWN / "train").glob("*.png")}
    found: dict[str, Path] = {}
    for path in sorted((icons / style).glob("*/*.png")):
        if name := known.get(squashed(path.stem)):
            found.setdefault(name, path)
    if len(found) < train + 1:
        raise UserError(
            f"{icons / style} holds {len(found)} pictures of names that {KNOWN} has too, and {train} to train on "
            "and some to validate are needed: render them with python recipes/emoji/icons.py recipes/emoji/work"
        )
    names = sorted(found, key=lambda n: hashlib.sha256(f"style {n}".encode()).digest())
    parts = {"train": names[:train], "validation": names[train : train + validation]}
    return {part: {name: found[name] for name in own} for part, own in parts.items()}


@dataclass
class StyleData:
    """One style, encoded once for all methods."""

    style: str
    train: Any  # cached examples: "latent_mean", "caption"
    validation: Any
    texts: Texts

    def latents(self, model: LatentDiffusion) -> Tensor:
        """Scaled latents of the validation pictures: (pictures, c, h, w)."""
        means = [self.validation.example(i, 0)["latent_mean"] for i in range(len(self.validation))]
        return model.latents_of({"latent_means": torch.stack(means)})

    @property
    def captions(self) -> list[str]:
        """Of the validation pictures."""
        return [self.validation.caption(i, 0) for i in range(len(self.validation))]


def prepare(
    model: LatentDiffusion,
    icons: Path,
    style: str,
    work: Path,
    *,
    flip: float,
    train: int = TRAIN,
    validation: int = VALIDATION,
) -> StyleData:
    """Copy the style's pictures to work/STYLE, and encode them and their captions into work/cache.

    flip: share of mirrored training pictures.

    Raises:
        UserError: see `split`.
    """
    folder = work / f"{style}-{train}-{validation}"
    if not folder.exists():
        with atomic_folder(folder) as temporary:
            for part, files in split(icons, style, train, validation).items():
                (temporary / part).mkdir(parents=True)
                for name, path in files.items():
                    shutil.copy(path, temporary / part / f"{name}.png")
    pictures = ImageFolder(folder / "train", size=model.image_size, flip=flip)
    held_out = ImageFolder(folder / "validation", size=model.image_size)
    texts = cached_texts(model, ["", *pictures.captions, *held_out.captions], work / "cache" / "texts")
    assert texts is not None
    data, held = cached_latents(model, (pictures, held_out), work / "cache" / "latents")
    return StyleData(style, data, held, texts)
