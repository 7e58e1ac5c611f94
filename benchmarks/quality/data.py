"""Styles and their pictures: 48 to train on, up to 200 to validate, no name in both."""

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_folder
from hyperbrush.ldm.data import ImageFolder
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.training.data.cached import Texts, cached_latents, cached_texts

# None of these sets was shown to the UNet or the text encoder. The study itself may look at two of them, as unlike as
# two can be (to tune rates, to try ideas); what it says is measured on the five others.
TUNING = ("emojione-monotone", "icon-park")
UNSEEN = ("fluent-emoji-high-contrast", "streamline-emojis", "fxemoji", "kameleon", "streamline-pixel")
STYLES = (*TUNING, *UNSEEN)
TRAIN, VALIDATION = 48, 200


def squashed(name: str) -> str:
    """'slice-of-pizza', 'sliceofpizza' and 'slice-of-pizza-2' → 'sliceofpizza'."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"-\d+$", "", name).lower())


def known_names(icons: Path) -> list[str]:
    """File names of what the model was trained on, in all sets but these styles."""
    trained = (f for f in icons.glob("*/train/*.png") if f.parent.parent.name not in STYLES)
    return sorted({f.stem for f in trained})


def split(icons: Path, style: str, train: int, validation: int) -> dict[str, dict[str, Path]]:
    """{"train": {name: file}, "validation": {name: file}} by a hash of the names, each name once.

    Only names the model was shown in other sets, and under their spelling: the loss then measures the style and not
    the words. (Streamline has several of one name.)

    Raises:
        UserError: the icons are not there, or too few of them.
    """
    known = {squashed(name): name for name in known_names(icons)}
    found: dict[str, Path] = {}
    for path in sorted((icons / style).glob("*/*.png")):
        if name := known.get(squashed(path.stem)):
            found.setdefault(name, path)
    if len(found) < train + 1:
        raise UserError(
            f"{icons / style} holds {len(found)} pictures of names the model knows, and {train} to train on "
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

    @property
    def captions(self) -> list[str]:
        """Of the validation pictures."""
        return [self.validation.caption(i, 0) for i in range(len(self.validation))]


class Joined:
    """Training pictures of several styles, one after the other."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.places = [(part, i) for part in parts for i in range(len(part))]
        self.groups = [part.groups[i] for part, i in self.places]

    def __len__(self) -> int:
        return len(self.places)

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """The example of the style's own dataset."""
        part, own = self.places[index]
        return dict(part.example(own, epoch))


def joined(style: StyleData, others: Sequence[StyleData]) -> StyleData:
    """A style to validate on, with the other styles' training pictures to learn from."""
    texts = {caption: states for one in (style, *others) for caption, states in one.texts.items()}
    return StyleData(style.style, Joined([one.train for one in others]), style.validation, texts)


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
