"""The same command once more, as several processes that train together."""

import subprocess
import sys


def launch(processes: int, arguments: list[str] | None = None) -> int:
    """Start ``processes`` of this command through `accelerate launch` and wait; returns the exit status.

    They are one training (see `Trainer`): on as many GPUs, or on the cores of this machine. Signals reach them
    through the launcher.

    arguments: of the command line; this process's own, without ``--processes``, by default.
    """
    given = _without_processes(sys.argv[1:] if arguments is None else arguments)
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        f"--num_processes={processes}",
    ]
    command += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "-m", "hyperbrush", *given]
    started = subprocess.Popen(command)
    while True:
        try:
            return started.wait()
        except KeyboardInterrupt:  # the launcher has had it too, and its processes save and stop
            continue


def _without_processes(arguments: list[str]) -> list[str]:
    kept = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == "--processes":
            skip = True
        elif not argument.startswith("--processes="):
            kept.append(argument)
    return kept
