"""What the bundled model can name: things, colours, places, and the characters signs are made of."""

from __future__ import annotations

import string

#: Objects with one fixed look, by name, and the emoji that draws each.
THINGS = {
    "dog": "🐶", "cat": "🐱", "rabbit": "🐰", "bear": "🐻", "panda": "🐼", "lion": "🦁", "pig": "🐷", "frog": "🐸",
    "monkey": "🐵", "chicken": "🐔", "penguin": "🐧", "owl": "🦉", "turtle": "🐢", "octopus": "🐙", "bee": "🐝",
    "snail": "🐌", "crab": "🦀", "whale": "🐳", "apple": "🍎", "banana": "🍌", "lemon": "🍋", "melon": "🍉",
    "carrot": "🥕", "cherry": "🍒", "pizza": "🍕", "burger": "🍔", "cake": "🍰", "egg": "🍳", "car": "🚗", "bus": "🚌",
    "bicycle": "🚲", "plane": "✈️", "rocket": "🚀", "house": "🏠", "tree": "🌲", "flower": "🌻", "sun": "☀️",
    "moon": "🌙", "star": "⭐", "umbrella": "☂️", "key": "🔑", "bell": "🔔", "clock": "⏰", "guitar": "🎸",
    "camera": "📷", "hat": "🎩", "crown": "👑", "gift": "🎁",
}  # fmt: skip

#: Colours of the coloured objects and of the signs, as drawn by the emoji set.
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white")

#: Objects that come in every colour, and their emoji in the order of `COLOURS`.
COLOURED = {
    "heart": ("❤️", "🧡", "💛", "💚", "💙", "💜", "🤎", "🖤", "🤍"),
    "ball": ("🔴", "🟠", "🟡", "🟢", "🔵", "🟣", "🟤", "⚫", "⚪"),
    "box": ("🟥", "🟧", "🟨", "🟩", "🟦", "🟪", "🟫", "⬛", "⬜"),
}

#: Everything a question can name.
NAMES = (*THINGS, *COLOURED, "sign", "digit")

#: Characters that signs are written with.
CHARACTERS = string.ascii_uppercase + string.digits

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
