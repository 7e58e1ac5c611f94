"""Modules under other programs' names, whose contents are looked up when first asked for."""

from collections.abc import Mapping
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class BorrowedModule(ModuleType):
    """A module without a file.

    name: as it is imported. homes: modules of ours whose public names are this one's.
    own: other names, and where they are, "hyperbrush.ldm.models:DiffusionModel".
    """

    def __init__(self, name: str, homes: tuple[str, ...], own: Mapping[str, str]) -> None:
        super().__init__(name, f"{name} of the original programs, by hyperbrush.compat.")
        self.__spec__ = ModuleSpec(name, None, is_package=True)
        self.__path__: list[
            str
        ] = []  # a package, so that `import ldm.models` works, with no folder behind it
        self._homes, self._own = homes, dict(own)

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":
            return self._names()
        if name.startswith("_"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if name in self._own:
            home, _, attribute = self._own[name].partition(":")
            return getattr(import_module(home), attribute)
        for home in self._homes:
            module = import_module(home)
            if hasattr(module, name):
                return getattr(module, name)
        ours = ", ".join([*self._homes, *sorted(self._own)])
        raise AttributeError(
            f"module {self.__name__!r} of hyperbrush.compat has no {name!r}; it has what is in {ours or 'its modules'} "
            "(docs/original-programs.md)"
        )

    def _names(self) -> list[str]:
        names = set(self._own)
        for home in self._homes:
            module = import_module(home)
            names |= set(getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")]))
        return sorted(names)

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *self._names()})


def make_modules(
    paths: Mapping[str, tuple[tuple[str, ...], Mapping[str, str]]],
) -> dict[str, BorrowedModule]:
    """Modules by their whole names, each an attribute of the one it lies in.

    paths: name → (homes, own), see `BorrowedModule`; packages before what lies in them.
    """
    made: dict[str, BorrowedModule] = {}
    for name, (homes, own) in paths.items():
        made[name] = BorrowedModule(name, homes, own)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(made[parent], last, made[name])
    return made
