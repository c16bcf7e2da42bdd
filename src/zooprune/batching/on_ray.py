"""A batch job on a Ray cluster: Ray Data deals batches out to actors that each hold the model."""

from __future__ import annotations

import json
import logging
import pickle
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from zooprune.batching.worker import Batch, Row, Worker

#: How many workers may die of a batch, and then of each of its questions.
_DEATHS = 2
_GIVEN_UP = (
    f"the worker's process ended {_DEATHS} times at this question, so it is not asked again; the machine may have too "
    "little memory for it"
)


def check_installed() -> None:
    """Raise an ImportError that says what to install where Ray is missing."""
    _import_ray()


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise ImportError("ray is needed to work on a cluster; run: pip install 'zooprune[ray]'") from None
    return ray


class _Deaths:
    """Counts how often workers died of a batch, in a process of its own that outlives them.

    A batch is known by its first number and its size.
    """

    def __init__(self) -> None:
        self._open: Counter[tuple[int, int]] = Counter()

    def begin(self, first: int, size: int) -> int:
        """Note that a worker begins a batch, and return how many have begun it and did not come to its end."""
        self._open[first, size] += 1
        return self._open[first, size] - 1

    def end(self, first: int, size: int) -> None:
        """Note that a worker came to the end of a batch."""
        self._open[first, size] -= 1


class _Actor:
    """A worker of the cluster, which takes and gives what Ray Data can hold.

    Where a worker dies, Ray starts it anew and gives it the same batch. A batch of which enough have died is asked one
    by one, and a question of which enough have died is given up.
    """

    def __init__(self, settings: Mapping[str, Any], deaths: Any) -> None:
        self._worker, self._reason, self._deaths = None, "", deaths
        try:
            self._worker = Worker(**settings)
        except (ValueError, ImportError, OSError) as error:
            # What a user can mend is a sentence. Raised here, Ray would hide it in a report about an actor that died.
            self._reason = str(error)

    def __call__(self, item: Mapping[str, Any]) -> dict[str, list[str]]:
        (sent,) = item["batch"]
        rows = {} if self._worker is None else self._answer(self._worker, pickle.loads(sent))
        told = json.dumps({number: asdict(row) for number, row in rows.items()})
        return {"rows": [told], "reason": [self._reason]}

    def _answer(self, worker: Worker, batch: Batch) -> dict[int, Row]:
        get, key = _import_ray().get, (min(batch), len(batch))
        if get(self._deaths.begin.remote(*key)) < _DEATHS:
            rows = worker.answer(batch)
            get(self._deaths.end.remote(*key))
            return rows
        if len(batch) == 1:
            ((number, example),) = batch.items()
            return {number: Row(example.id, example.question, list(example.names), None, None, None, _GIVEN_UP, None)}
        return {n: row for number in batch for n, row in self._answer(worker, {number: batch[number]}).items()}


def answers(
    asking: Iterable[Batch], settings: Mapping[str, Any], address: str, workers: int | None
) -> Generator[dict[int, Row]]:
    """Yield the rows of each batch as they come, in any order.

    A question that no worker survives is an error of its row.

    Parameters
    ----------
    asking : iterable of Batch
    settings : mapping
        Arguments of `Worker`.
    address : str
        What `ray.init` takes; a program that is connected already stays so.
    workers : int, optional
        Actors; as many as the cluster has GPUs or, without any, nodes when left out.

    Raises
    ------
    ValueError
        If there is no cluster at this address, or an actor cannot start.
    """
    ray = _import_ray()
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        device = settings["device"]
        gpus = 0 if device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
        if device.startswith("cuda") and not gpus:
            raise ValueError("the cluster has no GPU; give --device cpu")
        workers = workers or gpus or sum(node["Alive"] for node in ray.nodes())
        # A block for every batch, so that whoever is free takes the next.
        items = [{"batch": pickle.dumps(batch)} for batch in asking]
        deaths = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Deaths).remote()
        found = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Actor,
            fn_constructor_args=(settings, deaths),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(items))),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
        )
        for item in found.iter_rows():
            if item["reason"]:
                raise ValueError(f"a worker of the cluster stopped: {item['reason']}")
            yield {int(number): Row(**row) for number, row in json.loads(item["rows"]).items()}
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"cannot reach a Ray cluster at {address!r} ({reason}); start one with 'ray start --head', or give "
            "--address local"
        ) from None
