"""Kills a real training with SIGKILL, again and again, resumes it, and compares the end to the bit.

    python benchmarks/kills.py                      # 220 kills, about a third of them inside a save

A hypernetwork learns on a small Stable Diffusion.  Every life of a training is a process of its own: most
are forked from one that has torch loaded (a start is 0.1 s instead of 8), `--cold` of them are new
interpreters.  A process shares one page of memory with this one, where it says whether it is inside a save
and how far: what stands there after SIGKILL is the proof of where the kill struck.  About half of the kills
are aimed into saves; all others fall anywhere between start and end.  To give kills time to fall between any
two of a save's steps, the steps are slowed here (never in the package), and half of the processes write
their checkpoints in eight pieces.
"""

import argparse
import json
import mmap
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEPS, EVERY = 24, 3
STAGES = ["collecting", "writing", "syncing", "renaming", "syncing the folder", "deleting old ones"]
SETTINGS = {
    "max_steps": STEPS,
    "batch_size": 4,
    "checkpoint_every": EVERY,
    "validate_every": 12,
    "log_every": 1,
    "ema_decay": 0.9,
    "warmup_steps": 2,
    "flip": 0.5,
}
CAPTIONS = ["red square", "green circle", "blue square", "yellow circle", "a red heart", "cat face"]


