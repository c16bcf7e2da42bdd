"""Cen-Prune: a change of geometry that methods by cosines share as options."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zooprune.selection.geometry import centred, distinctiveness
from zooprune.tokens import Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class Centring:
    """The options of methods whose comparison of tokens may be centred.

    All tokens of an image share a direction, which makes their cosines large. Without their mean, cosines tell tokens
    apart better, but no longer show how far a token is from the mean. The weight restores this. Both options together
    are Cen-Prune.

    Source: "Centering before Pruning: Lightweight Geometry Correction for Diversity-Based Visual Token Pruning in
    LVLMs", arXiv 2608.30263, Section 4.3, in the form for LLaVA. The form for Qwen2.5-VL, which also scales every
    channel and reads tokens before the patch merger, is not part of it.

    Parameters
    ----------
    centred : bool
        Subtract the mean of all tokens before they are compared.
    distinctive : bool
        Multiply a token's weight by how much it differs from all others.

    Notes
    -----
        centred:     cos(z_i − m, z_j − m) instead of cos(z_i, z_j)
        distinctive: w_i · g_i instead of w_i
        g_i = −mean_{j ≠ i} cos(z_i, z_j), scaled to [0, 1]   (Eq. 5)

        z_i: embedding of token i; m: their mean; w_i: weight that the method gives i
    """

    centred: bool = False
    distinctive: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        for name in ("centred", "distinctive"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")

    def weighted(self, worth: Tensor, embeddings: Tensor) -> Tensor:
        """Return what tokens are worth, given in [0, 1]; (N,)."""
        return worth * distinctiveness(embeddings) if self.distinctive else worth

    def compared(self, embeddings: Tensor) -> Tensor:
        """Return what cosines are worked out from, (N, d)."""
        return centred(embeddings) if self.centred else embeddings

    def chosen(self, tokens: VisualTokens, picked: Tensor, cosines: Tensor) -> Selection:
        """Return what was picked; cosines without the mean say nothing about where dropped tokens belong."""
        if self.centred:
            return Selection(picked.sort().values.cpu(), len(tokens))
        return Selection.of_picks(picked, len(tokens), cosines)
