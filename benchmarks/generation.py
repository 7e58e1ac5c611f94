"""How well a generator of weights does in one pass: gap closed on styles it never saw, and what it costs.

    python recipes/generator/corpus.py recipes/emoji/work/icons recipes/generator/work
    python benchmarks/generation.py [--generator FILE] [--styles 12] [--seeds 3] [--out benchmarks/results]

Denoising loss of held-out contents (up to 64 names no part ever saw) over one fixed grid of pictures, timesteps and noises, for
all ways alike; gap closed = (base - way) / (base - oracle).  The oracle is one adapter per style, of the same layers and
rank, trained on 32 of its pictures and stopped early by 16 others.  Ways: words of the style in the prompt; what all styles
share (the generator's null-free part); the null condition; the mean of the weights of 32 training styles; the weights of the
training style that looks most alike (channel statistics of the latents); weights from 1, 4 and 16 references; weights from
another held-out style's references (shuffled).  Seeds choose the references.  Held-out transformations: mean over styles with a
95 % bootstrap over styles; the real styles: each with a bootstrap over pictures.  Identification: whose weights fit which
style best.  Tuning: steps from the generated weights and from zero to 90 % of the oracle's gain.  Every finished part is
kept in OUT/generation/, so that a stopped run goes on.
"""

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hyperbrush as hb
from hyperbrush.files import sha256, write_json
from hyperbrush.hypernetworks.generator import Factors, GeneratedWeights, TunedWeights, mean
from hyperbrush.hypernetworks.generator.generating import open_generator
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.util import keyed_generator
from hyperbrush.training.generator.config import GeneratorConfig
from hyperbrush.training.generator.objective import GeneratorObjective, style_losses
from hyperbrush.training.generator.styles import Style, open_styles

WORK = Path("recipes/generator/work")
TRAINED, STOPPING = 32, 16  # of a style's references: the oracle's pictures, and those it is stopped by
REFERENCES = (1, 4, 16)
STEPS, BATCH, EVERY = 200, 16, 10
RATE = 2e-3
WORDS = {
    "fluent-emoji-high-contrast": "black line icon",
    "streamline-emojis": "hand drawn outline",
    "fxemoji": "flat soft",
}


