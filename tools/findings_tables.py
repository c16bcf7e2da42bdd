"""Write the tables of all methods in docs/findings.md from the newest figures: make methods-page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zooprune import list_pruners

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "findings.md"
#: What becomes of dropped tokens.
POLICIES = ("discard", "stand in")
BUDGETS = (192, 128, 64, 32, 16)
#: The column that sorts a table, and the method that others are compared with.
KEEP, BASELINE = 64, "zoo"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return docs/findings.md with the newest tables."""
    text = PAGE.read_text(encoding="utf-8")
    for dropped in POLICIES:
        begin, end = f"<!-- begin: make methods-page writes this table, {dropped} -->\n", "<!-- end -->"
        before, mark, rest = text.partition(begin)
        if not mark:
            raise ValueError(f"{PAGE} lacks the line {begin.strip()}")
        text = before + begin + table(dropped) + "\n" + end + rest.partition(end)[2]
    return text


def table(dropped: str) -> str:
    """Return a line for each method, the best first, and a column for each budget that was measured."""
    newest = max((ROOT / "benchmarks" / "results").glob("methods-*.json"))
    rows: dict[tuple[str, int], dict[str, Any]] = {
        (row["method"], row["keep"]): row
        for row in json.loads(newest.read_text(encoding="utf-8"))["rows"]
        if row["dropped"] == dropped and row["method"] in list_pruners()
    }
    budgets = [keep for keep in BUDGETS if (BASELINE, keep) in rows]
    names = sorted({name for name, keep in rows if keep == KEEP}, key=lambda name: (-_accuracy(rows[name, KEEP]), name))
    lines = [f"| method | {' | '.join(map(str, budgets))} |", "|---|" + "---|" * len(budgets)]
    for name in names:
        cells = [_cell(rows.get((name, keep))) for keep in budgets]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _accuracy(row: dict[str, Any]) -> float:
    return float(row["accuracy"]["all"])


def _cell(row: dict[str, Any] | None) -> str:
    """Return the accuracy in percent, and the interval of the difference to the baseline in points."""
    if row is None:
        return ""
    cell = f"{100 * _accuracy(row):.1f}"
    if row["method"] != BASELINE and row["against zoo"]:
        low, high = row["against zoo"]["all"]["interval"]
        cell += f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return cell


if __name__ == "__main__":
    main()
