"""How much memory is free, and how much a piece of work takes at its peak."""

import contextlib
import threading
from pathlib import Path
from types import TracebackType

import psutil
import torch

CGROUPS = (  # (limit, use) of a container, in bytes
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def free_memory(device: torch.device) -> int | None:
    """Bytes that a device can still give, a container's limit looked at; None: it cannot be known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    free = int(psutil.virtual_memory().available)
    for limit, use in CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit
            free = min(free, int(Path(limit).read_text()) - int(Path(use).read_text()))
    return max(0, free)


def memory_in_use() -> int:
    """Bytes the training takes: the most on a CUDA device so far, else of this process now."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return _resident()


class PeakMemory:
    """Measures, within each `with`, how far the memory in use rises above what it was when this was made.

    On CUDA by the allocator's own count; elsewhere the process's resident memory is looked at every two
    milliseconds, which misses what comes and goes faster. The begin stays the same for all, since freed
    memory is kept by the process for the next.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.grown = 0  # bytes
        self._begin = torch.cuda.memory_allocated(device) if device.type == "cuda" else _resident()
        self._done = threading.Event()
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        self.grown = 0
        self._done.clear()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watcher is None:
            self.grown = max(0, torch.cuda.max_memory_allocated(self.device) - self._begin)
            return
        self._done.set()
        self._watcher.join()
        self._watcher = None
        self.grown = max(self.grown, _resident() - self._begin)

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.grown = max(self.grown, _resident() - self._begin)


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(psutil.Process().memory_info().rss)
