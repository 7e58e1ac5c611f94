"""What a pack of LoRAs keeps of them, and in how many bytes (`hyperbrush hyper compress`).

    python benchmarks/compression.py [--members 32] [--errors 0.1 0.2 0.3] [--out benchmarks/results]

Needs the rendered icons (python recipes/emoji/icons.py).  One LoRA of rank 8 on to_q, to_k, to_v, to_out a set, 48 pictures,
60 steps, saved in fp32 by diffusers' layout.  For each error the whole folder is compressed, read again, and each member
attached: its effect is the share of the LoRA's gain that is left, (bare - pack) / (bare - LoRA), in denoising loss over a fixed
grid of pictures of other names, and the judge's style of pictures drawn with it beside that of the LoRA's.  Sets on
which a LoRA gains nothing are left out of the first.
"""

import argparse
import platform
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "emoji"))
sys.path.insert(0, str(Path(__file__).parent))

from quality.methods import Adapter
from quality.objective import StyleObjective
from quality.runs import Job, Plan, Study
from sets import SETS

from hyperbrush.files import write_json
from hyperbrush.hypernetworks import GeneratedWeights, Pack, attach
from hyperbrush.hypernetworks.convert.compression import compress, read_folder
from hyperbrush.hypernetworks.generator import Factors
from hyperbrush.training.loop.trainer import Trainer

RATE, BUDGET = 4e-3, 143_000  # numbers of rank 8 on the embedded model


def trained(study: Study, style: str) -> GeneratedWeights:
    """A LoRA of one set."""
    model, objective = study.prepared(Job("main", style, "lora-qkvo", RATE, 0, BUDGET))
    with tempfile.TemporaryDirectory() as folder:
        Trainer(objective, objective.config.trainer(study.plan.train), folder).train()
    layers = {name: module for name, module in model.unet.named_modules() if hasattr(module, "lora_A")}
    made = {
        name: Factors(
            m.lora_A["default"].weight.detach(), m.lora_B["default"].weight.detach(), m.scaling["default"]
        )
        for name, m in layers.items()
    }
    return GeneratedWeights(made, name=style)


@torch.no_grad()
def judged(study: Study, style: str, weights: Any) -> tuple[float, float]:
    """Validation loss with an adapter (None: without), and the share of pictures that the judge puts into the set."""
    objective = StyleObjective(study.model, Adapter(), study.data(style), study.config(_job(style)), 48)
    uses = [] if weights is None else [(weights, 1.0)]
    with attach(study.model, uses):
        loss = objective.validation_loss(objective.held_out)
        measures = study.measures(style)
        names = [n for n in study.data(style).captions if n in set(measures.among)][: study.plan.pictures]
        share = measures.of(study._pictures(study.model, objective, names), names)["style"]
    return loss, share


def _job(style: str) -> Job:
    return Job("main", style, "lora-qkvo", RATE, 0, BUDGET)


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, default=32)
    parser.add_argument("--errors", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--icons", type=Path, default=Path("recipes/emoji/work/icons"))
    parser.add_argument("--work", type=Path, default=Path("recipes/emoji/work/compression"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    sets = [key for key in SETS if key != "noto" and (given.icons / key / "train").is_dir()]
    sets = sorted(random.Random(0).sample(sets, min(given.members, len(sets))))
    study = Study(
        given.model,
        given.icons,
        given.work,
        Plan(steps=60, watch=(60,), pictures=16, validation=48),
        tuple(sets),
    )
    loras = given.work / f"loras-{study.sha256[:8]}"
    for style in sets:
        if not (loras / f"{style}.safetensors").exists():  # goes on where it was stopped
            loras.mkdir(parents=True, exist_ok=True)
            trained(study, style).save(loras / f"{style}.safetensors", "lora-diffusers")
            print(f"trained {style}", flush=True)
    sources = {name: one for name, one in read_folder(loras).items() if name in sets}
    before = {
        style: (judged(study, style, None), judged(study, style, sources[style].adapter)) for style in sets
    }
    rows = []
    for error in given.errors:
        path = compress(sources, error=error).save(given.work / "looks.pack.safetensors")
        pack = Pack.load(path)
        effects, styles = [], []
        for style, (bare, lora) in before.items():
            packed = judged(study, style, pack[style])
            styles.append(packed[1] - lora[1])
            if lora[0] < bare[0]:
                effects.append((bare[0] - packed[0]) / (bare[0] - lora[0]))
        rows.append(
            {
                "error": error,
                "bytes": path.stat().st_size / sum(one.bytes for one in sources.values()),
                "rank": statistics.mean(m.rank for m in pack.members.values()),
                "effect": spread(effects),
                "style": statistics.mean(b[1][1] for b in before.values()),
                "style_kept": statistics.mean(styles),
            }
        )
        print(rows[-1], flush=True)
    result = {
        "members": len(sets),
        "model": study.sha256[:16],
        "rows": rows,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}",
    }
    write_json(given.out / "compression.json", result)
    print(
        "| error | bytes of the files | mean rank | effect, median (least–most) | judge's style, LoRA and pack |"
    )
    print("|---|---|---|---|---|")
    for row in rows:
        e = row["effect"]
        print(
            f"| {row['error']:g} | {row['bytes']:.0%} | {row['rank']:.1f} | {e['median']:.1%} ({e['least']:.1%}–{e['most']:.1%}) | "
            f"{row['style']:.0%}, {row['style'] + row['style_kept']:.0%} |"
        )


if __name__ == "__main__":
    main()
