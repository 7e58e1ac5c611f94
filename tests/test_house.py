"""The house: imports stay cheap, dependencies point one way, no registry is named."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src/hyperbrush"
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "numpy", "scipy")


@pytest.mark.parametrize(
    "code", ["import hyperbrush", "import hyperbrush.cli", "import hyperbrush.cli.console"]
)
def test_imports_nothing_heavy(code: str) -> None:
    program = f"import sys; {code}; print([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom hyperbrush.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit as stop:\n"
        f"    print(stop.code, [m for m in {HEAVY} if m in sys.modules])"
    )
    shown = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert shown.strip().endswith("0 []")
    for command in ("generate", "train", "demo", "ldm", "evaluate", "list"):
        assert command in shown


def test_public_names_exist() -> None:
    import hyperbrush

    for name in hyperbrush.__all__:
        assert getattr(hyperbrush, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = hyperbrush.nonsense


ROOMS = ["ldm", "hypernetworks", "generation", "training", "commands", "app", "cli"]


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_dependencies_point_one_way(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0]
    if room not in ROOMS:
        return
    later = {f"hyperbrush.{other}" for other in ROOMS[ROOMS.index(room) + 1 :]}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            assert not any(name == x or name.startswith(x + ".") for x in later), f"{path} imports {name}"


def test_typed_marker_and_licences_are_there() -> None:
    assert (SOURCE / "py.typed").is_file()
    for name in ("LICENSE", "NOTICE", "CHANGELOG.md", "CONTRIBUTING.md", "constraints.txt"):
        assert (ROOT / name).stat().st_size > 100
