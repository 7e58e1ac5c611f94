"""SLURM's commands as submitit calls them, on one machine: `install` puts them in a folder for PATH.

sbatch starts the tasks of an array as processes of their own; scontrol requeue starts one again once it has ended; sacct tells which run.
Its state is a folder: TASK.pid of each task, TASK.requeue where it is to begin anew, `submitted` the last file of sbatch.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct", "scancel", "scontrol")
JOB = "77"


def install(place: Path) -> Path:
    """The commands in place/bin; returns the folder of their state."""
    state, programs = place / "state", place / "bin"
    state.mkdir(parents=True)
    programs.mkdir()
    for name in COMMANDS:
        words = shlex.join([sys.executable, __file__, str(state), name])
        (programs / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (programs / name).chmod(0o755)
    return state


def sbatch(state: Path, file: str) -> None:
    text = Path(file).read_text()
    (state / "submitted").write_text(text)
    found = re.search(r"--array=0-(\d+)", text)
    tasks = [f"{JOB}_{i}" for i in range(int(found[1]) + 1)] if found else [JOB]
    for task in tasks:
        command = [sys.executable, __file__, str(state), "node", task, file]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, start_new_session=True, **quiet)
        (state / f"{task}.pid").write_text(str(process.pid))
    print(f"Submitted batch job {JOB}")


def node(state: Path, task: str, file: str) -> None:
    """What a node does: the batch file, again where it was queued again."""
    copy = state / f"{task}.sh"
    copy.write_text(Path(file).read_text())
    os.environ |= {"SLURM_JOB_ID": JOB, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "FAKE_TASK": task}
    if "_" in task:
        os.environ |= {"SLURM_ARRAY_JOB_ID": JOB, "SLURM_ARRAY_TASK_ID": task.split("_")[1]}
    again = state / f"{task}.requeue"
    while True:
        subprocess.run(["bash", str(copy)], check=False)
        if not again.exists():
            break
        again.unlink()


def srun(state: Path, *words: str) -> None:
    rest, paths = list(words), {}
    while rest[0].startswith("--"):
        flag = rest.pop(0)
        if flag in ("--output", "--error"):
            array, _, index = os.environ["FAKE_TASK"].partition("_")
            name = (
                rest.pop(0).replace("%A", array).replace("%a", index).replace("%j", array).replace("%t", "0")
            )
            paths[flag] = name
    for flag, number in (("--output", 1), ("--error", 2)):
        os.dup2(os.open(paths[flag], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    (state / f"{os.environ['FAKE_TASK']}.work").write_text(str(os.getpid()))
    os.execvp(rest[0], rest)


def running(state: Path, task: str) -> bool:
    try:
        os.kill(int((state / f"{task}.pid").read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def sacct(state: Path, *_: str) -> None:
    print("JobID|State|NodeList")
    for file in state.glob("*.pid"):
        print(f"{file.stem}|{'RUNNING' if running(state, file.stem) else 'COMPLETED'}|here")


def scancel(state: Path, task: str, *_: str) -> None:
    if running(state, task):
        os.killpg(int((state / f"{task}.pid").read_text()), signal.SIGKILL)


def scontrol(state: Path, what: str, task: str) -> None:
    assert what == "requeue"
    (state / f"{task}.requeue").touch()


def preempt(state: Path, task: str) -> None:
    """For tests: the signal that a job gets whose node is wanted for another."""
    os.kill(int((state / f"{task}.work").read_text()), signal.SIGUSR2)


def all_ended(state: Path, seconds: float = 30) -> bool:
    """For tests: whether the tasks end within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(running(state, file.stem) for file in state.glob("*.pid")):
            return True
        time.sleep(0.1)
    return False


if __name__ == "__main__":
    place, name, *given = sys.argv[1:]
    globals()[name](Path(place), *given)
