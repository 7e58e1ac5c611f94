"""Reading an 88 MB hypernetwork (four SD 1.x widths, 1,2,1, fp32), each as a ratio to bare torch.load.

python benchmarks/reading.py [--rounds 40] [--threads 2] [--out benchmarks/results]

One file in both formats; the ways take turns within a round, in an order that rotates, and a ratio is
taken within its round.  The files are in the page cache.  Before each call freed memory is handed back to
the system, so that each pays for its own pages, as the first reading in a process does: else some find the
memory of the one before ready, and the ratios mean nothing.  Bare calls: torch.load(path, weights_only=True),
which copies the tensors into memory, and safetensors' load_file, which maps the file and reads nothing yet.
Ours read everything once, since they look at every number (NaN, infinities).
"""

import argparse
import ctypes
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperbrush.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()

    import safetensors
    import torch
    from safetensors.torch import load_file

    from hyperbrush.hypernetworks import AttentionHypernetwork, load

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    network = AttentionHypernetwork(weight_init="Normal", name="reading")
    with tempfile.TemporaryDirectory() as folder:
        pt, tensors = network.save(Path(folder, "w.pt")), network.save(Path(folder, "w.safetensors"))
        size = pt.stat().st_size
        ways: dict[str, Callable[[], Any]] = {
            "torch.load": lambda: torch.load(pt, map_location="cpu", weights_only=True),
            "hyperbrush .pt": lambda: load(pt),
            "hyperbrush .safetensors": lambda: load(tensors),
            "safetensors load_file (lazy)": lambda: load_file(tensors),
            "safetensors load_file, every number read": lambda: [
                t.sum() for t in load_file(tensors).values()
            ],
        }
        times = measure(ways, given.rounds)
    bare = times["torch.load"]
    result = {
        "bytes": size,
        "rounds": given.rounds,
        "threads": given.threads,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "safetensors": safetensors.__version__,
        },
        "milliseconds": {name: interval([t * 1000 for t in found]) for name, found in times.items()},
        "ratio_to_torch.load": {
            name: interval([a / b for a, b in zip(found, bare, strict=True)])
            for name, found in times.items()
            if name != "torch.load"
        },
    }
    write_json(given.out / "reading.json", result)
    for name, found in times.items():
        ms = interval([t * 1000 for t in found])
        ratio = interval([a / b for a, b in zip(found, bare, strict=True)])
        print(
            f"{name:42} {ms['median']:7.1f} ms ({ms['low']:.1f} to {ms['high']:.1f})   "
            f"ratio {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        )


def measure(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; the first three rounds warm up and do not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    hand_back = _hand_back()
    for i in range(rounds + 3):
        shift = i % len(names)
        for name in names[shift:] + names[:shift]:
            hand_back()
            begin = time.perf_counter()
            content = ways[name]()
            seconds = time.perf_counter() - begin
            del content
            if i >= 3:
                times[name].append(seconds)
    return times


def _hand_back() -> Callable[[], Any]:
    """What returns freed memory to the system: glibc's malloc_trim; elsewhere nothing."""
    try:
        trim = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return lambda: None
    return lambda: trim(0)


def interval(values: list[float], draws: int = 2000) -> dict[str, float]:
    """The median and its 95 % interval, by bootstrap."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    low, high = medians[int(0.025 * draws)], medians[int(0.975 * draws)]
    return {"median": round(statistics.median(values), 4), "low": round(low, 4), "high": round(high, 4)}


if __name__ == "__main__":
    main()
