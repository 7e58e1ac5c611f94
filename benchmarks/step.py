"""Where the time of a training step goes, beside PEFT LoRA, a bare loop, and the bare UNet.

    python benchmarks/step.py [--steps 30] [--precision no] [--threads 2] [--out benchmarks/results]

The embedded model, 48 pictures, batches of 16, the default settings (a moving average too).  Four ways take turns, a step
each, so that a busy machine slows all of them: our Trainer with the default hypernetwork; the same Trainer with PEFT LoRA of as
many parameters; forty lines of PyTorch with the same hypernetwork on the same cached latents and text states; the UNet alone,
forward and backward to its contexts, below which no adapter of them can be.  In the first two a stopwatch around the named
parts takes their own time, without that of the parts within them; what none has is "the rest".  Medians over the steps.
"""

import argparse
import contextlib
import functools
import itertools
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from hyperbrush.assets import style_folder
from hyperbrush.files import write_json
from training import BATCH, _lora, _model_and_network, interval

OURS, LORA, BARE, FLOOR = "our Trainer", "the same with LoRA", "a bare loop", "the UNet alone"
SETTINGS: dict[str, Any] = {  # nothing stands between the steps
    "batch_size": BATCH,
    "max_steps": 1000,
    "validation_share": 0.0,
    "validate_every": 1000,
    "preview_every": 1000,
    "checkpoint_every": 1000,
}
PARTS = (
    "data: latents, noise, timesteps",
    "text states",
    "UNet forward",
    "networks forward, and their hooks",
    "backward",
    "clipping",
    "optimizer",
    "moving average",
    "checks of what is finite",
    "metrics, live.json",
)


