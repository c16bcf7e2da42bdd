"""What does it cost each method to choose tokens, once an image is encoded?

    python benchmarks/choosing.py [--repeats 5] [--device cpu] [--method zoo divprune]
    python benchmarks/choosing.py --print     # the table of the newest file

Features, embeddings and attention are random, in the sizes of LLaVA-1.5-7B and LLaVA-NeXT-7B; the projector is that of
LLaVA. What a method reads of the vision tower, of the projector's first layer or of the question is given; gathering it
is not measured here.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import nn

from environment import write
from tables import newest, show
from zooprune import list_pruners
from zooprune.benching.measuring import time_in_turn
from zooprune.benching.paper import plain_loop
from zooprune.benching.table import table
from zooprune.pruners import UNPRUNED, Pruner, get_pruner
from zooprune.tokens import VisualTokens

#: Number of tokens, budget, images.
CASES = ((576, 64, 1), (576, 192, 1), (576, 64, 16), (2880, 640, 1))
FEATURES, WIDTH, KEYS, WORDS = 1024, 4096, 64, 24
#: The loop of the released DivPrune, which works out the cosines of all pairs by broadcasting.
PLAIN = "DivPrune's loop"


def image(tokens: int, needs: set[str], device: str, seed: int) -> VisualTokens:
    """Return random tokens of one image, with signals that sum to one where they are attention."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    columns = 24
    place = torch.arange(tokens)
    tile, inside = place // columns**2, place % columns**2
    positions = torch.stack([torch.zeros_like(place), tile, inside // columns, inside % columns], dim=-1)
    signals = {
        name: draw(tokens, KEYS if "keys" in name else 1).mul(2).softmax(0) for name in needs if name != "question"
    }
    context = {"question": draw(WORDS, WIDTH)} if "question" in needs else {}
    # A direction that all share, as the embeddings of one image have.
    features, embeddings = draw(tokens, FEATURES), draw(tokens, WIDTH) + draw(WIDTH)
    projector = PROJECTORS[device]
    signals["first_layer"] = projector[0](features)
    return VisualTokens(features, embeddings, projector, positions.to(device), signals, context)


PROJECTORS: dict[str, nn.Sequential] = {}


def rows(total: int, keep: int, images: int, methods: list[str], repeats: int, device: str) -> list[dict[str, Any]]:
    pruners = {name: get_pruner(name, keep=keep) for name in methods}
    needs = {need for pruner in pruners.values() for need in pruner.reads()}
    batch = [image(total, needs, device, seed) for seed in range(images)]

    def choose(pruner: Pruner) -> object:
        return [pruner.selector(tokens)(keep) for tokens in batch]

    def loop() -> object:
        return [plain_loop(tokens.embeddings, torch.ones(total, device=device), keep) for tokens in batch]

    providers = {PLAIN: loop} if total <= 576 and images == 1 else {}
    for name in methods:
        providers[name] = partial(choose, pruners[name])
    return time_in_turn(providers, repeats=repeats, device=device, tokens=total, keep=keep, images=images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--method", nargs="*", default=[name for name in list_pruners("before the language model") if name != UNPRUNED]
    )
    parser.add_argument("--print", action="store_true", help="print what was measured before, and measure nothing")
    arguments = parser.parse_args()
    if not arguments.print:
        PROJECTORS[arguments.device] = nn.Sequential(
            nn.Linear(FEATURES, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)
        ).to(arguments.device).requires_grad_(False)  # fmt: skip
        measured = []
        for case in CASES:
            measured.append(rows(*case, arguments.method, arguments.repeats, arguments.device))
            Console(width=100).print(table(measured[-1], "choosing"))
        print(write("choosing", {"rows": [row for found in measured for row in found]}))
    _print(newest("choosing")["rows"])


def _print(measured: list[dict[str, Any]]) -> None:
    found = {(row["provider"], row["tokens"], row["keep"], row["images"]): row["p50"] for row in measured}
    names = sorted({name for name, *_ in found}, key=lambda name: found.get((name, *CASES[0]), 0))
    heads = [f"{keep} of {total:,}" + (f", {images} images" if images > 1 else "") for total, keep, images in CASES]

    def told(name: str, case: tuple[int, int, int]) -> str:
        seconds = found.get((name, *case))
        return "" if seconds is None else f"{1000 * seconds:,.1f}"

    show(("method, ms", *heads), ((name, *(told(name, case) for case in CASES)) for name in names))


if __name__ == "__main__":
    main()
