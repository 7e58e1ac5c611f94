"""The tests' own short way to real processes ends, writes, dies and is signalled as an interpreter of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import forked
import pytest

PROGRAMS = {
    "ends": "print('out'); import sys; print('err', file=sys.stderr)",
    "a status": "raise SystemExit(5)",
    "a text": "import sys; sys.exit('said')",
    "an error": "raise ValueError('wrong')",
    "a signal": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "Ctrl-C": "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler); os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(60)",
    "at exit": "import atexit; atexit.register(print, 'late'); import threading; threading.Thread(target=print, args=[1]).start()",
    "its place": "import os, sys; print(os.getcwd(), sys.argv, sys.path[0], __name__, os.environ['SAID'], os.getppid() == os.getpgrp())",
    "streams": "import os; os.write(1, b'raw'); os.system('echo child'); print('done')",
    "long": "print('x' * 300_000)",
    "nothing of ours": "import sys; print([m for m in sys.modules if m.startswith('hyperbrush')])",
}


@pytest.mark.skipif(not forked.CAN_FORK, reason="no processes are forked here")
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_it_ends_as_an_interpreter_does(tmp_path: Path, program: str) -> None:
    command = [sys.executable, "-c", program, "a", "b c"]
    environment = os.environ | {"SAID": "yes", "PYTHONPATH": ""}
    environment.pop("PYTHONPATH")
    real = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    ours = forked.run(command, cwd=tmp_path, env=environment)
    assert ours.returncode == real.returncode
    assert ours.stdout.replace("True", "False") == real.stdout.replace("True", "False")
    assert ours.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


def test_scripts_modules_and_groups(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("X = 3")
    (tmp_path / "script.py").write_text("import sys, beside; print(sys.argv, beside.X)")
    assert forked.run([sys.executable, "script.py", "y"], cwd=tmp_path).stdout == "['script.py', 'y'] 3\n"
    assert forked.run([sys.executable, "-m", "beside"], cwd=tmp_path).returncode == 0
    assert forked.hyperbrush("--version", cwd=tmp_path).stdout.count(".") == 2
    waits = "import os, time; print(os.getpid() == os.getpgrp(), flush=True); time.sleep(600)"
    process = forked.start([sys.executable, "-c", waits], stdout=forked.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.1)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == -signal.SIGTERM
