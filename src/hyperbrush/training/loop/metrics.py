"""metrics.jsonl: one line a log step, whole lines only, cut back when a run resumes earlier.

A line with "event" is something that happened on the way to its step (out_of_memory, back_off, diverging,
overfitting, …) and has its words in "message"; all others are figures.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from hyperbrush.errors import UserError
from hyperbrush.files import write_text


class Metrics:
    """Appends to a run's metrics.jsonl; lines after ``step`` are dropped first.

    Raises:
        UserError: the file cannot be written; what stood in it is kept.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.file = -1
        self.cut(step)

    def cut(self, step: int) -> list[dict[str, Any]]:
        """Drop the lines after ``step`` and return them.

        Raises:
            UserError: the file cannot be written.
        """
        self.close()
        rows = read(self.path)
        kept = [row for row in rows if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        try:
            # No buffer: what failed to be written must not come back when the file is closed.
            self.file = os.open(self.path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise self._failed(error) from error
        return [row for row in rows if row["step"] > step]

    def keep_to_plan(self, step: int, *, logged: bool, validated: bool) -> None:
        """Leave of a step's figures what a training has that neither stops nor ends there.

        Raises:
            UserError: the file cannot be written.
        """
        kept = []
        for row in read(self.path):
            if row["step"] == step and "event" not in row:
                if not (logged or validated):
                    continue
                if not validated:
                    row = {k: v for k, v in row.items() if not k.startswith("validation_")}
            kept.append(row)
        self.close()
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.cut(step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Add one line, visible to readers at once; all of it or nothing.

        Raises:
            UserError: the disk is full.
        """
        line = (json.dumps({"step": step, **values}) + "\n").encode()
        before = os.fstat(self.file).st_size
        try:
            written = os.write(self.file, line)
            while written < len(line):  # the next attempt says why
                written += os.write(self.file, line[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self.file, before)
            raise self._failed(error) from error

    def sync(self) -> None:
        """Force the lines to the disk, so that no checkpoint is ahead of them.

        Raises:
            UserError: the disk fails.
        """
        try:
            os.fsync(self.file)
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the file."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def _failed(self, error: OSError) -> UserError:
        return UserError(f"cannot write {self.path}: {error.strerror or error}; make room and resume")


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line cut off by a kill is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            found.append(row)
    return found
