"""What share of the unpruned prefill is choosing tokens and letting them stand in for the others, at real shapes?

    python benchmarks/choosing_share.py [--shapes small llava-1.5-7b llava-next-7b qwen2.5-vl-7b] [--device cpu]
    python benchmarks/choosing_share.py --print     # the table of the newest file

Weights are random. One layer of the language model reads the whole prompt, in bfloat16, and counts as often as the
model has layers; its head and the vision tower are left out, which makes the share larger. ZOO-Prune chooses.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import torch

from environment import write
from tables import newest, show
from zooprune import ZooPrune
from zooprune.benching.measuring import time_in_turn
from zooprune.benching.shapes import SHAPES, shape_of
from zooprune.families.tiling import grid_positions
from zooprune.policy import Policy
from zooprune.sensitivity.weight_cache import unchanged
from zooprune.standing_in import stand_in
from zooprune.tokens import Budget, VisualTokens
from zooprune.visuals import Visual

LAYER, CHOOSE, STAND_IN = "a layer of the prefill", "score and pick", "assign and average"


def rows(name: str, repeats: int, device: str) -> list[dict[str, Any]]:
    shape = shape_of(name)
    layers = shape.text["num_hidden_layers"]
    single = dataclasses.replace(
        shape,
        text={**shape.text, "num_hidden_layers": 1},
        vision={**shape.vision, "depth" if "depth" in shape.vision else "num_hidden_layers": 1},
    )
    decoder: Any = single.model(device=device).get_decoder()
    generator = torch.Generator(device).manual_seed(0)

    def draw(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, device=device).to(torch.bfloat16)

    # What tokens of an image share makes their cosines large.
    width, total = shape.text["hidden_size"], shape.tokens
    features = draw(total, shape.d_vision)
    embeddings = draw(total, width) + draw(width)
    projector = shape.projector().to(device, torch.bfloat16)
    positions = grid_positions(1, total, device=torch.device(device))
    visual = Visual.plain(VisualTokens(features, embeddings, projector, positions))
    prompt, policy, found = draw(1, shape.slots + 55, width), Policy(dropped="stand in"), []
    for budget in shape.budgets:
        keep = Budget(budget).count(total)
        pruner = ZooPrune(keep)

        def choose(pruner: ZooPrune = pruner, keep: int = keep) -> Any:
            with unchanged():
                return pruner.selector(visual.tokens)(keep)

        chosen = choose()

        def layer() -> object:
            with torch.no_grad():
                return decoder(inputs_embeds=prompt, use_cache=False)

        providers = {LAYER: layer, CHOOSE: choose, STAND_IN: lambda chosen=chosen: stand_in(chosen, visual, policy)}
        found += time_in_turn(providers, repeats=repeats, device=device, shape=name, keep=keep, layers=layers)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", nargs="*", choices=SHAPES, default=["small", "llava-1.5-7b", "llava-next-7b", "qwen2.5-vl-7b"]
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--print", action="store_true", help="print what was measured before, and measure nothing")
    arguments = parser.parse_args()
    if not arguments.print:
        measured = [row for name in arguments.shapes for row in rows(name, arguments.repeats, arguments.device)]
        print(write("choosing_share", {"rows": measured}))
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in newest("choosing_share")["rows"]:
        found.setdefault((row["shape"], row["keep"]), {})[row["provider"]] = row
    lines = []
    for (name, keep), own in found.items():
        prefill = own[LAYER]["p50"] * own[LAYER]["layers"]
        parts = [own[part]["p50"] for part in (CHOOSE, STAND_IN)]
        lines.append((name, str(keep), f"{1000 * prefill:,.0f}", *(f"{1000 * part:.1f}" for part in parts),
                      f"{100 * sum(parts) / prefill:.2f} %"))  # fmt: skip
    show(("shape", "kept", "prefill, ms", "score and pick, ms", "stand in, ms", "share"), lines)


if __name__ == "__main__":
    main()
