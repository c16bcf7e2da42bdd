"""A pruning method of your own in twenty lines, beside ZOO-Prune on the same questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from zooprune import ZooPrune
from zooprune.answering import answer
from zooprune.data.examples import load_examples
from zooprune.evaluation.runner import Subject
from zooprune.loading import load_model
from zooprune.pruners import Pruner
from zooprune.tokens import VisualTokens

MODEL = "bundled"  # a checkpoint of your own: its folder, or its name on the hub, "llava-hf/llava-1.5-7b-hf"


@dataclass(frozen=True)
class Unlike(Pruner):
    """Keep the tokens that differ most from the mean of the image."""

    name: ClassVar[str] = "unlike"
    scores_label: ClassVar[str] = "distance to the mean"

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return one score per token; the highest are kept."""
        rows = tokens.embeddings.float()
        return (rows - rows.mean(0)).norm(dim=-1)


subject = Subject(MODEL, *load_model(MODEL))
questions = load_examples("bundled", limit=18, tasks=["place", "colour", "sign"])
inputs = subject.prepare(questions)
for pruner in (Unlike(keep=64), ZooPrune(keep=64)):
    texts = answer(subject.model, subject.processor, inputs, pruner, max_new_tokens=64).texts
    right = sum(text in question.answers for text, question in zip(texts, questions, strict=True))
    print(f"{pruner.name}: {right} of {len(questions)} right")
