"""Spend an image's budget: on the image as a whole or on each tile, and on the separators between its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from zooprune.families.base import Visual
from zooprune.pruners import Pruner
from zooprune.tokens import Budget, Selection, VisualTokens

Scope = Literal["image", "tile", "prompt"]
Newlines = Literal["drop", "keep", "rows"]

_Select = Callable[[VisualTokens, int], Selection]


def spend(pruner: Pruner, visual: Visual, *, scope: Scope, newlines: Newlines) -> tuple[Selection, Tensor]:
    """Choose what stays of one image.

    Parameters
    ----------
    pruner : Pruner
    visual : Visual
    scope : {"image", "tile", "prompt"}
        "tile" gives every tile or frame an equal part of the budget, the remainder to the first ones, and what a small
        tile cannot use to the others. The other two choose among all tokens at once.
    newlines : {"drop", "keep", "rows"}
        Whether separators are dropped, kept, or kept where their row still has a token. They count inside the budget,
        which is met exactly; where tokens and these separators leave a rest, further separators fill it.

    Returns
    -------
    selection : Selection
        Among the tokens.
    kept : Tensor of bool, (visual.length,)
        Among all slots, separators included; on the CPU.
    """
    select = _by_tile(pruner) if scope == "tile" else _at_once(pruner)
    total, tokens = visual.length, visual.tokens
    budget = Budget(pruner.keep).count(total)
    kept = torch.zeros(total, dtype=torch.bool)
    if budget == total or total == len(tokens) or newlines == "drop":
        selection = select(tokens, min(budget, len(tokens)))
    elif newlines == "keep":
        selection = select(tokens, min(max(1, budget - (total - len(tokens))), len(tokens)))
    else:
        selection = _with_rows(select, visual, budget)
    kept[visual.places[selection.index.cpu()]] = True
    if newlines == "rows":
        # A budget of one has room for a token, but not for its separator.
        kept[_rows_of(visual, selection)[: budget - len(selection)]] = True
    rest = budget - int(kept.sum())
    if rest > 0:
        separators = torch.ones_like(kept)
        separators[visual.places] = False
        kept[(separators & ~kept).nonzero()[:rest, 0]] = True
    return selection, kept


def _at_once(pruner: Pruner) -> _Select:
    return lambda tokens, keep: replace(pruner, keep=keep).select(tokens)


def _by_tile(pruner: Pruner) -> _Select:
    def select(tokens: VisualTokens, keep: int) -> Selection:
        _, tile = torch.unique(tokens.positions[:, :2].cpu(), dim=0, return_inverse=True)
        members = [(tile == number).nonzero()[:, 0] for number in range(int(tile.max()) + 1)]
        index, scores = [], None
        for mine, share in zip(members, deal(keep, [len(mine) for mine in members]), strict=True):
            if share == 0:
                continue
            chosen = replace(pruner, keep=share).select(tokens[mine])
            index.append(mine[chosen.index.cpu()])
            if chosen.scores is not None:
                if scores is None:
                    scores = torch.zeros(len(tokens), dtype=torch.float32, device=chosen.scores.device)
                scores[mine] = chosen.scores
        return Selection(torch.cat(index).sort().values, len(tokens), scores)

    return select


def deal(budget: int, sizes: list[int]) -> list[int]:
    """Deal a budget out evenly: the remainder goes to the first, and nobody gets more than there is of them.

    Parameters
    ----------
    budget : int
        At most the sum of `sizes`.
    sizes : list of int
    """
    shares = [0] * len(sizes)
    while budget > 0:
        open_to = [place for place, size in enumerate(sizes) if shares[place] < size]
        each, extra = divmod(budget, len(open_to))
        for number, place in enumerate(open_to):
            more = min(each + (number < extra), sizes[place] - shares[place])
            shares[place] += more
            budget -= more
    return shares


def _with_rows(select: _Select, visual: Visual, budget: int) -> Selection:
    """Find the most tokens that fit into the budget together with the separators of their rows."""
    fits, low, high = None, 1, min(budget, len(visual.tokens))
    while low <= high:
        keep = (low + high) // 2
        selection = select(visual.tokens, keep)
        if keep + len(_rows_of(visual, selection)) <= budget:
            fits, low = selection, keep + 1
        else:
            high = keep - 1
    return fits if fits is not None else select(visual.tokens, 1)


def _rows_of(visual: Visual, selection: Selection) -> Tensor:
    ends = visual.breaks[selection.index.cpu()].unique()
    return ends[ends >= 0]
