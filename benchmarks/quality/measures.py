"""Style and content of generated pictures at several strengths, as the judge sees them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hyperbrush.picture_judge import PictureJudge

CANDIDATES = 200  # names the judge chooses from
STRENGTHS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Measures:
    """What a style's pictures are judged by.

    among: the names to choose from, the style's own among them; sets: the looks to choose from.
    """

    judge: PictureJudge
    style: str
    among: Sequence[str]

    def of(self, pictures: Tensor, own: Sequence[str]) -> dict[str, float]:
        """Shares of pictures (n, 3, 64, 64) in [-1, 1] put into the style, to their name first, and in five."""
        shares = {
            "style": self.judge.style(pictures, self.style),
            "content": self.judge.content(pictures, own, self.among),
            "content_five": self.judge.content(pictures, own, self.among, best=5),
        }
        return {key: float(share.float().mean()) for key, share in shares.items()}


def candidates(own: Sequence[str], others: Sequence[str], count: int = CANDIDATES) -> list[str]:
    """The names a style is judged among: its own, filled up with others to so many, evenly spread over them."""
    rest = [name for name in others if name not in set(own)]
    missing = min(max(0, count - len(own)), len(rest))
    return [*own, *(rest[i * len(rest) // missing] for i in range(missing))]


def area(points: Sequence[tuple[float, float]]) -> float:
    """Area under style (to the right) against content (upwards): what is dominated by (style, content) points.

    1 would be a strength at which every picture has the style and shows its thing.

    >>> round(area([(0.0, 1.0), (0.5, 0.8), (1.0, 0.4)]), 3)
    0.6
    """
    found, height, right = 0.0, 0.0, 1.0
    best = sorted(points, reverse=True)  # from the right: the highest content at this style or beyond
    if not best:
        return 0.0
    right = best[0][0]
    for style, content in best:
        found += (right - style) * height
        right, height = style, max(height, content)
    return found + right * height
