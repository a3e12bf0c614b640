"""Packages that are imported when something in them is first asked for.

``import torchvision`` brings ``torchvision.models`` and ``torchvision.ops`` with it, and these ``torch._dynamo``: two
seconds for what BasicSR names at the top of its files and uses in none of the networks and losses of this package.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types

TORCHVISION = ("torchvision.models", "torchvision.models.vgg", "torchvision.ops")


class LazyPackage(types.ModuleType):
    """Stands for a package or module in ``sys.modules`` until one of its names is read; then it becomes it.

    Args:
        spec: where the real one is.
    """

    def __init__(self, spec: importlib.machinery.ModuleSpec) -> None:
        super().__init__(spec.name)
        self.__spec__ = spec
        self.__file__ = spec.origin
        if spec.submodule_search_locations is not None:
            self.__path__ = list(spec.submodule_search_locations)

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        part = sys.modules.get(f"{self.__name__}.{name}")
        if isinstance(part, LazyPackage):
            return part
        self._become_real()
        try:
            return self.__dict__[name]
        except KeyError:
            return getattr(sys.modules[self.__name__], name)  # the package's own error, or its own ``__getattr__``

    def _become_real(self) -> None:
        for name in [n for n in sys.modules if n == self.__name__ or n.startswith(f"{self.__name__}.")]:
            if isinstance(sys.modules[name], LazyPackage):
                del sys.modules[name]
        self.__dict__.update(vars(importlib.import_module(self.__name__)))


def install(names: tuple[str, ...] = TORCHVISION) -> bool:
    """Put stand-ins for packages into ``sys.modules``.

    Args:
        names: dotted names, a package before what is in it.

    Returns:
        True when there is something to stand for; False when it is imported already or not there.
    """
    package = names[0].partition(".")[0]
    top = importlib.util.find_spec(package) if package not in sys.modules else None
    if top is None or not top.submodule_search_locations:
        return False
    found = {top.name: list(top.submodule_search_locations)}
    for name in names:
        parent = name.rpartition(".")[0]
        spec = importlib.machinery.PathFinder.find_spec(name, found[parent]) if parent in found else None
        if spec is not None and name not in sys.modules:
            sys.modules[name] = LazyPackage(spec)
            found[name] = list(spec.submodule_search_locations or ())
    return len(found) > 1


def withdraw(names: tuple[str, ...] = TORCHVISION) -> None:
    """Take stand-ins that still are ones out of ``sys.modules``: whoever imports the packages now gets the real ones.

    What has a stand-in already keeps it.
    """
    for name in names:
        if isinstance(sys.modules.get(name), LazyPackage):
            del sys.modules[name]
