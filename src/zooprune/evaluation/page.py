"""The report as one page that needs nothing beside it: tables, plots and worst cases."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

try:
    from plotly import graph_objects
    from plotly.offline import get_plotlyjs
except ImportError:
    raise ImportError("plotly is needed to write reports; run: pip install 'zooprune[report]'") from None

from zooprune.evaluation.metrics import budget
from zooprune.evaluation.report import Table, case_line, described, tables, title

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #191c24; max-width: 1180px; margin: 2rem auto; padding: 0 1rem }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 .6rem }
table { border-collapse: collapse; font-size: .85rem; display: block; overflow-x: auto }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e3e5ea; white-space: nowrap }
th { white-space: normal; vertical-align: bottom }
th:first-child, td:first-child { text-align: left }
.note { color: #5a6072; font-size: .85rem }
figure { margin: 1rem 0 } figure img { max-width: 100%; border: 1px solid #e3e5ea }
"""
#: Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def page(
    run: dict[str, Any], found: dict[str, dict[str, Any]], cases: dict[str, list[dict[str, Any]]], folder: Path
) -> str:
    """Return the HTML.

    Parameters
    ----------
    run, found, cases : dict
        As `zooprune.evaluation.report.markdown` takes them.
    folder : Path
        Where the pictures of the cases lie.

    Returns
    -------
    str
        Without a reference to anything outside it.
    """
    body = [f"<h1>{escape(title(run))}</h1>", f"<p class=note>{escape(described(run))}</p>"]
    for model, figures in found.items():
        body.append(f"<h2>{escape(model)}</h2>")
        first, *others = map(_table, tables(figures))
        body += [first, *_plots(figures["summary"]), *others]
        if cases.get(model):
            body.append("<h3>Worst cases</h3><p class=note>Right with all tokens and wrong without, at the largest "
                        "budgets where it occurs. Dropped patches are dimmed.</p>")  # fmt: skip
        body += [_case(case, folder) for case in cases.get(model, [])]
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{escape(title(run))}</title>"
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script></head><body>{''.join(body)}</body></html>\n"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    note = f"<p class=note>{escape(table.note)}</p>" if table.note else ""
    return f"<h3>{escape(table.title)}</h3><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{note}"


def _case(case: dict[str, Any], folder: Path) -> str:
    pictures = [base64.b64encode((folder / path).read_bytes()).decode() for path in case["pictures"]]
    shown = "".join(f'<img alt="kept patches" src="data:image/jpeg;base64,{data}">' for data in pictures)
    return f"<figure>{shown}<figcaption>{escape(case_line(case))}</figcaption></figure>"


def _plots(summary: list[dict[str, Any]]) -> Iterator[str]:
    full, pruned = summary[0], summary[1:]
    if not pruned:
        return
    measure = "kept_share" if full["kept_share"] is not None else "agreement"
    name = "score kept, % of unpruned" if measure == "kept_share" else "same reply as unpruned, %"
    methods = list(dict.fromkeys(arm["method"] for arm in pruned))
    colours = {method: _COLOURS[number % len(_COLOURS)] for number, method in enumerate(methods)}

    budgets, pareto = graph_objects.Figure(), graph_objects.Figure()
    for method in methods:
        arms = sorted((arm for arm in pruned if arm["method"] == method), key=lambda arm: arm["kept_tokens"])
        quality = [_percent(arm[measure]) for arm in arms]
        around = [arm[f"{measure}_interval"] or (None, None) for arm in arms]
        look = {"name": method, "marker_color": colours[method]}
        budgets.add_scatter(
            x=[arm["kept_tokens"] for arm in arms],
            y=quality,
            error_y={
                "array": [_percent(high) - at for (_, high), at in zip(around, quality, strict=True)],
                "arrayminus": [at - _percent(low) for (low, _), at in zip(around, quality, strict=True)],
                "thickness": 1,
            },
            mode="lines+markers",
            **look,
        )
        if full["seconds"] is not None:
            pareto.add_scatter(
                x=[1e3 * arm["seconds"]["total"] for arm in arms],
                y=quality,
                text=[budget(arm["keep"]) for arm in arms],
                textposition="top center",
                cliponaxis=False,
                mode="markers+text",
                **look,
            )
    budgets.add_hline(y=_percent(full[measure]), line_dash="dot", line_color="#888")
    ticks = sorted({round(arm["kept_tokens"]) for arm in pruned})
    budgets.update_xaxes(type="log", tickvals=ticks)
    yield _draw(budgets, "Quality over budget", "visual tokens kept", name)
    if full["seconds"] is not None:
        points = [(1e3 * arm["seconds"]["total"], _percent(arm[measure])) for arm in summary]
        front = pareto_front(points)
        pareto.add_scatter(x=[points[0][0]], y=[points[0][1]], name="all tokens", mode="markers", marker_color="#888")
        pareto.add_scatter(
            x=[x for x, _ in front], y=[y for _, y in front], name="Pareto front", mode="lines",
            line={"dash": "dot", "shape": "hv", "color": "#888"},
        )  # fmt: skip
        yield _draw(pareto, "Quality over time", "time of one question, ms (median)", name)
    scored = [task for task, figures in full["tasks"].items() if figures["score"]]
    if scored:
        shares = [
            [_ratio(arm["tasks"][task]["score"], full["tasks"][task]["score"]) for task in scored] for arm in pruned
        ]
        heat = graph_objects.Figure(
            graph_objects.Heatmap(
                z=shares, x=scored, y=[f"{arm['method']} {budget(arm['keep'])}" for arm in pruned], zmid=100,
                colorscale="RdBu", texttemplate="%{z:.0f}", colorbar_title="%",
            )
        )  # fmt: skip
        heat.update_yaxes(autorange="reversed")
        yield _draw(heat, "By task: score kept, % of unpruned", "", "", height=120 + 32 * len(pruned))


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (time, quality) that no other one beats in both, from fast to slow."""
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def _percent(value: float | None) -> float:
    return float("nan") if value is None else 100 * value


def _ratio(value: float | None, full: float) -> float:
    return _percent(None if value is None else value / full)


def _draw(figure: Any, title: str, x: str, y: str, *, height: int = 420) -> str:
    figure.update_layout(title=title, xaxis_title=x, yaxis_title=y, template="plotly_white", height=height, width=1140)
    drawn: str = figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displaylogo": False, "displayModeBar": False}
    )
    return drawn
