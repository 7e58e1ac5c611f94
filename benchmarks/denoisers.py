"""A UNet and a transformer as the denoiser, from scratch on the same pictures, for the same time.

    python benchmarks/denoisers.py [--work recipes/emoji/work] [--minutes 15] [--threads 2] [--out benchmarks/results]

Noto's pictures (python recipes/emoji/make.py icons), the embedded model's first stage and a text encoder from scratch; the embedded model's UNet
beside a PixArt transformer of as many parameters.  The steps each makes in the time are measured first; then both
train, batches of 32, AdamW at 5e-4 falling to 0, and are compared by the loss on held-out names along the seconds, and by what
the judge sees in 48 bare names drawn with 20 steps.  Writes denoisers.json and a grid of pictures of each.
"""

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from hyperbrush.assets import model_folder
from hyperbrush.files import write_json

BATCH, RATE, TRIED = 32, 5e-4, 6
KINDS: dict[str, dict[str, Any]] = {
    "UNet": {"unet": {"channels": [64, 128, 256], "attention_resolutions": [8, 4], "layers_per_block": 1}},
    "transformer": {"transformer": {"width": 384, "layers": 8, "num_heads": 6, "patch_size": 2}},
}


def settings(kind: str, icons: Path, steps: int, precision: str, cache: Path) -> dict[str, Any]:
    """Of a run of one kind."""
    validated = steps if steps <= TRIED else max(1, steps // 10)  # tries are timed without
    return {
        "kind": "diffusion",
        "first_stage": str(model_folder("emoji") / "vae"),
        "data": {
            "size": 64,
            "cache": str(cache),
            "folders": [{"path": str(icons / "noto/train")}],
            "held_out": [{"path": str(icons / "noto/held_out")}],
        },
        "text": {"width": 128, "layers": 3, "max_length": 32},
        "process": {"timestep_sampling": "stratified", "timestep_options": {"shift": 2.5}},
        "prompts": [
            "cat face",
            "red heart",
            "mushroom",
            "house",
            "red apple",
            "guitar",
            "rocket",
            "umbrella",
        ],
        "training": {
            "steps": steps,
            "batch_size": BATCH,
            "mixed_precision": precision,
            "ema_decay": 0.999,
            "optimizer": {"learning_rate": RATE, "schedule": "linear", "warmup_steps": min(50, steps // 4)},
            "validate_every": validated,
            "preview_every": steps,
            "checkpoint_every": steps,
            "log_every": validated,
        },
        **KINDS[kind],
    }


def train(values: Mapping[str, Any], run: Path) -> list[tuple[int, float]]:
    """Train; (step, seconds) after each."""
    from hyperbrush.training.ldm.run import read_config, train_ldm

    seen: list[tuple[int, float]] = []
    train_ldm(read_config(dict(values)), run, on_progress=lambda p: seen.append((p.step, p.seconds)))
    return seen


def step_seconds(kind: str, icons: Path, precision: str, folder: Path) -> float:
    """Of a step, after two that warm up, without validation."""
    seen = train(
        settings(kind, icons, TRIED, precision, folder / "cache") | {"prompts": []}, folder / f"try-{kind}"
    )
    seconds = [seconds for _, seconds in seen]
    return (seconds[-2] - seconds[1]) / (len(seconds) - 3)


def measure(kind: str, work: Path, minutes: float, precision: str, folder: Path, out: Path) -> dict[str, Any]:
    """Train one kind for so long, and look at what it draws."""
    import emoji
    import torch

    from hyperbrush.ldm.models import LatentDiffusion
    from hyperbrush.ldm.util import count_parameters
    from hyperbrush.picture_judge import PictureJudge
    from hyperbrush.training.loop.metrics import read

    icons, run = work / "icons", folder / kind
    each = step_seconds(kind, icons, precision, folder)
    steps = max(20, round(60 * minutes / each))
    begin = time.monotonic()
    train(settings(kind, icons, steps, precision, folder / "cache"), run)
    taken = time.monotonic() - begin
    model = LatentDiffusion.from_pretrained(run / "model")
    draw = emoji.Drawer(model, 20, "DPM++ 2M Karras", 4.0)
    with torch.no_grad():
        judged = emoji.content(draw, PictureJudge.load(), icons, 48)
    previews = sorted((run / "previews").glob("*.png"))
    if previews:
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy(previews[-1], out / f"denoisers-{kind.lower()}.png")
    rows = read(run / "metrics.jsonl")
    return {
        "parameters": count_parameters(model.unet),
        "seconds_per_step": each,
        "steps": steps,
        "minutes": taken / 60,
        "validation": [
            {"step": row["step"], "seconds": row["seconds"], "loss": row["validation_loss"]}
            for row in rows
            if "validation_loss" in row
        ],
        "content": judged,
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The table."""
    lines = [
        "| | parameters | s a step | steps | loss on held-out names | own name first / in five |",
        "|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        one = result[kind]
        seen = f"{one['content']['first']:.0%} / {one['content']['five']:.0%}"
        lines.append(
            f"| {kind} | {one['parameters'] / 1e6:.1f} M | {one['seconds_per_step']:.2f} | {one['steps']} | "
            f"{one['validation'][-1]['loss']:.4f} | {seen} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("recipes/emoji/work"))
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args(arguments)

    import torch

    torch.set_num_threads(given.threads)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for kind in KINDS:
            result[kind] = measure(kind, given.work, given.minutes, given.precision, Path(name), given.out)
            print(kind, result[kind]["validation"][-1], result[kind]["content"], flush=True)
    result |= {
        "precision": given.precision,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {given.threads} threads",
        "torch": torch.__version__,
    }
    write_json(given.out / "denoisers.json", result)
    print(markdown(result))


if __name__ == "__main__":
    main()
