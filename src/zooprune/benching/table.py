"""Rows of measurements as a table that fits 100 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

#: What is shown of a row where the row has it: key, heading, unit and format.
_COLUMNS: tuple[tuple[str, str, float, str], ...] = (
    ("tokens", "tokens", 1, "{:,.0f}"),
    ("keep", "keep", 1, "{:,.0f}"),
    ("batch", "batch", 1, "{:,.0f}"),
    ("new_tokens", "new", 1, "{:,.0f}"),
    ("p50", "p50 ms", 1e-3, "{:,.1f}"),
    ("p20", "p20 ms", 1e-3, "{:,.1f}"),
    ("p80", "p80 ms", 1e-3, "{:,.1f}"),
    ("times_faster", "times\nfaster", 1, "{:,.2f}"),
    ("rank_correlation", "rank\ncorr.", 1, "{:.4f}"),
    ("flops_per_second", "GFLOP/s", 1e9, "{:,.0f}"),
    ("kv_cache_bytes", "KV cache\nMiB", 2**20, "{:,.1f}"),
    ("peak_bytes", "peak\nMiB", 2**20, "{:,.0f}"),
)


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """Return a table of what `zooprune.benching` measured, a row for each provider or budget."""
    drawn = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    named = "provider" in rows[0]
    if named:
        drawn.add_column("provider", min_width=12)
    columns = [column for column in _COLUMNS if column[0] in rows[0]]
    for _, heading, _, _ in columns:
        drawn.add_column(heading, justify="right")
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        figures = ["" if row[key] is None else form.format(row[key] / unit) for key, _, unit, form in columns]
        last = following is not None and named and following["provider"] == rows[0]["provider"]
        drawn.add_row(*([row["provider"]] if named else []), *figures, end_section=last)
    return drawn
