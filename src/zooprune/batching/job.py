"""A batch job from input to output."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zooprune.batching.shards import Shards, batches
from zooprune.batching.worker import Batch, Row, Worker
from zooprune.data.examples import fingerprint, load_examples
from zooprune.generation import Session
from zooprune.loading import DTYPES, find_device, load_skeleton, model_version
from zooprune.plan import Plan


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Parameters
    ----------
    total : int
        Rows of the input.
    done : int
        Rows that are answered or have failed, those of earlier runs included.
    failed : int
        Rows that have failed, those of earlier runs included.
    asked : int
        Rows of this run.
    seconds : float
        How long this run has been asking.
    rate : float, optional
        Rows per second of this run, from the end of its first batch on, since that one waits for models to be loaded;
        None before.
    """

    total: int
    done: int
    failed: int
    asked: int = 0
    seconds: float = 0.0
    rate: float | None = None

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take at this rate; None while there is no rate."""
        return (self.total - self.done) / self.rate if self.rate else None


def answer_all(
    source: str | Path,
    output: str | Path,
    plan: Plan,
    *,
    question: str | None = None,
    limit: int | None = None,
    batch: int = 8,
    shard: int = 256,
    max_new_tokens: int = 64,
    dtype: str = "auto",
    device: str = "auto",
    address: str | None = None,
    workers: int | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Answer all questions of a data set and write the answers to a folder.

    Parameters
    ----------
    source : str or Path
        As in `zooprune.data.examples.load_examples`. An image that is missing or broken is an error of its row only.
    output : str or Path
        Folder for the Parquet files; see `zooprune.batching.worker.Row` for their columns. An interrupted job in it is
        resumed.
    plan : Plan
        The model and how it is pruned, such as ``Plan("bundled", "zoo", 64)``.
    question : str, optional
        What to ask about every image of a folder.
    limit : int, optional
        Only that many questions, the first ones.
    batch : int
        Questions at a time.
    shard : int
        Rows per file. A killed job repeats the rows of the files that were not complete.
    max_new_tokens : int
        Length of a reply at most.
    dtype, device : str
        As in `zooprune.loading.load_model`.
    address : str, optional
        A Ray cluster to work on: "auto", "ray://host:port", or "local" for one on this machine. Without it, the work is
        done in this process.
    workers : int, optional
        Copies of the model on the cluster; as many as it has GPUs or, without any, nodes when left out.
    progress : callable
        Told how far it is after every batch, and once before the first.

    Returns
    -------
    Progress
        At the end.

    Raises
    ------
    ValueError, TypeError
        If an option, the input, the model or the way of pruning is not valid, the folder holds another job, or the
        cluster cannot be reached.
    ImportError
        If pyarrow or ray is missing.
    """
    for name, value in {"batch": batch, "shard": shard, "max_new_tokens": max_new_tokens, "workers": workers}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} is too small; give at least 1")
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    if address is None:
        if workers is not None:
            raise ValueError("workers are for a Ray cluster; give --address too, or leave out --workers")
        find_device(device)
    else:
        from zooprune.batching import on_ray

        on_ray.check_installed()
    # Without weights it takes no time to see whether this model can be pruned like this.
    Session(load_skeleton(plan.model), plan).close()
    examples = load_examples(source, question=question, limit=limit, check_images=False)
    configuration = {
        "input": str(source),
        "questions": fingerprint(examples),
        "model": plan.model,
        "weights": model_version(plan.model),
        "method": plan.method,
        "keep": plan.keep,
        "options": plan.options,
        "policy": asdict(plan.policy),
        "batch": batch,
        "shard": shard,
        "max-new-tokens": max_new_tokens,
        "dtype": dtype,
        "device": device,
    }
    shards = Shards(Path(output), configuration, len(examples), shard)
    missing = shards.missing
    before = len(examples) - sum(map(len, missing))
    now = Progress(len(examples), before, shards.failed)
    progress(now)
    if missing:
        settings: dict[str, Any] = {"plan": plan, "max_new_tokens": max_new_tokens, "dtype": dtype, "device": device}
        asking = batches(examples, missing, batch)
        if address is None:
            answers = _here(asking, Worker(**settings))
        else:
            answers = on_ray.answers(asking, settings, address, workers)
        began, first = time.perf_counter(), None
        with closing(answers):
            for rows in answers:
                shards.add(rows)
                failed, asked = sum(row.error is not None for row in rows.values()), now.asked + len(rows)
                seconds = time.perf_counter() - began
                first = first or (asked, seconds)
                rate = (asked - first[0]) / (seconds - first[1]) if asked > first[0] else None
                now = Progress(len(examples), before + asked, now.failed + failed, asked, seconds, rate)
                progress(now)
    return now


def _here(asking: Iterable[Batch], worker: Worker) -> Generator[dict[int, Row]]:
    with closing(worker):
        for batch in asking:
            yield worker.answer(batch)
