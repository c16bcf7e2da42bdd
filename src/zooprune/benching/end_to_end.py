"""How near a pruned request comes to one whose tokens were chosen at no cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from zooprune.benching.measuring import time_in_turn
from zooprune.benching.paper import AsPublished
from zooprune.benching.shapes import shape_of
from zooprune.costs import generation_flops
from zooprune.families import find_family
from zooprune.generation import Session, prune
from zooprune.policy import Policy
from zooprune.pruners import Pruner, ZooPrune, get_pruner
from zooprune.reports import Report
from zooprune.sensitivity.weight_cache import hold
from zooprune.tokens import Budget, Selection, VisualTokens
from zooprune.visuals import Encoded


@dataclass(frozen=True)
class FirstTokens(Pruner):
    """Keep the first tokens: a choice that costs nothing."""

    name: ClassVar[str] = "first"
    source: ClassVar[str] = "none"

    def select(self, tokens: VisualTokens, keep: int) -> Selection:
        """Return the first tokens."""
        return Selection(torch.arange(keep), len(tokens))


def rows(
    shape: str,
    *,
    budgets: tuple[int | float, ...] | None = None,
    new_tokens: tuple[int, ...] = (1, 16),
    repeats: int = 5,
    device: str = "cpu",
    published: bool = True,
    methods: tuple[str, ...] = (),
    batch: int = 1,
) -> list[dict[str, Any]]:
    """Compare requests with one image a prompt, from pixels to the last new token, in bfloat16.

    Parameters
    ----------
    shape : str
        A name of `zooprune.benching.shapes.SHAPES`.
    budgets : tuple of int or float, optional
        Those of the shape when left out.
    new_tokens : tuple of int
        Answer lengths; 1 is the prefill alone.
    repeats : int
    device : str
    published : bool
        Whether the method as published runs too.
    methods : tuple of str
        Names of other methods that run too, discarding what they drop.
    batch : int
        Prompts of a request.

    Returns
    -------
    list of dict
        The rows of `time_in_turn`, whose operations are those of the language model, with `stages`: the seconds of each
        stage in one more request with pruning.
    """
    known = shape_of(shape)
    model: Any = known.model(device=device)
    inputs = known.inputs(device=device, batch=batch)
    # Every request opens a session of its own; what depends on the weights alone is worked out once all the same.
    hold(model)
    found = []
    for budget in budgets or known.budgets:
        keep = Budget(budget).count(known.tokens)
        zoo = ZooPrune(keep=keep)
        pruners: dict[str, tuple[Pruner, Policy]] = {
            "zooprune": (zoo, Policy()),
            "standing in": (zoo, Policy(dropped="stand in")),
        }
        if published:
            pruners["as published"] = AsPublished(keep=keep), Policy()
        pruners |= {name: (get_pruner(name, keep=keep), Policy()) for name in methods}
        with prune(model, FirstTokens(keep)) as session:
            limit = without_choosing(model, inputs, session.prepare(inputs))
            lengths = {"all tokens": session.reports[-1].prompt_length, "limit": session.reports[-1].pruned_length}
        for count in new_tokens:
            options = {"max_new_tokens": count, "do_sample": False}
            providers: dict[str, Callable[[], object]] = {
                "limit": partial(limit, **options),
                **{name: partial(pruned, model, inputs, *how, options) for name, how in pruners.items()},
                "all tokens": partial(model.generate, **inputs, **options),
            }
            text = model.config.get_text_config()
            flops = {
                name: batch * generation_flops(text, lengths.get(name, lengths["limit"]), count) for name in providers
            }
            # The first of them works out what depends on the weights alone.
            *_, stages = (pruned(model, inputs, *pruners["standing in"], options).seconds for _ in range(2))
            with torch.no_grad():
                found += time_in_turn(
                    providers, repeats=repeats, device=device, flops=flops, shape=shape, budget=budget, keep=keep,
                    tokens=known.tokens, batch=batch, new_tokens=count, stages=stages,
                )  # fmt: skip
    return found


def pruned(model: Any, inputs: dict[str, Any], pruner: Pruner, policy: Policy, options: dict[str, Any]) -> Report:
    """Answer one request with pruning, and return what became of it."""
    with Session(model, pruner, policy) as session:
        model.generate(**inputs, **options)
        return session.reports[-1]


def without_choosing(model: Any, inputs: dict[str, Any], prepared: dict[str, Any]) -> Callable[..., object]:
    """Return a request that encodes, takes the first tokens and generates from the short prompt, and nothing else.

    Parameters
    ----------
    model : PreTrainedModel
    inputs : mapping
        What the processor would give.
    prepared : mapping
        What `Session.prepare` makes of it, the short prompt being worked out beforehand.
    """
    family = find_family(model)
    pixels = {name: inputs[name] for name in family.arguments("image") if name in inputs}
    names = ["input_ids", "attention_mask"] + (["position_ids"] if prepared["position_ids"].ndim == 3 else [])
    prompt = {name: prepared[name] for name in names}
    kept = _rows(prepared["mm_encoder_outputs"]["image"])

    def request(**options: Any) -> object:
        with torch.no_grad():
            output = model.model.get_image_features(**pixels, return_dict=True)
            stays = torch.cat([torch.arange(rows) < few for rows, few in zip(_rows(output), kept, strict=True)])
            cut = Encoded([], output).keep(stays, kept)
            return model.generate(**prompt, mm_encoder_outputs={"image": cut}, **options)

    return request


def _rows(output: Any) -> list[int]:
    """Return the number of rows of each image."""
    return [len(rows.flatten(0, -2)) for rows in output.pooler_output]
