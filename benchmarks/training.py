"""What a training step costs: pictures per second and memory, beside PEFT LoRA and beside a loop without caches.

    python benchmarks/training.py [--rounds 8] [--steps 4] [--threads 2] [--out benchmarks/results]

The embedded model, 48 pictures of 64×64, batches of 16, AdamW, fp32, EMA off.  Every way runs the steps of our own
Trainer: the default hypernetwork; PEFT LoRA on to_q, to_k, to_v, to_out of a rank with as many parameters or more, on the
same cached latents and text states; the hypernetwork with captions encoded in each step, as the webui does with shuffled
tags; and with pictures encoded in each step too.  The ways take turns, `steps` steps each, in an order that rotates;
a ratio is taken within its round; medians with 95 % bootstrap intervals.  Memory: the peak of a process of its own.
Then: seconds from the command to its first step, and what validation and previews cost at the default intervals.
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyperbrush.assets import style_folder
from hyperbrush.files import write_json

BATCH = 16
LORA = ("to_q", "to_k", "to_v", "to_out.0")
WAYS = ("hypernetwork", "LoRA", "captions encoded in each step", "captions and pictures encoded in each step")
SETTINGS = {
    "batch_size": BATCH,
    "max_steps": 100_000,
    "ema_decay": None,
    "validation_share": 0.0,
    "keep_best": False,
}


def make(way: str, cached: Path, run: Path) -> Any:
    """A Trainer that is ready for its first step; what it encodes is kept in ``cached``."""
    import torch

    from hyperbrush.training.attention.config import HypernetworkConfig
    from hyperbrush.training.attention.trainer import HypernetworkTrainer
    from hyperbrush.training.loop.trainer import Trainer

    config = HypernetworkConfig(**SETTINGS)
    torch.manual_seed(0)
    model, network = _model_and_network()
    short = config.model_copy(update={"max_steps": 100})  # captions are looked up for as many steps
    objective: Any = HypernetworkTrainer(network, short, run=cached).objective(
        model, style_folder() / "train"
    )
    if way != "hypernetwork":
        objective = _changed(way, objective)
    return Trainer(objective, config.trainer(48), run)


def _model_and_network() -> tuple[Any, Any]:
    from hyperbrush import AttentionHypernetwork
    from hyperbrush.ldm.models import LatentDiffusion

    model = LatentDiffusion.from_pretrained("emoji")
    return model, AttentionHypernetwork.for_unet(model.unet, name="timed")


def _changed(way: str, objective: Any) -> Any:
    """The same objective as LoRA, or without a cache."""
    import torch

    from hyperbrush.ldm.data import ImageFolder

    if way == "LoRA":
        return _lora(objective)
    objective.texts = None
    if way.startswith("captions and pictures"):
        pictures, own = ImageFolder(style_folder() / "train", size=64, flip=0.5), objective.batch

        def batch(step: int, batch_size: int) -> dict[str, Any]:
            found = {k: v for k, v in own(step, batch_size).items() if not k.startswith("latent")}
            pairs = objective.order.pairs(step)
            return found | {
                "images": torch.stack([pictures.example(i, epoch)["image"] for epoch, i in pairs])
            }

        objective.batch = batch
    return objective


def _lora(objective: Any) -> Any:
    from hyperbrush.training.loop.objectives import Objective

    objective.attached.detach()
    model, wanted = objective.model, sum(p.numel() for p in objective.hypernetwork.parameters())
    _add_lora(model.unet, wanted)

    class Lora(Objective):
        def __init__(self) -> None:
            super().__init__()
            self.unet = model.unet

        def batch(self, step: int, batch_size: int) -> dict[str, Any]:
            found: dict[str, Any] = objective.batch(step, batch_size)
            return found

        def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
            return {"loss": model.losses(batch).mean()}

        def save(self, folder: Path) -> Path:
            return folder

    return Lora()


def _add_lora(unet: Any, parameters: int) -> None:
    """Of the least rank that has as many parameters."""
    from peft import LoraConfig

    per_rank = sum(m.in_features + m.out_features for n, m in unet.named_modules() if n.endswith(LORA))
    unet.add_adapter(LoraConfig(r=-(-parameters // per_rank), target_modules=list(LORA)))


def measure(rounds: int, steps: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds a step, and ratios of pictures per second to LoRA's, round by round."""
    trainers = {way: make(way, folder / "0", folder / str(number) / "run") for number, way in enumerate(WAYS)}
    for trainer in trainers.values():
        trainer.objective.train()
        _steps(trainer, 2)  # allocators and kernels warm up
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for place in range(len(WAYS)):
            way = WAYS[(number + place) % len(WAYS)]
            seconds[way].append(_steps(trainers[way], steps))
    ratios = {
        f"{WAYS[0]} to {way}": [b / a for a, b in zip(seconds[WAYS[0]], seconds[way], strict=True)]
        for way in WAYS[1:]
    }
    parameters = {way: [float(sum(p.numel() for p in t.trained))] for way, t in trainers.items()}
    return {"seconds": seconds, "speed": ratios, "parameters": parameters}


