"""How far standing in for dropped tokens can be pushed: variants of it, and of the choice, against it as it is.

    python benchmarks/standing_in.py --half first --limit 450   # every variant on one half of the scenes
    python benchmarks/standing_in.py --half second --variant "chosen by distinctiveness"  # what won, on the other half
    python benchmarks/standing_in.py --print                    # the tables of the newest files

Variants are written down here and not in the library: those that win go there. Each has ZOO-Prune's choice of tokens
and ``positions="auto"``, unless its name says otherwise, and is compared with the base on the same questions.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from environment import RESULTS, write
from tables import percent, show, span
from zooprune import load_bundled
from zooprune.averaging import averages
from zooprune.bundled.benchmark import KINDS
from zooprune.data.examples import bundled_examples
from zooprune.decoder import mass as decoder_mass
from zooprune.encoding import remembering_encodings
from zooprune.evaluation.intervals import clusters
from zooprune.evaluation.metrics import arrange, compare
from zooprune.evaluation.runner import Row, Setting, Subject
from zooprune.policy import Policy
from zooprune.pruners import UNPRUNED, Pruner, ZooPrune
from zooprune.selection import greedy_diverse, rescale
from zooprune.selection.assigning import nearest
from zooprune.selection.dpp import greedy_map
from zooprune.selection.facility import facility_location
from zooprune.selection.geometry import centred, distinctiveness
from zooprune.sensitivity.weight_cache import held
from zooprune.tokens import Selection, VisualTokens

BUDGETS = (64, 32, 16)
BASE = "as it is"


@dataclass(frozen=True)
class Weighed(Selection):
    """A selection whose kept tokens count as often as it is told."""

    counts: Tensor | None = None

    @cached_property
    def mass(self) -> Tensor:  # type: ignore[override]
        """Return the counts."""
        return super().mass if self.counts is None else self.counts

    def cpu(self) -> Selection:
        return Selection(self.index.cpu(), self.total, None, None, None if self.into is None else self.into.cpu())


Choose = Callable[[Tensor, VisualTokens, int], Tensor]
Hold = Callable[[Tensor, Tensor, VisualTokens], Selection]


@dataclass(frozen=True)
class Variant(Pruner):
    """A way of choosing and a way of holding what was not chosen."""

    name: ClassVar[str] = "variant"
    source: ClassVar[str] = "an experiment"
    needs: ClassVar[tuple[str, ...]] = ("question",)
    query_aware: ClassVar[bool] = True
    exact: ClassVar[bool] = False

    label: str = BASE

    def score(self, tokens: VisualTokens) -> Tensor:
        return remembered("score", tokens, lambda: ZooPrune().score(tokens))

    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Selection:
        pick, hold = VARIANTS[self.label]
        return hold(pick(scores, tokens, keep).sort().values, scores, tokens)


_memory: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}


def remembered(what: str, tokens: VisualTokens, make: Callable[[], Tensor]) -> Tensor:
    """Return what is the same for all variants of an image; with it stays the tensor whose id is the key."""
    key = what, id(tokens.embeddings)
    if key not in _memory:
        _memory[key] = tokens.embeddings, make()
    return _memory[key][1]


# Choosing. Each returns the tokens picked, in any order.


def zoo(scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
    order = remembered("order", tokens, lambda: greedy_diverse(tokens.embeddings, scores, 3 * max(BUDGETS)))
    return order[:keep]


def diversity(scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
    return greedy_diverse(tokens.embeddings, torch.ones_like(scores), keep)


def by_norm(scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
    return greedy_diverse(tokens.embeddings, tokens.embeddings.float().norm(dim=-1), keep)


def by_root(scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
    return greedy_diverse(tokens.embeddings, rescale(scores).sqrt(), keep)


def without_mean(scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
    return greedy_diverse(centred(tokens.embeddings), scores, keep)


def distinct(scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
    return greedy_diverse(tokens.embeddings, rescale(scores) * distinctiveness(tokens.embeddings), keep)


def distinct_alone(scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
    return greedy_diverse(tokens.embeddings, distinctiveness(tokens.embeddings), keep)


def cen_prune(scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
    worth = rescale(scores) * distinctiveness(tokens.embeddings)
    return greedy_diverse(centred(tokens.embeddings), worth, keep)


def by_volume(scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
    unit = F.normalize(tokens.embeddings.float(), dim=-1) * rescale(scores).clamp_min(1e-3)[:, None]
    return greedy_map(unit @ unit.T, keep)


def by_coverage(scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
    return facility_location(tokens.embeddings, keep)


def by_distance(weight: Callable[[Tensor, VisualTokens], Tensor]) -> Choose:
    """Farthest by Euclidean distance, which also is what tokens are assigned by."""

    def pick(scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        wide, worth = tokens.embeddings.float(), weight(scores, tokens)
        least = torch.full_like(worth, torch.inf)
        score, picked = worth.clone(), []
        for _ in range(keep):
            best = int(score.argmax())
            picked.append(best)
            least = torch.minimum(least, (wide - wide[best]).norm(dim=-1))
            score = (worth * least).index_fill(0, torch.tensor(picked), -1.0)
        return torch.tensor(picked)

    return pick


def mixed_halves(scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
    """Half by farthest distance, and half by what lowers the sum of distances to the nearest kept token most."""
    picked = zoo(scores, tokens, keep // 2).tolist()
    wide = tokens.embeddings.float()
    apart = torch.cdist(wide, wide).square()
    least = apart[picked].amin(0)
    while len(picked) < keep:
        gains = (least - apart).clamp_min(0).sum(-1).index_fill(0, torch.tensor(picked), -1.0)
        picked.append(int(gains.argmax()))
        least = torch.minimum(least, apart[picked[-1]])
    return torch.tensor(picked)


def refined(rounds: int) -> Choose:
    """Move each kept token to the middle of those it stands for."""

    def pick(scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        index, wide = zoo(scores, tokens, keep).sort().values, tokens.embeddings.float()
        for _ in range(rounds):
            into = nearest(wide, index)
            far = (wide - averages(wide, into, len(index))[into]).norm(dim=-1)
            places = [(into == place).nonzero()[:, 0] for place in range(len(index))]
            index = torch.stack([own[far[own].argmin()] for own in places]).sort().values
        return index

    return pick


def asked_about(share: float, others: Choose = zoo) -> Choose:
    """Protect the tokens that are nearest to a word of the question, and pick the others as another choice does."""

    def pick(scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        question = F.normalize(tokens.context["question"].float(), dim=-1)
        near = (F.normalize(tokens.embeddings.float(), dim=-1) @ question.T).amax(-1)
        protected = near.sort(descending=True, stable=True).indices[: int(share * keep)]
        order = others(scores, tokens, keep)
        rest = order[~torch.isin(order, protected)]
        return torch.cat([protected, rest[: keep - len(protected)]])

    return pick


def adaptive(quantity: str) -> Choose:
    """Fewer tokens for images that fewer tokens cover: all images stop at the same distance to what is not kept."""

    def pick(scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        order = zoo(scores, tokens, min(len(tokens), 3 * keep))
        return order[: _until(left(quantity, tokens, order), LEVELS[quantity, keep], keep)]

    return pick


def left(quantity: str, tokens: VisualTokens, order: Tensor) -> Tensor:
    """Return how far the tokens are from the nearest kept token after each pick, on average or at most."""
    unit = F.normalize(tokens.embeddings.float(), dim=-1)
    nearest_yet = (1 - unit[order] @ unit.T).cummin(0).values
    return nearest_yet.mean(-1) if quantity == "mean distance" else nearest_yet.amax(-1)


def _until(distances: Tensor, level: float, keep: int) -> int:
    """Return how many picks it takes to come below a level; from a third of the budget to three times as many."""
    return max(keep // 3, min(len(distances), int((distances > level).sum()) + 1))


#: At which distance images stop, so that they keep the budget on average; filled by `find_levels`.
LEVELS: dict[tuple[str, int], float] = {}


def find_levels(subject: Subject, examples: list[Any]) -> None:
    """Find, on some images, the distances at which the mean of the kept tokens is the budget."""
    seen: list[tuple[VisualTokens, Tensor]] = []

    @dataclass(frozen=True)
    class Looking(Variant):
        def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Selection:
            seen.append((tokens, scores))
            return Selection(torch.tensor([0]), len(tokens))

    for first in range(0, len(examples), 30):
        batch = examples[first : first + 30]
        subject.reply(batch, subject.prepare(batch), _Setting(Looking(64), "discard"))
    for keep in BUDGETS:
        orders = [zoo(scores, tokens, 3 * keep) for tokens, scores in seen]
        for quantity in ("mean distance", "greatest distance"):
            found = [left(quantity, tokens, order) for (tokens, _), order in zip(seen, orders, strict=True)]
            low, high = 0.0, 2.0
            for _ in range(40):
                level = (low + high) / 2
                mean = float(np.mean([_until(distances, level, keep) for distances in found]))
                low, high = (level, high) if mean > keep else (low, level)
            LEVELS[quantity, keep] = high


# Holding. Each returns the kept tokens, which others they hold, and what they become.


def as_it_is(index: Tensor, scores: Tensor, tokens: VisualTokens) -> Selection:
    into = nearest(tokens.embeddings, index)
    return _held(index, into, tokens)


def _held(
    index: Tensor, into: Tensor, tokens: VisualTokens, merged: Tensor | None = None, counts: Tensor | None = None
) -> Selection:
    if merged is None:
        merged = averages(tokens.embeddings, into, len(index))
    return Weighed(index, len(tokens), None, merged.to(tokens.embeddings.dtype), into, counts=counts)


def by_cosine(index: Tensor, scores: Tensor, tokens: VisualTokens) -> Selection:
    return _held(index, nearest(F.normalize(tokens.embeddings.float(), dim=-1), index), tokens)


def by_centred_cosine(index: Tensor, scores: Tensor, tokens: VisualTokens) -> Selection:
    return _held(index, nearest(F.normalize(centred(tokens.embeddings), dim=-1), index), tokens)


def by_place(weight: float) -> Hold:
    """Owners near in the image too: a step of one patch counts as `weight` of the median distance of embeddings."""

    def hold(index: Tensor, scores: Tensor, tokens: VisualTokens) -> Selection:
        wide, places = tokens.embeddings.float(), tokens.positions[:, 2:].float()
        step = weight * torch.cdist(wide[index], wide).median()
        return _held(index, nearest(torch.cat([wide, step * places], dim=-1), index), tokens)

    return hold


def weighted_means(weigh: Callable[[Tensor, VisualTokens], Tensor]) -> Hold:
    def hold(index: Tensor, scores: Tensor, tokens: VisualTokens) -> Selection:
        into, wide = nearest(tokens.embeddings, index), tokens.embeddings.float()
        weights = weigh(scores, tokens)[:, None]
        merged = averages(wide * weights, into, len(index)) / averages(weights, into, len(index)).clamp_min(1e-9)
        return _held(index, into, tokens, merged)

    return hold


def partly(share: float) -> Hold:
    """Between the kept token and the mean."""

    def hold(index: Tensor, scores: Tensor, tokens: VisualTokens) -> Selection:
        into, wide = nearest(tokens.embeddings, index), tokens.embeddings.float()
        return _held(index, into, tokens, torch.lerp(wide[index], averages(wide, into, len(index)), share))

    return hold


def as_long(index: Tensor, scores: Tensor, tokens: VisualTokens) -> Selection:
    """Means as long as what they are means of."""
    into, wide = nearest(tokens.embeddings, index), tokens.embeddings.float()
    merged = F.normalize(averages(wide, into, len(index)), dim=-1)
    return _held(index, into, tokens, merged * averages(wide.norm(dim=-1, keepdim=True), into, len(index)))


def tempered(power: float) -> Hold:
    def hold(index: Tensor, scores: Tensor, tokens: VisualTokens) -> Selection:
        into = nearest(tokens.embeddings, index)
        return _held(index, into, tokens, counts=into.bincount(minlength=len(index)).float() ** power)

    return hold


def by_logarithm(index: Tensor, scores: Tensor, tokens: VisualTokens) -> Selection:
    """As often as a kept token's group counts for a query at the mean: the log of the mean of exponentials."""
    into, wide = nearest(tokens.embeddings, index), tokens.embeddings.float()
    merged = averages(wide, into, len(index))
    spread = averages((wide - merged[into]).square().sum(-1, keepdim=True), into, len(index))[:, 0]
    scale = wide.square().sum(-1).mean()
    return _held(index, into, tokens, merged, into.bincount(minlength=len(index)) * (0.5 * spread / scale).exp())


