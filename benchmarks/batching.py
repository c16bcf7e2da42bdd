"""How many bundled questions a second does a batch job answer, beside `ask` in a loop?

    python benchmarks/batching.py [--questions 100] [--round 20]

All ways take turns on the same few questions, so that a machine that is busy now and then slows them alike. `ask`
answers every question with all tokens as well, after a call that warms up; a batch of 1 shows what leaving that out
gains.
"""

from __future__ import annotations

import argparse
import time
from contextlib import closing

from environment import write
from zooprune import get_pruner, load_bundled
from zooprune.asking import ask
from zooprune.batching.worker import Worker
from zooprune.data.examples import Example, bundled_examples
from zooprune.plan import Plan
from zooprune.policy import Policy

POLICY = Policy(dropped="stand in")
BATCHES = (1, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--round", type=int, default=20)
    options = parser.parse_args()
    examples = [example for example in bundled_examples() if len(example.images) == 1][: options.questions]
    model, processor = load_bundled()
    pruner = get_pruner("zoo", keep=64)

    def by_ask(asked: list[Example]) -> list[str]:
        answers = (ask(model, processor, (one.images[0](),), one.question, pruner, POLICY) for one in asked)
        return [answer.pruned.text for answer in answers]

    with closing(Worker(Plan("bundled", "zoo", 64, policy=POLICY))) as worker:

        def by_batch(asked: list[Example], size: int) -> list[str]:
            rows = {}
            for first in range(0, len(asked), size):
                rows |= worker.answer(dict(enumerate(asked[first : first + size], first)))
            return [str(rows[number].reply) for number in range(len(asked))]

        ways = {"ask": by_ask} | {f"batch {size}": lambda asked, size=size: by_batch(asked, size) for size in BATCHES}
        seconds, replies = dict.fromkeys(ways, 0.0), {name: [] for name in ways}
        for first in range(0, len(examples), options.round):
            for name, way in ways.items():
                began = time.perf_counter()
                replies[name] += way(examples[first : first + options.round])
                seconds[name] += time.perf_counter() - began
    rows = [
        {
            "way": name,
            "rows": len(examples),
            "seconds": round(taken, 2),
            "rows_per_second": round(len(examples) / taken, 3),
            "same_replies_as_ask": sum(one == other for one, other in zip(replies[name], replies["ask"], strict=True)),
        }
        for name, taken in seconds.items()
    ]
    for row in rows:
        print(row)
    print(write("batching", {"rows": rows}))


if __name__ == "__main__":
    main()