def _steps(trainer: Any, steps: int) -> float:
    with trainer._states.entered():  # as `train` does around its loop
        begin = time.perf_counter()
        for _ in range(steps):
            trainer._one_step(1e-4)
            trainer.state.step += 1
        return (time.perf_counter() - begin) / steps


def overheads(folder: Path) -> dict[str, float]:
    """Seconds of a step, a validation on 64 pictures and a preview of six, and their share by default."""
    from hyperbrush.training.attention.config import HypernetworkConfig
    from hyperbrush.training.attention.trainer import HypernetworkTrainer
    from hyperbrush.training.loop.trainer import Trainer

    config = HypernetworkConfig(
        max_steps=100, prompts=["cat face", "rocket", "tulip", "red heart", "cloud", "key"]
    )
    model, network = _model_and_network()
    objective = HypernetworkTrainer(network, config, run=folder).objective(
        model, style_folder() / "train", style_folder() / "validation"
    )
    trainer = Trainer(objective, config.trainer(48), folder / "run")
    objective.validate()  # the bare model's loss, once a training
    found = {"step": _steps(trainer, 10)}
    for name, work in (
        ("validation", objective.validate),
        ("preview", lambda: objective.write_preview(folder, 1)),
    ):
        begin = time.perf_counter()
        work()
        found[name] = time.perf_counter() - begin
    each = found["validation"] / config.validate_every + found["preview"] / config.preview_every
    return found | {"share": each / (each + found["step"])}


def first_step(folder: Path) -> float:
    """Seconds from the command to the line that its first step is done, nothing cached."""
    command = [
        sys.executable,
        "-m",
        "hyperbrush",
        "train",
        "--data",
        style_folder() / "train",
        "--name",
        "first",
    ]
    command += ["--steps", "1", "-s", "log_every=1", "-s", "validate_every=1", "--run", folder / "run"]
    begin = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 1/1"):
                taken = time.perf_counter() - begin
                process.communicate()
                return taken
    raise RuntimeError(f"the training ended with {process.returncode} before its first step")


def peak(way: str, threads: int, cached: Path) -> float:
    """Megabytes at the peak of a process that makes three steps, its pictures and captions encoded before."""
    done = subprocess.run(
        [sys.executable, __file__, "--peak-of", way, "--cached", cached, "--threads", str(threads)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout.split()[-1])


def interval(values: list[float], draws: int = 2000) -> dict[str, float]:
    """The median with its 95 % bootstrap interval."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(draws))
    low, high = medians[int(0.025 * draws)], medians[int(0.975 * draws) - 1]
    return {"median": statistics.median(values), "low": low, "high": high}


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of a result."""
    lines = [
        "| way | pictures/s (95 %) | the hypernetwork is so many times as fast | trained | peak memory |"
    ]
    lines.append("|---|---|---|---|---|")
    for way in WAYS:
        s = result["seconds_per_step"][way]
        speed = f"{BATCH / s['median']:.1f} ({BATCH / s['high']:.1f}–{BATCH / s['low']:.1f})"
        ratio = result["speed"].get(f"{WAYS[0]} to {way}")
        shown = "" if ratio is None else f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"
        trained = f"{result['parameters'][way]:,}"
        lines.append(f"| {way} | {speed} | {shown} | {trained} | {result['peak_megabytes'][way]:.0f} MB |")
    o, f = result["overheads"], result["first_step_seconds"]
    lines += [
        "",
        f"From the command to the first step: {f['median']:.1f} s ({f['low']:.1f}–{f['high']:.1f}). A step {o['step']:.2f} s, a "
        f"validation (64 pictures, 4 timesteps) {o['validation']:.1f} s, a preview (6 pictures) {o['preview']:.1f} s: at the default "
        f"intervals {o['share']:.0%} of the time. {result['machine']}, torch {result['versions']['torch']}.",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--peak-of", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--cached", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)

    import diffusers
    import torch

    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.peak_of:
            _steps(make(given.peak_of, given.cached, folder / "run"), 3)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            return
        found = measure(given.rounds, given.steps, folder)
        (folder / "overheads").mkdir()
        result: dict[str, Any] = {
            "seconds_per_step": {way: interval(values) for way, values in found["seconds"].items()},
            "speed": {names: interval(values) for names, values in found["speed"].items()},
            "parameters": {way: int(values[0]) for way, values in found["parameters"].items()},
            "overheads": overheads(folder / "overheads"),
            "peak_megabytes": {way: peak(way, given.threads, folder / "0") for way in WAYS},
            "first_step_seconds": interval(
                [first_step(Path(tempfile.mkdtemp(dir=folder))) for _ in range(min(3, given.rounds))]
            ),
            "rounds": given.rounds,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {given.threads} threads",
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
            },
        }
    write_json(given.out / "training.json", result)
    print(markdown(json.loads(json.dumps(result))))


if __name__ == "__main__":
    main()
