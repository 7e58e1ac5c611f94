"""The Dockerfile: linted, and its health check run against the app as the container starts it (no daemon is at hand)."""

import json
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from running import App

DOCKERFILE = Path(__file__).parents[2] / "Dockerfile"


def test_it_is_linted() -> None:
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_health_check_of_what_it_starts(own_app: Callable[..., App]) -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    start = json.loads(re.findall(r"^CMD (\[.*\])$", text, re.M)[-1])
    (check,) = re.findall(r"^ +CMD (\[.*\])$", text, re.M)
    assert start[:2] == ["serve", "--no-open"]
    app = own_app(*start[2:])
    port = urllib.parse.urlsplit(app.url).port

    def status() -> int:
        python, *arguments = json.loads(check)
        assert python == "python"
        command = [sys.executable, *(argument.replace("7870", str(port)) for argument in arguments)]
        return subprocess.run(command, capture_output=True).returncode

    assert status() == 0
    app.stop()
    assert status() != 0
