"""What is asked of a command: its images, plan and policies, checked before anything slow is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from zooprune.evaluation.runner import Setting
    from zooprune.plan import Plan
    from zooprune.policy import Policy

NO_QUESTION = 'give a question after the image, such as "Is there a dog?"'


@dataclass(frozen=True)
class Prompt:
    """The images of a prompt and the file for the picture of what was kept.

    Images of a single prompt are loaded before the model is, those of a folder one after another.
    """

    names: tuple[str, ...]
    load: Callable[[], tuple[Image, ...]]
    save: Path | None


def parse_keep(text: str) -> int | float:
    """Return the budget that is written as a number of tokens or a share."""
    from zooprune.tokens import Budget

    try:
        value = int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise ValueError(f"--keep {text} is not a number; give tokens such as 64 or a share such as 0.25") from None
    return Budget(value).keep


def find_prompts(asked: list[str], save: Path | None) -> tuple[list[Prompt], str, str | None]:
    """Return what is asked about, the question, and the right answer if it is known.

    All that can be refused without torch is refused here, before the slow imports.
    """
    from zooprune.data.images import load_image

    if not asked:
        from zooprune.bundled import demo_scene

        scene, question, expected = demo_scene()
        _check_picture(save, ())
        return [Prompt(("a bundled scene",), lambda: (scene,), save)], question, expected
    *names, question = asked
    if not names or Path(question).is_file():
        raise ValueError(NO_QUESTION)
    if not question.strip():
        raise ValueError("the question is empty; ask something about the image")
    if len(names) == 1 and Path(names[0]).is_dir():
        return _prompts_of_folder(Path(names[0]), save), question, None
    _check_picture(save, names)
    images = tuple(load_image(name) for name in names)
    return [Prompt(tuple(names), lambda: images, save)], question, None


def _prompts_of_folder(folder: Path, save: Path | None) -> list[Prompt]:
    from zooprune.data.images import image_files

    files = image_files(folder)
    if not files:
        raise ValueError(f"{folder} holds no image file")
    if save is not None:
        if save.exists() and not save.is_dir():
            raise ValueError(f"--save {save} is a file; give a folder for the pictures of all images")
        if save.is_dir() and save.samefile(folder):
            raise ValueError(f"--save {save} is the folder of the images; give another folder for the pictures")
        check_writable(save / "picture.png", "--save")
    return [
        Prompt((str(file),), partial(_loaded, file), None if save is None else save / f"{file.name}.png")
        for file in files
    ]


def _loaded(file: Path) -> tuple[Image, ...]:
    from zooprune.data.images import load_image

    return (load_image(file),)


def _check_picture(save: Path | None, read: Sequence[str]) -> None:
    """Refuse a picture that cannot be written, or would replace an image that is read."""
    from zooprune.data.images import picture_format

    if save is None:
        return
    check_writable(save, "--save")
    picture_format(save)
    for name in read:
        if save.exists() and Path(name).exists() and save.samefile(name):
            raise ValueError(f"--save {save} would replace the image that is read; choose another file name")


def check_writable(path: Path, option: str) -> None:
    """Refuse a file that cannot be written; its folder is created when it is written."""
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; give a file name")
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not folder.is_dir():
        raise ValueError(f"{option}: {folder} is a file; choose another folder")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{option}: no permission to write in {folder}; choose another folder")


def check_placement(dtype: str, device: str) -> None:
    """Refuse a dtype or a device before data or a model is loaded."""
    from zooprune.loading import check_dtype, find_device

    check_dtype(dtype)
    find_device(device)


def load_plan(path: Path, models: list[str], *others: object) -> Plan:
    """Load a plan that was made for the only model given; the other options for pruning must be absent."""
    from zooprune.plan import Plan

    if any(other is not None for other in others):
        raise ValueError("--plan says how to prune; leave out --method, --keep and the other options for pruning")
    plan = Plan.load(path)
    if models != [plan.model]:
        raise ValueError(
            f"{path} was made for {plan.model}; give --model {plan.model}, or calibrate the other model too"
        )
    return plan


def make_policies(given: dict[str, list[str]]) -> list[Policy]:
    """Return all combinations of the given values."""
    from zooprune.policy import Policy

    policies: list[Policy] = []
    for values in product(*given.values()):
        fields: dict[str, Any] = dict(zip(given, values, strict=True))
        policies.append(Policy(**fields))
    return policies


def policy_of(method: str, dropped: str | None, positions: str | None) -> Policy:
    """Return the policy of 'ask': kept tokens stand in for dropped ones, unless the method prunes inside the model."""
    from zooprune.pruners import pruner_class

    outside = pruner_class(method).where == "before the language model"
    given = {"dropped": dropped or ("stand in" if outside else "discard"), "positions": positions or "auto"}
    (policy,) = make_policies({name: [value] for name, value in given.items()})
    return policy


def make_plan(model: str, method: str, keep: int | float, seed: int | None, policy: Policy) -> Plan:
    """Return the plan that the options describe."""
    from zooprune.plan import Plan

    try:
        return Plan(model, method, keep, {} if seed is None else {"seed": seed}, policy)
    except TypeError as error:
        # The method has no seed.
        raise ValueError(str(error)) from None


def as_setting(plan: Plan) -> Setting:
    """Return the setting of an evaluation that a plan describes."""
    from zooprune.evaluation.runner import Setting

    return Setting(plan.method, plan.keep, None, plan.options, plan.policy)
