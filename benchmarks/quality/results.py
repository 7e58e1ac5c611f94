"""Results as lines of a file, and the workers that add to it."""

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from quality.runs import Job, Plan, Study

_study: Study  # of a worker


def _open(*opened: Any) -> None:
    global _study
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    _study = Study(*opened)


def _run(job: Job) -> dict[str, Any]:
    return _study.run(job)


class Results:
    """Lines of one model and one plan in a file of many; one that a kill cut short is left out."""

    def __init__(self, path: Path, model: str, plan: Plan) -> None:
        self.path, self.model, self.plan = path, model, plan
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if row["key"] == Job(**row["job"]).key(model, plan):
                    self.rows.append(row)

    def __contains__(self, job: Job) -> bool:
        key = job.key(self.model, self.plan)
        return any(row["key"] == key for row in self.rows)

    def add(self, job: Job, figures: dict[str, Any]) -> None:
        """Keep a result: one more line."""
        row = {"job": asdict(job), "key": job.key(self.model, self.plan), "model": self.model, **figures}
        row = json.loads(json.dumps(row))  # as it will be read back
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def work_through(jobs: list[Job], results: Results, study: Study, workers: int) -> Iterator[Job]:
    """Run what has no result yet, one thread a worker; yields each job when its line is written.

    One worker is this process; more are processes with the study opened anew.
    """
    todo = [job for job in jobs if job not in results]
    if workers == 1:
        for job in todo:
            results.add(job, study.run(job))
            yield job
    elif todo:
        spawn = get_context("spawn")
        pool = ProcessPoolExecutor(
            min(workers, len(todo)), mp_context=spawn, initializer=_open, initargs=study.opened
        )
        waiting = {pool.submit(_run, job): job for job in todo}
        try:
            for done in as_completed(waiting):
                results.add(waiting[done], done.result())
                yield waiting[done]
        finally:
            pool.shutdown(cancel_futures=True)
