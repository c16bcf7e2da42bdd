"""What is known of every method, from its class and its docstring alone, for tables and pages."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from dataclasses import dataclass
from typing import Any, get_args

from zooprune.families import FAMILIES
from zooprune.projectors import Sensitivity
from zooprune.pruners import Pruner, get_pruner, list_pruners, pruner_class
from zooprune.signals import find_signal

_ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
#: A title stands in quotes before the number of the paper; what stands in quotes behind it is part of the paper.
_TITLE = re.compile(r'Source: (?:(?!arXiv)[^"])*"([^"]+)"')
#: The heading of a section in the style of numpydoc.
_HEADING = re.compile(r"^(\w[\w ]*)\n-+\n", re.MULTILINE)
#: A parameter in the style of numpydoc, or several that share a description.
_PARAMETERS = re.compile(r"^(\w+(?:, \w+)*) : (.+)\n((?:    .*\n?|\n)+)", re.MULTILINE)


@dataclass(frozen=True)
class Option:
    """An option of a method.

    Parameters
    ----------
    name, kind, meaning : str
    default : object
    """

    name: str
    default: Any
    kind: str
    meaning: str


@dataclass(frozen=True)
class Entry:
    """A method with its default options.

    Parameters
    ----------
    name : str
    idea : tuple of str
        What it does, by paragraph. The first is one sentence.
    formula : str, optional
        How it chooses, as lines of plain text with an explanation of every symbol.
    source : str
        Where it is from, and what is different here.
    title, arxiv : str, optional
        Of the paper.
    year : int, optional
        Of the paper's first version on arXiv.
    where : str
        Where it prunes.
    modalities : tuple of str
        What it is made for.
    signals : tuple of str
        What it reads beside features and embeddings; see `zooprune.signals`.
    reads : tuple of str
        What these signals are about, in a word each.
    query_aware : bool
        Whether the choice depends on the question.
    count : str
        "exact" if the budget is met, "native" if the image decides, "exact or native" if an option decides.
    merges, trained : bool
        Whether kept tokens become mixtures of several; whether it has weights of its own that were trained.
    draws : tuple of str
        The kinds of sensitivity, of `zooprune.projectors`, with which the choice depends on a seed.
    families : tuple of str
        The model families that give what it reads, take what it is made for, and let some of their models be pruned
        where it prunes.
    options : tuple of Option
        The budget is the first.
    """

    name: str
    idea: tuple[str, ...]
    formula: str | None
    source: str
    title: str | None
    arxiv: str | None
    year: int | None
    where: str
    modalities: tuple[str, ...]
    signals: tuple[str, ...]
    reads: tuple[str, ...]
    query_aware: bool
    count: str
    merges: bool
    trained: bool
    draws: tuple[str, ...]
    families: tuple[str, ...]
    options: tuple[Option, ...]

    @property
    def seed(self) -> str:
        """Whether the choice depends on a seed, in a word; empty if it never does."""
        return (
            "" if not self.draws else "yes" if len(self.draws) == len(get_args(Sensitivity)) else "/".join(self.draws)
        )

    @property
    def hosts(self) -> str:
        """How many families can host it, in few words."""
        return "all" if len(self.families) == len(FAMILIES) else f"{len(self.families)} of {len(FAMILIES)}"


def describe(name: str) -> Entry:
    """Return what is known of a method.

    Raises
    ------
    ValueError
        If there is no method of that name.
    """
    method, pruner = pruner_class(name), get_pruner(name)
    sections = _sections(inspect.getdoc(method) or "")
    paragraphs = [" ".join(text.split()) for text in sections[""].split("\n\n") if text.strip()]
    source = next((text for text in paragraphs if text.startswith("Source:")), f"Source: {method.source}.")
    paper, title = _ARXIV.search(f"{source} {method.source}"), _TITLE.search(source)
    signals = [find_signal(signal) for signal in pruner.reads()]
    return Entry(
        name=name,
        idea=tuple(text for text in paragraphs if not text.startswith("Source:")),
        formula=textwrap.dedent(sections["Notes"]).strip() if "Notes" in sections else None,
        source=source.removeprefix("Source: "),
        title=title and title[1],
        arxiv=paper and paper[1],
        year=paper and 2000 + int(paper[1][:2]),
        where=method.where,
        modalities=method.modalities,
        signals=pruner.reads(),
        reads=tuple(dict.fromkeys(signal.kind for signal in signals)),
        query_aware=method.query_aware,
        count=_count(pruner),
        merges=method.merges,
        trained=method.trained,
        draws=tuple(kind for kind in get_args(Sensitivity) if pruner.draws(kind)),
        families=tuple(
            family.title
            for family in FAMILIES
            if all(map(family.gives, signals)) and set(family.modalities) & set(method.modalities)
            and (family.thins or method.where == "before the language model")
        ),
        options=_options(method),
    )  # fmt: skip


def catalogue() -> tuple[Entry, ...]:
    """Return all methods, in alphabetical order."""
    return tuple(map(describe, sorted(list_pruners())))


def _sections(doc: str) -> dict[str, str]:
    """Return the sections of a docstring by heading; what comes before the first heading has none."""
    texts = _HEADING.split(doc)
    return dict(zip(["", *texts[1::2]], texts[::2], strict=True))


def _count(pruner: Pruner) -> str:
    switches = [field.name for field in dataclasses.fields(pruner) if isinstance(getattr(pruner, field.name), bool)]
    both = [pruner, *(dataclasses.replace(pruner, **{name: not getattr(pruner, name)}) for name in switches)]
    return " or ".join(
        word for word, exact in (("exact", True), ("native", False)) if any(one.is_exact() == exact for one in both)
    )


def _options(method: type[Pruner]) -> tuple[Option, ...]:
    described: dict[str, tuple[str, str]] = {}
    # A class describes its own options, and may leave those that it inherits to its parents.
    for parent in reversed(method.__mro__):
        parameters = _sections(inspect.cleandoc(parent.__doc__ or "")).get("Parameters", "")
        for names, kind, meaning in _PARAMETERS.findall(parameters):
            described |= dict.fromkeys(names.split(", "), (kind, " ".join(meaning.split())))
    return tuple(
        Option(field.name, field.default, *described.get(field.name, ("", "")))
        for field in sorted(dataclasses.fields(method), key=lambda field: field.name != "keep")
    )
