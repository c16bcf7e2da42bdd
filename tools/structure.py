"""Print which parts of the package import which, highest first: python tools/structure.py.

A part is a module or a package directly under `zooprune`. It stands one floor above the highest part it imports.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import grimp

ROOT = "zooprune"


def main() -> None:
    graph = grimp.build_graph(ROOT, exclude_type_checking_imports=True, cache_dir=None)
    imported: dict[str, set[str]] = {part_of(module): set() for module in graph.modules if module != ROOT}
    modules: dict[str, int] = defaultdict(int)
    for module in graph.modules - {ROOT}:
        modules[part_of(module)] += 1
        others = {part_of(other) for other in graph.find_modules_directly_imported_by(module) if other != ROOT}
        imported[part_of(module)] |= others - {part_of(module)}

    @cache
    def floor(part: str) -> int:
        return 1 + max(map(floor, imported[part]), default=0)

    print(f"{'floor':>5}  {'part':14}{'files':>6}  imports")
    for part in sorted(imported, key=lambda part: (-floor(part), part)):
        print(f"{floor(part):>5}  {part:14}{modules[part]:>6}  {', '.join(sorted(imported[part])) or '-'}")


def part_of(module: str) -> str:
    """Return the part of the package that a module belongs to."""
    return module.split(".")[1]


if __name__ == "__main__":
    main()
