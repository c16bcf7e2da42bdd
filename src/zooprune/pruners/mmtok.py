"""MMTok: coverage of the question's words and of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.selection.arguments import check_rows
from zooprune.selection.facility import greedy_coverage
from zooprune.tokens import VisualTokens


@dataclass(frozen=True)
class MMTok(Pruner):
    """Keep tokens that cover both the words of the question and the other tokens of the image.

    The similarity of a word to the tokens is a softmax over the tokens of their cosines, divided by a temperature, and
    so is that of each token of the image. The coverage of a word or a token is its largest similarity to a kept token.
    Each step picks the token that raises T + alpha V most, where T is the mean coverage of the words and V that of the
    tokens. Words are compared with embeddings, tokens with each other by their features in front of the projector.

    Source: "MMTok: Multimodal Coverage Maximization for Efficient Inference of VLMs", arXiv 2508.18264, ICLR 2026,
    Section 3; temperatures and weight as in the released code. Words are embeddings from the language model's own
    table, as in the released code, which loads CLIP's text tower but does not use it. There the text is the question
    only, for LLaVA without stop words; here it is the whole prompt, the template included. The released code also
    leaves out patches of padding; here they count like others. A prompt without text leaves the coverage of the image.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    text_temperature : float
        The temperature of the similarities to words: 0.02 for LLaVA, 0.01 for Qwen2.5-VL.
    image_temperature : float
        The temperature of the similarities among tokens.
    image : float
        The weight of the coverage of the image, alpha in the paper.

    Notes
    -----
        next = argmax_i mean_q max(0, P_iq − c_q) + image · mean_j max(0, V_ij − c_j)
        P_iq = softmax_i(cos(z_i, t_q) / text_temperature)
        V_ij = softmax_i(cos(x_i, x_j) / image_temperature)

        x_i, z_i: token i before and after the projector; t_q: embedding of text token q
        c_q, c_j: largest P or V of a kept token for text token q or token j; 0 at first
    """

    name: ClassVar[str] = "mmtok"
    source: ClassVar[str] = "MMTok, arXiv 2508.18264"
    needs: ClassVar[tuple[str, ...]] = ("question",)
    scores_label: ClassVar[str] = "similarity to the text"
    query_aware: ClassVar[bool] = True

    text_temperature: float = 0.02
    image_temperature: float = 0.2
    image: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("text_temperature", "image_temperature", "image"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, not {type(value).__name__}")
        for name, published in (("text_temperature", "0.02 or 0.01"), ("image_temperature", "0.2")):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{name}={getattr(self, name)} must be positive and finite; the paper uses {published}"
                )
        if not 0 <= self.image < float("inf"):
            raise ValueError(f"image={self.image} must be finite and not negative; the paper uses 0.5")

    @exact_float32()
    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the mean similarity of each token to the words, zeros for a prompt without text."""
        shares, counts = self._of_words(tokens)
        return shares @ counts

    @exact_float32()
    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Pick greedily by the coverage of words and tokens."""
        check_rows(tokens.features, keep)
        unit = F.normalize(tokens.features.float(), dim=-1)
        of_words, words = self._of_words(tokens)
        of_tokens, others = _softmax(unit @ unit.T, self.image_temperature)
        return greedy_coverage(
            torch.cat([of_words, of_tokens], dim=1), keep, weights=torch.cat([words, self.image * others])
        )

    def _of_words(self, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        check_rows(tokens.embeddings, 1)
        unit = F.normalize(tokens.embeddings.float(), dim=-1)
        words = F.normalize(tokens.context["question"].float(), dim=-1)
        return _softmax(unit @ words.T, self.text_temperature)


def _softmax(cosines: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the mean softmax over tokens in two factors: numbers up to 1, (N, M), and a weight per column, (M,).

    Their product, summed over columns, is the mean of the softmaxes. It is not worked out, because the greedy choice
    takes small similarities for errors of rounding, and shares of thousands of tokens are small.
    """
    shares = ((cosines - cosines.amax(0)) / temperature).exp()
    return shares, 1 / (shares.sum(0) * cosines.shape[1])
