"""Let kept tokens stand in for the dropped ones.

Every dropped token belongs to the nearest kept token of its image. A kept token that holds m tokens then reads as their
mean, and counts m times in the attention of the language model: with log m added to the scores of its key, the softmax
is that of m equal keys. So what the language model reads approximates all tokens, at the price of the kept ones.

Source of the mass: proportional attention of "Token Merging: Your ViT But Faster", arXiv 2210.09461, Section 3.
"""

from __future__ import annotations

import dataclasses

from zooprune.averaging import averages
from zooprune.policy import Policy
from zooprune.profiling import stage
from zooprune.selection.assigning import nearest
from zooprune.tokens import Selection
from zooprune.visuals import Visual


def stand_in(selection: Selection, visual: Visual, policy: Policy) -> Selection:
    """Return a selection whose kept tokens hold the dropped ones, as the policy says.

    Parameters
    ----------
    selection : Selection
        What a method chose. Where it has merged tokens by itself, it stays as it is: its own record says which kept
        token holds which.
    visual : Visual
        What it was chosen from. Tokens belong to kept tokens of their own image only; those of an image of which no
        token was kept are dropped without trace.
    policy : Policy

    Returns
    -------
    Selection
        With `into`, and with `merged` where the policy asks for means.
    """
    if policy.dropped == "discard" or selection.keeps_all or selection.into is not None:
        return selection
    embeddings = visual.tokens.embeddings
    with stage("assign", embeddings.device):
        into = nearest(embeddings, selection.index, groups=visual.images, cosines=selection.cosines)
        merged = averages(embeddings, into, len(selection)).to(embeddings.dtype) if policy.averages else None
        return dataclasses.replace(selection, into=into.cpu(), merged=merged)