def second_owner(heat: float) -> Hold:
    """Dropped tokens belong to the two nearest kept ones, the nearer the more."""

    def hold(index: Tensor, scores: Tensor, tokens: VisualTokens) -> Selection:
        wide = tokens.embeddings.float()
        apart = torch.cdist(wide, wide[index]).square()
        two = apart.topk(min(2, len(index)), largest=False)
        shares = torch.softmax(-two.values / (heat * apart.amin(1).mean().clamp_min(1e-9)), dim=-1)
        parts = torch.zeros_like(apart).scatter(1, two.indices, shares)
        parts[index] = torch.eye(len(index))
        counts = parts.sum(0)
        return _held(index, nearest(wide, index), tokens, (parts.T @ wide) / counts[:, None], counts)

    return hold


def moved(rounds: int) -> Hold:
    """Means that begin at the kept tokens and are then found by k-means."""

    def hold(index: Tensor, scores: Tensor, tokens: VisualTokens) -> Selection:
        wide = tokens.embeddings.float()
        centres = wide[index]
        for _ in range(rounds):
            into = torch.cdist(wide, centres).argmin(1)
            counts = into.bincount(minlength=len(index))
            centres = torch.where(counts[:, None] > 0, means_or_zero(wide, into, len(index)), centres)
        # A centre stands in the place of a token of its own, the nearest that is still free.
        far, own, free = torch.cdist(centres, wide), [], torch.ones(len(wide), dtype=torch.bool)
        for place in range(len(index)):
            best = int(far[place].masked_fill(~free, torch.inf).argmin())
            free[best] = False
            own.append(best)
        chosen, order = torch.tensor(own).sort()
        rank = order.argsort()
        into = rank[torch.cdist(wide, centres).argmin(1)]
        counts = into.bincount(minlength=len(index)).clamp_min(1)
        into[chosen] = torch.arange(len(chosen))
        return _held(chosen, into, tokens, centres[order], counts)

    return hold


