"""TransPrune: tokens that layers change much, and tokens that the question attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F
from torch import Tensor

from zooprune.policy import PositionPolicy
from zooprune.pruners.inside import InsidePruner, between, check_layers

if TYPE_CHECKING:
    from zooprune.decoder.layer import Layer, Passage


@dataclass(frozen=True)
class TransPrune(InsidePruner):
    """Keep the visual tokens whose representations change most from layer to layer and that the question attends to.

    A token's transition in a module has two factors: the length of the module's output relative to its input, and the
    softmax, over all tokens, of how far the direction turns. Transitions of attention and feed-forward modules are
    added up from the layer in front of the first stage on. The score of a token is its share of the visual tokens'
    transitions, plus its share of the attention that the text behind the image pays to them in the layer at hand.
    Tokens that stay are numbered anew.

    Source: Li et al., "TransPrune: Token Transition Pruning for Efficient Large Vision-Language Model", arXiv
    2507.20630, and its code, where the angle counts with its sign. With a budget, the paper's schedule is scaled.

    Parameters
    ----------
    keep : int, float or None
        Visual tokens per image that a layer reads on average, or a share of the image's tokens; None leaves 7/8, 5/8
        and 1/8.
    layers : tuple of int or float
        In front of which layers, counted from 0, or at which shares of the depth: layers 7, 9 and 12 of 32 in the
        paper.

    Notes
    -----
        score_i = m_i / Σ_i m_i + a_i / Σ_i a_i
        m_i     = Σ over modules of softmax(1 − cos(r_i, g_i)) · ‖g_i‖ / ‖r_i‖

        r_i, g_i: what a module (attention or feed-forward) reads and gives for token i,
                  in the layers from the one in front of the first stage on
        a_i: mean attention of the text behind the image to i in the layer at hand
    """

    name: ClassVar[str] = "transprune"
    source: ClassVar[str] = "arXiv 2507.20630"
    scores_label: ClassVar[str] = "transition and attention"
    numbering: ClassVar[PositionPolicy] = "contiguous"

    layers: tuple[int | float, ...] = (7 / 32, 9 / 32, 12 / 32)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(self.layers)
        if len(self.layers) != 3:
            raise ValueError(f"layers={self.layers} must be three, as the schedule of the paper is")

    def places(self) -> tuple[int | float, ...]:
        """Return the layers."""
        return self.layers

    def shares(self, share: float | None, stages: int) -> tuple[float, ...]:
        """Return the paper's shares, or what is between them and nothing or all."""
        published = (0.875, 0.625, 0.125)
        return published[:stages] if share is None else between([published], share, stages)

    def watches(self) -> bool:
        """Return True."""
        return True

    def measure(self, attention: Passage, feed_forward: Passage) -> Tensor:
        """Return the transitions in one layer."""
        return _transition(attention) + _transition(feed_forward)

    def score_at(self, layer: Layer) -> Tensor:
        """Return the share of transitions and the share of attention, added."""
        changed = layer.noted.sum(0)
        asked = layer.here.heads.attention(layer.question)[layer.visual]
        return changed / changed.sum() + asked / asked.sum()


def _transition(passage: Passage) -> Tensor:
    read, gave = passage.read.float(), passage.gave.float()
    turned = 1 - F.cosine_similarity(read, gave, dim=-1)
    return turned.softmax(0) * gave.norm(dim=-1) / read.norm(dim=-1)
