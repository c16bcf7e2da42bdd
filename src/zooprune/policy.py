"""How to prune, apart from the choice itself.

How kept tokens are numbered, what shares a budget, what becomes of separators and what becomes of dropped tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

PositionPolicy = Literal["contiguous", "original"]
#: What a caller may ask for; "auto" is the family's own policy.
Positions = Literal["auto", "contiguous", "original"]
Scope = Literal["image", "tile", "prompt"]
Newlines = Literal["drop", "keep", "rows"]
Dropped = Literal["discard", "mean", "mass", "stand in"]

_ALLOWED = {"positions": Positions, "scope": Scope, "newlines": Newlines, "dropped": Dropped}


@dataclass(frozen=True)
class Policy:
    """How to prune, whatever the method.

    Parameters
    ----------
    positions : {"auto", "contiguous", "original"}
        Whether kept tokens are numbered anew or keep their positions. "auto" keeps them with M-RoPE and in
        prompts with several images.
    scope : {"image", "tile", "prompt"}
        What one choice is made among: an image, or all images of a prompt together. "tile" deals the budget of an
        image out to its tiles, or that of a video to its frames, as the paper does for LLaVA-NeXT.
    newlines : {"drop", "keep", "rows"}
        What becomes of the separators that LLaVA-NeXT and its kin put after every row of patches: all dropped, all
        kept, or kept where their row still has a token. They count inside the budget.
    dropped : {"discard", "mean", "mass", "stand in"}
        What becomes of the tokens that are not kept. "discard" forgets them, as the paper does. With the others, each
        dropped token belongs to the nearest kept token of its image. "mean" replaces the embedding of a kept token by
        the mean of its tokens; "mass" lets a kept token count in attention as often as it has tokens; "stand in" does
        both. See `zooprune.standing_in`.

    Raises
    ------
    ValueError
        If a value is not one of these.
    """

    positions: Positions = "auto"
    scope: Scope = "image"
    newlines: Newlines = "drop"
    dropped: Dropped = "discard"

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(get_args(allowed))}")

    @property
    def averages(self) -> bool:
        """Whether kept tokens become the mean of the tokens that belong to them."""
        return self.dropped in ("mean", "stand in")

    @property
    def weighs(self) -> bool:
        """Whether kept tokens count in attention as often as they have tokens."""
        return self.dropped in ("mass", "stand in")

    @property
    def unusual(self) -> dict[str, str]:
        """What differs from the defaults, by name."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }
