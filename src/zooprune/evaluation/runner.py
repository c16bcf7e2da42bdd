"""Ask a model every question with every method and budget, and write each reply to disk at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zooprune.answering import Answered, answer
from zooprune.costs import kv_cache_bytes, prefill_flops
from zooprune.data.examples import Example
from zooprune.encoding import remembering_encodings
from zooprune.evaluation.evidence import kept_regions
from zooprune.evaluation.metrics import budget, is_right
from zooprune.failures import is_ours
from zooprune.policy import Policy
from zooprune.projectors import Sensitivity
from zooprune.prompting import build_inputs, check_question
from zooprune.pruners import UNPRUNED, Pruner, get_pruner
from zooprune.reports import lengths as layer_lengths
from zooprune.run_folder import RunFolder
from zooprune.sensitivity.weight_cache import held
from zooprune.signals import tower_signals

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One way of pruning.

    Parameters
    ----------
    method : str
        A name of `zooprune.list_pruners`, or "none".
    keep : int or float, optional
        Tokens per image or a share of them; None with "none".
    seed : int, optional
        For methods that draw random numbers.
    options : dict
        Further fields of the method.
    policy : Policy

    Raises
    ------
    ValueError, TypeError
        If the method does not exist or does not take these values.
    """

    method: str = UNPRUNED
    keep: int | float | None = None
    seed: int | None = None
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        self.pruner()

    def pruner(self) -> Pruner:
        """Return the configured method."""
        if self.method == UNPRUNED:
            return get_pruner(UNPRUNED)
        seed = {} if self.seed is None else {"seed": self.seed}
        if self.keep is None:
            raise ValueError(f"{self.method} needs a budget; give keep")
        return get_pruner(self.method, keep=self.keep, **self.options, **seed)

    @property
    def label(self) -> str:
        """The method's name, and those options and policies that are not the defaults."""
        unusual = self.options | self.policy.unusual
        return self.method + (f"({', '.join(f'{name}={value}' for name, value in unusual.items())})" if unusual else "")

    @property
    def key(self) -> tuple[str, str, int | None]:
        """What identifies its rows; the budget is text, because 1 == 1.0."""
        return self.label, budget(self.keep), self.seed

    @property
    def described(self) -> list[Any]:
        """Its entry in run.json."""
        return [self.label, self.keep, self.seed]


def grid(
    methods: Iterable[str],
    keeps: Sequence[int | float],
    seeds: Sequence[int] = (0,),
    policies: Sequence[Policy] = (Policy(),),
    *,
    sensitivity: Sensitivity = "closed form",
) -> list[Setting]:
    """Return the unpruned model and every method with every budget and policy; seeds only where a method draws.

    Parameters
    ----------
    methods, keeps, seeds, policies : iterables
    sensitivity : {"closed form", "sampled", "linear"}
        How the sensitivity of the model's projector is computed; its family says so.
    """
    settings = [Setting()]
    # 1 is one token and 1.0 all of them.
    different = {budget(keep): keep for keep in keeps}.values()
    for method in dict.fromkeys(methods):
        if method != UNPRUNED:
            own_seeds = tuple(dict.fromkeys(seeds)) if get_pruner(method).draws(sensitivity) else (None,)
            settings += [
                Setting(method, keep, seed, policy=policy)
                for keep in different
                for policy in dict.fromkeys(policies)
                for seed in own_seeds
            ]
    return settings


