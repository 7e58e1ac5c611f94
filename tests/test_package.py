"""What people install: the wheel has the package whole and nothing else, the sdist what is needed to build and test it."""

import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import hyperbrush

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_wheel_is_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.stat().st_size < 100e6, "the package index takes files below 100 MB"
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        (about,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(archive.read(about))
    here = {
        path.relative_to(SOURCE).as_posix()
        for path in (SOURCE / "hyperbrush").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == here
    assert metadata["Version"] == hyperbrush.__version__
    assert {"app", "optimizers", "pictures", "parquet"} <= set(metadata.get_all("Provides-Extra"))


def test_the_sdist_builds_and_tests(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "Makefile",
        "constraints.txt",
        "Dockerfile",
        "mkdocs.yml",
        "README.ko.md",
        "CHANGELOG.md",
        "NOTICE",
    } <= inside
    for folder in ("tests", "docs", "benchmarks", "integrations", "notebooks", "recipes", "release"):
        here = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and not {"__pycache__", "work"} & set(path.relative_to(ROOT).parts)
        }
        assert here <= inside
    assert not [name for name in inside if "__pycache__" in name or name.startswith("recipes/emoji/work")]


def test_both_pass_the_index_checks(built: Path) -> None:
    """The README is shown there too."""
    files = [str(path) for path in built.iterdir()]
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
