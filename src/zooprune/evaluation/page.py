"""The report as one HTML page that needs neither a network nor a script: tables, charts and worst cases."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from zooprune.evaluation.charts import Guide, Point, Series, chart
from zooprune.evaluation.metrics import budget
from zooprune.evaluation.report import CHANGED, LOST, Table, case_line, described, headline, not_asked, tables, title

#: How many bytes of pictures a page holds. It links to the others, which lie beside it.
ROOM = 1_000_000

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #191c24; background: #fff; max-width: 1180px; margin: 1.5rem auto;
  padding: 0 1rem; overflow-wrap: anywhere }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 .6rem } h1 { font-size: 1.6rem }
.headline { font-size: 1.25rem; font-weight: 600 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .85rem }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e3e5ea; white-space: nowrap }
th { white-space: normal; overflow-wrap: normal; vertical-align: bottom }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff }
.heat td:nth-child(n+3) { text-align: center; min-width: 2.5rem; border: 1px solid #fff }
.note { color: #5a6072; font-size: .85rem }
.charts { display: flex; flex-wrap: wrap; gap: 1rem }
.chart { flex: 1 1 340px; max-width: 720px; margin: 1rem 0 } .chart > svg { width: 100%; height: auto; display: block }
.chart text { font: 14px system-ui, sans-serif; fill: #191c24 } .chart figcaption { font-weight: 600 }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0; margin: .3rem 0;
  font-size: .85rem }
.legend svg { vertical-align: -2px; margin-right: .3rem }
.case { margin: 1rem 0 1.5rem } .case img { max-width: 100%; height: auto; border: 1px solid #e3e5ea }
"""


def page(
    run: dict[str, Any],
    found: dict[str, dict[str, Any]],
    cases: dict[str, list[dict[str, Any]]],
    left_out: dict[str, dict[str, str]],
    folder: Path,
) -> str:
    """Return the HTML.

    Parameters
    ----------
    run, found, cases, left_out : dict
        See `zooprune.evaluation.report.markdown`.
    folder : Path
        The folder of the run, with the pictures of the cases.

    Returns
    -------
    str
        It loads nothing. Pictures are inside, up to `ROOM` bytes of them.
    """
    pictures = _Pictures(folder)
    body = [f"<h1>{escape(title(run))}</h1>", f"<p class=note>{escape(described(run))}</p>"]
    for model, figures in found.items():
        body.append(f"<h2>{escape(model)}</h2><p class=headline>{escape(headline(figures))}</p>")
        if left_out.get(model):
            told = "".join(f"<li>{escape(f'{name}: {why}')}</li>" for name, why in left_out[model].items())
            body.append(f"<p>{not_asked(left_out[model])}</p><ul>{told}</ul>")
        first, *others = map(_table, tables(figures))
        body += [first, f"<div class=charts>{''.join(_charts(figures['summary']))}</div>"]
        body += [_heat(figures["summary"]), *others]
        if cases.get(model):
            what = LOST if figures["answers_known"] else CHANGED
            body.append(f"<h3>Worst cases</h3><p class=note>{what} Dropped patches are dimmed.</p>")
        body += [_case(case, pictures) for case in cases.get(model, [])]
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{escape(title(run))}</title>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    note = f"<p class=note>{escape(table.note)}</p>" if table.note else ""
    return (
        f"<h3>{escape(table.title)}</h3><div class=scroll><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{note}"
    )


class _Pictures:
    """The pictures of a page, as long as there is room for them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._room = folder, ROOM

    def show(self, path: str, described: str) -> str:
        """Return a picture, or a link to its file."""
        data = (self._folder / path).read_bytes()
        if len(data) > self._room:
            return f'<p><a href="{escape(path)}">{escape(described)}</a></p>'
        self._room -= len(data)
        coded = base64.b64encode(data).decode()
        return f'<img loading=lazy alt="{escape(described)}" src="data:image/webp;base64,{coded}">'


def _case(case: dict[str, Any], pictures: _Pictures) -> str:
    described = f"what {case['method']} kept with keep {budget(case['keep'])}"
    shown = "".join(pictures.show(path, described) for path in case["pictures"])
    return f"<figure class=case>{shown}<figcaption>{escape(case_line(case))}</figcaption></figure>"


def _charts(summary: list[dict[str, Any]]) -> Iterator[str]:
    full, *pruned = summary
    measure = "kept_share" if full["kept_share"] is not None else "agreement"
    pruned = [arm for arm in pruned if arm[measure] is not None]
    if not pruned:
        return
    quality = "score kept, %" if measure == "kept_share" else "same reply, %"
    by_method = {
        method: sorted((arm for arm in pruned if arm["method"] == method), key=lambda arm: arm["kept_tokens"])
        for method in dict.fromkeys(arm["method"] for arm in pruned)
    }
    yield chart(
        "Quality by budget",
        "budget: visual tokens per image, or a share of them",
        quality,
        [
            Series(method, [_point(arm, arm["kept_tokens"], measure, interval=True) for arm in arms])
            for method, arms in by_method.items()
        ],
        Guide("all tokens", [(x, 100 * full[measure]) for x in (-math.inf, math.inf)]),
        ticks=dict(reversed([(arm["kept_tokens"], budget(arm["keep"])) for arm in pruned])),
    )
    if full["seconds"] is None:
        return
    front = pareto_front([(1e3 * arm["seconds"]["total"], 100 * arm[measure]) for arm in [full, *pruned]])
    steps = [front[0]]
    for before, after in pairwise(front):
        steps += [(after[0], before[1]), after]
    timed = [*by_method.items(), ("all tokens", [full])]
    yield chart(
        "Quality by time",
        "ms per question (median)",
        quality,
        [
            Series(
                method, [_point(arm, 1e3 * arm["seconds"]["total"], measure, label=True) for arm in arms], joined=False
            )
            for method, arms in timed
        ],
        Guide("best quality in this time", steps),
    )


def _point(arm: dict[str, Any], x: float, measure: str, *, interval: bool = False, label: bool = False) -> Point:
    around = arm[f"{measure}_interval"] if interval else None
    return Point(
        x,
        100 * arm[measure],
        f"{arm['method']}, keep {budget(arm['keep'])}: {100 * arm[measure]:.1f} % at {x:,.1f}",
        None if around is None else [100 * end for end in around],
        budget(arm["keep"]) if label else "",
    )


def _heat(summary: list[dict[str, Any]]) -> str:
    """Return a table of what each arm keeps of every task's score, the darker the less; empty without scores."""
    full, *pruned = summary
    scored = [task for task, figures in full["tasks"].items() if figures["score"]]
    if not scored or not pruned:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in ("method", "keep", *scored))
    rows = ""
    for arm in pruned:
        rows += f"<tr><td>{escape(arm['method'])}</td><td>{escape(budget(arm['keep']))}</td>"
        for task in scored:
            score = arm["tasks"][task]["score"]
            rows += "<td></td>" if score is None else _shaded(score / full["tasks"][task]["score"])
        rows += "</tr>"
    return (
        "<h3>Score kept by task, in %</h3><div class=scroll><table class=heat>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _shaded(share: float) -> str:
    # From white at 100 % to a strong orange at 0 %, on which black text is still legible.
    lost = min(1.0, max(0.0, 1 - share))
    colour = "".join(f"{round(255 + (low - 255) * lost):02x}" for low in (0xE6, 0x82, 0x32))
    return f'<td style="background:#{colour}">{100 * share:.0f}</td>'


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (time, quality) that no other point beats in both, from fast to slow."""
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front
