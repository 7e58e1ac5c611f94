"""What a hypernetwork is told: a text, reference pictures, a task, or several of these at once.

Each holds one sample or a batch of them, as people give it (texts, pictures) or ready for the encoder
(`condition_sources` makes one of the other).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.ldm.data.pictures import SUFFIXES


@dataclass(frozen=True, eq=False)
class TextCondition:
    """A text, or a list of texts, one per sample.

    states: the text encoder's hidden states instead, (tokens, width) or (batch, tokens, width).
    mask: True where a state counts, (tokens,) or (batch, tokens); None: all.

    Raises:
        UserError: neither texts nor states, both, or states of another shape.
    """

    texts: str | Sequence[str] | None = None
    states: Tensor | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.texts is None) == (self.states is None):
            raise UserError("a TextCondition needs texts, or the states of a text encoder: one of the two")
        if self.states is None and not (
            isinstance(self.texts, str) or (self.texts and _all_texts(self.texts))
        ):
            raise UserError(f"a TextCondition needs a text or a list of texts, got {self.texts!r:.80}")
        if self.states is not None and self.states.ndim not in (2, 3):
            raise UserError(
                f"text states of shape {tuple(self.states.shape)}: expected (tokens, width) or (batch, tokens, width)"
            )

    @property
    def batch(self) -> int | None:
        """Number of samples; None for a single one."""
        if self.states is not None:
            return None if self.states.ndim == 2 else len(self.states)
        assert self.texts is not None
        return None if isinstance(self.texts, str) else len(self.texts)


@dataclass(frozen=True, eq=False)
class ImageCondition:
    """Reference pictures, any number of them; their order does not matter.

    pictures: a picture, or a list of pictures of one sample, or a list of such lists, one per sample. A picture is a
        PIL image, a path, or a tensor (3, height, width) in [0, 1].
    latents: scaled latents instead, (references, c, h, w) or (batch, references, c, h, w).
    features: states of a vision model, instead or beside, (references, tokens, width) or with a batch.
    present: False where a sample has fewer references, (batch, references); None: all are there.

    Raises:
        UserError: nothing was given, a sample without pictures, or shapes that do not fit.
    """

    pictures: Any = None
    latents: Tensor | None = None
    features: Tensor | None = None
    present: Tensor | None = None

    def __post_init__(self) -> None:
        tensors = self.latents is not None or self.features is not None
        if (self.pictures is None) == (not tensors):
            raise UserError("an ImageCondition needs pictures, or their latents or features: one of the two")
        for what, value, plain in (("latents", self.latents, 4), ("features", self.features, 3)):
            if value is not None and value.ndim not in (plain, plain + 1):
                raise UserError(
                    f"{what} of shape {tuple(value.shape)}: expected {plain} dimensions (references first) for one "
                    "sample, one more for a batch"
                )
        if self.pictures is not None and not all(self.samples):
            raise UserError("an ImageCondition needs at least one picture for each sample")

    @property
    def batch(self) -> int | None:
        """Number of samples; None for a single one."""
        if self.latents is not None:
            return None if self.latents.ndim == 4 else len(self.latents)
        if self.features is not None:
            return None if self.features.ndim == 3 else len(self.features)
        return len(self.pictures) if _nested(self.pictures) else None

    @property
    def samples(self) -> list[list[Any]]:
        """The pictures of each sample."""
        if self.pictures is None:
            return []
        if _nested(self.pictures):
            return [list(sample) for sample in self.pictures]
        return [list(self.pictures) if isinstance(self.pictures, list | tuple) else _several(self.pictures)]


@dataclass(frozen=True)
class TaskCondition:
    """A task by its name, or a list of names, one per sample; see ``Hypernetwork(tasks=…)``."""

    names: str | Sequence[str]

    def __post_init__(self) -> None:
        if not (isinstance(self.names, str) or (self.names and _all_texts(self.names))):
            raise UserError(f"a TaskCondition needs a name or a list of names, got {self.names!r:.80}")

    @property
    def batch(self) -> int | None:
        """Number of samples; None for a single one."""
        return None if isinstance(self.names, str) else len(self.names)


Condition = TextCondition | ImageCondition | TaskCondition | Tensor


def conditions_of(given: Any, width: int | None = None) -> list[Condition]:
    """What `Hypernetwork.generate_weights` takes, as a list: None is the null condition, no conditions at all.

    Texts, paths and pictures as they are: a text is a `TextCondition`, several of them one for each sample; a `Path`, a
    text that ends like a picture's file, a PIL image or a tensor (3, height, width) or (references, 3, height, width)
    in [0, 1] is a reference, several of them those of one sample, a list of lists those of several samples.

    width: of condition tokens; a three-dimensional tensor of this width holds tokens.

    Raises:
        UserError: something that is no condition.
    """
    if given is None:
        return []
    several = list(given) if isinstance(given, list | tuple) else [given]
    if not several:
        raise UserError("an empty list is no condition: give None for the null condition")
    texts = [one for one in several if isinstance(one, str) and not _names_picture(one)]
    nested = [one for one in several if isinstance(one, list | tuple)]
    shown = [one for one in several if isinstance(one, list | tuple) or _is_reference(one, width)]
    conditions: list[Condition] = []
    if texts:
        conditions.append(TextCondition(texts[0] if len(texts) == 1 else texts))
    if shown:
        conditions.append(_references(shown, nested))
    for one in several:
        if any(one is other for other in (*texts, *shown)):
            continue
        if not isinstance(one, TextCondition | ImageCondition | TaskCondition | Tensor):
            raise UserError(
                f"{one!r:.80} is no condition: expected a text, a picture or its path, TextCondition, ImageCondition, "
                "TaskCondition, a (batch, tokens, embedding_dim) tensor, a list of these, a batch, or None"
            )
        if isinstance(one, Tensor) and (one.ndim != 3 or not one.is_floating_point()):
            raise UserError(
                f"a condition tensor is {one.dtype} {tuple(one.shape)}: expected (batch, tokens, embedding_dim), or "
                "pictures (3, height, width) in [0, 1]"
            )
        conditions.append(one)
    return conditions


def _names_picture(text: str) -> bool:
    return Path(text).suffix.lower() in SUFFIXES and "\n" not in text


def _is_reference(one: Any, width: int | None) -> bool:
    """Whether something bare is one reference picture or a tensor of several; tokens are none."""
    if isinstance(one, str):
        return _names_picture(one)
    if not isinstance(one, Tensor):
        return is_picture(one)
    if one.ndim not in (3, 4) or not one.is_floating_point() or one.shape[-3] != 3 or not one.numel():
        return False
    if one.ndim == 3 and (width is None or one.shape[-1] == width):
        return False
    return bool((one >= 0).all() and (one <= 1).all())


def _references(shown: list[Any], nested: list[Any]) -> ImageCondition:
    """Bare pictures as one condition.

    Raises:
        UserError: lists of pictures, which are samples, beside single ones.
    """
    if nested and len(nested) != len(shown):
        raise UserError(
            "pictures stand beside lists of pictures: give one list with the references of one sample, or a list for "
            "each sample"
        )
    if nested:
        return ImageCondition([list(sample) for sample in nested])
    return ImageCondition([picture for one in shown for picture in _several(one)])


def kinds_of(condition: Condition) -> list[str]:
    """What a generator must have learned from to read it: "text", "pictures", "features", "task NAME"; of tokens
    nobody knows.
    """
    if isinstance(condition, TextCondition):
        return ["text"]
    if isinstance(condition, TaskCondition):
        names = [condition.names] if isinstance(condition.names, str) else condition.names
        return [f"task {name}" for name in names]
    if isinstance(condition, ImageCondition):
        latents = condition.latents is not None or condition.pictures is not None
        return ["pictures"] * latents + ["features"] * (condition.features is not None)
    return []


def batch_of(conditions: Sequence[Condition]) -> int | None:
    """Samples of several conditions together: single ones and batches of 1 go with any number.

    Raises:
        UserError: two batches of different sizes.
    """
    sizes = [len(c) if isinstance(c, Tensor) else c.batch for c in conditions]
    known = {size for size in sizes if size is not None}
    if len(known - {1}) > 1:
        raise UserError(f"the conditions are for different numbers of samples: {sorted(known)}")
    return max(known) if known else None


def _all_texts(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, str) for value in values)


def _nested(pictures: Any) -> bool:
    if isinstance(pictures, Tensor):
        return pictures.ndim == 5
    return isinstance(pictures, list | tuple) and any(
        isinstance(p, list | tuple) or (isinstance(p, Tensor) and p.ndim == 4) for p in pictures
    )


def _several(picture: Any) -> list[Any]:
    return list(picture) if isinstance(picture, Tensor) and picture.ndim == 4 else [picture]


def is_picture(value: Any) -> bool:
    """Whether a value is one picture: a PIL image, a path, or a tensor (3, height, width)."""
    from PIL.Image import Image

    if isinstance(value, Tensor):
        return value.ndim == 3 and len(value) == 3 and torch.is_floating_point(value)
    return isinstance(value, Image | str | Path)
