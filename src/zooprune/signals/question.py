"""The text of a prompt, as the language model reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from zooprune.signals.base import PromptSignal


@dataclass(frozen=True)
class Question(PromptSignal):
    """The embeddings of a prompt's text, from the language model's own table: (T, d_text).

    All text counts, the template's words included; a prompt without text gives no rows.
    """

    kind: ClassVar[str] = "question"

    def of(self, model: Any, text_ids: Tensor) -> Tensor:
        """Return the rows of the table."""
        table = model.get_input_embeddings()
        with torch.no_grad():
            rows: Tensor = table(text_ids)
        return rows.detach()
