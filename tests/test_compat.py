"""`hyperbrush.compat`: the original programs' import paths, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest


def python(program: str, folder: Path) -> str:
    """What a program prints, run with this folder first on its path."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_paths_are_there_after_install_alone(tmp_path: Path) -> None:
    program = """
import sys
import hyperbrush, hyperbrush.compat as compat
for root in ("modules", "ldm"):
    try:
        __import__(root)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{root} is there by default")
compat.install()
compat.install()
assert compat.installed() and "torch" not in sys.modules, "installing loads nothing heavy"

from modules.hypernetworks.hypernetwork import Hypernetwork
from ldm.models import LatentDiffusion
import ldm.lr_scheduler, modules.ldm.util
from ldm.models.diffusion.ddpm import DiffusionWrapper, LatentDiffusion as Same
from ldm.data import *
from modules.hypernetworks.ui import train_hypernetwork
import hyperbrush.ldm.models as ours
import hyperbrush.ldm.lr_scheduler
assert LatentDiffusion is Same is ours.LatentDiffusion and DiffusionWrapper is ours.DiffusionModel
assert ldm.lr_scheduler.get_scheduler is hyperbrush.ldm.lr_scheduler.get_scheduler
assert ImageFolder.__module__ == "hyperbrush.ldm.data.folder"
assert train_hypernetwork is hyperbrush.train_hypernetwork

net = Hypernetwork(target_layers=["attn1", "attn2"], embedding_dim=32, hidden_dim=32, heads=4)
assert isinstance(net, hyperbrush.Hypernetwork) and isinstance(net, Hypernetwork) and len(net.layers) == 128
old = Hypernetwork("water", [320, 768], layer_structure=[1, 2, 1], activation_func="relu", add_layer_norm=True)
assert isinstance(old, hyperbrush.AttentionHypernetwork) and old.name == "water"
assert [key for key, _ in old.pairs()] == [320, 768] and old.settings.layer_norm
for wrong in (lambda: Hypernetwork("water", embedding_dim=32), lambda: ldm.models.DDPM):
    try:
        wrong()
    except (hyperbrush.UserError, AttributeError) as error:
        print(error)
try:
    import ldm.models.unknown
except ModuleNotFoundError as error:
    print(error)

compat.uninstall()
assert not compat.installed() and not any(n.split(".")[0] in ("modules", "ldm") for n in sys.modules)
assert net.generate_weights(None).batch is None
compat.uninstall()
"""
    said = python(program, tmp_path).splitlines()
    assert "the webui's Hypernetwork has no 'embedding_dim'" in said[0]
    assert "has no 'DDPM'" in said[1]
    assert "No module named 'ldm.models.unknown'" in said[2]


@pytest.mark.parametrize("root", ["modules", "ldm"])
@pytest.mark.parametrize(
    ("before", "words"), [("import {}", "is imported already"), ("", "of another program would be hidden")]
)
def test_real_packages_are_not_hidden(tmp_path: Path, root: str, before: str, words: str) -> None:
    (tmp_path / root).mkdir()
    (tmp_path / root / "__init__.py").write_text("theirs = True\n")
    program = f"""
import sys
{before.format(root)}
import hyperbrush, hyperbrush.compat as compat
try:
    compat.install()
except hyperbrush.UserError as error:
    print(error)
assert not compat.installed()
import {root}
assert {root}.theirs
assert [n for n in sys.modules if n.split(".")[0] in ("modules", "ldm")] == ["{root}"]
"""
    said = python(program, tmp_path)
    assert words in said
    assert str(tmp_path / root) in said


def test_every_name_is_found_where_it_is_now() -> None:
    from importlib import import_module

    from hyperbrush.compat.paths import PATHS

    targets = [target for _, names in PATHS.values() for target in names.values()]
    assert len(targets) > 10
    for target in targets:
        module, _, name = target.partition(":")
        assert hasattr(import_module(module), name), target
