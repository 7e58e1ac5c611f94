"""Many styles to learn a generator from: folders of pictures, encoded once, and the batches drawn from them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.generator import GeneratedWeights
from hyperbrush.ldm.data import ImageFolder, LatentCache, PictureRows, cache_latents
from hyperbrush.ldm.data.archives import content_of, is_source
from hyperbrush.ldm.data.scan import Scan
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.util import keyed_generator
from hyperbrush.training.loop.checkpoint import digest
from hyperbrush.training.loop.progress import PrepareCallback

log = logging.getLogger(__name__)
ADAPTERS = ("adapter.safetensors", "lora.safetensors")  # of a style, for reconstruction
ABOUT = "style.txt"  # a style in words


@dataclass(frozen=True)
class Style:
    """One style: its pictures as scaled latents, (pictures, c, h, w), and their captions.

    references: as many first pictures are for looking at, the others to be judged by; of styles that are trained
    on each picture is either, in turn. alternatives: all captions of each picture, the first included; where it is
    empty there are no others. text: the style in words, "" where nobody wrote any. adapter: a finished
    one, for reconstruction. paths: of the pictures, where they are known.
    """

    name: str
    latents: Tensor
    captions: tuple[str, ...]
    references: int
    text: str = ""
    adapter: GeneratedWeights | None = None
    alternatives: tuple[tuple[str, ...], ...] = ()
    paths: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.latents)

    def said(self, picture: int) -> tuple[str, ...]:
        """Every caption of a picture, one or more."""
        return self.alternatives[picture] if self.alternatives else (self.captions[picture],)


@dataclass(frozen=True)
class FoundStyle:
    """One style as it was found, nothing of it encoded: its pictures, or its references and its targets; the rest as of `Style`."""

    name: str
    pictures: tuple[ImageFolder, ...]
    text: str = ""
    adapter: GeneratedWeights | None = None

    def encoded(self, model: LatentDiffusion, cache: LatentCache) -> Style:
        """With the latents of its pictures."""
        latents = [_latents(model, one, cache) for one in self.pictures]
        said = tuple(captions for one in self.pictures for captions in one.alternatives)
        return Style(
            self.name,
            torch.cat(latents),
            tuple(captions[0] for captions in said),
            len(latents[0]) if len(latents) == 2 else len(latents[0]) // 2,
            self.text,
            self.adapter,
            said,
            tuple(str(path) for one in self.pictures for path in getattr(one, "paths", ())),
        )


def open_styles(
    source: str | Path | Mapping[str, Any],
    model: LatentDiffusion,
    cache: Path,
    *,
    adapters: bool = False,
    size: int | None = None,
    on_prepare: PrepareCallback | None = None,
) -> list[Style]:
    """`find_styles`, and `encode_styles`.

    Raises:
        UserError: see `find_styles`.
    """
    found = find_styles(source, size or model.image_size, adapters=adapters)
    return encode_styles(found, model, cache, on_prepare)


def find_styles(
    source: str | Path | Mapping[str, Any], size: int, *, adapters: bool = False
) -> list[FoundStyle]:
    """Each subfolder, tar or table as a style: its pictures (captions as for training), or references/ and targets/ in it.

    source: a folder of these, or a mapping of styles' names to their pictures: a folder, tar or table, or a dataset of
        one's own (see `PictureRows`), or a mapping of "references" and "targets" to such.
    size: of the pictures. adapters: read each style's adapter.safetensors or lora.safetensors too.

    Raises:
        UserError: no such folder, no styles in it, a style of fewer than two pictures; adapters are wanted and one
            is missing.
    """
    if not isinstance(source, str | Path | Mapping):
        raise UserError(
            f"styles: expected a folder of styles or a mapping of names to pictures, got {type(source).__name__}"
        )
    found = dict(source) if isinstance(source, Mapping) else _named_styles(Path(source).expanduser())
    if not found:
        raise UserError("no styles: expected a mapping of names to pictures with one or more in it")
    styles = []
    for name, pictures in found.items():
        data = tuple(_opened(part, name, size) for part in _parts(pictures))
        count = sum(map(len, data))
        if count < 2:
            where = pictures if isinstance(pictures, str | Path) else f"style {name!r}"
            raise UserError(f"{where} has {count} picture; a style needs two: one to look at, one to draw")
        folder = Path(pictures) if isinstance(pictures, str | Path) else None
        if adapters and folder is None:
            raise UserError(
                f"style {name!r} is no folder, so it has no adapter to reconstruct: take objective 'denoising'"
            )
        adapter = _adapter(folder) if adapters and folder is not None else None
        styles.append(FoundStyle(name, data, "" if folder is None else _about(folder), adapter))
    return styles


def encode_styles(
    found: Sequence[FoundStyle],
    model: LatentDiffusion,
    cache: Path,
    on_prepare: PrepareCallback | None = None,
) -> list[Style]:
    """Their pictures as latents, kept in ``cache``."""
    styles = []
    with LatentCache(cache, digest(dict(model.first_stage.state_dict()))) as kept:
        for number, style in enumerate(found):
            styles.append(style.encoded(model, kept))
            if on_prepare is not None:
                on_prepare("styles", number + 1, len(found))
    return styles


def _named_styles(root: Path) -> dict[str, Path]:
    inside = root.iterdir() if root.is_dir() else ()
    found = sorted(path for path in inside if is_source(path) and not path.name.startswith("."))
    if not found:
        raise UserError(f"{root} has no folders in it: expected one folder of pictures for each style")
    return {path.name: path for path in found}


def _parts(pictures: Any) -> list[Any]:
    """A style's pictures, or its references and its targets."""
    if isinstance(pictures, Mapping):
        if set(pictures) != {"references", "targets"}:
            raise UserError(
                f"a style is a mapping of {', '.join(map(str, pictures))[:200]}; expected references and targets"
            )
        return [pictures["references"], pictures["targets"]]
    if isinstance(pictures, str | Path) and (Path(pictures) / "references").is_dir():
        return [Path(pictures) / "references", Path(pictures) / "targets"]
    return [pictures]


