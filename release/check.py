"""Build the wheel and the sdist, install the wheel where nothing else is, and see a first picture.

    python release/check.py                    # a new environment, by venv and pip
    python release/check.py --by uvx           # or pipx, as a person would try it
    python release/check.py --tag v0.2.0       # the tag, the version and the changelog agree too

Prints what it did, and the seconds from nothing to the first picture.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*command: object, cwd: Path | None = None) -> str:
    """A command's output; ends this program with its errors where it fails."""
    print("$", *command, flush=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\nfailed with status {done.returncode}")
    return done.stdout


def build(folder: Path) -> Path:
    """The sdist, and from it the wheel; both pass the package index's checks.  Returns the wheel."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    run(sys.executable, "-m", "twine", "check", "--strict", *folder.iterdir())
    (wheel,) = folder.glob("*.whl")
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
    assert wheel.stat().st_size < 100e6, "the package index takes files below 100 MB"
    return wheel


def check_tag(tag: str) -> None:
    """The tag names the version, and the changelog has its release on top."""
    (version,) = re.findall(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    newest = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)[0]
    if not tag == f"v{version}" == f"v{newest}":
        sys.exit(f"the tag is {tag}, the version {version}, the changelog's newest release {newest}")


def by_pip(wheel: Path, constraints: Path, place: Path, folder: Path) -> Path:
    """Installed into a new environment in ``place``, and run from ``folder``; the program there."""
    venv.create(place, with_pip=True)
    programs = place / ("Scripts" if os.name == "nt" else "bin")
    pip = (programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "-c", constraints, f"{wheel}[app]")
    shown = run(programs / "python", "-c", "import hyperbrush; print(hyperbrush.__file__)", cwd=folder)
    assert str(place.parent) in shown, f"the source tree was used: {shown}"
    return programs / "hyperbrush"


def first_picture(command: list[object], folder: Path) -> None:
    """A short demo, as the first thing that a person tries."""
    run(*command, "demo", "--quick", "--no-open", "--out", "demo", cwd=folder)
    for name in ("grid.png", "report.html", "hypernetworks/ink.safetensors"):
        assert (folder / "demo" / name).stat().st_size > 500, name


def serves(command: list[object], folder: Path) -> None:
    """The web app answers, and says that it is well."""
    process = subprocess.Popen(
        [*map(str, command), "serve", "--no-open", "--port", "0", "--folder", "desk"],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        (url,) = re.findall(r"http://\S+", line)
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert "hyperbrush" in answer.read().decode().lower()
        print(f"the web app answered at {url}")
    finally:
        process.terminate()
        process.wait(30)


def main() -> None:
    """Each check in turn."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--by",
        choices=("pip", "uvx", "pipx"),
        default="pip",
        help="what installs it; uvx, pipx: must be there",
    )
    parser.add_argument("--tag", default="", help="of the release")
    parser.add_argument("--dist", type=Path, help="keep the built files here")
    given = parser.parse_args()
    if given.tag:
        check_tag(given.tag)
    with tempfile.TemporaryDirectory() as place:
        wheel = build(given.dist or Path(place) / "dist")
        folder = Path(place) / "desk"
        (folder / "desk").mkdir(parents=True)
        begin = time.monotonic()
        constraints = ROOT / "constraints.txt"
        command: list[object]
        if given.by == "uvx":
            found = f"hyperbrush[app] @ {wheel.as_uri()}"
            command = ["uvx", "--constraints", constraints, "--from", found, "hyperbrush"]
        elif given.by == "pipx":
            command = ["pipx", "run", "--spec", f"{wheel}[app]", f"--pip-args=-c {constraints}", "hyperbrush"]
        else:
            command = [by_pip(wheel, constraints, Path(place) / "venv", folder)]
        first_picture(command, folder)
        print(f"from nothing to the first picture: {time.monotonic() - begin:.0f} s")
        serves(command, folder)
    print("all is well")


if __name__ == "__main__":
    main()
