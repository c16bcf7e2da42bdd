"""What the published work leaves open and the bundled benchmark can answer.

    python benchmarks/findings.py

Does sensitivity say more than the norm of the embedding? Does the closed form choose what 64 random directions choose?
Should the response be measured as the decoder reads it? Sum or product, contiguous or original positions? Every variant
answers the same questions as ZOO-Prune as it is; the differences are paired. Broken off and started again, it goes on.
Writes a row per variant and budget to ``benchmarks/results/`` and prints them as a table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from environment import write
from zooprune import ZooPrune, load_bundled, prune, sensitivity
from zooprune.data.examples import bundled_examples, fingerprint
from zooprune.evaluation.metrics import arrange, compare, summarise
from zooprune.evaluation.runner import Results, Setting, Subject, evaluate
from zooprune.policy import Policy
from zooprune.pruners.registry import register
from zooprune.tokens import VisualTokens

#: Half the smallest budget of the paper, so that what differs can show.
BUDGETS = (32,)
#: Scenes on which the choices of two estimators are compared.
SCENES = 30
#: As the paper has it, also where a prompt shows two images.
CONTIGUOUS = Policy(positions="contiguous")


@register
@dataclass(frozen=True)
class NormTimesDiversity(ZooPrune):
    """ZOO-Prune with the norm of the embedding where the sensitivity was."""

    name: ClassVar[str] = "norm"
    source: ClassVar[str] = "this benchmark"

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.embeddings.float().norm(dim=1)


@register
@dataclass(frozen=True)
class AsRead(ZooPrune):
    """ZOO-Prune with the response of the first block's keys and values where that of the embedding was."""

    name: ClassVar[str] = "as_read"
    source: ClassVar[str] = "this benchmark"

    #: Embeddings to keys and values; set when the model is loaded.
    read: ClassVar[Callable[[Tensor], Tensor]]

    def score(self, tokens: VisualTokens) -> Tensor:
        return sensitivity.jvp(
            lambda features: type(self).read(tokens.projector(features)),
            tokens.features,
            directions=self.directions,
            seed=self.seed,
        )


VARIANTS = {
    "norm of the embedding for sensitivity": {"method": "norm"},
    "sum for product": {"method": "zoo", "options": {"fusion": "sum"}},
    "original for contiguous positions": {"method": "zoo", "policy": Policy(positions="original")},
    "diversity alone": {"method": "diversity"},
    "sensitivity alone": {"method": "sensitivity"},
}
#: These run the projector many times for every image, so they are asked fewer questions.
SAMPLED = {
    "64 random directions, finite differences": {"method": "zoo", "options": {"estimator": "finite_difference"}},
    "response of the first block's keys and values": {"method": "as_read", "options": {"directions": 16}},
}


def first_block(model: Any) -> Callable[[Tensor], Tensor]:
    """Return what the first block makes of an embedding before positions come in: its keys and values."""
    block = model.model.language_model.layers[0]

    def read(embeddings: Tensor) -> Tensor:
        normed = block.input_layernorm(embeddings)
        return torch.cat([block.self_attn.k_proj(normed), block.self_attn.v_proj(normed)], dim=-1)

    return read


def varied(variant: dict[str, Any], keep: int) -> Setting:
    return Setting(keep=keep, **({"policy": CONTIGUOUS} | variant))


def overlap(subject: Subject, examples: list, variant: dict[str, Any], keep: int) -> float:
    """Return the mean share of ZOO-Prune's tokens that a variant keeps too."""
    shares = []
    for example in examples[:SCENES]:
        inputs = subject.prepare([example])
        kept = []
        for setting in (Setting("zoo", keep), varied(variant, keep)):
            with torch.no_grad(), prune(subject.model, setting.pruner()) as session:
                session.prepare(inputs)
            kept.append(session.reports[-1].images[0].selection.mask)
        shares.append(float((kept[0] & kept[1]).sum() / kept[0].sum()))
    return sum(shares) / len(shares)


def compare_with_zoo(
    subject: Subject, examples: list, variants: dict[str, dict[str, Any]], folder: Path
) -> list[dict[str, Any]]:
    """Ask the model, ZOO-Prune and its variants the same questions, and return a row per variant and budget."""
    settings = [Setting(), *(Setting("zoo", keep, policy=CONTIGUOUS) for keep in BUDGETS)]
    settings += [varied(variant, keep) for keep in BUDGETS for variant in variants.values()]
    configuration = {"questions": fingerprint(examples), "settings": [list(setting.key) for setting in settings]}
    results = Results(folder, configuration)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(folder.name, total=len(examples) * len(settings), completed=len(results.rows))
        evaluate(
            subject, examples, settings, results, batch=45, timed=0,
            progress=lambda rows: progress.advance(task, rows),
        )  # fmt: skip
    answers = arrange(results.rows)
    figures = {(one["method"], one["keep"]): one for one in summarise(answers)}
    rows = []
    for keep in BUDGETS:
        for what, variant in variants.items():
            arm, zoo = (varied(variant, keep).label, keep), (Setting("zoo", keep, policy=CONTIGUOUS).label, keep)
            gap = compare(answers, arm, zoo)
            rows.append(
                {"variant": what, "keep": keep, "questions": len(examples), "accuracy": figures[arm]["accuracy"],
                 "zoo": figures[zoo]["accuracy"], "evidence recall": figures[arm]["evidence_recall"],
                 "same tokens": overlap(subject, examples, variant, keep),
                 "tasks": {one: [figures[key]["tasks"][one]["accuracy"] for key in (zoo, arm)]
                           for one in figures[arm]["tasks"]},
                 "difference": gap["difference"], "interval": gap["interval"], "p": gap["p"]}
            )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=900, help="questions (default 900)")
    parser.add_argument("--sampled", type=int, default=225, help="questions for the slow variants (default 225)")
    parser.add_argument("--out", type=Path, default=Path("runs/findings"), help="folder of the replies")
    arguments = parser.parse_args()
    subject = Subject("bundled", *load_bundled(), max_new_tokens=8)
    AsRead.read = first_block(subject.model)
    examples = bundled_examples(limit=arguments.count)
    rows = compare_with_zoo(subject, examples, VARIANTS, arguments.out / "variants")
    rows += compare_with_zoo(subject, examples[: arguments.sampled], SAMPLED, arguments.out / "sampled")
    table = Table("variant", "tokens", "questions", "zoo %", "accuracy %", "difference", "95 %", "p", "same tokens %")
    for row in rows:
        low, high = row["interval"]
        table.add_row(
            row["variant"], str(row["keep"]), str(row["questions"]), f"{100 * row['zoo']:.1f}",
            f"{100 * row['accuracy']:.1f}", f"{100 * row['difference']:+.1f}",
            f"{100 * low:+.1f} to {100 * high:+.1f}", f"{row['p']:.3f}", f"{100 * row['same tokens']:.0f}",
        )  # fmt: skip
    Console(width=140).print(table)
    print(write("findings", {"scenes compared": SCENES, "rows": rows}))


if __name__ == "__main__":
    main()
