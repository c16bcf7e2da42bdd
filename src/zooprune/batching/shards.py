"""The output of a batch job: a folder of Parquet files, each written when its last row is there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:
    raise ImportError("pyarrow is needed to write the answers; run: pip install 'zooprune[data]'") from None

from zooprune.batching.worker import Batch, Row
from zooprune.data.examples import Example
from zooprune.files import replacing
from zooprune.run_folder import RunFolder

_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "question": pa.string(),
        "images": pa.list_(pa.string()),
        "reply": pa.string(),
        "kept_tokens": pa.int64(),
        "total_tokens": pa.int64(),
        "error": pa.string(),
        "seconds": pa.float64(),
    }
)


class Shards(RunFolder):
    """The folder of a job: ``_run.json``, and file after file of ``part-00000.parquet``.

    Readers of Parquet folders ignore names that begin with an underscore or a dot, so the folder can be read as it is.

    File number n holds the rows from ``n * size`` on, in the order of the input. So a file that is there says that all
    of its rows are done, and no row can be written twice.

    Parameters
    ----------
    folder : Path
        Made when it is not there. As long as this object lives, it is the only one for this folder.
    configuration : dict
        What the rows depend on, as JSON can hold it.
    rows : int
        How many there will be.
    size : int
        Rows per file.

    Attributes
    ----------
    failed : int
        Rows with an error in the files that are there.

    Raises
    ------
    ValueError
        If the folder holds something else, or a job of another configuration, other versions or another commit, a
        file is damaged, or another job writes to it.
    """

    def __init__(self, folder: Path, configuration: dict[str, Any], rows: int, size: int) -> None:
        if (folder / "run.json").exists():
            raise ValueError(
                f"{folder} holds an evaluation, or a batch job of an older version; choose another folder with --output"
            )
        super().__init__(folder, configuration, "--output", "_run.json")
        for leftover in folder.glob(".part-*.tmp"):
            # A job was killed while it wrote this.
            leftover.unlink()
        self._size = size
        self._ranges = [range(first, min(first + size, rows)) for first in range(0, rows, size)]
        self._pending: dict[int, dict[int, Row]] = defaultdict(dict)
        self._done = {shard for shard in range(len(self._ranges)) if self._path(shard).exists()}
        self.failed = sum(map(self._failed_in, self._done))

    @property
    def missing(self) -> list[range]:
        """The numbers of the rows that are still to be done, file by file."""
        return [numbers for shard, numbers in enumerate(self._ranges) if shard not in self._done]

    def add(self, rows: Mapping[int, Row]) -> None:
        """Take rows, by their number in the input; when a file's last row is there, the file is written."""
        for number, row in rows.items():
            self._pending[number // self._size][number] = row
        for shard in {number // self._size for number in rows}:
            if len(self._pending[shard]) == len(self._ranges[shard]):
                self._write(shard, self._pending.pop(shard))

    def _write(self, shard: int, rows: Mapping[int, Row]) -> None:
        table = pa.Table.from_pylist([asdict(rows[number]) for number in self._ranges[shard]], _SCHEMA)
        with replacing(self._path(shard)) as temporary:
            pq.write_table(table, temporary)
        self._done.add(shard)

    def _path(self, shard: int) -> Path:
        return self.folder / f"part-{shard:05}.parquet"

    def _failed_in(self, shard: int) -> int:
        path, expected = self._path(shard), len(self._ranges[shard])
        try:
            errors = pq.read_table(path, columns=["error"]).column("error")
        except (OSError, pa.ArrowException):
            errors = None
        if errors is None or len(errors) != expected:
            raise ValueError(f"{path} is damaged; delete it and run the same command again")
        return expected - int(errors.null_count)


def batches(examples: Sequence[Example], missing: Sequence[range], size: int) -> Iterator[Batch]:
    """Yield the questions that are still to be asked.

    A batch is the same whether a job was interrupted or not, and never has rows of two files. It has questions about
    equally many images, as far as there are, because the longest prompt of a batch sets the pace.

    Parameters
    ----------
    examples : sequence of Example
        All of them.
    missing : sequence of range
        Numbers of rows, file by file.
    size : int
        Questions at a time.
    """
    for numbers in missing:
        ordered = sorted(numbers, key=lambda number: len(examples[number].images))
        for first in range(0, len(ordered), size):
            yield {number: examples[number] for number in ordered[first : first + size]}
