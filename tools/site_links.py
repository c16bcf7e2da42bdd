"""Let pages of the site link to files outside docs/. mkdocs runs this hook, and mkdocs.yml names it.

A link such as ``../benchmarks/results/x.json`` works where the repository is shown. To make it work on the site, too,
the file becomes part of the site, under ``repository/``. Markdown files there become pages; their links are followed
in turn. A link to a file that does not exist is left alone, and a strict build refuses it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS, OUTSIDE = "docs", "repository"
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to, and the files that these link to in turn."""
    waiting = [f"{DOCS}/{file.src_uri}" for file in files.documentation_pages()]
    known = set(waiting)
    while waiting:
        page = waiting.pop()
        for link in _LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            target = resolve(page, link)
            if target is None or target in known or target.startswith(f"{DOCS}/"):
                continue
            known.add(target)
            files.append(File.generated(config, f"{OUTSIDE}/{target}", abs_src_path=str(ROOT / target)))
            if target.endswith(".md"):
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page with links to the places that files have on the site."""
    place = page.file.src_uri
    origin = place.removeprefix(f"{OUTSIDE}/") if place.startswith(f"{OUTSIDE}/") else f"{DOCS}/{place}"

    def on_site(link: re.Match[str]) -> str:
        target = resolve(origin, link[1])
        if target is None:
            return link[1]
        inside = target.removeprefix(f"{DOCS}/") if target.startswith(f"{DOCS}/") else f"{OUTSIDE}/{target}"
        return os.path.relpath(inside, os.path.dirname(place) or ".")

    return _LINK.sub(on_site, markdown)


def resolve(page: str, link: str) -> str | None:
    """Return the file that a page links to, from the root of the repository; None if there is none.

    A folder stands for its README.
    """
    target = os.path.normpath(os.path.join(os.path.dirname(page), link))
    if (ROOT / target / "README.md").is_file():
        target = f"{target}/README.md"
    return target if (ROOT / target).is_file() else None
