"""Training examples: scenes with what every patch shows, and several questions each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from layouts import PATCH, Split, draw_layout
from photographs import photograph
from questions import SINGLE_KINDS, Question, ask_about, ask_about_pair
from vocabulary import NAMES, sign_pieces
from zooprune.bundled.benchmark import KINDS
from zooprune.bundled.layout import SIDE, Layout
from zooprune.bundled.scenes import render
from zooprune.bundled.vocabulary import COLOURS

#: Stands for "no place" where a coordinate would be.
NOWHERE = -1.0
#: Tokens of a question with its answer, padded.
BLOCK = 17
IGNORED = -100


@dataclass(frozen=True)
class PatchLabels:
    """What each patch shows, as (grid, grid) arrays.

    `name` is the vocabulary entry for it, `colour` and `order` (place of a character in its word) count from 1 with
    0 for none, and `centre` marks one patch of each thing. `offset`, (grid, grid, 2), is how many patches down and
    across the middle of the thing lies, and `share` the part of the thing that one patch shows, 0 where there is none.
    """

    name: np.ndarray
    colour: np.ndarray
    order: np.ndarray
    centre: np.ndarray
    offset: np.ndarray
    share: np.ndarray


def label_patches(layout: Layout, ids: dict[str, int]) -> PatchLabels:
    """Return what each patch of a scene shows."""
    grid = layout.side // PATCH
    name = np.full((grid, grid), ids["nothing"])
    colour, order, centre = (np.zeros((grid, grid), dtype=np.int64) for _ in range(3))
    offset = np.zeros((grid, grid, 2), dtype=np.float32)
    share = np.zeros((grid, grid), dtype=np.float32)
    places = np.stack(np.mgrid[:grid, :grid], axis=-1) + 0.5

    def patches(box: tuple[int, int, int, int]) -> tuple[slice, slice]:
        # The patches whose middle lies inside the box.
        left, top, right, bottom = (round(edge / PATCH) for edge in box)
        return slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))

    for thing in layout.things:
        area = patches(thing.box)
        name[area] = ids[thing.text] if thing.name == "digit" else ids[thing.name]
        offset[area] = np.array(thing.centre[::-1]) / PATCH - places[area]
        share[area] = 1 / share[area].size
        if thing.colour:
            colour[area] = 1 + COLOURS.index(thing.colour)
        if thing.glyphs:
            for place, (piece, glyph) in enumerate(zip(sign_pieces(thing.text), thing.glyphs, strict=True)):
                area = patches(glyph)
                name[area] = ids[piece]
                order[area] = 1 + place
        column, row = (min(int(value / PATCH), grid - 1) for value in thing.centre)
        centre[row, column] = 1
    return PatchLabels(name, colour, order, centre, offset, share)


# Each process of a `DataLoader` has this cache for itself: what belongs to an object would have to be pickled.
@lru_cache(maxsize=4)
def _layout(seed: int, *, split: Split, side: int, reading: int, counting: int) -> Layout:
    """Return scene `seed`; two that follow each other are of one sort, or there would be little to ask about both."""
    pair = seed // 2
    if reading and pair % reading == 0:
        return draw_layout(seed, split, side, "texts")
    if counting and pair % counting == 0:
        return draw_layout(seed, split, side, "counts")
    return draw_layout(seed, split, side)


class Examples(Dataset):
    """Example `i` is scene `first + i` of a split.

    Every `reading`-th pair of scenes shows little but signs and labels, and every `counting`-th several copies of
    several things; 0 is none. So many `questions` come with each, one of every kind and then of those in `focus`; and
    every even scene brings as many of `pair_questions` about itself and the next.
    """

    def __init__(
        self,
        tokenizer,
        split: Split,
        *,
        side: int,
        first: int,
        count: int,
        reading: int,
        counting: int,
        questions: int,
        pair_questions: int,
        focus: tuple[str, ...] = SINGLE_KINDS,
    ) -> None:
        self.tokenizer = tokenizer
        self.layout = partial(_layout, split=split, side=side, reading=reading, counting=counting)
        self.questions, self.pair_questions = questions, pair_questions
        self.focus = [SINGLE_KINDS.index(kind) for kind in focus]
        self.first, self.count = first, count
        self.ids = tokenizer.get_vocab()
        self.cue = tokenizer("ASSISTANT:", add_special_tokens=False).input_ids

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        seed = self.first + index
        layout = self.layout(seed)
        labels = label_patches(layout, self.ids)
        present = np.zeros(len(NAMES), dtype=np.float32)
        present[[NAMES.index(thing.name) for thing in layout.things if thing.name in NAMES]] = 1
        example = {
            "pixels": torch.from_numpy(np.asarray(render(layout, photograph)).copy()),
            "origin": torch.tensor([layout.origin[1] // PATCH, layout.origin[0] // PATCH]),
            "name": torch.from_numpy(labels.name.reshape(-1)),
            "colour": torch.from_numpy(labels.colour.reshape(-1)),
            "order": torch.from_numpy(labels.order.reshape(-1)),
            "centre": torch.from_numpy(labels.centre.reshape(-1)),
            "offset": torch.from_numpy(labels.offset.reshape(-1, 2)),
            "share": torch.from_numpy(labels.share.reshape(-1)),
            "present": torch.from_numpy(present),
        }
        if self.questions:
            example |= self._asked((layout,), self._about_one(layout, np.random.default_rng([seed, 7])))
        if self.pair_questions:
            pair = (self.layout(seed - seed % 2), self.layout(seed - seed % 2 + 1))
            asked = self._asked(pair, self._about_two(pair, np.random.default_rng([seed, 8])))
            example |= {f"pair_{key}": value for key, value in asked.items()}
        return example

    def _about_one(self, layout: Layout, rng: np.random.Generator) -> list[Question]:
        kinds = [*rng.permutation(len(SINGLE_KINDS)), *rng.choice(self.focus, size=2 * self.questions)]
        drawn = (ask_about(layout, SINGLE_KINDS[kind], rng) for kind in kinds)
        return [question for question in drawn if question is not None][: self.questions]

    def _about_two(self, pair: tuple[Layout, Layout], rng: np.random.Generator) -> list[Question]:
        drawn = (ask_about_pair(pair, rng) for _ in range(self.pair_questions))
        return [question for question in drawn if question is not None]

    def _asked(self, layouts: tuple[Layout, ...], questions: list[Question]) -> dict[str, Tensor]:
        """Return token ids, targets, where the thing a token names lies, and the kinds.

        Where is the number of the image, the row and the column (0 to 1).
        """
        counts = Counter(thing.name for layout in layouts for thing in layout.things)
        places = {
            self.ids[thing.name]: [image, *((thing.centre[axis] + layout.origin[axis]) / SIDE for axis in (1, 0))]
            for image, layout in enumerate(layouts)
            for thing in layout.things
            if counts[thing.name] == 1
        }
        count = self.questions if len(layouts) == 1 else self.pair_questions
        tokens = torch.full((count, BLOCK), self.tokenizer.pad_token_id)
        targets = torch.full((count, BLOCK), IGNORED)
        where = torch.full((count, BLOCK, 3), NOWHERE)
        kinds = torch.full((count,), -1)
        for row, question in enumerate(questions):
            prompt = self.tokenizer(question.text, add_special_tokens=False).input_ids + self.cue
            spelt = question.kind in ("sign", "print")
            pieces = sign_pieces(question.answer) if spelt else [question.answer]
            answer = [self.ids[piece] for piece in pieces] + [self.tokenizer.eos_token_id]
            full = prompt + answer
            tokens[row, : len(full)] = torch.tensor(full)
            # The token at a place is asked to predict the next one.
            targets[row, len(prompt) - 1 : len(full) - 1] = torch.tensor(answer)
            for place, token in enumerate(prompt):
                if token in places:
                    where[row, place] = torch.tensor(places[token])
            kinds[row] = KINDS.index(question.kind)
        return {"tokens": tokens, "targets": targets, "where": where, "kinds": kinds}
