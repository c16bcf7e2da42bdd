"""The words of the bundled model: what questions can name, and the entries of its tokenizer."""

from __future__ import annotations

from zooprune.bundled.vocabulary import CHARACTERS, COLOURED, COLOURS, THINGS

#: Everything a question can name.
NAMES = (*THINGS, *COLOURED, "sign", "digit")

#: The cells of a three by three grid over the image, row by row.
PLACES = (
    "top left", "top middle", "top right",
    "middle left", "centre", "middle right",
    "bottom left", "bottom middle", "bottom right",
)  # fmt: skip

#: What the images of a prompt are called when there are several.
ORDINALS = ("first", "second")

RELATIONS = ("left of", "right of", "above", "below")

_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
_GRAMMAR = (
    "user assistant : ? . , is there a an the what in does say colour color how many are of which thing digit number"
    " written read can you see to it and yes no nothing label image images shows both"
).split()


def plural(name: str) -> str:
    """Return the plural of an object's name."""
    if name == "cherry":
        return "cherries"
    return name + ("es" if name.endswith(("s", "x")) else "s")


def vocabulary() -> list[str]:
    """Return the tokenizer's entries in order; ``##`` marks a piece that continues a word."""
    words = [*_GRAMMAR, *ORDINALS, *NAMES, "cherries", *COLOURS]
    words += [word for phrase in (*PLACES, *RELATIONS) for word in phrase.split()]
    signs = [*CHARACTERS, *(f"##{character}" for character in CHARACTERS)]
    return list(dict.fromkeys([*_SPECIAL, *words, "##s", "##es", *signs]))


def sign_pieces(text: str) -> list[str]:
    """Return the vocabulary entries that spell a sign, one character each."""
    return [text[0], *(f"##{character}" for character in text[1:])]
