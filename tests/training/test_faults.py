"""The disk fails at any write: the run says so, loses nothing that was written, and goes on to the same end."""

import builtins
import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from toys import Regression, train, weights

import hyperbrush.training.loop.checkpoint as checkpoints
from hyperbrush.errors import UserError
from hyperbrush.ldm.data import ImageFolder
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.training.ldm.objectives import DenoisingObjective
from hyperbrush.training.loop.metrics import Metrics, read

SHORT = {"steps": 4, "keep_best": True, "validate_every": 2, "keep_checkpoints": 1}
WRITING = "wax+"


class Faults:
    """Lets the n-th write below a folder fail, or all from the n-th on."""

    def __init__(self, folder: Path, nth: int, code: int, *, lasting: bool) -> None:
        self.folder, self.nth, self.code, self.lasting = str(folder), nth, code, lasting
        self.calls: list[str] = []
        self.failed = False

    def concerns(self, target: Any) -> bool:
        if isinstance(target, int):
            try:
                target = Path(f"/proc/self/fd/{target}").readlink()
            except OSError:
                return False
        return str(target).startswith(self.folder)

    def meet(self, name: str, target: Any) -> None:
        if not self.concerns(target):
            return
        self.calls.append(name)
        if len(self.calls) == self.nth or (self.lasting and len(self.calls) > self.nth):
            self.failed = True
            raise OSError(self.code, os.strerror(self.code), str(target))

    def around(self, name: str, real: Callable[..., Any], *, late: bool = False) -> Callable[..., Any]:
        def faulty(*arguments: Any, **more: Any) -> Any:
            if name == "open" and not set(WRITING) & set(str((*arguments, more.get("mode", "r"))[1])):
                return real(*arguments, **more)
            if name == "os.open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return real(*arguments, **more)
            if late:  # half of it is on the disk already
                real(*arguments, **more)
            self.meet(name, arguments[1] if name == "save_file" else arguments[0])
            return None if late else real(*arguments, **more)

        return faulty


def install(faults: Faults, patch: pytest.MonkeyPatch) -> None:
    for name in ("open", "fsync", "write", "replace", "chmod", "unlink", "mkdir", "ftruncate"):
        patch.setattr(os, name, faults.around(f"os.{name}", getattr(os, name)))
    patch.setattr(io, "open", faults.around("open", io.open))
    patch.setattr(builtins, "open", faults.around("open", builtins.open))
    patch.setattr(checkpoints, "save_file", faults.around("save_file", checkpoints.save_file, late=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    return weights(train(Regression(), tmp_path_factory.mktemp("whole"), **SHORT))


def until_one_passes(tmp_path: Path, code: int, *, lasting: bool) -> Iterator[tuple[Path, Faults]]:
    """A run for each n; its folder afterwards, and whether its fault struck."""
    for nth in range(1, 1000):
        run = tmp_path / f"{nth:03d}"
        faults = Faults(run, nth, code, lasting=lasting)
        with pytest.MonkeyPatch.context() as patch:
            install(faults, patch)
            try:
                train(Regression(), run, **SHORT)
                said = f"cannot delete, {os.strerror(code)}"  # an old checkpoint: not worth an error
            except UserError as error:
                said = str(error)
        assert not faults.failed or ("cannot" in said and os.strerror(code) in said), (faults.calls, said)
        yield run, faults
        if not faults.failed:
            return
    raise AssertionError("no run passed")


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full disk", "broken disk"])
def test_every_write_may_fail(tmp_path: Path, whole: torch.Tensor, code: int, lasting: bool) -> None:
    struck: set[str] = set()
    for number, (run, faults) in enumerate(until_one_passes(tmp_path, code, lasting=lasting), 1):
        if faults.failed:
            struck.add(faults.calls[number - 1])
        there = checkpoints.steps(run / "checkpoints")
        for step in there:
            checkpoints.load(checkpoints.path_of(run / "checkpoints", step))
        saved = faults.calls.count("save_file") - (1 if faults.failed else 0)
        assert len(there) >= min(1, saved), "what was written stands"
        rows = [row["step"] for row in read(run / "metrics.jsonl")]
        assert rows == list(range(1, len(rows) + 1))
        assert len(rows) >= max(there, default=0)
        again = train(Regression(), run, resume=bool(there), **SHORT)
        assert torch.equal(weights(again), whole), (number, faults.calls[-1])
        assert [row["step"] for row in read(run / "metrics.jsonl")] == [1, 2, 3, 4]
        assert not list(run.rglob("*.part-*")), "nothing half-written stays"
    assert struck >= {"os.open", "open", "os.write", "os.fsync", "os.replace", "save_file", "os.unlink"}


FULL = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from hyperbrush.errors import UserError
from toys import Regression, train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
train(Regression(), Path(sys.argv[1]), steps=2)
size = max(p.stat().st_size for p in Path(sys.argv[1], "checkpoints").iterdir())
resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
try:
    train(Regression(), Path(sys.argv[1]), resume=True)
except UserError as error:
    print(error)
"""


def test_the_system_really_refuses_to_write(tmp_path: Path) -> None:
    """A limit on file sizes, half of a checkpoint: the system's own error out of safetensors' own writer."""
    command = [sys.executable, "-c", FULL, tmp_path / "run", Path(__file__).parent]
    said = forked.run(command, timeout=120)
    assert "cannot write" in said.stdout, said.stderr
    assert "File too large" in said.stdout
    assert checkpoints.steps(tmp_path / "run/checkpoints") == [2]
    assert torch.equal(
        weights(train(Regression(), tmp_path / "run", resume=True)),
        weights(train(Regression(), tmp_path / "whole")),
    )


def test_a_really_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk here; the test above has the system refuse")
    try:
        run, ballast = disk / "run", disk / "ballast"
        train(Regression(), run, steps=2)
        with pytest.raises(OSError, match="No space"):
            ballast.write_bytes(b"x" * 10**6)
        with pytest.raises(UserError, match="No space left on device"):
            train(Regression(), run, resume=True)
        assert checkpoints.steps(run / "checkpoints") == [2]
        ballast.unlink()
        again = train(Regression(), run, resume=True)
        assert torch.equal(weights(again), weights(train(Regression(), tmp_path / "whole")))
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_line_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", 0)
    metrics.write(1, {"loss": 1.0})
    real, calls = os.write, []

    def half(handle: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: No space.*make room and resume"):
        metrics.write(2, {"loss": 2.0})
    monkeypatch.undo()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0}\n'
    metrics.write(2, {"loss": 3.0})
    metrics.close()
    assert [row["loss"] for row in read(tmp_path / "metrics.jsonl")] == [1.0, 3.0]


def test_a_picture_that_vanishes_is_named(
    pictures: Path, make_tiny: Callable[..., LatentDiffusion], tmp_path: Path
) -> None:
    model = make_tiny()
    model.first_stage.requires_grad_(False)
    objective = DenoisingObjective(model, ImageFolder(pictures, size=32, memory_limit=0))
    gone = sorted(pictures.iterdir())

    def remove(progress: Any) -> None:
        if progress.step == 3:
            for path in gone:
                path.unlink()

    with pytest.raises(UserError, match=r"pictures/.*\.png"):
        train(objective, tmp_path / "run", on_progress=remove, batch_size=4)
    found = checkpoints.latest(tmp_path / "run/checkpoints")
    assert found is not None
    assert found.step in (2, 4)  # the next two batches may have been decoded before