def _opened(part: Any, name: str, size: int) -> ImageFolder:
    if isinstance(part, ImageFolder):
        return part
    if isinstance(part, str | Path):
        data = ImageFolder(part, size=size, on_problem="skip")
        if data.problems:
            report = Scan(data.folder, (), data.problems).report(5)
            log.warning("style %r: %d files are left out:\n%s", name, len(data.problems), report)
        return data
    return PictureRows(part, size=size, name=name)


def _about(path: Path) -> str:
    try:
        return content_of(path / ABOUT).decode("utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _latents(model: LatentDiffusion, data: ImageFolder, cache: LatentCache) -> Tensor:
    rows = cache_latents(data, model.moments, cache)
    means = torch.stack([rows.example(i, 0)["latent_mean"] for i in range(len(rows))])
    with torch.no_grad():
        return model.latents_of({"latent_means": means}).float().cpu()


def _adapter(path: Path) -> GeneratedWeights:
    for name in ADAPTERS:
        if (path / name).is_file():
            return GeneratedWeights.load(path / name)
    raise UserError(f"{path} has no adapter to reconstruct: expected {' or '.join(ADAPTERS)} in it")


@dataclass(frozen=True)
class References:
    """What the styles of a batch are told from, one sample each; it is never cut with the batch's rows.

    latents: (styles, references, c, h, w); present: (styles, references) bool; text: in words, "" for none;
    drop: (styles,) bool, True for the null condition; styles: numbers in the list.
    """

    latents: Tensor
    present: Tensor
    text: tuple[str, ...]
    drop: Tensor
    styles: tuple[int, ...]


@dataclass(frozen=True)
class StyleBatches:
    """Batches of so many styles with so many targets each; what is drawn is a function of (seed, step).

    The targets' contents are never among the references', so that a content cannot leak through them.
    """

    styles: Sequence[Style]
    per_style: int
    most_references: int
    condition_dropout: float
    seed: int

    def draw(self, step: int, batch_size: int) -> tuple[References, list[tuple[int, int, int]]]:
        """References, and the targets as (sample, style, picture): row i is of sample i mod samples."""
        count = max(1, batch_size // self.per_style)
        generator = keyed_generator(self.seed, "styles", step)
        order = torch.randperm(len(self.styles), generator=generator).tolist()
        chosen = [order[i % len(order)] for i in range(count)]
        shown, targets = [], []
        for style in chosen:
            size = len(self.styles[style])
            places = torch.randperm(size, generator=generator).tolist()
            most = max(1, min(self.most_references, size - 1))
            # As often 1 as 2–3 as 4–7 …: few references are what people have.
            share = float(torch.rand((), generator=generator, dtype=torch.float64))
            number = _log_uniform(share, most)
            shown.append(places[:number])
            rest = places[number:]
            targets.append([rest[i % len(rest)] for i in range(self.per_style)])
        drop = torch.rand(count, generator=generator) < self.condition_dropout
        rows = [(s, chosen[s], targets[s][k]) for k in range(self.per_style) for s in range(count)]
        return self.show(chosen, shown, drop), rows[:batch_size]

    def show(
        self, chosen: Sequence[int], shown: Sequence[Sequence[int]], drop: Tensor | None = None
    ) -> References:
        """Styles by number with the pictures to look at."""
        most = max(map(len, shown))
        first = self.styles[chosen[0]].latents
        latents = first.new_zeros(len(chosen), most, *first.shape[1:])
        present = torch.zeros(len(chosen), most, dtype=torch.bool)
        for row, (style, pictures) in enumerate(zip(chosen, shown, strict=True)):
            latents[row, : len(pictures)] = self.styles[style].latents[list(pictures)]
            present[row, : len(pictures)] = True
        drop = torch.zeros(len(chosen), dtype=torch.bool) if drop is None else drop
        return References(latents, present, tuple(self.styles[s].text for s in chosen), drop, tuple(chosen))


def _log_uniform(share: float, most: int) -> int:
    """A number from 1 to ``most``, each octave as often; share: in [0, 1)."""
    return min(most, int((most + 1) ** share))
