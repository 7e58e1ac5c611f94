"""Try the parsers with changed inputs for as long as asked, and keep what breaks them in fuzz/found.

python fuzz/run.py [--seconds 600] [--targets pt,safetensors] [--seed 0] [--engine mutation|atheris]
With atheris (pip install atheris; one target at a time) inputs are led by the code they reach.
"""

import argparse
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from hashlib import sha256
from pathlib import Path
from random import Random
from types import FrameType, FunctionType

from mutate import mutate
from targets import TARGETS

FOUND = Path(__file__).parent / "found"
SLOW = 10  # seconds that no single input may take
GREEDY = 2_000_000  # KB that the process may have taken after any input


def main() -> None:
    """Run the chosen engine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("mutation", "atheris"), default="mutation")
    given = parser.parse_args()
    names = given.targets.split(",")
    if unknown := set(names) - set(TARGETS):
        sys.exit(f"no target {', '.join(unknown)}; known: {', '.join(TARGETS)}")
    if given.engine == "atheris":
        _atheris(names[0], given.seconds, given.seed)
    else:
        sys.exit(_mutation(names, given.seconds, given.seed))


def _mutation(names: list[str], seconds: float, seed: int) -> int:
    """Turns of 200 inputs for each target; accepted ones are changed further."""
    signal.signal(signal.SIGALRM, _too_slow)
    random = Random(seed)
    tried, accepted, broken = Counter[str](), Counter[str](), Counter[str]()
    pools = {name: list(TARGETS[name].seeds()) for name in names}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name in names:
            target, pool = TARGETS[name], pools[name]
            for _ in range(200):
                data = mutate(random.choice(pool), target.words, random)
                tried[name] += 1
                try:
                    signal.alarm(SLOW)
                    taken = target(data)
                    signal.alarm(0)
                    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < GREEDY, "too much memory"
                except Exception:  # noqa: BLE001 - whatever it is, it is what we look for
                    signal.alarm(0)
                    broken[name] += 1
                    _keep(name, data)
                    continue
                if taken:
                    accepted[name] += 1
                    if len(pool) < 500 and len(data) < 100_000:
                        pool.append(data)
    for name in names:
        print(f"{name:14} {tried[name]:9} inputs, {accepted[name]:9} accepted, {broken[name]:4} broke it")
    return 1 if broken else 0


def _keep(name: str, data: bytes) -> None:
    FOUND.mkdir(exist_ok=True)
    path = FOUND / f"{name}-{sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    print(f"{path}\n{traceback.format_exc(limit=-4)}", file=sys.stderr)


def _too_slow(signal_number: int, frame: FrameType | None) -> None:
    raise AssertionError(f"over {SLOW} seconds")


def _atheris(name: str, seconds: float, seed: int) -> None:
    import atheris  # type: ignore[import-not-found,unused-ignore]

    target = TARGETS[name]
    corpus = FOUND / f"corpus-{name}"
    corpus.mkdir(parents=True, exist_ok=True)
    for i, data in enumerate(target.seeds()):
        target(data)  # imports everything
        (corpus / f"seed-{i}").write_bytes(data)

    def change(data: bytes, size: int, change_seed: int) -> bytes:
        return mutate(data, target.words, Random(change_seed))[:size]

    for function in _functions():
        atheris.instrument_func(function)
    options = [f"-max_total_time={int(seconds)}", f"-seed={seed + 1}", "-max_len=100000", "-timeout=10"]
    options += ["-rss_limit_mb=4000", f"-artifact_prefix={FOUND}/{name}-"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target, custom_mutator=change)
    atheris.Fuzz()


def _functions() -> list[FunctionType]:
    """Every function and method of the package that has been imported."""
    found = []
    for module in [module for name, module in sys.modules.items() if name.startswith("hyperbrush.")]:
        own = [
            value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__
        ]
        classes = [value for value in own if isinstance(value, type)]
        members = own + [member for cls in classes for member in vars(cls).values()]
        found += [member for member in members if isinstance(member, FunctionType)]
    return found


if __name__ == "__main__":
    main()