def means_or_zero(rows: Tensor, into: Tensor, count: int) -> Tensor:
    places = F.one_hot(into, count).float()
    return (places.T @ rows) / places.sum(0).clamp_min(1)[:, None]


by_norms = weighted_means(lambda scores, tokens: tokens.embeddings.float().norm(dim=-1))

VARIANTS: dict[str, tuple[Choose, Hold]] = {
    BASE: (zoo, as_it_is),
    # Owners.
    "owners by cosine": (zoo, by_cosine),
    "owners by centred cosine": (zoo, by_centred_cosine),
    **{f"owners by distance and place, {weight}": (zoo, by_place(weight)) for weight in (0.02, 0.05, 0.1, 0.2)},
    **{f"a second owner, heat {heat}": (zoo, second_owner(heat)) for heat in (0.1, 0.3, 1.0)},
    # Means.
    "means weighted by norm": (zoo, by_norms),
    "means weighted by sensitivity": (zoo, weighted_means(lambda scores, tokens: scores)),
    **{f"{share:.0%} of the way to the mean": (zoo, partly(share)) for share in (0.5, 0.75)},
    "means as long as their tokens": (zoo, as_long),
    "means moved by k-means, 1 round": (zoo, moved(1)),
    "means moved by k-means, 3 rounds": (zoo, moved(3)),
    "means moved by k-means, 10 rounds": (zoo, moved(10)),
    # Mass.
    **{f"mass to the power of {power}": (zoo, tempered(power)) for power in (0.5, 0.75, 0.9, 1.1)},
    "mass and spread": (zoo, by_logarithm),
    **{f"mass in {what}": (zoo, as_it_is) for what in ("layers 1 and 2", "layers 3 and 4", "layers 2 to 4")},
    # The choice.
    "chosen by diversity": (diversity, as_it_is),
    "chosen by norm and diversity": (by_norm, as_it_is),
    "chosen by the root of sensitivity": (by_root, as_it_is),
    "chosen without the mean": (without_mean, as_it_is),
    "chosen by distinctiveness and sensitivity": (distinct, as_it_is),
    "chosen by distinctiveness": (distinct_alone, as_it_is),
    "chosen as Cen-Prune": (cen_prune, as_it_is),
    "chosen by volume": (by_volume, as_it_is),
    "chosen by coverage": (by_coverage, as_it_is),
    "chosen by distance": (by_distance(lambda scores, tokens: torch.ones_like(scores)), as_it_is),
    "chosen by distance and sensitivity": (by_distance(lambda scores, tokens: rescale(scores)), as_it_is),
    "half by diversity, half by coverage": (mixed_halves, as_it_is),
    "kept tokens moved to the middle, 1 round": (refined(1), as_it_is),
    "kept tokens moved to the middle, 3 rounds": (refined(3), as_it_is),
    **{f"{share:.0%} protected by the question": (asked_about(share), as_it_is) for share in (0.125, 0.25, 0.5)},
    # What was best of each, together.
    "distinctiveness, 12% protected": (asked_about(0.125, distinct_alone), as_it_is),
    "distinctiveness, 25% protected": (asked_about(0.25, distinct_alone), as_it_is),
    "norm, 12% protected": (asked_about(0.125, by_norm), as_it_is),
    "distinctiveness, means weighted by norm": (distinct_alone, by_norms),
    "distinctiveness, 12% protected, means weighted by norm": (asked_about(0.125, distinct_alone), by_norms),
    # Budgets.
    "adaptive budgets, mean distance": (adaptive("mean distance"), as_it_is),
    "adaptive budgets, greatest distance": (adaptive("greatest distance"), as_it_is),
}
LAYERS = {"mass in layers 1 and 2": (0, 1), "mass in layers 3 and 4": (2, 3), "mass in layers 2 to 4": (1, 2, 3)}


