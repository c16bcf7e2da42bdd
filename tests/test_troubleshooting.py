"""docs/troubleshooting.md quotes every sentence with which the package refuses or warns, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from error_sentences import FILLED, Source, error_sentences

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "troubleshooting.md"

#: Sentences that are not on the page, by the reason.
INTERNAL = {
    "Python's own sentence for a name that is not there": ["module 'zooprune' has no attribute …"],
    "only a fault of this package can raise it, since all that users pass is checked before": [
        "the prompts have … image placeholders but the images fill …",
        "image … has … placeholders, of which … cannot stay",
        "… rows were chosen for … placeholders",
    ],
}

#: Sentences that only pass on another, which the page explains, and the functions in which they may.
PASSED_ON = {
    "…": {"make_plan", "_missing"},
    "…: …": {"_found", "load"},
    "the plan: …": {"load"},
    "question …: …": {"evaluate"},
    "zooprune: …": {"__post_init__"},
    "mm_processor_kwargs: zooprune: …": {"split_request"},
}


@pytest.fixture(scope="module")
def raised():
    return error_sentences(ROOT / "src" / "zooprune")


@pytest.fixture(scope="module")
def quoted() -> list[str]:
    """What the page quotes: in a line of its own in bold type, or in the first column of a table."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^(?:\*\*|\| )(`+)(.+?)\1(?:\*\*$| \|)", text, re.M)
    return [sentence.strip() for _, sentence in found]


def fits(quote: str, sentence: str) -> bool:
    """Return whether a sentence is the quoted one; FILLED stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, quote.split(FILLED))), sentence) is not None


def test_the_page_has_every_sentence(raised, quoted):
    internal = {sentence for sentences in INTERNAL.values() for sentence in sentences}
    absent = [
        f"{place.module}, line {place.line}: {sentence}"
        for sentence, places in raised.items()
        for place in places
        if sentence not in internal
        and place.function not in PASSED_ON.get(sentence, ())
        and not any(fits(quote, sentence) for quote in quoted)
    ]
    assert not absent, "explain in docs/troubleshooting.md, or name in INTERNAL: " + "\n".join(absent)


def test_the_page_has_no_other_sentence(raised, quoted):
    assert len(quoted) > 200
    assert [quote for quote in quoted if not any(fits(quote, sentence) for sentence in raised)] == []


def test_a_quote_has_words_of_its_own(quoted):
    # Otherwise it would fit sentences that nobody explained.
    assert [quote for quote in quoted if len(re.findall(r"[a-z]{2,}", quote)) < 3] == []


def test_no_sentence_is_quoted_twice(quoted):
    assert sorted(set(quoted)) == sorted(quoted)


def test_what_is_not_on_the_page_is_raised_somewhere(raised):
    internal = {sentence for sentences in INTERNAL.values() for sentence in sentences}
    assert internal <= set(raised)
    for sentence, functions in PASSED_ON.items():
        assert functions == {place.function for place in raised[sentence]}, sentence


CODE = {
    "a text": ('raise ValueError("no image; give one")', {"no image; give one"}),
    "what is filled in": ("raise ValueError(f\"{name}={keep!r} is {', '.join(all)}; give\")", {"…=… is …; give"}),
    "texts in a row": ('raise ValueError(f"no {name}; "\n"give one")', {"no …; give one"}),
    "a sum": ('raise ValueError("no image" + ("; give one" if x else ""))', {"no image; give one", "no image"}),
    "a constant": ('WHY = "no image"\ndef f():\n raise ValueError(WHY)', {"no image"}),
    "a variable": ('def f(x):\n why = "no image" if x else f"no {x}"\n raise ValueError(why)', {"no image", "no …"}),
    "a variable in a text": (
        'def f():\n why = "no image"\n raise ValueError(f"{why}; give one")',
        {"no image; give one"},
    ),
    "a text that grows": ('def f(x):\n why = "no"\n why += " image"\n raise ValueError(why)', {"no", "no image"}),
    "a function": ('def why(x):\n return f"no {x}"\ndef f():\n raise ValueError(why(1))', {"no …"}),
    "a function, later a variable": (
        'def why():\n if x: return "no image"\n return None\ndef f():\n why_not = why()\n raise ValueError(why_not)',
        {"no image"},
    ),
    "a function that makes the error": ('def no(x):\n return ValueError(f"no {x}")\ndef f():\n raise no(1)', {"no …"}),
    "a function that raises what it is given": (
        'def fail(why):\n raise ValueError(why)\ndef f():\n fail("no image")\n fail(why="no text")',
        {"no image", "no text"},
    ),
    "a method": (
        'class A:\n def no(self):\n  return "no image"\n def f(self):\n  raise ValueError(self.no())',
        {"no image"},
    ),
    "an error in a variable": ('def f():\n error = ValueError("no image")\n raise error', {"no image"}),
    "a status before the text": ('raise HTTPException(404, "no image")', {"no image"}),
    "a text by name": ('raise HTTPException(404, detail="no image")', {"no image"}),
    "a warning": ('warnings.warn("no image", stacklevel=2)', {"no image"}),
    "what cannot be followed": ("def f(why):\n raise ValueError(WHYS[why])", {"…"}),
    "an error that is raised again": ("try:\n x()\nexcept ValueError as error:\n raise error", set()),
    "a variable of another function": ('def f(x):\n raise ValueError(x)\ndef g():\n x = "other"', {"…"}),
    "no text": ("raise Exit(1)\nraise NotImplementedError", set()),
}


@pytest.mark.parametrize("case", CODE)
def test_sentences_are_read_from_code(case):
    code, sentences = CODE[case]
    assert set(Source({"a.py": code}).sentences()) == sentences


@pytest.mark.parametrize(("made", "used"), [('def why():\n return "no image"', "why()"), ('why = "no image"', "why")])
def test_a_sentence_may_be_made_in_another_module(made, used):
    modules = {"a.py": made, "b.py": f"from a import why\nraise ValueError({used})"}
    assert Source(modules).sentences() == {"no image": [("b.py", 2, "")]}
