"""`hyperbrush demo --hyper`: an adapter from three pictures in a second, then 50 steps of tuning."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.assets import style_folder
from hyperbrush.commands.demo import PROMPTS
from hyperbrush.files import atomic_path
from hyperbrush.generation.grids import labelled_grid
from hyperbrush.hypernetworks.generator import GeneratedWeights, TargetNetwork
from hyperbrush.hypernetworks.generator.generating import generate_adapter, open_generator
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.pictures import to_pictures
from hyperbrush.training.attention.run import HypernetworkRun, train_run
from hyperbrush.training.loop.run_folder import begin_anew
from hyperbrush.training.loop.trainer import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

REFERENCES = 3
STEPS = 50  # of tuning


@dataclass
class HyperDemoResult:
    """What the demo left behind."""

    file: Path
    tuned: Path
    grid: Path
    seconds: float
    steps: int = STEPS

    def summary(self) -> str:
        """What was made, and where to go on."""
        return "\n".join(
            [
                f"{self.file}: generated from {REFERENCES} pictures in {self.seconds:.2f} s",
                f"{self.tuned}: the same after {self.steps} steps of tuning",
                f"grid: {self.grid}",
                "next:",
                f'  hyperbrush generate "crescent moon <hypernet:{self.file.stem}:0.8>" --hypernetworks {self.file.parent} '
                "--out moon.png",
                "  hyperbrush hyper generate --images YOUR.png --out yours.safetensors",
            ]
        )


def run_hyper_demo(
    out: Path,
    *,
    generator: Path | None = None,
    steps: int = STEPS,
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
    file = right.save(library / "ink-generated.safetensors")
    run = out / "run"
    begin_anew(run)
    config = HypernetworkRun.of(
        name="ink-tuned",
        data=str(style_folder() / "train"),
        validation=str(style_folder() / "validation"),
        start_from=str(file),
        hypernetworks=str(library),
        training={"max_steps": steps, "seed": seed},
    )
    result = train_run(config, run, model=model, on_progress=on_progress, should_stop=should_stop)
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


def _drawn(model: LatentDiffusion, weights: GeneratedWeights | None, seed: int) -> "list[Image]":
    """The prompts with weights, in one batch."""
    seeds = [seed + i for i in range(len(PROMPTS))]
    if weights is None:
        return to_pictures(model.sample(PROMPTS, seeds=seeds))
    with TargetNetwork(model).apply_weights(weights):
        return to_pictures(model.sample(PROMPTS, seeds=seeds))