@dataclass(frozen=True)
class Subject:
    """A model that is evaluated.

    Parameters
    ----------
    name : str
        Its name in the rows.
    model, processor
        A supported vision-language model and what prepares its inputs.
    max_new_tokens : int
        Length of a reply at most.
    """

    name: str
    model: Any
    processor: Any
    max_new_tokens: int = 64

    def prepare(self, examples: Sequence[Example]) -> Any:
        """Return the model's inputs for a batch."""
        images = [[load() for load in example.images] for example in examples]
        inputs = build_inputs(self.processor, images, [example.question for example in examples])
        return inputs.to(self.model.device, self.model.dtype)

    def reply(self, examples: Sequence[Example], inputs: Any, setting: Setting) -> list[Row]:
        """Return one row per question."""
        answered = self.generate(inputs, setting)
        report = answered.report
        config = self.model.config.get_text_config()
        lengths = inputs["attention_mask"].sum(1).tolist()
        rows = []
        for number, (example, reply, length) in enumerate(zip(examples, answered.texts, lengths, strict=True)):
            images = [image for image in report.images if image.row == number]
            kept, total = report.in_row(number)
            prompt = length - (total - kept)
            read = layer_lengths(images, prompt)
            rows.append(
                {
                    "model": self.name,
                    "method": setting.label,
                    "keep": setting.keep,
                    "seed": setting.seed,
                    "id": example.id,
                    "task": example.task,
                    "scenes": list(example.scenes),
                    "question": example.question,
                    "images": list(example.names),
                    "reply": reply,
                    "answers": list(example.answers),
                    "right": is_right(reply, example.answers) if example.answers else None,
                    "visual_tokens": total,
                    # The mean over layers, if tokens are dropped inside the language model.
                    "kept_tokens": sum(image.average for image in images),
                    "prompt_tokens": prompt,
                    "flops": prefill_flops(config, read),
                    "kv_bytes": kv_cache_bytes(config, read, self.model.dtype),
                    "seconds": {},
                    "evidence": kept_regions(example.evidence, images, len(example.images)),
                }
            )
        return rows

    def time(self, example: Example, settings: Sequence[Setting]) -> list[dict[str, float]]:
        """Return the seconds per stage and in total of one question by itself, its image encoded every time."""
        inputs = self.prepare([example])
        taken = []
        for setting in settings:
            answered = self.generate(inputs, setting)
            taken.append(answered.report.seconds | {"total": answered.seconds})
        return taken

    def generate(self, inputs: Any, setting: Setting) -> Answered:
        """Return the replies, the session's report and the seconds it took."""
        return answer(
            self.model, self.processor, inputs, setting.pruner(), setting.policy, max_new_tokens=self.max_new_tokens
        )