class Study:
    """A generator and the styles it is judged on."""

    def __init__(self, generator: Path | None, work: Path, out: Path, limit: int | None) -> None:
        self.model = LatentDiffusion.from_pretrained("emoji")
        self.net = open_generator(generator, self.model).eval().requires_grad_(False)
        cache = work / "runs/emoji/cache/latents"
        train = open_styles(work / "train", self.model, cache)
        self.train = train[:: max(1, len(train) // 32)][:32]
        self.held = spread(open_styles(work / "held_out", self.model, cache), limit)
        self.real = open_styles(work / "real", self.model, cache)
        self.objective = GeneratorObjective(self.model, self.net, GeneratorConfig(), self.train)
        self.objective.eval()
        self.mean = mean([self.generated(style, 16, 0) for style in self.train])
        self.folder = out / "generation"
        self.targets = 64

    def losses(
        self, style: Style, weights: GeneratedWeights | None, pictures: int | None = None
    ) -> list[float]:
        """Mean over the timesteps, of each target."""
        found = style_losses(self.objective, style, weights, pictures or self.targets).mean(1)
        return [float(value) for value in found]

    @torch.no_grad()
    def generated(self, style: Style, count: int, seed: int) -> GeneratedWeights:
        """Weights from so many of a style's references, chosen by the seed."""
        order = torch.randperm(style.references, generator=keyed_generator(seed, "references", style.name))
        return self.net.generate_weights(hb.ImageCondition(latents=style.latents[order[:count]]))

    @torch.no_grad()
    def null(self) -> GeneratedWeights:
        """Weights of the null condition."""
        return self.net.generate_weights(None)

    def shared(self) -> GeneratedWeights:
        """What the generator gives whatever its condition: the decoder's shared factors alone."""
        decoder: Any = self.net.decoder
        found = {}
        for places, form in zip(decoder.places, decoder.groups.values(), strict=True):
            for j, i in enumerate(places):
                found[decoder.names[i]] = Factors(form.shared_down[j], form.shared_up[j], decoder.scale)
        return GeneratedWeights({name: found[name] for name in decoder.names}, name="shared")

    def zero(self) -> GeneratedWeights:
        """LoRA's usual start, of the generator's layers and rank: A random, B zero."""
        torch.manual_seed(0)
        found = {
            name: Factors(torch.randn_like(f.down) * (3 * f.down.shape[-1]) ** -0.5, torch.zeros_like(f.up))
            for name, f in self.null().factors.items()
        }
        return GeneratedWeights(found, name="zero")

    def nearest(self, style: Style) -> GeneratedWeights:
        """Weights of the training style whose pictures look most alike."""
        own = looks(style)
        closest = min(self.train, key=lambda other: float((looks(other) - own).norm()))
        return self.generated(closest, 16, 0)

    def worded_losses(self, style: Style) -> list[float]:
        """Without weights, the style's words after each caption."""
        words = style.text or WORDS.get(style.name, " ".join(style.name.split("-")[1:]))
        said = Style(
            style.name, style.latents, tuple(f"{c}, {words}" for c in style.captions), style.references
        )
        return self.losses(said, None)

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """A part of the results, made once."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            write_json(path, make())
        return json.loads(path.read_text())


def spread(styles: list[Style], limit: int | None) -> list[Style]:
    """So many of them, evenly."""
    return styles if limit is None or limit >= len(styles) else styles[:: len(styles) // limit][:limit]


def looks(style: Style) -> Tensor:
    """Means and deviations of the channels of a style's references."""
    latents = style.latents[: style.references]
    return torch.cat([latents.mean((0, 2, 3)), latents.std((0, 2, 3))])


def tune(study: Study, style: Style, start: GeneratedWeights, goal: float | None = None) -> dict[str, Any]:
    """Train weights on a style's pictures from a start; stopped by pictures that are not trained on.

    goal: end when the loss of the targets falls below it instead; "steps" then says when (None: not within `STEPS`).
    Returns the best weights, steps, seconds and the losses on the way.
    """
    tuned = TunedWeights(start)
    optimizer = torch.optim.AdamW(tuned.parameters(), RATE, betas=(0.9, 0.99), weight_decay=0.01)
    stopping = Style(
        style.name, style.latents[: TRAINED + STOPPING], style.captions[: TRAINED + STOPPING], TRAINED
    )
    best, best_loss, best_step, curve = tuned.weights.detach(), float("inf"), 0, []
    begin, spent = time.perf_counter(), 0.0
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            spent += time.perf_counter() - begin
            judged = stopping if goal is None else style
            loss = statistics.fmean(study.losses(judged, tuned.weights.detach(), 32))
            curve.append((step, loss))
            if loss < best_loss:
                best, best_loss, best_step = copied(tuned.weights), loss, step
            if (goal is not None and loss <= goal) or (goal is None and step - best_step >= 6 * EVERY):
                break
            begin = time.perf_counter()
        if step < STEPS:
            one_step(study, style, tuned, optimizer, step)
    reached = curve[-1][0] if goal is None or curve[-1][1] <= goal else None
    return {"weights": best, "steps": reached, "best": best_step, "seconds": spent, "curve": curve}


def copied(weights: GeneratedWeights) -> GeneratedWeights:
    """The same numbers, whatever becomes of these."""
    return weights.requires_grad_().detach()


def one_step(
    study: Study, style: Style, tuned: TunedWeights, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """One step on a batch of the style's first `TRAINED` pictures; all chances are functions of the step."""
    chosen = torch.randint(
        min(TRAINED, style.references), (BATCH,), generator=keyed_generator("batch", step)
    ).tolist()
    latents = style.latents[chosen]
    drawn = study.model.draw(tuple(latents.shape), keyed_generator("noise", step), condition_dropout=0.1)
    batch = {"latents": latents, "captions": [style.captions[i] for i in chosen], **drawn}
    with study.objective.target.apply_weights(tuned.weights):
        study.model.losses(batch).mean().backward()
    torch.nn.utils.clip_grad_norm_(list(tuned.parameters()), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def judge(study: Study, style: Style, other: Style, seeds: int) -> dict[str, Any]:
    """Losses of every target in every way; other: whose references are the wrong ones."""
    zero = study.zero()
    oracle = tune(study, style, zero)
    found: dict[str, Any] = {
        "base": study.losses(style, None),
        "oracle": study.losses(style, oracle["weights"]),
        "words": study.worded_losses(style),
        "shared": study.losses(style, study.shared()),
        "null": study.losses(style, study.null()),
        "mean": study.losses(style, study.mean),
        "nearest": study.losses(style, study.nearest(style)),
        "oracle_steps": oracle["best"],
        "oracle_seconds": oracle["seconds"],
    }
    for count in REFERENCES:
        for seed in range(seeds):
            found[f"generated {count}, seed {seed}"] = study.losses(
                style, study.generated(style, count, seed)
            )
    for seed in range(seeds):
        found[f"shuffled 16, seed {seed}"] = study.losses(style, study.generated(other, 16, seed))
    base, best = statistics.fmean(found["base"][:32]), statistics.fmean(found["oracle"][:32])
    goal = base - 0.9 * (base - best)
    for name, start in (("zero", zero), ("generated", copied(study.generated(style, 16, 0)))):
        found[f"tuned from {name}"] = tune(study, style, start, goal)["steps"]
    return found


def identification(study: Study, styles: Sequence[Style], pictures: int = 12) -> list[list[float]]:
    """Row j: losses of style j's targets with the weights of each style i."""
    made = [study.generated(style, 16, 0) for style in styles]
    return [
        [statistics.fmean(study.losses(style, weights, pictures)) for weights in made] for style in styles
    ]


def rows_of(found: Mapping[str, Any], name: str) -> list[float]:
    """Losses of each target in one way, the mean over its seeds."""
    seeds = [values for key, values in found.items() if key == name or key.startswith(f"{name}, seed")]
    return [statistics.fmean(values) for values in zip(*seeds, strict=True)]


def gap(found: Mapping[str, Any], name: str, pictures: Sequence[int] | None = None) -> float:
    """Share of the gap between the base and the oracle that one way closes."""
    chosen = range(len(found["base"])) if pictures is None else pictures

    def at(which: str) -> float:
        rows = rows_of(found, which)
        return statistics.fmean(rows[i] for i in chosen)

    return (at("base") - at(name)) / max(1e-9, at("base") - at("oracle"))


WAYS = (
    "words", "shared", "null", "mean", "nearest", "shuffled 16", "generated 1", "generated 4", "generated 16",
)  # fmt: skip


def over_styles(parts: Mapping[str, Any], draws: int = 2000) -> dict[str, dict[str, float]]:
    """Mean gap closed over styles with a bootstrap over them, and paired differences of 16 references."""
    chance = random.Random(0)
    names = list(parts)
    gaps = {way: {n: gap(parts[n], way) for n in names} for way in WAYS}
    for way in ("shared", "shuffled 16", "null"):
        gaps[f"16 less {way}"] = {n: gaps["generated 16"][n] - gaps[way][n] for n in names}
    picks = [chance.choices(names, k=len(names)) for _ in range(draws)]
    return {
        way: interval(statistics.fmean(own.values()), [statistics.fmean(own[n] for n in p) for p in picks])
        for way, own in gaps.items()
    }


def over_pictures(found: Mapping[str, Any], draws: int = 1000) -> dict[str, dict[str, float]]:
    """Gap closed on one style with a bootstrap over its pictures."""
    chance = random.Random(0)
    count = len(found["base"])
    picks = [chance.choices(range(count), k=count) for _ in range(draws)]
    made = {way: interval(gap(found, way), [gap(found, way, p) for p in picks]) for way in WAYS}
    for way in ("shared", "shuffled 16", "null"):
        differences = [gap(found, "generated 16", p) - gap(found, way, p) for p in picks]
        made[f"16 less {way}"] = interval(gap(found, "generated 16") - gap(found, way), differences)
    return made


def interval(value: float, drawn: list[float]) -> dict[str, float]:
    """A figure with the middle 95 % of its bootstrap."""
    ordered = sorted(drawn)
    return {
        "value": value,
        "low": ordered[int(0.025 * len(ordered))],
        "high": ordered[int(0.975 * len(ordered)) - 1],
    }


def costs(study: Study) -> dict[str, Any]:
    """Seconds to generate from 1 and 16 pictures, numbers of an adapter, and of the generator."""
    style = study.held[0]
    found: dict[str, Any] = {}
    for count in (1, 16):
        times = []
        for seed in range(7):
            begin = time.perf_counter()
            weights = study.generated(style, count, seed)
            times.append(time.perf_counter() - begin)
        found[f"seconds_from_{count}"] = statistics.median(times)
    found["adapter_numbers"], found["adapter_bytes_fp16"] = weights.size, 2 * weights.size
    found["generator_numbers"] = sum(p.numel() for p in study.net.parameters())
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of a result."""

    def shown(figure: Mapping[str, float]) -> str:
        return f"{figure['value']:.0%} ({figure['low']:.0%}–{figure['high']:.0%})"

    real = list(result["real"])
    lines = [
        f"| gap closed (95 %) | {result['held_out_styles']} held-out transformations | "
        + " | ".join(real)
        + " |"
    ]
    lines.append("|---" * (2 + len(real)) + "|")
    for way in result["held_out"]:
        cells = [shown(result["held_out"][way]), *(shown(result["real"][name][way]) for name in real)]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    i, t, c = result["identification"], result["tuning"], result["costs"]
    lines += [
        "",
        f"Identification: the right weights fit best in {i['accuracy']:.0%} of {i['styles']} styles (chance {1 / i['styles']:.0%}). "
        f"Tuning to 90 % of the oracle's gain: {t['generated']} steps from the generated weights, {t['zero']} from zero (medians; "
        f"{t['missed']} of {t['styles']} did not get there within {STEPS} steps from zero). Generating takes "
        f"{c['seconds_from_1']:.2f} s from one picture, {c['seconds_from_16']:.2f} s from sixteen (latents known); an adapter is "
        f"{c['adapter_bytes_fp16'] / 1000:.0f} kB in fp16, the generator {c['generator_numbers'] / 1e6:.1f} M numbers. "
        f"{result['machine']}, torch {result['torch']}.",
    ]
    return "\n".join(lines)


def summary(study: Study, parts: Mapping[str, Any], matrix: list[list[float]]) -> dict[str, Any]:
    """All figures out of the parts."""
    held = {style.name: parts[style.name] for style in study.held}
    right = [min(range(len(row)), key=row.__getitem__) == j for j, row in enumerate(matrix)]
    steps = {way: [parts[n][f"tuned from {way}"] for n in parts] for way in ("zero", "generated")}
    reached = {way: [STEPS if s is None else s for s in own] for way, own in steps.items()}
    return {
        "held_out_styles": len(held),
        "held_out": over_styles(held),
        "real": {style.name: over_pictures(parts[style.name]) for style in study.real},
        "identification": {"accuracy": statistics.fmean(right), "styles": len(matrix), "losses": matrix},
        "tuning": {way: statistics.median(own) for way, own in reached.items()}
        | {"missed": sum(s is None for s in steps["zero"]), "styles": len(parts), "steps": steps},
        "oracle_seconds": statistics.median(part["oracle_seconds"] for part in parts.values()),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generator", type=Path, help="the one that ships by default")
    parser.add_argument("--work", type=Path, default=WORK, help="where corpus.py wrote")
    parser.add_argument("--styles", type=int, default=12, help="held-out transformations")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--targets", type=int, default=64, help="of each style at most")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    study = Study(given.generator, given.work, given.out, given.styles)
    study.targets = given.targets
    styles = [*study.held, *study.real]
    parts = {}
    for number, style in enumerate(styles):
        other = styles[(number + 1) % len(styles)]
        parts[style.name] = study.kept(style.name, lambda s=style, o=other: judge(study, s, o, given.seeds))
        print(
            f"{style.name}: gap closed with 16 references {gap(parts[style.name], 'generated 16'):.0%}",
            flush=True,
        )
    matrix = study.kept("identification", lambda: identification(study, styles))
    result = summary(study, parts, matrix) | {
        "costs": costs(study),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {given.threads} threads",
        "torch": torch.__version__,
        "seeds": given.seeds,
        "generator": sha256(given.generator) if given.generator else "shipped",
    }
    write_json(given.out / "generation.json", result)
    print(markdown(result))


if __name__ == "__main__":
    main()