@dataclass(frozen=True)
class _Setting(Setting):
    """A setting with a method that is not registered."""

    variant: Variant = field(default_factory=Variant)

    def __init__(self, variant: Variant, dropped: str = "stand in") -> None:
        for name, value in (
            ("method", "variant"), ("keep", variant.keep), ("seed", None), ("options", {}),
            ("policy", Policy(dropped=dropped)), ("variant", variant),  # type: ignore[arg-type]
        ):  # fmt: skip
            object.__setattr__(self, name, value)

    @property
    def label(self) -> str:
        """What the variant is called."""
        return self.variant.label

    def pruner(self) -> Pruner:
        return self.variant


@contextmanager
def weighing_in(layers: tuple[int, ...] | None) -> Any:
    """Weigh in some layers only."""
    whole = decoder_mass._weigh

    def some(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if (
            layers is None
            or module.layer_idx in layers
            or not isinstance(kwargs.get("position_bias"), decoder_mass.Mass)
        ):
            return whole(module, args, kwargs)
        return args, {key: value for key, value in kwargs.items() if key != "position_bias"}

    decoder_mass._weigh = some
    try:
        yield
    finally:
        decoder_mass._weigh = whole


def half_of(examples: list[Any], half: str) -> list[Any]:
    group = clusters(example.scenes for example in examples).tolist()
    wanted = {"first": 0, "second": 1}[half]
    return [example for example, number in zip(examples, group, strict=True) if number % 2 == wanted]


def measure(labels: list[str], half: str, limit: int | None) -> list[Row]:
    model, processor = load_bundled()
    subject = Subject("bundled", model, processor, max_new_tokens=8)
    examples = half_of(bundled_examples(), half)
    if limit is not None:
        examples = examples[:: max(1, len(examples) // limit)]
    if any(label.startswith("adaptive") for label in labels):
        # On the other half, since a level that is fitted to these images would know them.
        find_levels(subject, half_of(bundled_examples(), "second" if half == "first" else "first")[::13])
    rows: list[Row] = []
    examples = sorted(examples, key=lambda example: len(example.images))
    began = time.time()
    with held(model):
        for first in range(0, len(examples), 45):
            batch = examples[first : first + 45]
            inputs = subject.prepare(batch)
            with remembering_encodings():
                for keep in BUDGETS:
                    for label in labels:
                        with weighing_in(LAYERS.get(label)):
                            rows += subject.reply(batch, inputs, _Setting(Variant(keep, label)))
            _memory.clear()
            done = first + len(batch)
            print(f"{done} of {len(examples)} questions, {time.time() - began:.0f} s", flush=True)
    return rows


def figures(rows: list[Row]) -> list[dict[str, Any]]:
    # `arrange` wants an unpruned model, which nothing here is compared with.
    first = [row for row in rows if (row["method"], row["keep"]) == (BASE, BUDGETS[0])]
    answers = arrange([*rows, *(row | {"method": UNPRUNED, "keep": None} for row in first)])
    found = []
    for label in dict.fromkeys(row["method"] for row in rows):
        for keep in BUDGETS:
            own = [row for row in rows if (row["method"], row["keep"]) == (label, keep)]
            gap = compare(answers, (label, keep), (BASE, keep)) if label != BASE else None
            found.append(
                {"variant": label, "keep": keep, "questions": len(own)}
                | {"accuracy": share_right(own)}
                | {"kept": float(np.mean([row["kept_tokens"] for row in own]))}
                | {"tasks": {kind: share_right(row for row in own if row["task"] == kind) for kind in KINDS}}
                | ({} if gap is None else {key: gap[key] for key in ("difference", "interval", "p")})
            )  # fmt: skip
    return found


def share_right(rows: Iterable[Row]) -> float:
    return float(np.mean([row["right"] for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("first", "second"), default="first")
    parser.add_argument("--variant", nargs="*", choices=VARIANTS, help="all of them when left out")
    parser.add_argument("--limit", type=int, help="about so many questions")
    parser.add_argument("--name", help="of the result file; the half when left out")
    parser.add_argument("--print", action="store_true", help="print what was found before, and measure nothing")
    arguments = parser.parse_args()
    if not arguments.print:
        labels = [BASE, *(label for label in arguments.variant or VARIANTS if label != BASE)]
        rows = measure(labels, arguments.half, arguments.limit)
        name = f"standing_in-{arguments.name or arguments.half}"
        print(write(name, {"half": arguments.half, "rows": figures(rows)}))
    for path in sorted(RESULTS.glob("standing_in-*.json")):
        found = json.loads(path.read_text())
        _print(found["half"], found["rows"])


def _print(half: str, rows: list[dict[str, Any]]) -> None:
    print(f"**{half} half, {rows[0]['questions']:,} questions**\n")
    by_label: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        by_label.setdefault(row["variant"], {})[row["keep"]] = row

    def told(row: Mapping[str, Any]) -> str:
        if "difference" not in row:
            return percent(row["accuracy"])
        return f"{percent(row['difference'], '+')} ({span(row['interval'], '+')})"

    show(
        ("variant", *map(str, BUDGETS)),
        ((label, *(told(own[keep]) for keep in BUDGETS)) for label, own in by_label.items()),
    )


if __name__ == "__main__":
    main()
