"""Import paths of the original programs, ``modules.hypernetworks`` and ``ldm``, for code written against them.

Never there by default::

    import hyperbrush.compat

    hyperbrush.compat.install()
    from modules.hypernetworks.hypernetwork import Hypernetwork
    from ldm.models import LatentDiffusion

What stands behind each name is ours: docs/original-programs.md has the table.
"""

import importlib.util
import sys

from hyperbrush.compat.borrowed import BorrowedModule, make_modules
from hyperbrush.compat.paths import PATHS, ROOTS
from hyperbrush.errors import UserError

__all__ = ["install", "installed", "uninstall"]


def install() -> None:
    """Let ``modules.…`` and ``ldm.…`` mean our parts until `uninstall`; again is nothing new. Loads nothing heavy.

    Raises:
        UserError: another package ``modules`` or ``ldm`` is imported, or could be; nothing was changed.
    """
    if installed():
        return
    for root in ROOTS:
        _check_free(root)
    sys.modules.update(make_modules(PATHS))


def uninstall() -> None:
    """Take the paths away; what was imported through them goes on working. Nothing happens where they are not."""
    for name in [name for name, module in sys.modules.items() if isinstance(module, BorrowedModule)]:
        del sys.modules[name]


def installed() -> bool:
    """Whether the paths are there."""
    return all(isinstance(sys.modules.get(root), BorrowedModule) for root in ROOTS)


def _check_free(root: str) -> None:
    taken = [name for name in sys.modules if name.partition(".")[0] == root]
    if taken:
        module = sys.modules[min(taken, key=len)]
        where = getattr(module, "__file__", None) or "it has no file"
        raise UserError(
            f"a package {root!r} of another program is imported already ({where}): expected none, so that both do not "
            "mix; install hyperbrush.compat in a process of its own, or import from hyperbrush"
        )
    found = importlib.util.find_spec(root)
    if found is not None:
        where = found.origin or ", ".join(found.submodule_search_locations or ())
        raise UserError(
            f"a package {root!r} of another program would be hidden ({where}): start Python in another folder, take it off "
            "sys.path, or import from hyperbrush"
        )
