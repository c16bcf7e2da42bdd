"""Write the tables of methods in docs/findings.md and docs/inside.md from the newest figures: make methods-page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zooprune import list_pruners

ROOT = Path(__file__).parents[1]
PAGE, INSIDE = ROOT / "docs" / "findings.md", ROOT / "docs" / "inside.md"
#: What becomes of dropped tokens.
POLICIES = ("discard", "stand in")
BUDGETS = (192, 128, 64, 32, 16)
#: The column that sorts a table, and the method that others are compared with.
KEEP, BASELINE = 64, "zoo"


def main() -> None:
    for path, tables in pages():
        path.write_text(filled(path, tables), encoding="utf-8")


def pages() -> list[tuple[Path, dict[str, str]]]:
    """Return the pages, and the tables of each by name."""
    findings = {dropped: table(dropped) for dropped in POLICIES}
    findings |= {"photographs": photographs_table(), "photographs, budgets": photographs_budgets()}
    return [(PAGE, findings), (INSIDE, {"inside": inside_table()})]


def filled(path: Path, tables: dict[str, str]) -> str:
    """Return a page with tables in their places."""
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- begin: make methods-page writes this table, {name} -->\n", "<!-- end -->"
        before, mark, rest = text.partition(begin)
        if not mark:
            raise ValueError(f"{path} lacks the line {begin.strip()}")
        text = before + begin + table + "\n" + end + rest.partition(end)[2]
    return text


def table(dropped: str) -> str:
    """Return a line for each method, the best first, and a column for each budget that was measured."""
    rows: dict[tuple[str, int], dict[str, Any]] = {
        (row["method"], row["keep"]): row
        for row in _newest("methods")
        if row["dropped"] == dropped and row["method"] in list_pruners()
    }
    budgets = [keep for keep in BUDGETS if (BASELINE, keep) in rows]
    names = sorted({name for name, keep in rows if keep == KEEP}, key=lambda name: (-_accuracy(rows[name, KEEP]), name))
    lines = [f"| method | {' | '.join(map(str, budgets))} |", "|---|" + "---|" * len(budgets)]
    for name in names:
        found = [rows.get((name, keep)) for keep in budgets]
        cells = ["" if row is None else _cell(_accuracy(row), (row["against zoo"] or {}).get("all")) for row in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def photographs_table() -> str:
    """Return a line for each method before the language model: drawn scenes, then photographs with two numberings."""
    columns: list[dict[str, float]] = []
    for dropped in POLICIES:
        columns.append({row["method"]: _accuracy(row) for row in _at(_newest("methods"), "auto", dropped)})
        for positions in ("auto", "original"):
            columns.append({row["method"]: _accuracy(row) for row in _at(_newest("photos"), positions, dropped)})
    inside = set(list_pruners("inside the language model"))
    names = sorted({name for column in columns[1:3] + columns[4:] for name in column} - inside)
    best = columns[5], columns[4]
    names.sort(key=lambda name: tuple(-column.get(name, 0) for column in best))
    heads = [f"{dropped}: drawn scenes | photographs | photographs, original positions" for dropped in POLICIES]
    lines = [f"| method | {' | '.join(heads)} |", "|---|" + "---:|" * 6]
    for name in names:
        cells = (f"{100 * column[name]:.1f}" if name in column else "" for column in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def photographs_budgets() -> str:
    """Return a line for each method that was measured at several budgets, with original positions and standing in."""
    rows = _newest("photos")
    columns = {keep: {row["method"]: row for row in _at(rows, "original", "stand in", keep)} for keep in BUDGETS}
    columns = {keep: column for keep, column in columns.items() if len(column) > 1}
    names = [name for name in columns[KEEP] if sum(name in column for column in columns.values()) > 1]
    lines = [f"| method | {' | '.join(map(str, columns))} |", "|---|" + "---|" * len(columns)]
    for name in sorted(names, key=lambda name: (-_accuracy(columns[KEEP][name]), name)):
        found = [column.get(name) for column in columns.values()]
        cells = ["" if row is None else _cell(_accuracy(row), (row["against zoo"] or {}).get("all")) for row in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _at(rows: list[dict[str, Any]], positions: str, dropped: str, keep: int = KEEP) -> list[dict[str, Any]]:
    """Return each method's row of a column. Of several, that of the device with the most methods counts."""
    devices: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if (row.get("positions", "auto"), row["dropped"], row["keep"]) == (positions, dropped, keep):
            devices.setdefault(row.get("device", ""), {})[row["method"]] = row
    return [*{name: row for found in sorted(devices.values(), key=len) for name, row in found.items()}.values()]


def inside_table() -> str:
    """Return a line for each method, those alone before those behind the baseline, and a column for each average."""
    rows = {(row["method"], row["keep"]): row for row in _newest("inside")}
    budgets = sorted({keep for _, keep in rows if keep is not None}, reverse=True)
    names = {name for name, keep in rows if keep is not None}
    lines = [f"| method | {' | '.join(map(str, budgets))} |", "|---|" + "---|" * len(budgets)]
    for name in sorted(names, key=lambda name: ("+" in name, -rows[name, budgets[0]]["accuracy"], name)):
        found = [rows.get((name, keep)) for keep in budgets]
        cells = ["" if row is None else _cell(row["accuracy"], row.get("against zoo")) for row in found]
        lines.append(f"| {name.replace('+', ' + ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _newest(kind: str) -> list[dict[str, Any]]:
    path = max((ROOT / "benchmarks" / "results").glob(f"{kind}-*.json"))
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def _accuracy(row: dict[str, Any]) -> float:
    return float(row["accuracy"]["all"])


def _cell(accuracy: float, gap: dict[str, Any] | None) -> str:
    """Return the accuracy in percent, and the interval of the difference to the baseline in points, if there is one."""
    if gap is None:
        return f"{100 * accuracy:.1f}"
    low, high = gap["interval"]
    return f"{100 * accuracy:.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


if __name__ == "__main__":
    main()
