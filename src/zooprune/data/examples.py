"""Questions about images: the bundled ones, and a user's own from a file, a folder or a data set."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from zooprune.data.images import decode_image, image_files, load_image, refuse_address

#: The name of the questions that come with the package.
BUNDLED = "bundled"

#: The columns of a user's own data.
COLUMNS = ("image", "images", "question", "answers", "id", "task", "cluster")
#: Other names of the column "answers", as published data sets have them.
_ANSWERS = ("answer", "label")

LoadImage = Callable[[], Image.Image]


@dataclass(frozen=True)
class Region:
    """A part of an image that the answer depends on.

    Parameters
    ----------
    image : int
        Which image of the prompt, from 0.
    box : tuple of float
        Left, top, right and bottom, in shares of the width and height of the image as the model sees it.
    """

    image: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Example:
    """One question.

    Parameters
    ----------
    id : str
        Unique within its data set.
    task : str
        The kind of question, such as "count"; "questions" if a user's data does not say.
    images : tuple of callables
        Each returns an RGB image. They are called right before the question is asked.
    question : str
    answers : tuple of str
        Any of them is right; empty if the answer is not known.
    evidence : tuple of Region
        The parts of the images that the answer depends on.
    scenes : tuple of str
        The scenes that the question is about. Questions with a common scene depend on each other, which makes intervals
        wider. Empty if the question depends on no other question.
    versions : tuple of str
        One text per image that changes when the image does: a digest, or the size and the time of change of its file.
    names : tuple of str or None
        The name of each image in the data, usually its path; None if it has no name.
    """

    id: str
    task: str
    images: tuple[LoadImage, ...]
    question: str
    answers: tuple[str, ...] = ()
    evidence: tuple[Region, ...] = ()
    scenes: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    names: tuple[str | None, ...] = ()


def bundled_examples(tasks: Sequence[str] | None = None, limit: int | None = None) -> list[Example]:
    """Return the bundled benchmark's questions, the tasks in turn.

    Parameters
    ----------
    tasks : sequence of str, optional
        Only these.
    limit : int, optional
        How many at most.

    Raises
    ------
    ValueError
        If there is no such task.
    """
    from zooprune.bundled.benchmark import KINDS, checksums, load_benchmark, scene_image
    from zooprune.bundled.layout import SIDE

    _check_tasks(tasks, KINDS)
    versions = checksums()
    found = (
        Example(
            item.id,
            item.task,
            tuple(partial(scene_image, scene) for scene in item.scenes),
            item.question,
            (item.answer,),
            tuple(
                Region(image, (left / SIDE, top / SIDE, right / SIDE, bottom / SIDE))
                for image, (left, top, right, bottom) in item.evidence
            ),
            tuple(f"scene {scene}" for scene in item.scenes),
            tuple(versions[scene] for scene in item.scenes),
            tuple(f"scene {scene}" for scene in item.scenes),
        )
        for item in load_benchmark()
        if tasks is None or item.task in tasks
    )
    return list(islice(found, limit))


def load_examples(
    source: str | Path,
    *,
    question: str | None = None,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    check_images: bool = True,
    strict: bool = False,
) -> list[Example]:
    """Load questions.

    Parameters
    ----------
    source : str or Path
        Four kinds of source. "bundled": the bundled benchmark. A folder of images, all of which are asked `question`.
        A ``.jsonl`` or ``.parquet`` file. A data set of Hugging Face datasets: a name on the hub, or a folder that was
        downloaded from there or written by ``save_to_disk``; ``name:split`` chooses a split.

        A row has `image` or `images`, `question` and, if known, `answers` (also called `answer` or `label`). An image
        is a path relative to the file, or an encoded image (``{"bytes": ..., "path": ...}``). A row may also have an
        `id` (its number if left out), a `task`, and a `cluster`: rows of the same cluster depend on each other. If
        there is no `cluster`, rows with the same image do. Other columns are not read, and a warning names them.
    question : str, optional
        What to ask about every image of a folder.
    tasks : sequence of str, optional
        Only these tasks.
    limit : int, optional
        The number of questions, from the first.
    check_images : bool
        Whether a missing image file is an error now, or later, when the image is loaded.
    strict : bool
        Whether a column that is not read is an error instead of a warning.

    Raises
    ------
    ValueError
        If the source does not exist or holds no question, a row lacks something or has a misspelt column, an `id`
        occurs twice, or only some rows have `answers`, `id` or `cluster`. The message names file and row.
    ImportError
        If a package that reads the source is missing. ``zooprune[data]`` installs them.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} leaves no question; give at least 1")
    if str(source) == BUNDLED:
        return bundled_examples(tasks, limit)
    refuse_address(str(source))
    path = Path(source)
    images_only = path.is_dir() and not _is_dataset(path)
    if images_only != (question is not None):
        raise ValueError(
            f"{source} is a folder of images; say what to ask about them with --question"
            if images_only
            else f"{source} has questions of its own; leave out --question"
        )
    seen = _Seen(check_images, strict)
    found = _image_folder(path, str(question)) if images_only else _examples(_rows(str(source), path), seen)
    examples = list(islice((example for example in found if tasks is None or example.task in tasks), limit))
    if not examples:
        missing = "image file" if images_only else "question"
        raise ValueError(f"{source} holds no {missing}" + (f" of the tasks {', '.join(tasks)}" if tasks else ""))
    return examples


