"""Seconds from the command to the result: import, --help, one picture; whole processes, several runs.

python benchmarks/startup.py [--runs 5] [--out benchmarks/results]
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hyperbrush.files import write_json

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import hyperbrush": ["-c", "import hyperbrush"],
    "hyperbrush --help": ["-m", "hyperbrush", "--help"],
    "hyperbrush generate": [
        "-m",
        "hyperbrush",
        "generate",
        "a slice of pizza",
        "--seed",
        "1",
        "--out",
        "pizza.png",
    ],
}


def seconds(command: list[str], folder: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.runs):  # interleaved, so that a slow moment of the machine meets all alike
            for name, command in COMMANDS.items():
                times[name].append(seconds(command, folder))
    found = {
        name: {"median": round(statistics.median(t), 3), "min": round(min(t), 3), "max": round(max(t), 3)}
        for name, t in times.items()
    }
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    write_json(given.out / "startup.json", {"runs": given.runs, "machine": machine, "seconds": found})
    for name, value in found.items():
        print(f"{name:24} median {value['median']:.2f} s  ({value['min']:.2f} to {value['max']:.2f})")


if __name__ == "__main__":
    main()
