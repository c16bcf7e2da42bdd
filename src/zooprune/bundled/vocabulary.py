"""What scenes are made of: things, their colours, and the characters of signs."""

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

#: Characters that signs are written with.
CHARACTERS = string.ascii_uppercase + string.digits
