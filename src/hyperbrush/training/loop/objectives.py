"""What is trained towards what: an objective turns step numbers into losses, pictures and files.

The Trainer owns the loop; an objective owns the data, the network and the meaning.  All randomness
comes from generators keyed by (seed, purpose, step), drawn for the whole batch and then cut into
parts, so that neither accumulation nor the number of processes changes a result.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path

if TYPE_CHECKING:
    from PIL.Image import Image


class Objective(nn.Module, ABC):
    """Base of all objectives; parameters that require a gradient are what is trained.

    step: whose weights these are, as the Trainer says before it has them saved.
    """

    step = 0

    def place(self, device: torch.device) -> None:
        """Move what is not a submodule (a frozen model) to the device of the training."""

    def before_step(self, step: int, batch_size: int) -> str | None:
        """Change weights otherwise than by a gradient, as a function of them and the step; says what was done.

        None: nothing was changed.
        """
        return None

    @abstractmethod
    def batch(self, step: int, batch_size: int) -> dict[str, Any]:
        """The whole batch of one optimizer step, with all that is random in it: a pure function of step."""

    @abstractmethod
    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Loss terms of (a part of) a batch; "loss" is the one minimised."""

    def validate(self) -> dict[str, float]:
        """Figures on held-out data; "loss" is the one to judge by.  Empty where none is held out."""
        return {}

    def picture_paths(self) -> tuple[list[str], list[str]] | None:
        """Of the pictures that are trained on and of those held out; None: they have none."""
        found = []
        for data in (getattr(self, "data", None), getattr(self, "held_out", None)):
            paths = [] if data is None else getattr(data, "paths", None)
            if paths is None:
                return None
            found.append([str(path) for path in paths])
        return found[0], found[1]

    @property
    def is_validated(self) -> bool:
        """Whether `validate` has held-out data to judge by."""
        return type(self).validate is not Objective.validate and getattr(self, "held_out", self) is not None

    def preview(self) -> "Image | None":
        """A picture of the present state."""
        return None

    def write_preview(self, run: Path, step: int) -> Path | None:
        """Write what `preview` shows into the run's previews/; None where there is nothing to show."""
        if (picture := self.preview()) is None:
            return None
        path = run / "previews" / f"step-{step:08d}.png"
        with atomic_path(path) as temporary:
            picture.save(temporary)
        return path

    @abstractmethod
    def save(self, folder: Path) -> Path:
        """Write the finished thing into the run folder and return where."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer; "scale" multiplies the learning rate."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]


@contextlib.contextmanager
def steps_added(network: Any, steps: int) -> Iterator[None]:
    """Within, a network has made so many steps more than it had, which its file tells."""
    before = network.step
    network.step = int(before or 0) + steps
    try:
        yield
    finally:
        network.step = before


def rows(batch: Mapping[str, Any], start: int, stop: int, size: int) -> dict[str, Any]:
    """Rows start … stop of a batch: tensors and lists of `size` entries are cut, the rest is shared."""
    return {key: value[start:stop] if _length(value) == size else value for key, value in batch.items()}


def _length(value: Any) -> int | None:
    if isinstance(value, Tensor):
        return len(value) if value.ndim else None
    return len(value) if isinstance(value, list) else None


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The trained parameters by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def load_trained(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy saved values into the trained parameters.

    Raises:
        UserError: names or shapes differ from those saved.
    """
    own = trained_tensors(module)
    if own.keys() != tensors.keys() or any(own[k].shape != tensors[k].shape for k in own):
        odd = sorted(own.keys() ^ tensors.keys())[:5]
        raise UserError(
            f"the checkpoint is of another network than the config describes (first differences: {odd})"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])