class Stopwatch:
    """The own time of named parts, step by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.open: list[float] = []  # seconds of the parts within each open one

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Time a method from now on."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*given: Any, **named: Any) -> Any:
            self.open.append(0.0)
            begin = time.perf_counter()
            try:
                return inner(*given, **named)
            finally:
                taken = time.perf_counter() - begin
                self.steps[-1][part] += taken - self.open.pop()
                if self.open:
                    self.open[-1] += taken

        setattr(owner, name, timed)

    def step(self, work: Callable[[], object]) -> None:
        """One step, whose parts are timed."""
        self.steps.append(defaultdict(float))
        begin = time.perf_counter()
        work()
        self.steps[-1]["all"] = time.perf_counter() - begin


def trainer_of(way: str, folder: Path, precision: str) -> tuple[Any, Stopwatch]:
    """A Trainer under a stopwatch."""
    import torch

    from hyperbrush.training.attention.config import HypernetworkConfig
    from hyperbrush.training.attention.trainer import HypernetworkTrainer
    from hyperbrush.training.loop.trainer import Trainer

    config = HypernetworkConfig(**SETTINGS, mixed_precision=precision)
    torch.manual_seed(0)
    model, network = _model_and_network()
    ours: Any = HypernetworkTrainer(network, config, run=folder / "cache").objective(
        model, style_folder() / "train"
    )
    objective = ours if way == OURS else _lora(ours)
    trainer, watch = Trainer(objective, config.trainer(48), folder / way), Stopwatch()
    data, texts, unet, networks, backward, clipping, optimizer, average, checks, metrics = PARTS
    watch.wrap(ours, "batch", data)
    watch.wrap(ours, "_text_states", texts)
    watch.wrap(model.unet, "forward", unet)
    if way == OURS:
        for _, pair in network.pairs():
            watch.wrap(pair.key, "forward", networks)
            watch.wrap(pair.value, "forward", networks)
    watch.wrap(trainer.accelerator, "backward", backward)
    watch.wrap(trainer, "clip", clipping)
    watch.wrap(trainer.optimizer, "step", optimizer)
    watch.wrap(trainer.state, "update_average", average)
    watch.wrap(trainer, "_check", checks)
    watch.wrap(trainer, "_after", metrics)
    return trainer, watch


def bare(precision: str, folder: Path) -> Callable[[], None]:
    """A training loop as one writes it by hand, with the caches that ours has."""
    import torch

    from hyperbrush import attach
    from hyperbrush.training.attention.config import HypernetworkConfig
    from hyperbrush.training.attention.trainer import HypernetworkTrainer

    model, network = _model_and_network()
    config = HypernetworkConfig(**SETTINGS)
    objective: Any = HypernetworkTrainer(network, config, run=folder / "cache").objective(
        model, style_folder() / "train"
    )
    batches = itertools.cycle([objective.batch(step, BATCH) for step in range(12)])
    objective.attached.detach()
    attach(model.unet, network)
    kept = model.diffusion.schedule.alphas_cumprod.float()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    average = [p.detach().clone() for p in network.parameters()]

    def step() -> None:
        batch = next(batches)
        clean = batch["latent_means"] * model.scale_factor
        noise, steps, states = batch["noise"], batch["timesteps"], batch["embeddings"]
        signal, noisy = (root.sqrt().view(-1, 1, 1, 1) for root in (kept[steps], 1 - kept[steps]))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            found = model.unet(signal * clean + noisy * noise, steps, states).sample
        loss = torch.nn.functional.mse_loss(found.float(), signal * noise - noisy * clean)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for mean, weight in zip(average, network.parameters(), strict=True):
                mean.lerp_(weight, 0.01)

    return step


def floor(precision: str) -> Callable[[], None]:
    """The UNet forward, and backward to its contexts."""
    import torch

    model, _ = _model_and_network()
    unet = model.unet.requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(BATCH, *model.latent_shape, generator=generator)
    steps = torch.randint(0, 1000, (BATCH,), generator=generator)
    states = model.encode_text(["cat"] * BATCH).detach().requires_grad_()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            found = unet(latents, steps, states).sample
        found.float().square().mean().backward()
        states.grad = None

    return step


def measure(steps: int, precision: str, folder: Path, closing: contextlib.ExitStack) -> dict[str, Any]:
    """Seconds of each way and part, and pictures per second beside ours."""
    trainers = {way: trainer_of(way, folder, precision) for way in (OURS, LORA)}
    watches = {way: watch for way, (_, watch) in trainers.items()} | {BARE: Stopwatch(), FLOOR: Stopwatch()}
    work: dict[str, Callable[[], object]] = {BARE: bare(precision, folder), FLOOR: floor(precision)}
    for way, (trainer, _) in trainers.items():
        trainer.objective.train()
        trainer.run.mkdir(parents=True, exist_ok=True)
        trainer._begin(closing)
        work[way] = functools.partial(one_step, trainer)
    ways = list(watches)
    for number in range(steps + 2):
        for place in range(len(ways)):
            way = ways[(number + place) % len(ways)]
            watches[way].step(work[way])
    taken = {way: [step["all"] for step in watch.steps[2:]] for way, watch in watches.items()}  # two warm up
    parts = {
        way: {part: statistics.median(step[part] for step in watches[way].steps[2:]) for part in PARTS}
        for way in (OURS, LORA)
    }
    ratios = {
        way: interval([other / own for own, other in zip(taken[OURS], taken[way], strict=True)])
        for way in (LORA, BARE, FLOOR)
    }
    return {
        "seconds": {way: interval(values) for way, values in taken.items()},
        "parts": parts,
        "speed": ratios,
    }


def one_step(trainer: Any) -> None:
    """What the Trainer does for a step, with what comes after it."""
    with trainer._states.entered():
        losses = trainer._one_step(1e-4)
        trainer.state.step += 1
        trainer._after(losses, 1e-4)


def markdown(result: Mapping[str, Any]) -> str:
    """The table."""
    whole = {way: value["median"] for way, value in result["seconds"].items()}
    lines = ["| ms of a step | our Trainer | the same with LoRA |", "|---|---|---|"]
    for part in PARTS:
        own = [result["parts"][way][part] for way in (OURS, LORA)]
        lines.append(f"| {part} | " + " | ".join(f"{1000 * s:.1f}" for s in own) + " |")
    rest = [whole[way] - sum(result["parts"][way].values()) for way in (OURS, LORA)]
    lines.append("| the rest | " + " | ".join(f"{1000 * max(0.0, s):.1f}" for s in rest) + " |")
    lines.append("| all | " + " | ".join(f"{1000 * whole[way]:.1f}" for way in (OURS, LORA)) + " |")
    lines += ["", "| beside it | ms of a step | ours is so many times as fast (95 %) |", "|---|---|---|"]
    for way in (LORA, BARE, FLOOR):
        r = result["speed"][way]
        lines.append(
            f"| {way} | {1000 * whole[way]:.1f} | {r['median']:.2f} ({r['low']:.2f}–{r['high']:.2f}) |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args(arguments)

    import torch

    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as closing:
        result = measure(given.steps, given.precision, Path(name), closing)
    result |= {
        "precision": given.precision,
        "steps": given.steps,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {given.threads} threads",
        "torch": torch.__version__,
    }
    write_json(given.out / f"step-{'fp32' if given.precision == 'no' else given.precision}.json", result)
    print(markdown(result))


if __name__ == "__main__":
    main()
