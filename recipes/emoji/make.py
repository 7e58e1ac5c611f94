"""Make the embedded emoji model from start to finish.

    python recipes/emoji/make.py            # everything; goes on where it was stopped
    python recipes/emoji/make.py export card

Steps: icons (fetch and render), style (the demo's pictures), first_stage, diffusion, export (fp16 into the
package), figures (benchmarks/emoji.py), card.  Run it from the repository's root with the package
installed with its `recipe` extra; npm is needed for the icons.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from hyperbrush.assets import model_folder, style_folder
from hyperbrush.ldm.models import LatentDiffusion

HERE = Path(__file__).parent
WORK = HERE / "work"
STEPS = ("icons", "style", "first_stage", "diffusion", "export", "figures", "card")


def run(*command: str | Path) -> None:
    """One command, shown first."""
    print("$", *command, flush=True)
    subprocess.run([sys.executable, *map(str, command)], check=True)


def train(kind: str) -> None:
    """`hyperbrush ldm train`, resumed where a run stands already."""
    folder = WORK / "runs" / kind
    begun = list((folder / "checkpoints").glob("step-*.safetensors"))
    how = ["--resume", folder] if begun else [HERE / f"{kind}.yaml", "--run", folder]
    run("-m", "hyperbrush", "ldm", "train", *how)


def export() -> None:
    """The trained model as fp16 into the package, with the licence beside it."""
    model = LatentDiffusion.from_pretrained(WORK / "runs/diffusion/model")
    model.save_pretrained(model_folder("emoji"), dtype=torch.float16)
    size = sum(p.stat().st_size for p in model_folder("emoji").rglob("*") if p.is_file())
    print(f"{model_folder('emoji')}: {size / 2**20:.1f} MiB")


def card() -> None:
    """Write the model card's figures out of benchmarks/results/emoji.json and the runs' metrics."""
    from hyperbrush.training.metrics import read
    from hyperbrush.training.report import loss_curve

    for kind in ("first_stage", "diffusion"):
        rows = read(WORK / "runs" / kind / "metrics.jsonl")
        curve = loss_curve(rows).replace(
            "<svg ", '<svg xmlns="http://www.w3.org/2000/svg" style="background:#fff" ', 1
        )
        (HERE / f"{kind}.svg").write_text(curve + "\n", encoding="utf-8")
    figures = json.loads(Path("benchmarks/results/emoji.json").read_text())
    text = (HERE / "card.md").read_text(encoding="utf-8").replace("{HOW}", how())
    for name in ("grid.png", "grid.txt"):
        shutil.copy(Path("benchmarks/results") / f"emoji-{name}", model_folder("emoji") / name)
    for key, value in flat(figures).items():
        text = text.replace(f"{{{key}}}", f"{value:.4g}" if isinstance(value, float) else str(value))
    (model_folder("emoji") / "README.md").write_text(text, encoding="utf-8")


def how() -> str:
    """What was run, out of the run folders: steps, seconds, versions."""
    from importlib.metadata import version

    from hyperbrush.training.metrics import read

    lines = []
    for kind in ("first_stage", "diffusion"):
        rows = read(WORK / "runs" / kind / "metrics.jsonl")
        settings = yaml.safe_load((WORK / "runs" / kind / "config.yaml").read_text())["training"]
        lines.append(
            f"- `{kind}`: {rows[-1]['step']} steps of {settings['batch_size']} pictures in "
            f"{rows[-1]['seconds'] / 60:.0f} minutes, {settings['mixed_precision']}, "
            f"EMA {settings['ema_decay']}, AdamW {settings['optimizer']['learning_rate']}"
        )
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "diffusers", "transformers", "accelerate"))
    return "\n".join(
        [*lines, f"- {platform.processor() or platform.machine()}, {os.cpu_count()} cores; {packages}"]
    )


def flat(values: dict, prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} to {"a.b": 1}."""
    found: dict[str, object] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steps", nargs="*", choices=[*STEPS, []], default=list(STEPS))
    for step in parser.parse_args().steps:
        print(f"== {step}", flush=True)
        if step == "icons":
            run(HERE / "icons.py", WORK)
        elif step == "style":
            run(HERE / "style.py", WORK, style_folder())
        elif step in ("first_stage", "diffusion"):
            train(step)
        elif step == "figures":
            run("benchmarks/emoji.py", "--work", WORK)
        else:
            {"export": export, "card": card}[step]()


if __name__ == "__main__":
    main()
