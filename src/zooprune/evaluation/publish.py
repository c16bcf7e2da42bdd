"""Write the reports of a run into its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zooprune.data.examples import Example
from zooprune.evaluation.cases import draw_case, worst_cases
from zooprune.evaluation.page import page
from zooprune.evaluation.report import digest, markdown
from zooprune.evaluation.runner import Results, Setting, Subject
from zooprune.files import write_text
from zooprune.picture import CannotDrawError

#: The folder of the pictures, inside that of the run.
PICTURES = "cases"


def draw_cases(
    subject: Subject, examples: Sequence[Example], settings: Sequence[Setting], results: Results
) -> list[dict[str, Any]]:
    """Find the worst cases of a model, and draw them as WebP files.

    Returns
    -------
    list of dict
        `Case.told`, and the paths of the `pictures` inside the run's folder. There are none if it is
        not known where on an image the tokens lie.
    """
    rows = [row for row in results.rows if row["model"] == subject.name]
    folder = results.folder / PICTURES
    folder.mkdir(exist_ok=True)
    drawn = []
    for number, case in enumerate(worst_cases(rows, examples, settings)):
        try:
            pictures = draw_case(subject, case)
        except CannotDrawError:
            pictures = []
        paths = []
        for place, picture in enumerate(pictures):
            path = folder / f"{_slug(subject.name)}-{number:02}-{place}.webp"
            temporary = path.with_suffix(".tmp")
            picture.save(temporary, "WEBP", quality=80)
            temporary.replace(path)
            paths.append(path.relative_to(results.folder).as_posix())
        drawn.append(case.told | {"pictures": paths})
    return drawn


def publish(
    results: Results, cases: dict[str, list[dict[str, Any]]], left_out: dict[str, dict[str, str]]
) -> tuple[dict[str, dict[str, Any]], list[Path]]:
    """Write report.md and report.html.

    Parameters
    ----------
    results : Results
    cases : dict
        By model, what `draw_cases` returned.
    left_out : dict
        By model, what `zooprune.evaluation.runner.evaluate` returned.

    Returns
    -------
    found : dict
        See `zooprune.evaluation.report.digest`.
    paths : list of Path
        The files that were written.
    """
    found = digest(results.rows)
    paths = [results.folder / "report.md", results.folder / "report.html"]
    write_text(paths[0], markdown(results.description, found, cases, left_out))
    write_text(paths[1], page(results.description, found, cases, left_out, results.folder))
    return found, paths


def _slug(name: str) -> str:
    """Return a file name of its own for a model: the readable end of the model's name, and a digest of all of it."""
    readable = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)[-40:].strip("-")
    return f"{readable}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
