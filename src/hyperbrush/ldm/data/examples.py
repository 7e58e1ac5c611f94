"""What every dataset of this room can do, and some examples of one as a dataset of their own."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch.utils.data import Dataset

from hyperbrush.errors import UserError
from hyperbrush.ldm.data.captioning import Captioning


class CaptionedExamples(Protocol):
    """Captioned examples: a folder of pictures, its latents, some of either, or a mixture of them.

    captions: as they are written, the first where there are several; paths; groups: shape (height, width) in pixels; one each for every
    example.
    """

    captions: list[str]
    paths: list[str]
    groups: list[tuple[int, int]]

    def __len__(self) -> int: ...

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """One example, a function of (seed, epoch, index) alone."""
        ...

    def caption(self, index: int, epoch: int) -> str:
        """The caption that ``example`` gives."""
        ...

    def variants(self, index: int) -> list[str]:
        """Every caption that an example may have, with all of its tags in the written order."""
        ...


class Examples(Dataset[dict[str, Any]]):
    """What the datasets of this folder share as torch's."""

    captions: list[str]
    paths: list[str]
    groups: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.example(index, epoch=0)

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """See `CaptionedExamples`."""
        raise NotImplementedError


class CaptionedPictures(Examples):
    """Pictures, or their latents, with all that is written of each: ``alternatives``."""

    alternatives: list[tuple[str, ...]]
    captioning: Captioning
    seed: int

    def caption(self, index: int, epoch: int) -> str:
        """Caption of an example in an epoch."""
        return self.captioning.caption(self.alternatives[index], self.seed, epoch, index)

    def variants(self, index: int) -> list[str]:
        """Every caption an example may have, with all of its tags; see ``Captioning.variants``."""
        return self.captioning.variants(self.alternatives[index])


class Selection(Examples):
    """Some examples of a dataset, in the order given; their chances are those they have in the whole.

    Raises:
        UserError: no index, or one the dataset does not have.
    """

    def __init__(self, data: CaptionedExamples, indices: Sequence[int]) -> None:
        if not indices:
            raise UserError("a selection of no examples; expected 1 or more")
        if wrong := [i for i in indices if not 0 <= i < len(data)]:
            raise UserError(f"there is no example {wrong[0]} among {len(data)}")
        self.data, self.indices = data, list(indices)
        self.captions = [data.captions[i] for i in indices]
        self.paths = [data.paths[i] for i in indices]
        self.groups = [data.groups[i] for i in indices]

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """The example of the whole."""
        return self.data.example(self.indices[index], epoch)

    def caption(self, index: int, epoch: int) -> str:
        """The caption of the whole."""
        return self.data.caption(self.indices[index], epoch)

    def variants(self, index: int) -> list[str]:
        """Every caption of the whole's example."""
        return self.data.variants(self.indices[index])
