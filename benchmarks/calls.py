"""The way of a training through the code: modules, functions, calls from one module into another.

python benchmarks/calls.py

Trains a hypernetwork for two steps on bundled pictures, under `sys.setprofile`, and counts for all of hyperbrush and
for its package `training`: modules and functions that were in it; crossings, pairs of functions of two modules of which
one calls the other, each pair once; returns, those of them into a module that is at work further out already.  What
happens at import and in other threads is left out, and calls through other packages count as their callers'.
"""

import sys
import tempfile
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import hyperbrush
from hyperbrush.assets import style_folder
from hyperbrush.training.attention.run import HypernetworkRun, train_run

ROOT = Path(hyperbrush.__file__).parent
Place = tuple[str, str]  # module, function


class Way:
    """Listens to the calls of a thread; ``crossings`` are (caller, called, whether it returns)."""

    def __init__(self) -> None:
        self.functions: set[Place] = set()
        self.crossings: set[tuple[Place, Place, bool]] = set()
        self._places: dict[CodeType, Place | None] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """For `sys.setprofile`."""
        if event != "call" or (place := self._place(frame)) is None:
            return
        self.functions.add(place)
        outside, outer = [], frame.f_back
        while outer is not None:
            if (one := self._place(outer)) is not None:
                outside.append(one)
            outer = outer.f_back
        if outside and outside[0][0] != place[0]:
            returns = any(module == place[0] for module, _ in outside)
            self.crossings.add((outside[0], place, returns))

    def _place(self, frame: FrameType) -> Place | None:
        code = frame.f_code
        if code not in self._places:
            path, name = Path(code.co_filename), code.co_qualname
            ours = path.is_relative_to(ROOT) and "<module>" not in name
            self._places[code] = (str(path.relative_to(ROOT).with_suffix("")), name) if ours else None
        return self._places[code]

    def text(self, package: str = "") -> str:
        """The counts, of calls within a package."""
        functions = [place for place in self.functions if place[0].startswith(package)]
        inside = {c for c in self.crossings if c[0][0].startswith(package) and c[1][0].startswith(package)}
        return (
            f"hyperbrush/{package}: {len({module for module, _ in functions})} modules, {len(functions)} functions, "
            f"{len({(one, other) for one, other, _ in inside})} crossings, "
            f"{len({(one, other) for one, other, returns in inside if returns})} of them returns"
        )


def main() -> None:
    """Train and count."""
    with tempfile.TemporaryDirectory() as folder:
        config = HypernetworkRun.of(
            name="way",
            data=str(style_folder() / "validation"),
            hypernetworks=str(Path(folder) / "library"),
            training={"max_steps": 2, "batch_size": 2, "validation_pictures": 2, "prompts": ["cat"]},
        )
        way = Way()
        sys.setprofile(way)
        try:
            train_run(config, Path(folder) / "run")
        finally:
            sys.setprofile(None)
    for package in ("", "training/"):
        print(way.text(package))


if __name__ == "__main__":
    main()