def fingerprint(examples: Iterable[Example]) -> str:
    """Return a digest of questions, answers and images, by which a resumed run notices a change."""
    told = [
        [example.id, example.task, example.question, example.answers, example.scenes, example.versions]
        for example in examples
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _check_tasks(tasks: Sequence[str] | None, known: Sequence[str]) -> None:
    unknown = [task for task in tasks or () if task not in known]
    if unknown:
        raise ValueError(f"there is no task {unknown[0]!r}; choose among {', '.join(known)}")


@dataclass(frozen=True)
class _Row:
    """A row, its name for messages, the folder of its paths, and a function that reads an encoded image again."""

    values: Any
    where: str
    folder: Path
    encoded: Callable[[str, int], bytes] | None = None


def _rows(source: str, path: Path) -> Iterator[_Row]:
    """Yield the rows of a file or data set."""
    if path.is_file():
        if path.suffix not in (".jsonl", ".parquet"):
            raise ValueError(f"{path} is neither .jsonl nor .parquet; convert it to one of them")
        return _json_lines(path) if path.suffix == ".jsonl" else _parquet(path)
    # Paths that look local must exist; everything else is taken for a hub name.
    looks_local = path.suffix in (".jsonl", ".parquet", ".json", ".csv") or path.is_absolute() or source.startswith(".")
    saved = source if path.exists() else source.rpartition(":")[0]
    if looks_local and not (saved and Path(saved).is_dir()):
        raise ValueError(f"{source} does not exist; check the path")
    return _dataset(source)


def _json_lines(path: Path) -> Iterator[_Row]:
    blank = None
    # Windows editors begin a file with a byte order mark, which this encoding skips.
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                where = f"{path}, row {number}"
                if not line.strip():
                    blank = blank or where
                    continue
                if blank is not None:
                    raise ValueError(f"{blank}: the row is empty; delete it, or fill in what is missing")
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{where}: not JSON ({error.msg}); write one object on every line") from None
                yield _Row(row, where, path.parent)
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8") from None


class _Parquet:
    """A Parquet file that is read forward, a few rows at a time; only the last few rows stay in memory.

    Parameters
    ----------
    path : Path
    """

    BATCH = 16

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _package("pyarrow.parquet").ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._firsts = [sum(sizes[:group]) for group in range(len(sizes))]
        self._column, self._first = "", 0
        self._batch: Any = ()
        self._batches: Iterator[Any] = iter(())

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process opens the file itself, once for all the rows that it receives.
        return _opened, (self.path, _version(self.path))

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Yield all rows."""
        for batch in self._file.iter_batches(batch_size=self.BATCH):
            yield from batch.to_pylist()

    def encoded(self, number: int, column: str, place: int) -> bytes:
        """Return the encoded image of row `number`, counted from 0; fast if rows are read in order."""
        try:
            return self._encoded(number, column, place)
        except _broken() as error:
            raise _refused(self.path, error) from None

    def _encoded(self, number: int, column: str, place: int) -> bytes:
        if column != self._column or number < self._first:
            self._start(number, column)
        while number >= self._first + len(self._batch):
            self._first += len(self._batch)
            self._batch = next(self._batches)
        value = self._batch.column(0)[number - self._first].as_py()
        found: bytes = (value[place] if isinstance(value, list) else value)["bytes"]
        return found

    def _start(self, number: int, column: str) -> None:
        group = max(group for group, first in enumerate(self._firsts) if first <= number)
        groups = range(group, len(self._firsts))
        self._column, self._first, self._batch = column, self._firsts[group], ()
        self._batches = self._file.iter_batches(batch_size=self.BATCH, row_groups=list(groups), columns=[column])


@lru_cache(maxsize=4)
def _opened(path: Path, version: str) -> _Parquet:
    """Open a file for rows that were read elsewhere; `version` distinguishes later files of the same name."""
    try:
        return _Parquet(path)
    except _broken() as error:
        raise _refused(path, error) from None


def _broken() -> tuple[type[Exception], ...]:
    return OSError, StopIteration, _package("pyarrow").ArrowInvalid


def _refused(path: Path, error: Exception) -> ValueError:
    reason = (str(error).strip() or "it ends too soon").splitlines()[0]
    return ValueError(f"{path} is not a Parquet file that can be read ({reason}); write it again")


def _parquet(path: Path) -> Iterator[_Row]:
    try:
        file = _Parquet(path)
        for number, row in enumerate(file.rows()):
            yield _Row(row, f"{path}, row {number + 1}", path.parent, partial(file.encoded, number))
    except _broken() as error:
        raise _refused(path, error) from None


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _is_dataset(path: Path) -> bool:
    # As on the hub: Parquet files, or images with a table of what belongs to each.
    return _is_saved(path) or any(path.glob("metadata.*")) or any(path.rglob("*.parquet"))


def _dataset(source: str) -> Iterator[_Row]:
    datasets = _package("datasets")
    name, _, split = (source, "", "") if Path(source).exists() else source.partition(":")
    folder = Path(name)
    try:
        loaded = datasets.load_from_disk(name) if _is_saved(folder) else datasets.load_dataset(name)
    except Exception as error:
        # The hub, the disk and the author's files fail in many ways; all of them mean that there are no questions.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot load the data set {name!r} ({reason}); check the name or path") from None
    if isinstance(loaded, dict):
        if not split and len(loaded) == 1:
            split = next(iter(loaded))
        if split not in loaded:
            raise ValueError(f"{name} has the splits {', '.join(loaded)}; give one as {name}:{next(iter(loaded))}")
        loaded = loaded[split]
    elif split:
        raise ValueError(f"{name} has no splits; leave out :{split}")
    # Images come as files, so that their size is checked before a pixel is decoded.
    for column, feature in loaded.features.items():
        if isinstance(feature, datasets.Image):
            loaded = loaded.cast_column(column, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            loaded = loaded.cast_column(column, datasets.List(datasets.Image(decode=False)))

    return (
        _Row(row, f"{source}, row {number + 1}", folder, partial(_stored, loaded, number))
        for number, row in enumerate(loaded)
    )


def _stored(loaded: Any, number: int, column: str, place: int) -> bytes:
    value = loaded[number][column]
    found: bytes = (value[place] if isinstance(value, list) else value)["bytes"]
    return found


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(
            f"{name.partition('.')[0]} is needed to read this data; run: pip install 'zooprune[data]'"
        ) from None


def _image_folder(path: Path, question: str) -> Iterator[Example]:
    files = image_files(path)
    if not question.strip():
        raise ValueError("the question is empty; ask something about the images")
    return (
        Example(
            file.name, "questions", (partial(load_image, file),), question,
            scenes=(file.name,), versions=(_version(file),), names=(file.name,),
        )
        for file in files
    )  # fmt: skip


def _version(file: Path) -> str:
    """Return a text that changes when a file does. A digest is surer, but would read all images at the start."""
    status = file.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


@dataclass
class _Seen:
    """What earlier rows had, which later rows are checked against."""

    check_images: bool
    strict: bool
    ids: dict[str, str] = field(default_factory=dict)
    #: By column: the first row, and whether that row has the column.
    given: dict[str, tuple[str, bool]] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)


def _examples(rows: Iterator[_Row], seen: _Seen) -> Iterator[Example]:
    for row in rows:
        yield _example(row, seen)


def _example(row: _Row, seen: _Seen) -> Example:
    values, where = row.values, row.where
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected an object with image, question and answers, got {type(values).__name__}")
    column = next((name for name in ("answers", *_ANSWERS) if values.get(name) is not None), "answers")
    answers = values.get(column)
    _check_columns({name: value for name, value in values.items() if name != column}, answers is not None, where, seen)
    question = values.get("question")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: no question; give it as text")
    single, several = values.get("image"), values.get("images")
    nothing = single is None and several is None
    if (nothing and seen.check_images) or (single is not None and several is not None):
        raise ValueError(f"{where}: give either image or images")
    where_shown, shown = ("image", [single]) if several is None else ("images", several)
    if not isinstance(shown, Sequence) or isinstance(shown, (str, bytes)) or not shown:
        raise ValueError(f"{where}: images must be a list of at least one image")
    pictures = [_image(each, row, where_shown, place, seen.check_images) for place, each in enumerate(shown)]
    answers = [] if answers is None else [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, Sequence) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{where}: {column} must be text or a list of texts; put numbers in quotes")
    if not all(answer.strip() for answer in answers):
        raise ValueError(f"{where}: an answer is empty; delete it, or write the right answer")
    named, cluster = _text(values, "id", where), _text(values, "cluster", where)
    for name, there in (("answers", bool(answers)), ("id", named is not None), ("cluster", cluster is not None)):
        first, before = seen.given.setdefault(name, (where, there))
        if before != there:
            has, lacks = (first, where) if before else (where, first)
            raise ValueError(f"{lacks}: no {name}, but {has} has some; give {name} in all rows or in none")
    name = where.rpartition(" ")[2] if named is None else named
    if name in seen.ids:
        raise ValueError(f"{where}: the id {name!r} is that of {seen.ids[name]} too; give every row its own")
    seen.ids[name] = where
    scenes = tuple(dict.fromkeys(each.scene for each in pictures)) if cluster is None else (f"cluster {cluster}",)
    return Example(
        name,
        _text(values, "task", where) or "questions",
        tuple(each.load for each in pictures),
        question,
        tuple(answers),
        scenes=scenes,
        versions=tuple(each.version for each in pictures),
        names=tuple(each.name for each in pictures),
    )


def _check_columns(values: Mapping[str, Any], answered: bool, where: str, seen: _Seen) -> None:
    """Refuse columns that look misspelt, and name the others that are not read: once, or as an error if strict."""
    absent = {column for column in COLUMNS if values.get(column) is None} - {"id"}
    if answered:
        absent.discard("answers")
    if not {"image", "images"} <= absent:
        absent -= {"image", "images"}
    unread = sorted(set(map(str, values)) - {*COLUMNS, *seen.ignored})
    for name in unread:
        close = difflib.get_close_matches(name.lower().strip(), sorted(absent), n=1, cutoff=0.8)
        if close:
            raise ValueError(f"{where}: there is no column {name!r}; call it {close[0]!r}, or take it out")
    if unread:
        seen.ignored.update(unread)
        what = "the column" if len(unread) == 1 else "the columns"
        message = f"{where}: not read: {what} {', '.join(unread)}; known are {', '.join((*COLUMNS, *_ANSWERS))}"
        if seen.strict:
            raise ValueError(f"{message}; take out what is not known")
        warnings.warn(message, stacklevel=2)


def _text(values: Mapping[str, Any], name: str, where: str) -> str | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise ValueError(f"{where}: {name} must be text or a whole number")
    return str(value)


class _Picture(NamedTuple):
    """A function that loads an image, its scene, a text that changes when the image does, and its name."""

    load: LoadImage
    scene: str
    version: str
    name: str | None


def _image(given: Any, row: _Row, column: str, place: int, check: bool) -> _Picture:
    try:
        return _found(given, row, column, place)
    except (ValueError, OSError) as error:
        if check:
            raise
        path = given.get("path") if isinstance(given, Mapping) else given
        name = path if isinstance(path, str) else None
        return _Picture(partial(_missing, str(error)), f"{row.where}, image {place + 1}", "missing", name)


def _missing(why: str) -> Image.Image:
    raise ValueError(why)


def _found(given: Any, row: _Row, column: str, place: int) -> _Picture:
    where = row.where
    if isinstance(given, Mapping) and isinstance(given.get("bytes"), bytes):
        assert row.encoded is not None, "only data that can be read again holds bytes"
        digest = hashlib.sha256(given["bytes"]).hexdigest()[:16]
        load = partial(_decoded, partial(row.encoded, column, place), f"the image of {where}")
        return _Picture(load, digest, digest, given.get("path"))
    path = given.get("path") if isinstance(given, Mapping) else given
    if not isinstance(path, str) or not path:
        raise ValueError(f"{where}: an image must be a path or the bytes of an image file")
    try:
        refuse_address(path)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    file = row.folder / path
    if not file.is_file():
        raise ValueError(f"{where}: the image {path} does not exist; give paths relative to {row.folder}")
    return _Picture(partial(load_image, file), str(file.resolve()), _version(file), path)


def _decoded(encoded: Callable[[], bytes], name: str) -> Image.Image:
    return decode_image(encoded(), name)
