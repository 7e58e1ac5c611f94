"""metrics.jsonl: one line a log step, whole lines only, cut back when a run resumes earlier."""

import json
from pathlib import Path
from typing import Any

from hyperbrush.errors import UserError
from hyperbrush.files import write_text


class Metrics:
    """Appends to a run's metrics.jsonl; lines after ``step`` are dropped first."""

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read(path) if row["step"] <= step]
        if path.exists() or kept:
            write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self.path = path
        self.file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Add one line, visible to readers at once.

        Raises:
            UserError: the disk is full.
        """
        try:
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; make room and resume") from error

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line cut off by a kill is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            found.append(row)
    return found
