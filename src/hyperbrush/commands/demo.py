"""`hyperbrush demo`: a first hypernetwork from 48 pictures to a grid; and, with --hyper, an adapter from three pictures in a second."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.assets import style_folder
from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path
from hyperbrush.generation import generate
from hyperbrush.generation.grids import labelled_grid
from hyperbrush.hypernetworks.generator import GeneratedWeights, TargetNetwork
from hyperbrush.hypernetworks.generator.generating import generate_adapter, open_generator
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.pictures import to_pictures
from hyperbrush.shell import quoted
from hyperbrush.training.attention.run import HypernetworkRun, Result, file_of_run, read_run, train_run
from hyperbrush.training.loop.run_folder import begin_anew
from hyperbrush.training.loop.trainer import Progress
from hyperbrush.training.report.contact_sheet import contact_sheet
from hyperbrush.training.report.report import write_report

if TYPE_CHECKING:
    from PIL.Image import Image


NAME = "ink"
STRENGTHS = (0.0, 0.5, 1.0)
PROMPTS = ("red heart", "mushroom", "guitar", "umbrella", "hammer", "anchor")  # none of the 48


@dataclass(frozen=True)
class Extent:
    """How much a demo does: steps of training, prompts, strengths."""

    steps: int
    prompts: tuple[str, ...] = PROMPTS
    strengths: tuple[float, ...] = STRENGTHS


WHOLE = Extent(150)
QUICK = Extent(40, PROMPTS[:3], (0.0, 1.0))
REFERENCES = 3  # pictures of the generated adapter
TUNING_STEPS = 50


@dataclass
class DemoResult:
    """What the demo left behind."""

    training: Result
    grid: Path
    report: Path

    def summary(self) -> str:
        """What was made, the figure, and where to go on."""
        t = self.training
        drop = 1 - t.best_loss / t.base_loss
        return "\n".join(
            [
                f"validation loss on 64 held-out pictures of the style: {t.base_loss:.4f} without, {t.best_loss:.4f} "
                f"with the hypernetwork ({drop:.0%} lower)",
                f"grid:   {self.grid}",
                f"report: {self.report}",
                f"file:   {t.file}",
                "next:",
                *(f"  {command}" for command in next_commands(t)),
            ]
        )


def next_commands(result: Result) -> list[str]:
    """Commands a newcomer can run now."""
    folder = quoted(result.file.parent)
    return [
        f'hyperbrush generate "crescent moon <hypernet:{NAME}:1>" --hypernetworks {folder} --out moon.png',
        f'hyperbrush generate "star <hypernet:{NAME}:0.6>" --hypernetworks {folder} --seed 7 --out star.png',
        "hyperbrush train --data YOUR_PICTURES --name mine",
    ]


def run_demo(
    out: Path,
    extent: Extent = WHOLE,
    *,
    steps: int | None = None,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> DemoResult:
    """Train on the bundled style, draw the grid, write the report; steps: other ones than the extent's.

    Raises:
        UserError: nothing can be written there.
        Interrupted: the training was stopped and can be resumed.
    """
    run = out / "run"
    steps, prompts = steps or extent.steps, extent.prompts
    config = HypernetworkRun.of(
        name=NAME,
        data=str(style_folder() / "train"),
        validation=str(style_folder() / "validation"),
        hypernetworks=str(out / "hypernetworks"),
        training={
            "max_steps": steps,
            "seed": seed,
            "prompts": list(prompts),
            "preview_every": max(1, steps // 3),
        },
    )
    overwrite = _begin_anew(run, config)
    model = LatentDiffusion.from_pretrained("emoji")
    result = train_run(
        config, run, overwrite=overwrite, model=model, on_progress=on_progress, should_stop=should_stop
    )
    columns = []
    for strength in extent.strengths:
        tag = f" <hypernet:{NAME}:{strength:g}>" if strength else ""
        columns.append(
            [
                generate(prompt + tag, model=model, seed=seed + i, hypernetworks=result.file.parent)[0].image
                for i, prompt in enumerate(prompts)
            ]
        )
    grid = labelled_grid(
        list(zip(*columns, strict=True)),
        rows=prompts,
        columns=["without", *(f"strength {s:g}" for s in extent.strengths[1:])],
    )
    with atomic_path(out / "grid.png") as temporary:
        grid.save(temporary)
    figures = [
        (
            "Trained on",
            "48 pictures of Fluent Emoji High Contrast (Microsoft, MIT); the prompts below are not among them",
        ),
        ("Steps", f"{result.steps} in {result.seconds:.0f} s"),
        (
            "Validation loss",
            f"{result.base_loss:.4f} without, {result.best_loss:.4f} with the hypernetwork "
            f"({1 - result.best_loss / result.base_loss:.0%} lower), 64 held-out pictures over one fixed "
            "grid of timesteps and noises",
        ),
        ("Best at step", str(result.best_step)),
        ("File", str(result.file)),
    ]
    report = write_report(
        out / "report.html",
        title="A first hypernetwork",
        figures=figures,
        run=run,
        pictures=[
            ("The same prompts and seeds, without and with it", grid),
            *([("As it learned", sheet)] if (sheet := contact_sheet(run)) is not None else []),
        ],
        commands=next_commands(result),
    )
    return DemoResult(result, out / "grid.png", report)


@dataclass
class HyperDemoResult:
    """What the demo left behind."""

    file: Path
    tuned: Path
    grid: Path
    seconds: float
    steps: int = TUNING_STEPS

    def summary(self) -> str:
        """What was made, and where to go on."""
        return "\n".join(
            [
                f"{self.file}: generated from {REFERENCES} pictures in {self.seconds:.2f} s",
                f"{self.tuned}: the same after {self.steps} steps of tuning",
                f"grid: {self.grid}",
                "next:",
                f'  hyperbrush generate "crescent moon <hypernet:{self.file.stem}:0.8>" --hypernetworks {quoted(self.file.parent)} '
                "--out moon.png",
                "  hyperbrush hyper generate --images YOUR.png --out yours.safetensors",
            ]
        )


def run_hyper_demo(
    out: Path,
    *,
    generator: Path | None = None,
    steps: int = TUNING_STEPS,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> HyperDemoResult:
    """Generate an adapter from three pictures of a style nobody saw, tune it, and draw the grid.

    Columns: without; with the adapter; with one from the wrong pictures (the same in negative); after tuning.

    Raises:
        UserError: no generator ships and none is given; nothing can be written there.
        Interrupted: the tuning was stopped and can be resumed.
    """
    from PIL import Image, ImageOps

    model = LatentDiffusion.from_pretrained("emoji")
    net = open_generator(generator, model)
    pictures: list[Any] = sorted((style_folder() / "train").glob("*.png"))[:REFERENCES]
    wrong = [ImageOps.invert(Image.open(path).convert("RGB")) for path in pictures]
    begin = time.perf_counter()
    right = generate_adapter(net, pictures=pictures, name="ink-generated")
    seconds = time.perf_counter() - begin
    library = out / "hypernetworks"
    file = library / "ink-generated.safetensors"
    run = out / "run"
    config = HypernetworkRun.of(
        name="ink-tuned",
        data=str(style_folder() / "train"),
        validation=str(style_folder() / "validation"),
        start_from=str(file),
        hypernetworks=str(library),
        training={"max_steps": steps, "seed": seed},
    )
    overwrite = _begin_anew(run, config)
    if file.exists() and not overwrite:
        raise UserError(f"{file} exists already, and no demo's run stands beside it: take another --out")
    right.save(file)
    result = train_run(
        config, run, overwrite=overwrite, model=model, on_progress=on_progress, should_stop=should_stop
    )
    tuned = GeneratedWeights.load(result.file)
    columns = [
        _drawn(model, weights, seed)
        for weights in (None, right, generate_adapter(net, pictures=wrong), tuned)
    ]
    grid = labelled_grid(
        list(zip(*columns, strict=True)),
        rows=PROMPTS,
        columns=["without", f"from {REFERENCES} pictures", "from wrong ones", f"{steps} steps on"],
    )
    with atomic_path(out / "hyper-grid.png") as temporary:
        grid.save(temporary)
    return HyperDemoResult(file, result.file, out / "hyper-grid.png", seconds, steps)


def _begin_anew(run: Path, config: HypernetworkRun) -> bool:
    """Take away the run of a demo that stood here before; whether there was one, whose file may be replaced.

    Raises:
        UserError: the run is somebody's own.
    """
    settings = run / "config.yaml"
    if not settings.is_file():
        begin_anew(run)  # nothing, or one that was stopped before its first step
        return False
    before = read_run(run)
    if file_of_run(before) != file_of_run(config):
        raise UserError(f"{run} holds a training of {before.name!r}, which is no demo's: take another --out")
    begin_anew(run)
    return True


def _drawn(model: LatentDiffusion, weights: GeneratedWeights | None, seed: int) -> "list[Image]":
    """The prompts with weights, in one batch."""
    seeds = [seed + i for i in range(len(PROMPTS))]
    if weights is None:
        return to_pictures(model.sample(PROMPTS, seeds=seeds))
    with TargetNetwork(model).apply_weights(weights):
        return to_pictures(model.sample(PROMPTS, seeds=seeds))
