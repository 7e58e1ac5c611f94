"""Hypernetworks against LoRA at the same size: which learns a style better, and how fast.

    python benchmarks/quality.py [--workers 2]        all of it; goes on where it was stopped
    python benchmarks/quality.py --report             the tables of what stands so far

Needs the rendered icons (python recipes/emoji/icons.py recipes/emoji/work).  Every run appends one JSON line to
--results, with the sha256 of the model's weights: lines of other weights or plans are left out of the report.
In order: rates tuned on the two seen styles, the five styles with three seeds, other sizes, seconds per step.
The figure of merit is the share of the gap closed in validation denoising loss, (base - method) / (base - full),
where full is the UNet's full fine-tuning; both at their lowest validation loss.
"""

import argparse
import logging
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from quality.data import SEEN, STYLES
from quality.measures import content
from quality.methods import METHODS, method
from quality.report import chosen_rates, tables
from quality.results import Results, work_through
from quality.runs import Job, Plan, Study

BUDGET, SIZES = 200_000, (50_000, 800_000)
SIZED_STYLES = ("emojione-monotone", "fxemoji")
SEEDS, TUNING_SEED = (0, 1, 2), 100
PHASES = ("measures", "tune", "main", "sizes", "time")


def jobs_of(phase: str, rates: dict[str, float], methods: Iterable[str], styles: Iterable[str]) -> list[Job]:
    """The runs of a phase; rates: as chosen by the phase tune."""
    methods, styles = list(methods), list(styles)
    base = [Job("base", style, "base", 0.0, 0, 0) for style in styles]
    if phase == "tune":
        seen = [s for s in styles if s in SEEN]
        return base + [
            Job("tune", style, name, rate, TUNING_SEED, BUDGET)
            for name in methods
            for style in seen
            for rate in method(name).rates
        ]
    if phase == "main":
        # seed by seed, so that an interrupted study has whole tables
        return [
            Job("main", style, name, rates[name], seed, BUDGET)
            for seed in SEEDS
            for style in styles
            for name in methods
        ]
    if phase == "sizes":
        return [
            Job("sizes", style, name, rates[name], SEEDS[0], budget)
            for budget in SIZES
            for style in styles
            if style in SIZED_STYLES
            for name in methods
            if METHODS[name].sized
        ]
    return []


def measure_measures(study: Study) -> dict[str, Any]:
    """Whether the measures tell real pictures apart: styles by halves of other names, contents across styles."""
    real = study.space.real
    style = {
        a: {b: study.space.distance(real[a][::2], real[b][1::2]) for b in study.styles} for a in study.styles
    }
    found: dict[str, dict[str, float]] = {}
    for a in study.styles:
        for b in study.styles:
            one, other = study.data(a), study.data(b)
            both = [c for c in other.captions if c in set(one.captions)][:100]
            first = one.latents(study.model)[[one.captions.index(c) for c in both]]
            second = other.latents(study.model)[[other.captions.index(c) for c in both]]
            found.setdefault(a, {})[b] = content(first, second, range(len(both))) if both else float("nan")
    return {"style": style, "content": found}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--icons", type=Path, default=Path("recipes/emoji/work/icons"))
    parser.add_argument("--work", type=Path, default=Path("recipes/emoji/work/quality"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/quality.jsonl"))
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=list(STYLES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="only print the tables")
    for name, value in asdict(Plan()).items():
        kind = int if name == "watch" else type(value)
        extra: dict[str, Any] = {"nargs": "+"} if name == "watch" else {}
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value, **extra)
    given = parser.parse_args(arguments)
    plan = Plan(**{k: getattr(given, k) for k in asdict(Plan())})
    plan = replace(plan, watch=tuple(plan.watch))
    styles = tuple(given.styles)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    study = Study(given.model, given.icons, given.work, plan, styles)
    results = Results(given.results, study.sha256, plan)
    if not given.report:
        _all_phases(given, study, results)
    text = tables(results.rows, BUDGET)
    print(f"Model {study.sha256[:16]}, {plan}\n\n{text}")


def _all_phases(given: argparse.Namespace, study: Study, results: Results) -> None:
    for style in study.styles:
        study.data(style)  # the workers find all of it encoded
    for phase in given.phases:
        job = Job("measures", "", "", 0.0, 0, 0)
        if phase == "measures" and job not in results:
            results.add(job, measure_measures(study))
        rates = chosen_rates(results.rows)
        missing = [m for m in given.methods if m not in rates]
        if missing and phase in ("main", "sizes"):
            sys.exit(f"no rate was tuned yet for {', '.join(missing)}: run the phase tune first")
        jobs = jobs_of(phase, rates, given.methods, study.styles)
        left = sum(job not in results for job in jobs)
        for done in work_through(jobs, results, study, given.workers):
            left -= 1
            row = results.rows[-1]
            print(
                f"{phase} {done.style} {done.method} {done.rate:g} seed {done.seed}: "
                f"{row.get('loss', row['best_watched']):.4f}, {row.get('seconds', 0):.0f} s; {left} left",
                flush=True,
            )
        if phase == "time":
            torch.set_num_threads(2)
            for name in given.methods:
                job = Job("time", "", name, 0.0, 0, BUDGET)
                if job not in results:
                    results.add(job, {"seconds_per_step": study.seconds_per_step(name, BUDGET)})


if __name__ == "__main__":
    main()
