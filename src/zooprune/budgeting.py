"""Spend an image's budget: on the image as a whole or on each tile, and on the separators between its rows.

Knows methods only as something that selects a number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zooprune.policy import Policy, Scope
from zooprune.pruners.base import Pruner, Select
from zooprune.selection.merging import own_places
from zooprune.tokens import Budget, Selection, VisualTokens
from zooprune.visuals import Visual


def budgets(keep: int | float, slots: Sequence[int], scope: Scope) -> list[int]:
    """Return how many slots stay of each image of one prompt, which is known before anything is encoded.

    Parameters
    ----------
    keep : int or float
        Tokens, or a share of them; see `zooprune.tokens.Budget`.
    slots : sequence of int
        How many slots of the prompt each image fills, separators included.
    scope : {"image", "tile", "prompt"}
        With "prompt" all images share one budget, and the list has one number.
    """
    groups = [sum(slots)] if scope == "prompt" and slots else slots
    return [Budget(keep).count(total) for total in groups]


def spend(pruner: Pruner, visual: Visual, policy: Policy) -> tuple[Selection, Tensor]:
    """Choose what stays of one image.

    Parameters
    ----------
    pruner : Pruner
    visual : Visual
    policy : Policy
        With scope "tile" every tile or frame has an equal part of the budget, the remainder goes to the first ones,
        and what a small tile cannot use to the others. The other scopes choose among all tokens at once. Separators
        count inside the budget, which is met exactly: where tokens and the separators that go with them leave a rest,
        further separators fill it.

    Returns
    -------
    selection : Selection
        Among the tokens.
    kept : Tensor of bool, (visual.length,)
        Among all slots, separators included; on the CPU.

    Raises
    ------
    ValueError
        If the method chooses among other tokens than these, or another number than it is asked for.
    """
    total, tokens, newlines = visual.length, visual.tokens, policy.newlines
    select = _checked(pruner, tokens, _by_tile(pruner, tokens) if policy.scope == "tile" else pruner.selector(tokens))
    (budget,) = budgets(pruner.keep, [total], policy.scope)
    kept = torch.zeros(total, dtype=torch.bool)
    if budget == total or total == len(tokens) or newlines == "drop":
        selection = select(min(budget, len(tokens)))
    elif newlines == "keep":
        selection = select(min(max(1, budget - (total - len(tokens))), len(tokens)))
    else:
        selection = _with_rows(select, visual, budget)
    kept[visual.places[selection.index.cpu()]] = True
    if newlines == "rows":
        # A budget of one has room for a token, but not for its separator.
        kept[_rows_of(visual, selection)[: budget - len(selection)]] = True
    rest = budget - int(kept.sum())
    if rest > 0 and pruner.is_exact():
        separators = torch.ones_like(kept)
        separators[visual.places] = False
        kept[(separators & ~kept).nonzero()[:rest, 0]] = True
    return selection, kept


def _checked(pruner: Pruner, tokens: VisualTokens, select: Select) -> Select:
    def checked(keep: int) -> Selection:
        selection = select(keep)
        if selection.total != len(tokens):
            raise ValueError(
                f"{pruner} selected among {selection.total} tokens of {len(tokens)}; give Selection total=len(tokens)"
            )
        if pruner.is_exact() and len(selection) != keep:
            raise ValueError(
                f"{pruner} kept {len(selection)} tokens when asked for {keep}; declare it as exact = False"
            )
        return selection

    return checked


def _by_tile(pruner: Pruner, tokens: VisualTokens) -> Select:
    _, tile = torch.unique(tokens.positions[:, :2].cpu(), dim=0, return_inverse=True)
    members = [(tile == number).nonzero()[:, 0] for number in range(int(tile.max()) + 1)]
    selectors: dict[int, Select] = {}

    def select(keep: int) -> Selection:
        chosen = []
        for number, share in enumerate(deal(keep, [len(tile_tokens) for tile_tokens in members])):
            if share:
                if number not in selectors:
                    selectors[number] = pruner.selector(tokens[members[number]])
                chosen.append((members[number], selectors[number](share)))
        return _together(chosen, tokens)

    return select


def _together(chosen: Sequence[tuple[Tensor, Selection]], tokens: VisualTokens) -> Selection:
    """Return what was chosen among groups of tokens, given with the places of each group, as one selection."""
    unsorted = torch.cat([places[selection.index.cpu()] for places, selection in chosen])
    index, order = unsorted.sort()
    # Where each kept token, numbered group by group, stands among all.
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    total, first = len(tokens), 0
    scores, merged = None, None
    holds = any(selection.into is not None for _, selection in chosen)
    into = torch.full((total,), -1) if holds else None
    for places, selection in chosen:
        if selection.scores is not None:
            if scores is None:
                scores = torch.zeros(total, dtype=torch.float32, device=selection.scores.device)
            scores[places] = selection.scores
        if into is not None:
            # Where nothing was merged in one group, kept tokens hold themselves.
            own = own_places(selection.index.cpu(), selection.total)
            held = own if selection.into is None else selection.into.cpu()
            into[places] = torch.where(held < 0, held, rank[first + held.clamp_min(0)])
        if selection.merged is not None:
            if merged is None:
                merged = tokens.embeddings[index]
            merged[rank[first : first + len(selection)]] = selection.merged
        first += len(selection)
    return Selection(index, total, scores, merged, into)


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


def _with_rows(select: Select, visual: Visual, budget: int) -> Selection:
    """Find the most tokens that fit into the budget together with the separators of their rows."""
    fits, low, high = None, 1, min(budget, len(visual.tokens))
    while low <= high:
        keep = (low + high) // 2
        selection = select(keep)
        if keep + len(_rows_of(visual, selection)) <= budget:
            fits, low = selection, keep + 1
        else:
            high = keep - 1
    return fits if fits is not None else select(1)


def _rows_of(visual: Visual, selection: Selection) -> Tensor:
    ends = visual.breaks[selection.index.cpu()].unique()
    return ends[ends >= 0]