class Results(RunFolder):
    """The folder of a run: ``run.json`` and a line per reply in ``results.jsonl``.

    Parameters
    ----------
    folder : Path
        Created if it does not exist. An interrupted run in it is resumed. No second object can be made for the folder
        while this one lives.
    configuration : dict
        What the run depends on, as values that JSON can hold.

    Raises
    ------
    ValueError
        If the folder holds a run of another configuration, other versions or another commit, a line of its results is
        damaged, or another run writes to it.
    """

    def __init__(self, folder: Path, configuration: dict[str, Any]) -> None:
        super().__init__(folder, configuration)
        self._file = folder / "results.jsonl"
        self.rows: list[Row] = self._read()
        self._done = {_key(row) for row in self.rows}

    def missing(self, model: str, setting: Setting, examples: Sequence[Example]) -> bool:
        """Return whether a row is missing for any of these questions."""
        return any((model, *setting.key, example.id) not in self._done for example in examples)

    def append(self, rows: Iterable[Row]) -> None:
        """Add the rows that are not in the file yet; they are on disk when this returns."""
        fresh = [row for row in rows if _key(row) not in self._done]
        with self._file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in fresh)
            file.flush()
            os.fsync(file.fileno())
        self.rows += fresh
        self._done.update(map(_key, fresh))

    def _read(self) -> list[Row]:
        if not self._file.exists():
            return []
        data = self._file.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            # The run was stopped while it wrote this line. Its question is asked again.
            with self._file.open("rb+") as file:
                file.truncate(whole)
        return read_rows(self._file)


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a ``results.jsonl``.

    Raises
    ------
    ValueError
        If a line is damaged.
    """
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                _key(row)
            except (json.JSONDecodeError, KeyError, TypeError):
                raise ValueError(
                    f"{path}, line {number} is damaged; delete it and run the same command again"
                ) from None
            rows.append(row)
    return rows


def _key(row: Row) -> tuple[Any, ...]:
    return row["model"], *setting_key(row), row["id"]


def setting_key(row: Row) -> tuple[str, str, int | None]:
    """Return the `Setting.key` of a row."""
    return row["method"], budget(row["keep"]), row["seed"]


def evaluate(
    subject: Subject,
    examples: Sequence[Example],
    settings: Sequence[Setting],
    results: Results,
    *,
    batch: int = 8,
    timed: int = 8,
    strict: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[str, str]:
    """Ask every question with every setting, except where the results have the row already.

    The images of a batch are encoded once for all settings. Questions are sorted by their number of images, because the
    longest prompt of a batch sets the pace. The first `timed` questions are also asked one by one, with their images
    encoded every time, after a warm-up that does not count; only their rows have `seconds`.

    A question whose image cannot be read, or is refused by the model's processor, is left out.

    Parameters
    ----------
    subject : Subject
    examples : sequence of Example
    settings : sequence of Setting
    results : Results
        Receives the rows of each batch as soon as it is answered.
    batch : int
        Questions at a time.
    timed : int
        How many questions are timed.
    strict : bool
        Whether a question that cannot be asked is an error.
    progress : callable
        Called with the number of new rows.

    Returns
    -------
    dict of str to str
        For the id of each question that was left out, the reason.

    Raises
    ------
    ValueError
        If `batch` is not positive, a question holds a mark of the model's processor, or no question can be asked.
    """
    if batch < 1:
        raise ValueError(f"batch={batch} leaves no question; give at least 1")
    for example in examples:
        # Checked now, so that the run does not stop after an hour.
        try:
            check_question(subject.processor, example.question)
        except ValueError as error:
            raise ValueError(f"question {example.id}: {error}") from None
    examples = sorted(examples, key=lambda example: len(example.images))
    asked: Sequence[Example]
    left_out: dict[str, str] = {}
    warm = False
    with held(subject.model):
        for first in range(0, len(examples), batch):
            asked = examples[first : first + batch]
            if not any(results.missing(subject.name, setting, asked) for setting in settings):
                continue
            asked, inputs, refused = _prepare(subject, asked, strict)
            left_out |= refused
            progress(len(refused) * len(settings))
            still = [setting for setting in settings if results.missing(subject.name, setting, asked)]
            seconds: dict[tuple[Any, ...], dict[str, float]] = {}
            for example in asked[: max(0, timed - first)] if still else ():
                if not warm:
                    subject.time(example, still)
                    warm = True
                for setting, taken in zip(still, subject.time(example, still), strict=True):
                    seconds[(*setting.key, example.id)] = taken
            signals = tower_signals(name for setting in still for name in setting.pruner().reads())
            with remembering_encodings(signals):
                for setting in still:
                    rows = subject.reply(asked, inputs, setting)
                    for row in rows:
                        row["seconds"] = seconds.get((*setting.key, row["id"]), {})
                    before = len(results.rows)
                    results.append(rows)
                    progress(len(results.rows) - before)
    if left_out and len(left_out) == len(examples):
        raise ValueError(f"no question could be asked; the first one: {next(iter(left_out.values()))}")
    return left_out


def _prepare(
    subject: Subject, examples: Sequence[Example], strict: bool
) -> tuple[Sequence[Example], Any, dict[str, str]]:
    """Return the questions that can be asked, the model's inputs for them, and for all others the reason."""
    try:
        return examples, subject.prepare(examples), {}
    except ValueError:
        if strict:
            raise
    refused: dict[str, str] = {}
    for example in examples:
        try:
            subject.prepare([example])
        except ValueError as error:
            if not is_ours(error):
                raise
            refused[example.id] = str(error)
    kept = [example for example in examples if example.id not in refused]
    return kept, subject.prepare(kept) if kept else None, refused
