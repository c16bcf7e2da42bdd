"""Pruning methods, one file each."""

from zooprune.pruners.base import Pruner
from zooprune.pruners.diversity import DiversityOnly
from zooprune.pruners.random import RandomPrune
from zooprune.pruners.registry import get_pruner, list_pruners, pruner_class, register
from zooprune.pruners.sensitivity import SensitivityOnly
from zooprune.pruners.zoo import ZooPrune

for _method in (ZooPrune, SensitivityOnly, DiversityOnly, RandomPrune):
    register(_method)

__all__ = [
    "DiversityOnly",
    "Pruner",
    "RandomPrune",
    "SensitivityOnly",
    "ZooPrune",
    "get_pruner",
    "list_pruners",
    "pruner_class",
    "register",
]
