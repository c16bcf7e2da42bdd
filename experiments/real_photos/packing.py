"""Several questions about the same images in one sequence, none of which sees another.

A sequence is the prompt up to the questions, with the images in it, and then one block after the other: a question,
the words that ask for the answer, the answer. A token sees the prompt and its own block up to itself, and positions
count on from the prompt in every block. Each block therefore gets the logits that it would get in a sequence alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
_MARK = "\ufffc"


@dataclass(frozen=True)
class Packed:
    """A batch of sequences.

    Parameters
    ----------
    ids : (sequences, length) int tensor
    positions : (sequences, length) int tensor
    blocks : (sequences, length) int tensor
        0 in the prompt, the number of the question from 1, -1 where there is padding.
    targets : (sequences, length) int tensor
        The token to come next where it belongs to an answer, `IGNORED` elsewhere.
    """

    ids: Tensor
    positions: Tensor
    blocks: Tensor
    targets: Tensor

    def mask(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return what to add to attention logits, (sequences, 1, length, length)."""
        blocks = self.blocks.to(device)
        key, query = blocks[:, None, :], blocks[:, :, None]
        before = torch.ones(key.shape[-1], key.shape[-1], dtype=torch.bool, device=key.device).tril()
        seen = before & ((key == 0) | (key == query))
        hidden = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return hidden.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


class Packer:
    """Makes sequences with a processor's own chat template and tokenizer.

    Parameters
    ----------
    processor
    patches : int
        Tokens of one image.
    """

    def __init__(self, processor: Any, patches: int) -> None:
        self.processor, self.patches = processor, patches
        self.tokenizer = processor.tokenizer
        # The same questions and answers come again and again.
        self._ids = lru_cache(maxsize=None)(self._tokenize)

    def pack(self, images: int, questions: Sequence[Sequence[tuple[str, str]]]) -> Packed:
        """Return a batch of sequences.

        Parameters
        ----------
        images : int
            How many each sequence shows.
        questions : sequence of sequences of (str, str)
            Questions and answers of each sequence.
        """
        before, after = self._around(images)
        prefix = self._ids(before)
        rows = []
        for asked in questions:
            ids, positions, blocks, targets = list(prefix), list(range(len(prefix))), [0] * len(prefix), []
            targets = [IGNORED] * len(prefix)
            for block, (question, answer) in enumerate(asked, 1):
                prompt, reply = [*self._ids(question + after)], self.answer_ids(answer)
                ids += prompt + reply
                positions += range(len(prefix), len(prefix) + len(prompt + reply))
                blocks += [block] * len(prompt + reply)
                # The token at a place is asked for the next one; the last one is asked for nothing.
                targets += [IGNORED] * (len(prompt) - 1) + reply + [IGNORED]
            rows.append((ids, positions, blocks, targets))
        fills = (self.tokenizer.pad_token_id, 0, -1, IGNORED)
        longest = max(len(row[0]) for row in rows)
        columns = [
            torch.tensor([row[field] + [fill] * (longest - len(row[field])) for row in rows])
            for field, fill in enumerate(fills)
        ]
        return Packed(*columns)

    def answer_ids(self, answer: str) -> list[int]:
        """Return the tokens of an answer and of its end; with a space in front words keep their usual tokens."""
        return [*self._ids(f" {answer}"), self.tokenizer.convert_tokens_to_ids("<|im_end|>")]

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _around(self, images: int) -> tuple[str, str]:
        """Return the prompt in front of the question, with as many image tokens as patches, and behind it."""
        content = [*[{"type": "image"}] * images, {"type": "text", "text": _MARK}]
        prompt = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        image = self.processor.image_token
        before, after = prompt.replace(image, image * self.patches).split(_MARK)
        return before, after
