"""Questions about images: the bundled ones, and a user's own from whatever file they are in."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from zooprune.data.images import decode_image, load_image

#: The name of the questions that come with the package.
BUNDLED = "bundled"
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".ppm", ".avif", ".jp2"})

LoadImage = Callable[[], Image.Image]


@dataclass(frozen=True)
class Region:
    """A place in an image that is needed for the answer.

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
        What is asked for, such as "count"; "questions" for a user's own.
    images : tuple of callables
        Each returns an RGB image; they are called when the question's turn comes.
    question : str
    answers : tuple of str
        Any of them is right; empty where the answer is not known.
    evidence : tuple of Region
        What has to be seen to answer.
    """

    id: str
    task: str
    images: tuple[LoadImage, ...]
    question: str
    answers: tuple[str, ...] = ()
    evidence: tuple[Region, ...] = ()


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
    from zooprune.bundled.benchmark import KINDS, load_benchmark, scene_image
    from zooprune.bundled.layout import SIDE

    _check_tasks(tasks, KINDS)
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
) -> list[Example]:
    """Load questions.

    Parameters
    ----------
    source : str or Path
        "bundled"; a ``.jsonl`` or ``.parquet`` file or a data set of Hugging Face datasets, a name on the hub or a
        folder, downloaded or written by ``save_to_disk``, with rows of `image` or `images`, `question` and, if known,
        `answers`; or a folder of images. ``name:split`` says which split of a data set. Images are paths, relative to
        the file, or encoded images (``{"bytes": ..., "path": ...}``).
    question : str, optional
        What to ask about every image of a folder.
    tasks : sequence of str, optional
        Only these tasks.
    limit : int, optional
        Only that many, the first ones.

    Raises
    ------
    ValueError
        If the source is not there, holds no question, or a row lacks something; the message names file and row.
    ImportError
        If a package that reads it is missing; ``zooprune[data]`` brings them.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} leaves no question; give at least 1")
    if str(source) == BUNDLED:
        return bundled_examples(tasks, limit)
    path = Path(source)
    images_only = path.is_dir() and not _is_dataset(path)
    if images_only != (question is not None):
        raise ValueError(
            f"{source} is a folder of images; say what to ask about them with --question"
            if images_only
            else f"{source} brings its own questions; leave out --question"
        )
    if images_only:
        found = _image_folder(path, str(question))
    else:
        found = (_example(row, where, folder) for row, where, folder in _rows(str(source), path))
    examples = []
    for example in found:
        if tasks is None or example.task in tasks:
            examples.append(example)
        if len(examples) == limit:
            break
    if not examples:
        raise ValueError(f"{source} holds no question" + (f" of the tasks {', '.join(tasks)}" if tasks else ""))
    return examples


def _check_tasks(tasks: Sequence[str] | None, known: Sequence[str]) -> None:
    unknown = [task for task in tasks or () if task not in known]
    if unknown:
        raise ValueError(f"there is no task {unknown[0]!r}; choose among {', '.join(known)}")


_Row = tuple[Any, str, Path]


def _rows(source: str, path: Path) -> Iterator[_Row]:
    """Yield rows with what to call them and the folder that their paths are relative to."""
    if path.is_file():
        if path.suffix not in (".jsonl", ".parquet"):
            raise ValueError(f"{path} is neither .jsonl nor .parquet; convert it to one of them")
        return _json_lines(path) if path.suffix == ".jsonl" else _parquet(path)
    # A hub name looks otherwise; a saved data set with its split may look like this.
    looks_local = path.suffix in (".jsonl", ".parquet", ".json", ".csv") or path.is_absolute() or source.startswith(".")
    saved = source if path.exists() else source.rpartition(":")[0]
    if looks_local and not (saved and Path(saved).is_dir()):
        raise ValueError(f"{source} does not exist; check the path")
    return _dataset(source)


def _json_lines(path: Path) -> Iterator[_Row]:
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{path}, row {number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{where}: not JSON ({error.msg}); write one object on every line") from None
                yield row, where, path.parent
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8") from None


def _parquet(path: Path) -> Iterator[_Row]:
    parquet = _package("pyarrow.parquet")
    try:
        batches = parquet.ParquetFile(path).iter_batches(batch_size=64)
        number = 0
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield row, f"{path}, row {number}", path.parent
    except (OSError, _package("pyarrow").ArrowInvalid) as error:
        raise ValueError(f"{path} is not a Parquet file that can be read ({str(error).splitlines()[0]})") from None


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
        # Whatever the hub, the disk or the data set's author got wrong, it is no question set.
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
    return ((row, f"{source}, row {number}", folder) for number, row in enumerate(loaded, 1))


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(
            f"{name.partition('.')[0]} is needed to read this data; run: pip install 'zooprune[data]'"
        ) from None


def _image_folder(path: Path, question: str) -> Iterator[Example]:
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not question.strip():
        raise ValueError("the question is empty; ask something about the images")
    return (Example(file.name, "questions", (partial(load_image, file),), question) for file in files)


def _example(row: Any, where: str, folder: Path) -> Example:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: expected an object with image, question and answers, got {type(row).__name__}")
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: no question; give it as text")
    one, several = row.get("image"), row.get("images")
    if (one is None) == (several is None):
        raise ValueError(f"{where}: give either image or images")
    pictures = [one] if several is None else several
    if not isinstance(pictures, Sequence) or isinstance(pictures, (str, bytes)) or not pictures:
        raise ValueError(f"{where}: images must be a list of at least one image")
    answers = row.get("answers")
    answers = [] if answers is None else [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, Sequence) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{where}: answers must be text or a list of texts; put numbers in quotes")
    number = where.rpartition(" ")[2]
    return Example(number, "questions", tuple(_image(one, where, folder) for one in pictures), question, tuple(answers))


def _image(given: Any, where: str, folder: Path) -> LoadImage:
    if isinstance(given, Mapping) and isinstance(given.get("bytes"), bytes):
        return partial(decode_image, given["bytes"], f"the image of {where}")
    path = given.get("path") if isinstance(given, Mapping) else given
    if not isinstance(path, str) or not path:
        raise ValueError(f"{where}: an image must be a path or the bytes of an image file")
    if not (folder / path).is_file():
        raise ValueError(f"{where}: the image {path} does not exist; give paths relative to {folder}")
    return partial(load_image, folder / path)
