"""VidCom2: more tokens for frames that stand out, and in each those that stand out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.averaging import averages
from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.tokens import VisualTokens

#: The variances of the Gaussians that are added up, as released.
_VARIANCES = (1 / 8, 1 / 4, 1 / 2, 1, 2)
#: The temperature of the softmax over frames, as released.
_TEMPERATURE = 0.01


@dataclass(frozen=True)
class VidCom2(Pruner):
    """Keep tokens that differ most from the means of their frame and of the video, and more of frames that stand out.

    Tokens are compared by the half of their channels that vary least, brought to unit length. The similarity of a token
    to a mean is a sum of five Gaussians of their distance. The score of a token is minus its similarity to the mean of
    the video and to that of its frame. The budget of a frame is its tokens times the share to keep, times 1 plus the
    softmax over frames of minus the mean similarity to the video, from which the mean over frames is subtracted. A
    frame keeps at least one token and at most all of its tokens. If these are more than the budget, the tokens of
    lowest score are dropped; if they are fewer, the tokens of highest score that are left are added.

    An image is a video of one frame, whose two means are the same.

    Source: "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models",
    arXiv 2505.14454, EMNLP 2025. Constants and rounding are those of vLLM, which keeps a token of every frame at least;
    here a budget below the number of frames leaves frames out.

    Parameters
    ----------
    keep : int or float
        Tokens per video, or a share of them.

    Notes
    -----
        score_i  = −G(y_i, m) − G(y_i, m_f)
        G(y, m)  = Σ_v exp(−‖y − m‖² / 2v),  v = 1/8, 1/4, 1/2, 1, 2
        budget_f = n_f · min(1, k / N · (1 + e_f − mean e))

        y_i: the steadier half of the channels of token i's embedding, of unit length
        m, m_f: means of y over the video and over frame f, which has n_f of N tokens
        e_f = softmax_f(−mean of G(y_i, m) in frame f / 0.01); k: tokens to keep
    """

    name: ClassVar[str] = "vidcom2"
    source: ClassVar[str] = "VidCom2, arXiv 2505.14454"
    scores_label: ClassVar[str] = "unlikeness to video and frame"
    modalities: ClassVar[tuple[Literal["image", "video"], ...]] = ("video",)

    @exact_float32()
    def score(self, tokens: VisualTokens) -> Tensor:
        """Return minus the similarity of each token to the video and to its frame."""
        unit, frame = _steady_half(tokens.embeddings), _frames(tokens)
        of_frames = averages(unit, frame, int(frame.max()) + 1)
        return -_similarity(unit, unit.mean(0)) - _similarity(unit, of_frames[frame])

    @exact_float32()
    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Pick the best of each frame by its budget, and make the total right."""
        unit, frame = _steady_half(tokens.embeddings), _frames(tokens)
        sizes = frame.bincount()
        to_video = averages(_similarity(unit, unit.mean(0))[:, None], frame, len(sizes))[:, 0]
        standing_out = (-to_video / _TEMPERATURE).softmax(0)
        shares = (keep / len(tokens) * (1 + standing_out - standing_out.mean())).clamp_max(1)
        budgets = (shares * sizes).round().clamp_min(1)
        best = scores.sort(descending=True, stable=True).indices
        by_frame = best[frame[best].sort(stable=True).indices]
        rank = torch.arange(len(best), device=best.device) - (sizes.cumsum(0) - sizes)[frame[by_frame]]
        within = torch.empty_like(best, dtype=torch.bool)
        within[by_frame] = rank < budgets[frame[by_frame]]
        # Those within the budget of their frame come first, by score, and the others follow.
        return best[within[best].int().sort(descending=True, stable=True).indices][:keep]


def _frames(tokens: VisualTokens) -> Tensor:
    """Return the frame of each token, numbered without gaps, where the embeddings are."""
    return tokens.positions[:, 0].to(tokens.embeddings.device).unique(return_inverse=True)[1]


def _steady_half(embeddings: Tensor) -> Tensor:
    """Return the half of the channels that vary least, each row of unit length; float32, (N, d / 2)."""
    rows = embeddings.float()
    order = rows.var(0, correction=0).sort(stable=True).indices
    return F.normalize(rows[:, order[: max(1, len(order) // 2)]], dim=-1)


def _similarity(rows: Tensor, mean: Tensor) -> Tensor:
    """Return the sum of Gaussians of the distance of each row to a mean, (N,)."""
    squared = (rows - mean).square().sum(-1)
    return torch.stack([(-squared / (2 * variance)).exp() for variance in _VARIANCES]).sum(0)
