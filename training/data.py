"""Training examples: scenes with what every patch shows, and several questions each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zooprune.bundled.questions import KINDS, ask_about
from zooprune.bundled.scenes import PATCH, SIDE, Scene, Split, draw_scene
from zooprune.bundled.vocabulary import COLOURS, NAMES, sign_pieces

#: Signs in a scene that is there to teach reading.
SIGNS = 4
#: Stands for "no place" where a coordinate would be.
NOWHERE = -1.0
#: Tokens of a question with its answer, padded.
BLOCK = 17
IGNORED = -100


@dataclass(frozen=True)
class PatchLabels:
    """What each patch shows, as (grid, grid) arrays.

    `name` is the vocabulary entry for it, `colour` and `order` (place of a character in its word) count from 1 with
    0 for none, and `centre` marks one patch of each thing.
    """

    name: np.ndarray
    colour: np.ndarray
    order: np.ndarray
    centre: np.ndarray


def label_patches(scene: Scene, ids: dict[str, int]) -> PatchLabels:
    """Return what each patch of a scene shows."""
    grid = scene.image.width // PATCH
    name = np.full((grid, grid), ids["nothing"])
    colour, order, centre = (np.zeros((grid, grid), dtype=np.int64) for _ in range(3))

    def patches(box: tuple[int, int, int, int]) -> tuple[slice, slice]:
        # The patches whose middle lies inside the box.
        left, top, right, bottom = (round(edge / PATCH) for edge in box)
        return slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))

    for thing in scene.things:
        area = patches(thing.box)
        name[area] = ids[thing.text] if thing.name == "digit" else ids[thing.name]
        if thing.colour:
            colour[area] = 1 + COLOURS.index(thing.colour)
        if thing.glyphs:
            for place, (piece, glyph) in enumerate(zip(sign_pieces(thing.text), thing.glyphs, strict=True)):
                area = patches(glyph)
                name[area] = ids[piece]
                order[area] = 1 + place
        column, row = (min(int(value / PATCH), grid - 1) for value in thing.centre)
        centre[row, column] = 1
    return PatchLabels(name, colour, order, centre)


class Examples(Dataset):
    """Example `i` is scene `first + i` of a split.

    Every `reading`-th scene shows little but signs, none if it is 0. So many `questions` come with each,
    one of every kind and then of those in `focus`.
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
        questions: int,
        focus: tuple[str, ...] = KINDS,
    ) -> None:
        self.tokenizer, self.split, self.side = tokenizer, split, side
        self.reading, self.questions = reading, questions
        self.focus = [KINDS.index(kind) for kind in focus]
        self.first, self.count = first, count
        self.ids = tokenizer.get_vocab()
        self.cue = tokenizer("ASSISTANT:", add_special_tokens=False).input_ids

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        seed = self.first + index
        signs = SIGNS if self.reading and seed % self.reading == 0 else None
        scene = draw_scene(seed, self.split, self.side, signs)
        labels = label_patches(scene, self.ids)
        present = np.zeros(len(NAMES), dtype=np.float32)
        present[[NAMES.index(thing.name) for thing in scene.things]] = 1
        example = {
            "pixels": torch.from_numpy(np.asarray(scene.image).copy()),
            "origin": torch.tensor([scene.origin[1] // PATCH, scene.origin[0] // PATCH]),
            "name": torch.from_numpy(labels.name.reshape(-1)),
            "colour": torch.from_numpy(labels.colour.reshape(-1)),
            "order": torch.from_numpy(labels.order.reshape(-1)),
            "centre": torch.from_numpy(labels.centre.reshape(-1)),
            "present": torch.from_numpy(present),
        }
        return example | (self._questions(scene, np.random.default_rng([seed, 7])) if self.questions else {})

    def _questions(self, scene: Scene, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return token ids, targets, where the thing a token names lies (row and column, 0 to 1), and the kinds."""
        counts = Counter(thing.name for thing in scene.things)
        places = {
            self.ids[thing.name]: [(thing.centre[axis] + scene.origin[axis]) / SIDE for axis in (1, 0)]
            for thing in scene.things
            if counts[thing.name] == 1
        }
        count = self.questions
        tokens = torch.full((count, BLOCK), self.tokenizer.pad_token_id)
        targets = torch.full((count, BLOCK), IGNORED)
        where = torch.full((count, BLOCK, 2), NOWHERE)
        kinds = torch.full((count,), -1)
        order = [*rng.permutation(len(KINDS)), *rng.choice(self.focus, size=2 * count)]
        row = 0
        for kind in order:
            question = ask_about(scene, KINDS[kind], rng)
            if question is None:
                continue
            prompt = self.tokenizer(question.text, add_special_tokens=False).input_ids + self.cue
            pieces = sign_pieces(question.answer) if question.kind == "sign" else [question.answer]
            answer = [self.ids[piece] for piece in pieces] + [self.tokenizer.eos_token_id]
            full = prompt + answer
            tokens[row, : len(full)] = torch.tensor(full)
            # The token at a place is asked to predict the next one.
            targets[row, len(prompt) - 1 : len(full) - 1] = torch.tensor(answer)
            for place, token in enumerate(prompt):
                if token in places:
                    where[row, place] = torch.tensor(places[token])
            kinds[row] = int(kind)
            row += 1
            if row == count:
                break
        return {"tokens": tokens, "targets": targets, "where": where, "kinds": kinds}
