"""Runs a function as soon as a library is imported, without importing it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def on_import(name: str, action: Callable[[ModuleType], None]) -> None:
    """Calls ``action`` with the module of that name: now if it has been imported, else as soon as it is."""
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        action(module)
    else:
        sys.meta_path.insert(0, _Finder(name, action))


class _Finder(MetaPathFinder):
    """Lets the other finders find the module, and acts after it has been executed; leaves after the first success."""

    def __init__(self, name: str, action: Callable[[ModuleType], None]) -> None:
        self.name, self.action, self.asking = name, action, False

    def succeeded(self, module: ModuleType) -> None:
        """Called when the module has been imported: leaves ``sys.meta_path`` and runs the action."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        self.action(module)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name or self.asking:
            return None
        self.asking = True
        try:
            spec = find_spec(fullname)
        finally:
            self.asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.succeeded)
        return spec


class _Loader(Loader):
    """Runs the module's own loader, and then a function."""

    def __init__(self, loader: Loader, then: Callable[[ModuleType], None]) -> None:
        self.loader, self.then = loader, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.then(module)
