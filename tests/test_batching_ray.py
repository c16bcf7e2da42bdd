"""A batch job on a real Ray cluster of two nodes; run by `make test-ray`."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from test_batching import BROKEN, ROWS, checkpoint, photos, plan, read, run  # noqa: F401
from test_cli import command  # noqa: F401
from zooprune.batching import job
from zooprune.data.examples import load_examples
from zooprune.plan import Plan

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one processor core each, on this machine."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=small)
    made.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, photos, plan):  # noqa: F811
    folder = tmp_path_factory.mktemp("whole")
    run(photos, folder, plan)
    return read(folder)


def workers() -> list[int]:
    """Return the processes of actors that this cluster runs: all that descend from this process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            if title.startswith(b"ray::") and b"MapWorker" in title and os.getpid() in ancestors(folder):
                found.append(int(folder.name))
        except OSError:
            # It has ended in the meantime.
            continue
    return found


def ancestors(folder: Path) -> Iterator[int]:
    while folder.name != "0":
        parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        yield int(parent)
        folder = Path("/proc", parent)


def test_the_cluster_gives_the_rows_of_one_process(cluster, whole, photos, plan, tmp_path):  # noqa: F811
    """Two workers, one on each node; broken images fail alone; a repeated command asks nothing."""
    end = run(photos, tmp_path, plan, address=cluster.address, workers=2)
    assert (end.done, end.failed, end.asked) == (ROWS, len(BROKEN), ROWS)
    assert read(tmp_path) == whole
    again = run(photos, tmp_path, plan, address=cluster.address, workers=2)
    assert (again.done, again.failed, again.asked) == (ROWS, len(BROKEN), 0)


def test_a_job_goes_from_one_process_to_the_cluster(cluster, whole, photos, plan, tmp_path):  # noqa: F811
    def stop(progress):
        if progress.asked >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path, plan, progress=stop)
    assert len(list(tmp_path.glob("*.parquet"))) == 1
    end = run(photos, tmp_path, plan, address=cluster.address)
    assert (end.done, end.asked) == (ROWS, ROWS - 4)
    assert read(tmp_path) == whole


def test_a_worker_that_is_killed_loses_no_row(cluster, whole, photos, plan, tmp_path):  # noqa: F811
    """Its process is killed in mid-run, after the first rows have come."""
    killed = []

    def kill(progress):
        if progress.asked and not killed:
            killed.append(workers()[0])
            os.kill(killed[0], signal.SIGKILL)

    end = run(photos, tmp_path, plan, batch=1, address=cluster.address, workers=2, progress=kill)
    assert killed and (end.done, end.failed, end.asked) == (ROWS, len(BROKEN), ROWS)
    assert read(tmp_path) == whole


class Deadly:
    """An image that ends the process that loads it."""

    def __call__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_question_that_kills_its_workers_is_given_up(cluster, whole, photos, plan, tmp_path, monkeypatch):  # noqa: F811
    """The questions of its batch, and those that its workers were to be asked next, get their answers."""

    def load(*arguments, **options):
        examples = load_examples(*arguments, **options)
        examples[9] = dataclasses.replace(examples[9], images=(Deadly(),))
        return examples

    monkeypatch.setattr(job, "load_examples", load)
    end = run(photos, tmp_path, plan, address=cluster.address, workers=2)
    assert (end.done, end.failed, end.asked) == (ROWS, len(BROKEN) + 1, ROWS)
    rows = read(tmp_path)
    assert "the worker's process ended 2 times at this question" in rows[9]["error"]
    assert rows[9]["reply"] is rows[9]["kept_tokens"] is None and rows[9]["images"] == ["9.png"]
    assert rows[:9] + rows[10:] == whole[:9] + whole[10:]
    again = run(photos, tmp_path, plan, address=cluster.address, workers=2)
    assert (again.done, again.failed, again.asked) == (ROWS, len(BROKEN) + 1, 0)


def test_the_command_line_takes_the_address(cluster, whole, photos, plan, tmp_path, command):  # noqa: F811
    line = ["batch", "--input", photos, "--output", "out", "--model", plan.model, "--keep", "9", "--limit", "3"]
    line += ["--max-new-tokens", "3", "--dropped", "discard", "--address", cluster.address, "--workers", "1"]
    code, out, _ = command(*line)
    assert code == 1 and out.splitlines()[-1] == "out: 3 rows, 1 failed"
    assert read(tmp_path / "out") == whole[:3]


def test_a_gpu_that_the_cluster_lacks_is_refused(cluster, photos, plan, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="the cluster has no GPU; give --device cpu"):
        run(photos, tmp_path, plan, address=cluster.address, device="cuda")


def test_a_model_that_a_node_lacks_is_named(cluster, photos, checkpoint, tmp_path):  # noqa: F811
    """The driver looks at the configuration alone; the weights are the workers' business."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="a worker of the cluster stopped: cannot load model"):
        run(photos, tmp_path / "out", Plan(str(folder), "zoo", 9), address=cluster.address, workers=1)
