"""Hypernetworks against LoRA at the same size: which learns a style better, and how fast.

    python benchmarks/quality.py [--workers 2]        all of it; goes on where it was stopped
    python benchmarks/quality.py --report             the tables of what stands so far

Needs the rendered icons (python recipes/emoji/icons.py recipes/emoji/work).  Every run appends one JSON line to
--results, with the sha256 of the model's weights: lines of other weights or plans are left out of the report.
In order: rates tuned on two styles, all styles with three seeds, what other styles' pictures alone would close, other
sizes, seconds per step.  Two figures of merit: the area under style against content, as the judge sees pictures drawn
at four strengths; and the share of the gap closed in validation denoising loss, (base - method) / (base - full), where
full is the UNet's full fine-tuning; both at their lowest validation loss.
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

from quality.data import STYLES, TUNING
from quality.methods import METHODS, method
from quality.report import chosen_rates, tables
from quality.results import Results, work_through
from quality.runs import Job, Plan, Study

BUDGET, SIZES = 200_000, (50_000, 800_000)
SIZED_STYLES = ("emojione-monotone", "fxemoji")
SEEDS, TUNING_SEED = (0, 1, 2), 100
PHASES = ("tune", "main", "shared", "sizes", "time")


def given_rates(pairs: Iterable[str]) -> dict[str, float]:
    """["default=4e-3"] → {"default": 0.004}."""
    parts = (pair.partition("=") for pair in pairs)
    return {name: float(rate) for name, _, rate in parts if method(name)}


def jobs_of(
    phase: str,
    rates: dict[str, float],
    methods: Iterable[str],
    styles: Iterable[str],
    seeds: Iterable[int] = SEEDS,
) -> list[Job]:
    """The runs of a phase; rates: as chosen by the phase tune."""
    methods, styles = list(methods), list(styles)
    base = [Job("base", style, "base", 0.0, 0, 0) for style in styles]
    if phase == "tune":
        seen = [s for s in styles if s in TUNING]
        return base + [
            Job("tune", style, name, rate, TUNING_SEED, BUDGET)
            for name in methods
            for style in seen
            for rate in method(name).rates
        ]
    if phase == "main":
        # seed by seed, so that an interrupted study has whole tables
        return base + [
            Job("main", style, name, rates[name], seed, BUDGET)
            for seed in seeds
            for style in styles
            for name in methods
        ]
    if phase == "shared":
        return [Job("shared", style, "default", rates["default"], SEEDS[0], BUDGET) for style in styles]
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--icons", type=Path, default=Path("recipes/emoji/work/icons"))
    parser.add_argument("--work", type=Path, default=Path("recipes/emoji/work/quality"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/quality.jsonl"))
    parser.add_argument("--judge", type=Path, default=None, help="the one that ships by default")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=list(STYLES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument(
        "--rates", nargs="+", default=[], metavar="METHOD=RATE", help="in place of tuned ones"
    )
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
    study = Study(given.model, given.icons, given.work, plan, styles, given.judge)
    results = Results(given.results, study.sha256, plan)
    if not given.report:
        _all_phases(given, study, results)
    text = tables(results.rows, BUDGET)
    print(f"Model {study.sha256[:16]}, {plan}\n\n{text}")


def _all_phases(given: argparse.Namespace, study: Study, results: Results) -> None:
    for style in study.styles:
        study.data(style)  # the workers find all of it encoded
    for phase in given.phases:
        rates = chosen_rates(results.rows) | given_rates(given.rates)
        missing = [m for m in given.methods if m not in rates]
        if missing and phase in ("main", "shared", "sizes"):
            sys.exit(f"no rate was tuned yet for {', '.join(missing)}: run the phase tune first")
        jobs = jobs_of(phase, rates, given.methods, study.styles, given.seeds)
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
    logging.disable(logging.WARNING)
    main()
