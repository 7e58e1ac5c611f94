"""A judge of small pictures: what they show, and in which look; for studies on the embedded model.

A denoising loss, or a distance between latents, says little about whether a picture still shows its thing. The judge is
a small network that was shown some sixty icon sets (recipes/judge): names on one side, sets on the other. Its answers
are figures of merit: **content**, the share of pictures whose own name it puts first among the candidates (or among
the first five), and **style**, the share it puts into the right set among the candidates.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperbrush.errors import UserError

SIDE = 64  # pixels of a picture
SHARPNESS = 20.0  # of the softmax over cosines


class PictureJudge(nn.Module):
    """Pictures to likeness with names and sets.

    names, sets: what it can tell apart; channels: of its four levels, each halving the picture; width: of the vectors
    that pictures and names are compared by.
    """

    def __init__(
        self,
        names: Sequence[str],
        sets: Sequence[str],
        *,
        channels: Sequence[int] = (32, 64, 96, 128),
        width: int = 64,
    ) -> None:
        super().__init__()
        self.names, self.sets = list(names), list(sets)
        self.settings: dict[str, Any] = {"channels": list(channels), "width": width}
        levels: list[nn.Module] = []
        before = 3
        for channel in channels:
            levels.append(_convolution(before, channel, stride=2))
            levels += (
                [_Residual(channel)] if before > 3 else []
            )  # at full width it costs most and tells least
            before = channel
        self.body = nn.Sequential(*levels)
        self.to_name = nn.Linear(before * (SIDE // 2 ** len(channels)) ** 2, width)
        self.name_vectors = nn.Parameter(torch.randn(len(self.names), width) * width**-0.5)
        self.to_set = nn.Linear(2 * before, len(self.sets))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of names and of sets: (batch, names), (batch, sets).

        pictures: (batch, 3, 64, 64) in [-1, 1].
        """
        states = self.body(pictures)
        vectors = F.normalize(self.to_name(states.flatten(1)), dim=1)
        name_logits = SHARPNESS * vectors @ F.normalize(self.name_vectors, dim=1).T
        texture = torch.cat([states.mean((2, 3)), states.amax((2, 3))], dim=1)
        return name_logits, self.to_set(texture)

    @torch.no_grad()
    def content(self, pictures: Tensor, own: Sequence[str], among: Sequence[str], best: int = 1) -> Tensor:
        """Whether each picture's own name is among the best so many candidates: (pictures,) bool.

        pictures: (n, 3, 64, 64) in [-1, 1]; own: of each; among: the candidates, each own name one of them.

        Raises:
            UserError: a name it does not know; an own name that is no candidate.
        """
        places = {name: i for i, name in enumerate(among)}
        if stray := [name for name in own if name not in places]:
            raise UserError(f"{stray[0]!r} is not among the {len(among)} names the judge chooses from")
        logits = self.logits(pictures)[0][:, self._columns(self.names, among, "name")]
        chosen = logits[torch.arange(len(logits)), [places[name] for name in own]]
        return (~(logits <= chosen[:, None])).sum(1) < best  # NaN is nowhere

    @torch.no_grad()
    def style(self, pictures: Tensor, own: str, among: Sequence[str] | None = None) -> Tensor:
        """Whether each picture looks like the set, among the candidates (all sets by default): (pictures,) bool.

        Raises:
            UserError: a set it does not know.
        """
        candidates = list(among) if among is not None else self.sets
        if own not in candidates:
            raise UserError(f"{own!r} is not among the {len(candidates)} sets the judge chooses from")
        logits = self.logits(pictures)[1][:, self._columns(self.sets, candidates, "set")]
        return logits.argmax(1) == candidates.index(own)

    def logits(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of any number of pictures, as `forward` gives them, in parts and without training."""
        was, _ = self.training, self.eval()
        parts = [self(part) for part in pictures.float().split(256)]  # type: ignore[no-untyped-call]
        self.train(was)
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    @staticmethod
    def _columns(known: Sequence[str], wanted: Sequence[str], kind: str) -> list[int]:
        places = {name: i for i, name in enumerate(known)}
        if stray := [name for name in wanted if name not in places]:
            raise UserError(
                f"the judge knows no {kind} {stray[0]!r} ({len(stray)} of {len(wanted)} are unknown)"
            )
        return [places[name] for name in wanted]

    def save(self, path: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Weights, names and sets in one safetensors file."""
        import json

        from safetensors.torch import save_file

        from hyperbrush.files import atomic_path

        about = {"names": self.names, "sets": self.sets, **self.settings}
        tensors = {k: v.to(dtype).contiguous() for k, v in self.state_dict().items()}
        with atomic_path(Path(path)) as temporary:
            save_file(tensors, temporary, metadata={"judge": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """The judge in a file, or the one that ships.

        Raises:
            UserError: the file is missing or holds no judge.
        """
        import json

        from safetensors import safe_open

        from hyperbrush.assets import FOLDER

        file = Path(path) if path is not None else FOLDER / "judge" / "judge.safetensors"
        if not file.is_file():
            raise UserError(f"there is no judge {file}; python recipes/judge/train.py makes one")
        with safe_open(file, "pt") as opened:
            about = (opened.metadata() or {}).get("judge")
            if about is None:
                raise UserError(f"{file} holds no judge (no metadata 'judge')")
            made = cls(**json.loads(about))
            made.load_state_dict({key: opened.get_tensor(key).float() for key in opened.keys()})  # noqa: SIM118
        return made.eval()


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = _convolution(channels, channels)

    def forward(self, states: Tensor) -> Tensor:
        found: Tensor = states + self.inner(states)
        return found


def _convolution(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, 1, bias=False),
        nn.GroupNorm(8, after),
        nn.SiLU(),
    )