def pictures(folder: Path) -> Path:
    """Twelve small pictures, named after what is in them."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    noise = np.random.default_rng(0)
    for i in range(12):
        pixels = noise.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        pixels[4 + i : 16 + i, 6:20, i % 3] = 255
        Image.fromarray(pixels).save(folder / f"{CAPTIONS[i % 6].replace(' ', '-')}-{i}.png")
    return folder


def small_model() -> Any:
    """A whole Stable Diffusion, tiny, with random weights, always the same."""
    import torch

    from hyperbrush.ldm.models import LatentDiffusion
    from hyperbrush.ldm.models.text import train_tokenizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    return LatentDiffusion(
        image_size=32,
        channels=(32, 64),
        attention_resolutions=[8],
        num_heads=4,
        layers_per_block=1,
        first_stage_channels=(8, 16),
        text_width=32,
        text_layers=2,
        tokenizer=train_tokenizer(CAPTIONS, vocabulary=600, max_length=16),
    )


def train(model: Any, data: Path, run: Path) -> None:
    """One life of the training: anew, or from the newest checkpoint."""
    import torch

    import hyperbrush as hb
    from hyperbrush.training.loop import checkpoint as checkpoints

    torch.manual_seed(1)
    network = hb.AttentionHypernetwork.for_unet(
        model.unet, name="killed", layer_structure=(1, 2, 1), dropout_structure=(0, 0.2, 0)
    )
    trainer = hb.HypernetworkTrainer(network, SETTINGS, run=run)
    trainer.train(model, data, resume=bool(checkpoints.steps(run / "checkpoints")))


def show_saves(page: mmap.mmap, bell: int, delay: float, *, pieces: bool) -> None:
    """Make this process say on the page where it is, and take its time inside saves."""
    import safetensors.torch

    from hyperbrush import files
    from hyperbrush.training.loop import checkpoint as checkpoints

    def stage(owner: Any, name: str, numbers: list[int]) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def slow(*arguments: Any, **more: Any) -> Any:
            if page[0]:
                page[1] = next((n for n in numbers if n > page[1]), page[1])
                time.sleep(delay)
            return real(*arguments, **more)

        setattr(owner, name, slow)

    def in_pieces(tensors: Any, path: Path, metadata: dict[str, str]) -> None:
        content = safetensors.torch.save(tensors, metadata)
        with path.open("wb", buffering=0) as file:
            for start in range(0, len(content), len(content) // 8 + 1):
                file.write(content[start : start + len(content) // 8 + 1])
                time.sleep(delay / 4)

    if pieces:
        checkpoints.save_file = in_pieces
    stage(checkpoints, "save_file", [1])
    stage(files, "fsync", [2])
    stage(Path, "replace", [3])
    stage(files, "fsync_folder", [4])
    stage(checkpoints, "drop", [5])
    real = checkpoints.save

    def save(*arguments: Any, **more: Any) -> Path:
        page[1] = 0
        page[0] = 1
        os.write(bell, b"s")
        try:
            time.sleep(delay)
            return real(*arguments, **more)
        finally:
            page[0] = 0

    checkpoints.save = save


@dataclass
class Life:
    """One process: killed (inside a save, at which stage?) or finished."""

    status: int  # 0: it finished by itself; -9: it was killed
    inside: bool
    stage: str


@dataclass
class Study:
    """Where the processes work, and what was counted."""

    place: Path
    model: Any
    data: Path
    delay: float
    chance: random.Random
    life: float = 4.0  # seconds of an uninterrupted one, measured
    counted: Counter[str] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)
    parts: Counter[str] = field(default_factory=Counter)  # of `the_end`, that were different
    left: list[str] = field(default_factory=list)  # half-written files that stayed

    def live(self, run: Path, kill: bool, *, cold: bool) -> Life:
        """Start a process and, if asked, kill it at a moment of chance."""
        page_file = self.place / "page"
        page_file.write_bytes(bytes(mmap.PAGESIZE))
        rung, bell = os.pipe()
        pieces = self.chance.random() < 0.5
        aimed = self.chance.random() < 0.5
        with page_file.open("r+b") as file, mmap.mmap(file.fileno(), 0) as page:
            pid = self._start_cold(run, page_file, bell, pieces) if cold else os.fork()
            if pid == 0:
                self._be_trained(run, page, bell, pieces)
            os.close(bell)
            if kill:
                self._wait(rung, aimed, slow_start=8.0 if cold else 0.0)
                os.kill(pid, signal.SIGKILL)  # not waited for yet, so that the number is still its own
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.close(rung)
            return Life(status, bool(page[0]), STAGES[page[1]])

    def _start_cold(self, run: Path, page_file: Path, bell: int, pieces: bool) -> int:
        told = [str(run), str(self.data), str(page_file), str(bell), str(self.delay), str(int(pieces))]
        os.set_inheritable(bell, True)
        with (self.place / "errors.txt").open("ab") as errors:
            actions = [(os.POSIX_SPAWN_DUP2, errors.fileno(), 2)]
            return os.posix_spawn(
                sys.executable,
                [sys.executable, __file__, "--child", *told],
                os.environ,
                file_actions=actions,
            )

    def _wait(self, rung: int, aimed: bool, slow_start: float) -> None:
        if aimed:
            for _ in range(self.chance.randint(1, 4)):
                if select.select([rung], [], [], self.life + slow_start)[0]:
                    os.read(rung, 1)  # nothing, where the process has ended
            time.sleep(self.chance.uniform(0, 14 * self.delay))
        else:
            time.sleep(self.chance.uniform(0, self.life + slow_start))

    def _be_trained(self, run: Path, page: mmap.mmap, bell: int, pieces: bool) -> None:
        status = 1
        try:
            quiet = os.open(self.place / "errors.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(quiet, 2)
            show_saves(page, bell, self.delay, pieces=pieces)
            train(self.model, self.data, run)
            status = 0
        except BaseException:  # noqa: BLE001 - the parent sees the status
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)


def the_end(run: Path) -> dict[str, Any]:
    """What must be the same, by parts: the file made, the last checkpoint, the metrics (but for the clock)."""
    from safetensors.torch import load_file

    from hyperbrush.training.loop import checkpoint as checkpoints
    from hyperbrush.training.loop.metrics import read

    last = checkpoints.load(checkpoints.path_of(run / "checkpoints", STEPS))
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read(run / "metrics.jsonl")]
    return {
        "weights": checkpoints.digest(load_file(run / "killed.safetensors")),
        "checkpoint": checkpoints.digest(last.tensors),
        "state": {k: v for k, v in last.extra.items() if k != "seconds"},
        "metrics": rows,
    }


def left_over(run: Path) -> list[str]:
    """What a kill left half-written and no later life cleared."""
    return sorted(str(path.relative_to(run)) for path in run.rglob("*.part-*"))


def unloadable(run: Path) -> list[str]:
    """Checkpoints that cannot be loaded."""
    from hyperbrush.errors import UserError
    from hyperbrush.training.loop import checkpoint as checkpoints

    found = []
    for step in checkpoints.steps(run / "checkpoints"):
        try:
            checkpoints.load(checkpoints.path_of(run / "checkpoints", step))
        except UserError as error:
            found.append(str(error))
    return found


def study(kills: int, in_saves: int, cold: int, delay: float, seed: int, out: Path) -> dict[str, Any]:
    """Train, kill, resume, compare, until there were so many kills and so many of them inside a save."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        place = Path(folder)
        them = Study(place, small_model(), pictures(place / "pictures"), delay, random.Random(seed))
        start = time.monotonic()
        if them.live(place / "whole", kill=False, cold=False).status != 0:
            raise SystemExit((place / "errors.txt").read_text())
        them.life = time.monotonic() - start
        whole = the_end(place / "whole")
        count, number = them.counted, 0
        while count["kills"] < kills or count["inside a save"] < in_saves:
            number += 1
            run = place / f"run-{number}"
            while True:
                life = them.live(run, kill=True, cold=count["cold kills"] < cold)
                if life.status == 0:
                    break
                if life.status != -signal.SIGKILL:
                    raise SystemExit(f"a life ended with {life.status}: {(place / 'errors.txt').read_text()}")
                count["cold kills"] += count["cold kills"] < cold
                count["kills"] += 1
                count["unloadable checkpoints"] += len(unloadable(run))
                if life.inside:
                    count["inside a save"] += 1
                    them.stages[life.stage] += 1
                result = report(them, begin, seed)
                out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
                if count["kills"] % 10 == 0:
                    print(json.dumps(result), flush=True)
            count["trainings"] += 1
            end = the_end(run)
            different = [part for part in whole if end[part] != whole[part]]
            count["different results"] += bool(different)
            them.parts.update(different)
            them.left += left_over(run)
            shutil.rmtree(run)
    result = report(them, begin, seed) | {"finished": True}
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def report(them: Study, begin: float, seed: int) -> dict[str, Any]:
    """The figures."""
    names = (
        "kills",
        "inside a save",
        "cold kills",
        "trainings",
        "different results",
        "unloadable checkpoints",
    )
    return {
        **{name.replace(" ", "_"): them.counted[name] for name in names},
        "different_parts": dict(them.parts),
        "left_over": them.left,
        "stages_of_saves": {name: them.stages[name] for name in STAGES},
        "steps": STEPS,
        "checkpoint_every": EVERY,
        "seconds_of_an_uninterrupted_training": round(them.life, 1),
        "seconds": round(time.monotonic() - begin),
        "seed": seed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=220, help="at least so many in all")
    parser.add_argument("--in-saves", type=int, default=60, help="at least so many inside a save")
    parser.add_argument("--cold", type=int, default=20, help="so many of them of new interpreters")
    parser.add_argument(
        "--delay", type=float, default=0.005, help="seconds that each step of a save is slowed"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/kills.json")
    parser.add_argument("--child", nargs=6, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.child:
        run, data, page_file, bell, delay, pieces = told.child
        with Path(page_file).open("r+b") as file, mmap.mmap(file.fileno(), 0) as page:
            show_saves(page, int(bell), float(delay), pieces=bool(int(pieces)))
            train(small_model(), Path(data), Path(run))
        return
    result = study(told.kills, told.in_saves, told.cold, told.delay, told.seed, told.out)
    print(json.dumps(result, indent=2))
    if result["different_results"] or result["unloadable_checkpoints"]:
        raise SystemExit(f"something was lost: {', '.join(result['different_parts']) or 'a checkpoint'}")
    if result["left_over"]:
        raise SystemExit(f"half-written files stayed: {', '.join(result['left_over'])}")


if __name__ == "__main__":
    main()
