"""Pruning methods, one file each: a file in this folder is found and registered by itself.

A method chooses among the tokens of one image. It knows nothing of models, prompts, caches or files.
"""

import inspect
import pkgutil
from importlib import import_module

from zooprune.pruners.add_on import AddOn
from zooprune.pruners.base import Pruner
from zooprune.pruners.inside import InsidePruner
from zooprune.pruners.registry import get_pruner, list_pruners, pruner_class, register

for _module in pkgutil.iter_modules(__path__):
    _name = f"{__name__}.{_module.name}"
    for _member in list(vars(import_module(_name)).values()):
        # The module comes first: Python 3.10 takes list[int] for a class, but not for a subclass of any.
        _own = inspect.isclass(_member) and _member.__module__ == _name and issubclass(_member, Pruner)
        if _own and _member not in (Pruner, InsidePruner, AddOn):
            register(_member)

from zooprune.pruners.none import KeepAll  # noqa: E402
from zooprune.pruners.zoo import ZooPrune  # noqa: E402

#: The name of the method that keeps everything.
UNPRUNED = KeepAll.name

__all__ = [
    "UNPRUNED",
    "InsidePruner",
    "KeepAll",
    "Pruner",
    "ZooPrune",
    "get_pruner",
    "list_pruners",
    "pruner_class",
    "register",
]
