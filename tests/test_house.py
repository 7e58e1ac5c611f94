"""The house: imports stay cheap, dependencies point one way, no registry is named."""

import ast
import subprocess
import sys
from collections.abc import Container, Iterator
from graphlib import CycleError, TopologicalSorter
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


# Imports inside functions that close a circle, and why they may: (who imports, what).
EXCUSED = {
    ("hypernetworks.attention.hypernetwork", "hypernetworks.files"): "AttentionHypernetwork.save and .load",
    ("hypernetworks.weights.generated", "hypernetworks.files.adapters"): "GeneratedWeights.save and .load",
    ("hypernetworks.generator.hypernetwork", "hypernetworks.files.generator"): "Hypernetwork.save and .load",
}


def test_no_circles_between_files() -> None:
    """Each file imports from those below it: lazily too, types alone excepted."""
    paths = _modules()
    edges = {
        name: {found for found in _imports(path, paths) if found != name} for name, path in paths.items()
    }
    for name, imported in EXCUSED:
        assert imported in edges.get(name, ()), f"{name} imports {imported} no more: take it from EXCUSED"
        edges[name].discard(imported)
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' <- '.join(error.args[1])}")


# files, library and convert stand above them
HYPERNETWORKS = ["attention", "weights", "attaching", "generator"]
UPWARDS = {
    ("hypernetworks.attaching.attached", "hypernetworks.files.adapters"): "Attached.load of a file",
    ("hypernetworks.attention.hypernetwork", "hypernetworks.files"): "AttentionHypernetwork.save",
    ("hypernetworks.weights.generated", "hypernetworks.files.adapters"): "GeneratedWeights.save and .load",
    ("hypernetworks.generator.hypernetwork", "hypernetworks.files.generator"): "Hypernetwork.save and .load",
}


def test_the_order_inside_hypernetworks() -> None:
    """Attention, weights <- attaching <- generator <- files, library, convert, but for methods that open files."""
    folders = [*HYPERNETWORKS, "files", "library", "convert"]
    paths = _modules()
    upwards = set()
    for place, folder in enumerate(HYPERNETWORKS):
        later = tuple(f"hypernetworks.{other}" for other in folders[place + 1 :])
        for name in (n for n in paths if n.startswith(f"hypernetworks.{folder}.")):
            upwards |= {
                (name, imported)
                for imported in _imports(paths[name], paths)
                if ".".join(imported.split(".")[:2]) in later
            }
    assert upwards == set(UPWARDS)


def _modules() -> dict[str, Path]:
    """Name inside the package → file."""
    paths = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in SOURCE.rglob("*.py")}
    return {name.removesuffix("__init__").removesuffix("."): path for name, path in paths.items()}


def _imports(path: Path, known: Container[str]) -> Iterator[str]:
    """Modules of the package that a file imports anywhere but for types."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hyperbrush."):
            module = node.module.removeprefix("hyperbrush.")
            for alias in node.names:
                yield f"{module}.{alias.name}" if f"{module}.{alias.name}" in known else module
        elif isinstance(node, ast.ImportFrom) and node.module == "hyperbrush":
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.Import):
            names = (alias.name.removeprefix("hyperbrush.") for alias in node.names)
            yield from (name for name in names if name in known)


def test_typed_marker_and_licences_are_there() -> None:
    assert (SOURCE / "py.typed").is_file()
    for name in ("LICENSE", "NOTICE", "CHANGELOG.md", "CONTRIBUTING.md", "constraints.txt"):
        assert (ROOT / name).stat().st_size > 100
