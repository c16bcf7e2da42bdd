"""The command line: parses, calls, prints."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zooprune.failures import is_ours

if TYPE_CHECKING:
    from PIL.Image import Image

    from zooprune.asking import Answer, Comparison
    from zooprune.batching import Progress
    from zooprune.catalogue import Entry
    from zooprune.evaluation.gallery import Gallery
    from zooprune.evaluation.report import Table as Figures
    from zooprune.evaluation.runner import Setting
    from zooprune.plan import Plan
    from zooprune.policy import Policy

app = typer.Typer(
    help="Make vision-language models fast by dropping the visual tokens they do not need.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_out, _err = Console(), Console(stderr=True)
#: The longest name of a method that a table shows on a line of its own.
_LONGEST = 20
_SECONDS_BETWEEN_LINES = 30
#: How many of the questions that were left out are listed.
_SHOWN = 10

#: The heading of the options that only 'bench serve' takes, and the default address of the server.
_SERVE, _LOCAL = "With serve", "http://127.0.0.1:8000"
_STAGES = ("encode", "score", "select", "assign", "prefill", "decode")
#: Stages whose time pruning changes.
_FASTER = ("prefill", "decode")


def _print_version(wanted: bool) -> None:
    if wanted:
        from zooprune import __version__

        print(f"zooprune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Make vision-language models fast by dropping the visual tokens they do not need."""


@app.command()
def ask(
    asked: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE... QUESTION",
            help="Image files, shown to the model together, and a question about them. With a folder, the question is "
            "asked about each image. Without arguments, a bundled scene is used.",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="'bundled', a folder with a checkpoint, or a hub id.")] = "bundled",
    method: Annotated[str | None, typer.Option(help="Pruning method; see 'zooprune methods'. Default: zoo.")] = None,
    keep: Annotated[
        str | None, typer.Option(help="Visual tokens to keep: a number, or a share such as 0.25. Default: 64.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed for methods that draw random numbers.")] = None,
    dropped: Annotated[
        str | None, typer.Option(help="What becomes of dropped tokens: discard, mean, mass. Default: 'stand in'.")
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="Use a plan from 'calibrate' or 'tune' instead of --method, --keep, --seed and --dropped."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write a picture of the kept tokens to this file: .png, .jpg or .webp. With a folder of "
            "images: the folder for one picture each."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer at most.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Ask a model about an image with all visual tokens and with the kept ones."""
    if not asked and save is None:
        save = Path("answer.png")
    prompts, question, expected = _prompts(asked or [], save)
    budget = _parse_keep(keep or "64")
    with _waiting("loading torch and transformers", quiet=as_json):
        from zooprune.asking import ask as ask_model
        from zooprune.loading import load_model
    _check_placement(dtype, device)
    if plan is None:
        used = _plan(model, method or "zoo", budget, seed, _policy_of(method or "zoo", dropped))
    else:
        used = _load_plan(plan, [model], method, keep, seed, dropped)
    _quiet_libraries()
    with _waiting(f"loading {model}", quiet=as_json):
        loaded, processor = load_model(model, dtype=dtype, device=device)
    found: list[tuple[_Prompt, Comparison | str]] = []
    with _progress(quiet=as_json) as progress:
        for prompt in progress.track(prompts, description="asking"):
            warm = any(not isinstance(earlier, str) for _, earlier in found)
            try:
                result = ask_model(
                    loaded, processor, prompt.load(), question, used, max_new_tokens=max_new_tokens, warm=warm
                )
            except ValueError as error:
                if len(prompts) == 1 or not is_ours(error):
                    raise
                found.append((prompt, str(error)))
                continue
            if len(prompts) > 1:
                # The picture is written at once, because photographs of a whole folder would fill the memory.
                _save(prompt.save, question, result, used.method)
                result = replace(result, seen=())
            found.append((prompt, result))
    if all(isinstance(result, str) for _, result in found):
        raise ValueError(f"no question could be asked; the first one: {found[0][1]}")
    # The answers are printed first, so that they are not lost if the picture cannot be made.
    (prompt, first), *others = found
    if as_json:
        print(json.dumps(_as_json(found, question, used, loaded, expected)))
    elif others:
        _print_folder(found, question, used.method)
    elif not isinstance(first, str):
        _print_comparison(first, question, used.method, expected)
    if not others and not isinstance(first, str):
        _save(prompt.save, question, first, used.method)
    if save is not None and not as_json:
        _say(f"pictures: {save}" if others else f"picture: {prompt.save}", soft_wrap=True)


@app.command()
def gallery(
    image: Annotated[Path | None, typer.Argument(help="Image file. Default: a bundled scene.")] = None,
    question: Annotated[str | None, typer.Argument(help="Question about the image.")] = None,
    model: Annotated[str, typer.Option(help="'bundled', a folder with a checkpoint, or a hub id.")] = "bundled",
    method: Annotated[
        list[str] | None, typer.Option(help="Pruning method; repeatable. Default: all that work with the model.")
    ] = None,
    keep: Annotated[str, typer.Option(help="Visual tokens to keep: a number, or a share such as 0.25.")] = "64",
    seed: Annotated[int, typer.Option(min=0, help="Seed for methods that draw random numbers.")] = 0,
    save: Annotated[
        Path | None, typer.Option(help="Picture file: .png, .jpg, .webp. Default: gallery.png, or none with --json.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer at most.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Draw a picture of what every method keeps of an image, with the model's answers."""
    if save is None and not as_json:
        save = Path("gallery.png")
    if image is not None and question is None:
        raise ValueError(_NO_QUESTION)
    ((prompt,), question, expected) = _prompts([] if image is None else [str(image), str(question)], save)
    budget = _parse_keep(keep)
    with _waiting("loading torch and transformers", quiet=as_json):
        from zooprune.evaluation.gallery import choose, hang
        from zooprune.loading import load_model
        from zooprune.pruners import pruner_class
    _check_placement(dtype, device)
    for name in method or ():
        pruner_class(name)
    _quiet_libraries()
    with _waiting(f"loading {model}", quiet=as_json):
        loaded, processor = load_model(model, dtype=dtype, device=device)
    pruners, left_out = choose(loaded, method, budget, seed)
    with _waiting(f"asking under {len(pruners)} methods", quiet=as_json):
        (picture,) = prompt.load()
        found = hang(loaded, processor, picture, question, pruners, expected=expected, max_new_tokens=max_new_tokens)
    # The answers are printed first, so that they are not lost if the picture cannot be made.
    if as_json:
        print(json.dumps(_gallery_as_json(found, question, expected, left_out, save)))
    else:
        _print_gallery(found, question, expected, left_out)
    if save is not None:
        _save_gallery(save, found, question, expected)
        if not as_json:
            _say(f"picture: {save}")


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="A method, to see its description and options.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the pruning methods, or describe one of them with its options."""
    from zooprune.catalogue import catalogue, describe

    _quiet_libraries()
    entries = catalogue() if name is None else (describe(name),)
    if as_json:
        print(json.dumps([asdict(entry) for entry in entries]))
    elif name is None:
        _print_methods(entries)
    else:
        _print_method(entries[0])


@app.command()
def models(
    model: Annotated[
        str | None, typer.Argument(help="A folder or hub id, to see whether this model is supported.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the model families, or say whether a model is supported."""
    from zooprune.families import FAMILIES, find_family
    from zooprune.loading import load_skeleton

    _quiet_libraries()
    families = FAMILIES if model is None else (find_family(load_skeleton(model)),)
    rows: list[dict[str, Any]] = [
        {
            "models": family.title,
            "classes": list(family.architectures),
            "image": True,
            "video": bool(family.video_arguments),
            "positions": family.positions,
            "sensitivity": family.sensitivity,
            "traits": list(family.traits),
        }
        for family in families
    ]
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("models", "video", "positions", "sensitivity", "traits")
    for row in rows:
        shown = (row["models"], "yes" if row["video"] else "", row["positions"], row["sensitivity"])
        table.add_row(*map(_text, (*shown, ", ".join(row["traits"]))))
    _out.print(table)


@app.command("eval")
def evaluate(
    model: Annotated[list[str] | None, typer.Option(help="'bundled', a folder or a hub id; repeatable.")] = None,
    data: Annotated[
        str, typer.Option(help="'bundled', a .jsonl or .parquet file, a folder or a data set.")
    ] = "bundled",
    question: Annotated[str | None, typer.Option(help="Question about the images of a folder.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this kind of question; repeatable.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of questions, from the first.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Pruning method; repeatable. Default: zoo and random.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Visual tokens or a share to keep; repeatable. Default: 192 and 64.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(min=0, help="Seed for methods that draw random numbers; repeatable. Default: 0.")
    ] = None,
    dropped: Annotated[
        list[str] | None,
        typer.Option(help="What becomes of dropped tokens: discard, mean, mass or 'stand in'; repeatable."),
    ] = None,
    positions: Annotated[
        list[str] | None, typer.Option(help="Positions of kept tokens: auto, contiguous, original; repeatable.")
    ] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="What a budget is for: image, tile, prompt; repeatable.")
    ] = None,
    newlines: Annotated[
        list[str] | None, typer.Option(help="Which row separators are kept: drop, keep, rows; repeatable.")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="Evaluate a plan from 'calibrate' or 'tune'.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions per batch.")] = 8,
    timed: Annotated[int, typer.Option(min=0, help="Questions that are also timed, one by one.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of a reply at most.")] = 64,
    out: Annotated[Path, typer.Option(help="Output folder. An interrupted run in it is resumed.")] = Path("runs/eval"),
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at an image that cannot be read or a column that is not known.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure how many answers pruning keeps, by method and budget, and how much time and memory it saves."""
    names = list(dict.fromkeys(model or ["bundled"]))
    budgets = [_parse_keep(each) for each in keep or ("192", "64")]
    asked = {"positions": positions, "scope": scope, "newlines": newlines, "dropped": dropped}
    policies = _policies({name: values for name, values in asked.items() if values})
    with _waiting("loading torch and transformers", quiet=as_json):
        from zooprune.data.examples import fingerprint, load_examples
        from zooprune.evaluation import runner
        from zooprune.evaluation.publish import draw_cases, publish
        from zooprune.families import find_family
        from zooprune.loading import load_model, load_skeleton, model_version
    _check_placement(dtype, device)
    _quiet_libraries()
    # Whether a method draws random numbers, and so needs seeds, depends on the model.
    settings: dict[str, list[Setting]] = {}
    planned = None if plan is None else _as_setting(_load_plan(plan, names, method, keep, seed, *asked.values()))
    for name in names:
        if planned is None:
            sensitivity = find_family(load_skeleton(name)).sensitivity
            settings[name] = runner.grid(
                method or ("zoo", "random"), budgets, seed or (0,), policies, sensitivity=sensitivity
            )
        else:
            settings[name] = [runner.Setting(), planned]
    with _waiting(f"loading {data}", quiet=as_json):
        examples = load_examples(data, question=question, tasks=task, limit=limit, strict=strict)
    configuration = {
        "model": names,
        "data": data,
        "questions": fingerprint(examples),
        "weights": {name: model_version(name) for name in names},
        "settings": {name: [each.described for each in chosen] for name, chosen in settings.items()},
        "batch": batch,
        "timed": timed,
        "max-new-tokens": max_new_tokens,
        "dtype": dtype,
        "device": device,
    }
    results = runner.Results(out, configuration)
    cases, left_out = {}, {}
    with _progress() as progress:
        total = len(examples) * sum(map(len, settings.values()))
        bar = progress.add_task("asking", total=total, completed=len(results.rows))
        for name in names:
            subject = runner.Subject(name, *load_model(name, dtype=dtype, device=device), max_new_tokens)
            left_out[name] = runner.evaluate(
                subject, examples, settings[name], results,
                batch=batch, timed=timed, strict=strict, progress=lambda rows: progress.advance(bar, rows),
            )  # fmt: skip
            cases[name] = draw_cases(subject, examples, settings[name], results)
    found, paths = publish(results, cases, left_out)
    for name in names:
        _warn_of_left_out(left_out[name])
    if as_json:
        print(json.dumps({"run": str(out), "models": found, "cases": cases, "left_out": left_out}))
        return
    from zooprune.evaluation.report import headline, overview

    for name in names:
        _print_figures(overview(found[name], brief=True), f"{name} on {data}")
        _say(headline(found[name]))
    _say(f"written: {', '.join(map(str, paths))}", soft_wrap=True)


@app.command()
def calibrate(
    data: Annotated[str, typer.Option(help="A .jsonl or .parquet file, a folder, a data set, or 'bundled'.")],
    model: Annotated[str, typer.Option(help="'bundled', a folder with a checkpoint, or a hub id.")] = "bundled",
    question: Annotated[str | None, typer.Option(help="Question about the images of a folder.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this kind of question; repeatable.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of questions, from the first.")] = None,
    keep_quality: Annotated[float, typer.Option(help="Share of the answers to keep.")] = 0.99,
    method: Annotated[list[str] | None, typer.Option(help="Pruning method; repeatable. Default: zoo.")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Candidate budget; repeatable. Default: shares from 0.75 to 0.028.")
    ] = None,
    dropped: Annotated[
        str, typer.Option(help="What becomes of dropped tokens: discard, mean, mass or 'stand in'.")
    ] = "discard",
    batch: Annotated[int, typer.Option(min=1, help="Questions per batch.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of a reply at most.")] = 64,
    out: Annotated[Path, typer.Option(help="File to write the plan to.")] = Path("plan.json"),
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Find the smallest budget that keeps a model's answers to your questions, with 95 % confidence."""
    _check_writable(out, "--out")
    (policy,) = _policies({"dropped": [dropped]})
    budgets = [_parse_keep(each) for each in keep or ()]
    with _waiting("loading torch and transformers", quiet=as_json):
        from zooprune.data.examples import load_examples
        from zooprune.evaluation.calibrate import SHARES, check_request
        from zooprune.evaluation.calibrate import calibrate as find_plan
        from zooprune.evaluation.runner import Subject
        from zooprune.loading import load_model
    _check_placement(dtype, device)
    check_request(method or ["zoo"], budgets or SHARES, quality=keep_quality)
    _quiet_libraries()
    with _waiting(f"loading {data}", quiet=as_json):
        examples = load_examples(data, question=question, tasks=task, limit=limit)
    with _waiting(f"loading {model}", quiet=as_json):
        subject = Subject(model, *load_model(model, dtype=dtype, device=device), max_new_tokens)
    with _progress() as progress:
        bar = progress.add_task("asking", total=len(examples))
        plan, candidates = find_plan(
            subject, examples, method or ["zoo"], budgets or SHARES, policy,
            quality=keep_quality, batch=batch, progress=lambda asked: progress.advance(bar, asked),
        )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    plan.save(out)
    if as_json:
        print(json.dumps({"plan": plan.as_json(), "out": str(out)}))
        return
    assert plan.certified is not None
    table = Table(
        "method", "keep", "asked", "kept", "certified", title=_text(f"{plan.certified['measure']}, {model} on {data}")
    )
    for tried in candidates:
        shown = (
            tried.setting.method,
            tried.setting.keep,
            tried.trials,
            tried.successes,
            "" if tried.dropped else "yes",
        )
        table.add_row(*map(_text, shown))
    _out.print(table)
    _say(
        f"{out}: {plan.method} with keep={plan.keep} keeps at least {plan.certified['lower_bound']:.1%} of the answers",
        soft_wrap=True,
    )


@app.command()
def tune(
    method: Annotated[str, typer.Option(help="Pruning method with options for the model: vflowopt.")],
    keep: Annotated[str, typer.Option(help="Visual tokens to keep: a number, or a share such as 0.25.")],
    data: Annotated[
        str, typer.Option(help="'bundled', a .jsonl or .parquet file, a folder or a data set.")
    ] = "bundled",
    model: Annotated[str, typer.Option(help="'bundled', a folder with a checkpoint, or a hub id.")] = "bundled",
    question: Annotated[str | None, typer.Option(help="Question about the images of a folder.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this kind of question; repeatable.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of questions, from the first.")] = 30,
    trials: Annotated[int, typer.Option(min=1, help="Number of options to try; the published ones are first.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Questions per batch.")] = 8,
    out: Annotated[Path, typer.Option(help="File to write the plan to.")] = Path("plan.json"),
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Find the options of a method that change the model's last hidden state least."""
    _check_writable(out, "--out")
    budget = _parse_keep(keep)
    with _waiting("loading torch and transformers", quiet=as_json):
        from zooprune.data.examples import load_examples
        from zooprune.evaluation.runner import Subject
        from zooprune.evaluation.tuning import check_method
        from zooprune.evaluation.tuning import tune as find_options
        from zooprune.loading import load_model
    _check_placement(dtype, device)
    check_method(method)
    _quiet_libraries()
    with _waiting(f"loading {data}", quiet=as_json):
        examples = load_examples(data, question=question, tasks=task, limit=limit)
    with _waiting(f"loading {model}", quiet=as_json):
        subject = Subject(model, *load_model(model, dtype=dtype, device=device))
    with _progress() as progress:
        bar = progress.add_task("trying", total=trials)
        plan, tried = find_options(
            subject, examples, method, budget,
            trials=trials, seed=seed, batch=batch, progress=lambda more: progress.advance(bar, more),
        )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    plan.save(out)
    published, best = tried[0], max(tried, key=lambda trial: trial.likeness)
    if as_json:
        print(json.dumps({"plan": plan.as_json(), "out": str(out), "trials": [vars(trial) for trial in tried]}))
        return
    table = Table(
        "options", *plan.options, "likeness", title=_text(f"{method} with keep={plan.keep}, {model} on {data}")
    )
    for name, trial in (("published", published), ("found", best)):
        table.add_row(
            *map(_text, (name, *(f"{value:.4g}" for value in trial.options.values()), f"{trial.likeness:.4f}"))
        )
    _out.print(table)
    _say(f"{out}: the best of {trials} trials on {len(examples)} questions", soft_wrap=True)


@app.command("batch")
def answer_batch(
    source: Annotated[
        str, typer.Option("--input", help="A .jsonl or .parquet file, a folder, a data set, or 'bundled'.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the answers. An interrupted job in it is resumed.")],
    question: Annotated[str | None, typer.Option(help="Question about the images of a folder.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of questions, from the first.")] = None,
    model: Annotated[str, typer.Option(help="'bundled', a folder with a checkpoint, or a hub id.")] = "bundled",
    method: Annotated[str | None, typer.Option(help="Pruning method. Default: zoo.")] = None,
    keep: Annotated[
        str | None, typer.Option(help="Visual tokens to keep: a number, or a share such as 0.25. Default: 64.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed for methods that draw random numbers.")] = None,
    dropped: Annotated[
        str | None, typer.Option(help="What becomes of dropped tokens: discard, mean, mass. Default: 'stand in'.")
    ] = None,
    positions: Annotated[str | None, typer.Option(help="Positions of kept tokens: auto, contiguous, original.")] = None,
    scope: Annotated[str | None, typer.Option(help="What a budget is for: image, tile, prompt.")] = None,
    newlines: Annotated[str | None, typer.Option(help="Which row separators are kept: drop, keep, rows.")] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Use a plan from 'calibrate' or 'tune' instead of the options for pruning.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions per batch.")] = 8,
    shard: Annotated[int, typer.Option(min=1, help="Rows per output file.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of a reply at most.")] = 64,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    address: Annotated[
        str | None, typer.Option(help="Ray cluster: auto, ray://HOST:PORT, or local for this machine.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Copies of the model on the cluster.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a line.")] = False,
) -> None:
    """Answer a whole data set into Parquet files, on this machine or a Ray cluster.

    Exit code: 0 if all rows were answered, 1 if some failed (column 'error' says why), 2 if the job could not run.
    """
    budget = _parse_keep(keep or "64")
    with _waiting("loading torch and transformers", quiet=as_json):
        from zooprune.batching import answer_all
    pruning = {"positions": positions, "scope": scope, "newlines": newlines, "dropped": dropped}
    if plan is None:
        given = {name: [value] for name, value in pruning.items() if value is not None}
        (policy,) = _policies({"dropped": ["stand in"]} | given)
        used = _plan(model, method or "zoo", budget, seed, policy)
    else:
        used = _load_plan(plan, [model], method, keep, seed, *pruning.values())
    _quiet_libraries()
    with _following() as follow:
        end = answer_all(
            source, output, used, question=question, limit=limit, batch=batch, shard=shard,
            max_new_tokens=max_new_tokens, dtype=dtype, device=device, address=address, workers=workers,
            progress=follow,
        )  # fmt: skip
    if as_json:
        found = {"output": str(output), "rows": end.total, "failed": end.failed, "asked": end.asked}
        print(json.dumps(found | {"seconds": end.seconds, "rows_per_second": end.rate}))
    else:
        rate = "" if end.rate is None else f", {end.rate:.2f} rows/s"
        _say(f"this run: {end.asked:,} rows in {end.seconds:,.1f} s{rate}")
        _say(f"{output}: {end.total:,} rows, {end.failed:,} failed", soft_wrap=True)
    if end.failed:
        raise typer.Exit(1)


@app.command()
def bench(
    question: Annotated[
        str | None,
        typer.Argument(help="sensitivity, selection, end-to-end, memory or serve. Default: all but serve."),
    ] = None,
    shape: Annotated[
        str, typer.Option(help="Shapes of a model, with random weights; 'small' takes minutes.")
    ] = "small",
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    url: Annotated[str, typer.Option(help="Address of the server.", rich_help_panel=_SERVE)] = _LOCAL,
    model: Annotated[
        str | None, typer.Option(help="Name of the model there. Default: the first.", rich_help_panel=_SERVE)
    ] = None,
    clients: Annotated[int, typer.Option(min=1, help="Requests at the same time.", rich_help_panel=_SERVE)] = 16,
    requests: Annotated[int, typer.Option(min=1, help="Total number of requests.", rich_help_panel=_SERVE)] = 500,
    distinct: Annotated[
        int | None, typer.Option(min=1, help="Number of different requests. Default: all.", rich_help_panel=_SERVE)
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Length of a reply at most.", rich_help_panel=_SERVE)] = 16,
    plot: Annotated[
        Path | None, typer.Option(help="HTML file for a plot of all times.", rich_help_panel=_SERVE)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure how much time and memory pruning costs and saves here, or how a server performs under load."""
    from zooprune.benching import QUESTIONS, measure

    if question == "serve":
        _bench_server(plot, as_json, url=url, model=model, clients=clients, requests=requests, distinct=distinct,
                      max_tokens=max_tokens)  # fmt: skip
        return
    if question is not None and question not in QUESTIONS:
        raise ValueError(f"no question {question!r}; choose one of {', '.join(QUESTIONS)}, serve")
    from zooprune.benching.shapes import shape_of
    from zooprune.benching.table import table
    from zooprune.loading import find_device

    shape_of(shape)
    _quiet_libraries()
    where = find_device(device)
    found = {}
    for name in QUESTIONS if question is None else (question,):
        with _waiting(f"measuring {name}", quiet=as_json):
            found[name] = measure(name, shape, repeats=repeats, device=str(where))
        if not as_json:
            _out.print(table(found[name], f"{name}, {shape}: {QUESTIONS[name]}"))
    if as_json:
        print(json.dumps(found))


@app.command("app")
def page(
    model: Annotated[str, typer.Option(help="'bundled', a folder with a checkpoint, or a hub id.")] = "bundled",
    host: Annotated[
        str, typer.Option(help="Address to listen at. With 0.0.0.0, other machines can open the page.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 for any free port.")] = 7860,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer at most.")] = 64,
) -> None:
    """Open a page in the browser to try methods and budgets on your own pictures."""
    from zooprune.app import check_gradio

    check_gradio()
    with _waiting("loading torch, transformers and gradio", quiet=False):
        from zooprune.app.serving import listen, serve
        from zooprune.app.workbench import Workbench
    _quiet_libraries()
    # The port is opened first, so that a port in use is noticed before a model is loaded.
    with listen(host, port) as socket:
        with _waiting(f"loading {model}", quiet=False):
            bench = Workbench(model, dtype=dtype, device=device, max_new_tokens=max_new_tokens)
        serve(
            bench, model, socket,
            ready=lambda address: _say(f"The page is at {address}; Ctrl+C stops it.", soft_wrap=True),
        )  # fmt: skip


def _bench_server(plot: Path | None, as_json: bool, **load: Any) -> None:
    from zooprune.benching import serving

    if plot is not None:
        _check_writable(plot, "--plot")
    with _waiting(f"loading {load['url']}", quiet=as_json):
        found = serving.load(**load)
    if plot is not None:
        serving.plot(found, plot)
    if as_json:
        print(json.dumps(found))
        return
    _out.print(serving.table(found))
    for error in found["errors"]:
        _say(f"error: {error}")


def main() -> None:
    """Run the command line; bad input is answered with one sentence and exit code 2.

    Only errors that are meant for users become a sentence. A ValueError that this package did not raise itself, or an
    error of another kind, is a fault of the program and keeps its traceback.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            app(prog_name="zooprune")
    except (ValueError, ImportError, OSError) as error:
        if isinstance(error, ValueError) and not is_ours(error):
            raise
        _err.print(_text(f"error: {error}", lines=False), style="red", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _warn(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    _err.print(_text(f"warning: {message}"), style="yellow", highlight=False, soft_wrap=True)


def _text(value: object, *, lines: bool = True) -> Text:
    """Return text that is shown unchanged: brackets are not markup, and control characters are escaped."""
    shown = (
        letter if letter.isprintable() or (lines and letter == "\n") else letter.encode("unicode_escape").decode()
        for letter in str(value)
    )
    return Text("".join(shown))


def _say(what: str, *, soft_wrap: bool = False) -> None:
    _out.print(_text(what), highlight=False, soft_wrap=soft_wrap)


def _parse_keep(text: str) -> int | float:
    from zooprune.tokens import Budget

    try:
        value = int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise ValueError(f"--keep {text} is not a number; give tokens such as 64 or a share such as 0.25") from None
    return Budget(value).keep


_NO_QUESTION = 'give a question after the image, such as "Is there a dog?"'


@dataclass(frozen=True)
class _Prompt:
    """The images of a prompt and the file for the picture of what was kept.

    Images of a single prompt are loaded before the model is, those of a folder one after another.
    """

    names: tuple[str, ...]
    load: Callable[[], tuple[Image, ...]]
    save: Path | None


def _prompts(asked: list[str], save: Path | None) -> tuple[list[_Prompt], str, str | None]:
    """Return what is asked about, the question, and the right answer if it is known.

    All that can be refused without torch is refused here, before the slow imports.
    """
    from zooprune.data.images import load_image

    if not asked:
        from zooprune.bundled import demo_scene

        scene, question, expected = demo_scene()
        _check_picture(save, ())
        return [_Prompt(("a bundled scene",), lambda: (scene,), save)], question, expected
    *names, question = asked
    if not names or Path(question).is_file():
        raise ValueError(_NO_QUESTION)
    if not question.strip():
        raise ValueError("the question is empty; ask something about the image")
    if len(names) == 1 and Path(names[0]).is_dir():
        return _prompts_of_folder(Path(names[0]), save), question, None
    _check_picture(save, names)
    images = tuple(load_image(name) for name in names)
    return [_Prompt(tuple(names), lambda: images, save)], question, None


def _prompts_of_folder(folder: Path, save: Path | None) -> list[_Prompt]:
    from zooprune.data.images import image_files

    files = image_files(folder)
    if not files:
        raise ValueError(f"{folder} holds no image file")
    if save is not None:
        if save.exists() and not save.is_dir():
            raise ValueError(f"--save {save} is a file; give a folder for the pictures of all images")
        if save.is_dir() and save.samefile(folder):
            raise ValueError(f"--save {save} is the folder of the images; give another folder for the pictures")
        _check_writable(save / "picture.png", "--save")
    return [
        _Prompt((str(file),), partial(_loaded, file), None if save is None else save / f"{file.name}.png")
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
    _check_writable(save, "--save")
    picture_format(save)
    for name in read:
        if save.exists() and Path(name).exists() and save.samefile(name):
            raise ValueError(f"--save {save} would replace the image that is read; choose another file name")


def _check_writable(path: Path, option: str) -> None:
    """Refuse a file that cannot be written; its folder is created when it is written."""
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; give a file name")
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not folder.is_dir():
        raise ValueError(f"{option}: {folder} is a file; choose another folder")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{option}: no permission to write in {folder}; choose another folder")


def _check_placement(dtype: str, device: str) -> None:
    """Refuse a dtype or a device before data or a model is loaded."""
    from zooprune.loading import check_dtype, find_device

    check_dtype(dtype)
    find_device(device)


def _load_plan(path: Path, models: list[str], *others: object) -> Plan:
    from zooprune.plan import Plan

    if any(other is not None for other in others):
        raise ValueError(
            "--plan says how to prune; leave out --method, --keep, --seed and the options for what is dropped"
        )
    plan = Plan.load(path)
    if models != [plan.model]:
        raise ValueError(f"{path} was made for {plan.model}; give --model {plan.model}, or calibrate the other one too")
    return plan


def _policies(given: dict[str, list[str]]) -> list[Policy]:
    """Return all combinations of the given values."""
    from zooprune.policy import Policy

    policies: list[Policy] = []
    for values in product(*given.values()):
        fields: dict[str, Any] = dict(zip(given, values, strict=True))
        policies.append(Policy(**fields))
    return policies


def _policy_of(method: str, dropped: str | None) -> Policy:
    """Return the policy of 'ask': kept tokens stand in for dropped ones, unless the method prunes inside the model."""
    from zooprune.pruners import pruner_class

    outside = pruner_class(method).where == "before the language model"
    (policy,) = _policies({"dropped": [dropped or ("stand in" if outside else "discard")]})
    return policy


def _plan(model: str, method: str, keep: int | float, seed: int | None, policy: Policy) -> Plan:
    from zooprune.plan import Plan

    try:
        return Plan(model, method, keep, {} if seed is None else {"seed": seed}, policy)
    except TypeError as error:
        # The method has no seed.
        raise ValueError(str(error)) from None


def _as_setting(plan: Plan) -> Setting:
    from zooprune.evaluation.runner import Setting

    return Setting(plan.method, plan.keep, None, plan.options, plan.policy)


def _progress(*, quiet: bool = False) -> Any:
    """Show progress and the time that is left on standard error, if it is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=quiet or not sys.stderr.isatty())


@contextmanager
def _following() -> Iterator[Callable[[Progress], None]]:
    """Yield a function that shows the progress of a batch job: a bar in a terminal, else a line now and then."""
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    if not sys.stderr.isatty():
        said = time.monotonic()

        def say(progress: Progress) -> None:
            nonlocal said
            if time.monotonic() - said >= _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                _err.print(_text(_how_far(progress)), highlight=False, soft_wrap=True)

        yield say
        return
    with Bar(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda progress: bar.update(
            task, total=progress.total, completed=progress.done, description=_how_far(progress)
        )


def _how_far(progress: Progress) -> str:
    told = f"{progress.done:,} of {progress.total:,} rows, {progress.failed:,} failed"
    if progress.rate is not None and progress.left is not None:
        told += f", {progress.rate:.2f} rows/s, {timedelta(seconds=round(progress.left))} left"
    return told


def _print_methods(entries: Sequence[Entry]) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("method", "arXiv", "reads", "count", "merges", "seed", "families"):
        table.add_column(heading, no_wrap=heading != "reads")
    for one in entries:
        count = "either" if " or " in one.count else one.count
        shown = (
            one.name,
            one.arxiv or "",
            ", ".join(one.reads),
            count,
            "yes" if one.merges else "",
            one.seed,
            one.hosts,
        )
        table.add_row(*map(_text, shown))
    _out.print(table)
    _say(
        "reads     beside the image's tokens: attention and keys of the tower, the question\n"
        "count     exact: the budget is met; native: the image decides; either: an option\n"
        "seed      the choice is drawn; sampled: only where the sensitivity is sampled\n"
        "families  of 'zooprune models', how many can host it\n\n"
        "One method in full: zooprune methods NAME"
    )


def _print_method(entry: Entry) -> None:
    for paragraph in (f"{entry.name}: {entry.idea[0]}", *entry.idea[1:], f"Source: {entry.source}"):
        _say(paragraph + "\n")
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for fact, value in {
        "arXiv": f"https://arxiv.org/abs/{entry.arxiv} ({entry.year})" if entry.arxiv else "",
        "prunes": entry.where,
        "made for": " and ".join(f"{modality}s" for modality in entry.modalities),
        "reads": ", ".join(entry.signals) or "features and embeddings only",
        "question": "the choice depends on it" if entry.query_aware else "the choice does not depend on it",
        "count": entry.count,
        "merges": "yes" if entry.merges else "no",
        "trained": "yes" if entry.trained else "no",
        "seed": {"": "no", "yes": "yes"}.get(entry.seed, f"where the sensitivity is {entry.seed}"),
        "families": "all" if entry.hosts == "all" else f"{entry.hosts}: {'; '.join(entry.families)}",
    }.items():
        if value:
            facts.add_row(fact, _text(value))
    _out.print(facts)
    options = Table("option", "default", "meaning", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for option in entry.options:
        options.add_row(*map(_text, (option.name, option.default, option.meaning)))
    _out.print(options)


def _warn_of_left_out(left_out: dict[str, str]) -> None:
    if not left_out:
        return
    from zooprune.evaluation.report import not_asked

    lines = [not_asked(left_out), *(f"  {name}: {why}" for name, why in list(left_out.items())[:_SHOWN])]
    if len(left_out) > _SHOWN:
        lines.append(f"  and {len(left_out) - _SHOWN:,} more, see report.md")
    for line in lines:
        _warn(line, UserWarning)


def _print_figures(figures: Figures, subject: str) -> None:
    title = _text(f"{subject}: {figures.title}")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    # Figures stay whole; a method with many options takes several lines instead.
    long = max(len(str(row[0])) for row in figures.rows) > _LONGEST
    rows = [(_by_line(row[0]) if long else row[0], *row[1:]) for row in figures.rows]
    for number, heading in enumerate(figures.header):
        width = max(len(line) for row in rows for line in str(row[number]).splitlines() or [""])
        table.add_column(
            _text(heading), justify="left" if number == 0 else "right", no_wrap=heading in ("method", "95 %"),
            min_width=width,
        )  # fmt: skip
    for row in rows:
        table.add_row(*map(_text, row))
    _out.print(table)
    _out.print(_text(figures.note), style="dim")


def _by_line(label: str) -> str:
    """Return a method's name and its options, each in a line of its own."""
    name, _, options = label.partition("(")
    return "\n ".join([name, *options.removesuffix(")").split(", ")] if options else [name])


def _quiet_libraries() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _waiting(what: str, *, quiet: bool) -> Any:
    """Show a message with a spinner on standard error, if it is a terminal."""
    return Console(stderr=True, quiet=quiet or not sys.stderr.isatty()).status(_text(f"{what} ..."))


def _save(path: Path | None, question: str, result: Comparison, method: str) -> None:
    if path is None:
        return
    from zooprune.picture import draw_kept, save_picture, stack
    from zooprune.pruners import pruner_class

    caption = (
        f"{question}\n"
        f"all {result.full.visual_tokens} tokens: {result.full.text}\n"
        f"{method}, {result.pruned.visual_tokens} tokens: {result.pruned.text}"
    )
    label, reports = pruner_class(method).scores_label, result.pruned.images
    # With as many reports as images, each report is about an image; otherwise `draw_kept` says what is wrong.
    groups = [[report] for report in reports] if len(reports) == len(result.seen) else [reports]
    drawn = [
        draw_kept(image, group, caption if number == len(groups) else "", scores_label=label)
        for number, (image, group) in enumerate(zip(result.seen, groups, strict=False), 1)
    ]
    save_picture(stack(drawn), path)


def _save_gallery(path: Path, found: Gallery, question: str, expected: str | None) -> None:
    from PIL.Image import Dither

    from zooprune.data.images import picture_format
    from zooprune.picture import CannotDrawError, draw_gallery, save_picture

    kept = found.panels[-1].selections[0]
    caption = (
        f"{len(kept)} of {kept.total} visual tokens are kept and shown in colour. "
        "A patch in a frame is a mixture of several tokens.\n"
        f"A tick marks {'the right answer' if expected else 'the answer with all tokens'}"
        f"{f', {expected}' if expected else ''}; a cross marks any other."
    )
    try:
        picture = draw_gallery(found.seen, found.panels, question, caption)
    except CannotDrawError as error:
        raise ValueError(f"{error}, and give --json for the answers alone") from error
    if picture_format(path) == "PNG":
        # Panels of one image share their colours: a palette halves the file.
        picture = picture.quantize(256, dither=Dither.NONE)
    save_picture(picture, path)


def _gallery_as_json(
    found: Gallery, question: str, expected: str | None, left_out: dict[str, str], save: Path | None
) -> dict[str, Any]:
    return {
        "question": question,
        "expected": expected,
        "methods": [
            {
                "name": panel.name,
                "group": panel.group,
                "answer": panel.answer,
                "right": panel.right,
                "kept": [selection.index.tolist() for selection in panel.selections],
                "merged": [selection.index[selection.mass > 1].tolist() for selection in panel.selections],
            }
            for panel in found.panels
        ],
        "left_out": left_out,
        "picture": None if save is None else str(save),
    }


def _print_gallery(found: Gallery, question: str, expected: str | None, left_out: dict[str, str]) -> None:
    table = Table(title=_text(question), title_justify="left", box=SIMPLE_HEAD)
    for heading in ("method", "kept", "answer", "right" if expected else "as with all tokens"):
        table.add_column(heading, justify="right" if heading == "kept" else "left")
    for panel in found.panels:
        kept = sum(map(len, panel.selections))
        table.add_row(*map(_text, (panel.name, kept, panel.answer, "yes" if panel.right else "no")))
    _out.print(table)
    if expected is not None:
        _say(f"right answer: {expected}")
    for reason in left_out.values():
        _say(f"left out: {reason.partition(';')[0]}", soft_wrap=True)


def _as_json(
    found: Sequence[tuple[_Prompt, Comparison | str]], question: str, used: Plan, model: Any, expected: str | None
) -> dict[str, Any]:
    """Return all that is needed to repeat the answers, and the answers: a list of them for a folder."""
    from zooprune.environment import describe

    def plain(answer: Answer) -> dict[str, Any]:
        fields = {key: value for key, value in vars(answer).items() if key != "images"}
        return fields | {"total": answer.total, "kept": [image.selection.index.tolist() for image in answer.images]}

    def told(prompt: _Prompt, result: Comparison | str) -> dict[str, Any]:
        if isinstance(result, str):
            return {"images": prompt.names, "error": result}
        return {
            "images": prompt.names,
            "changed": result.changed,
            "full": plain(result.full),
            "pruned": plain(result.pruned),
            "picture": None if prompt.save is None else str(prompt.save),
        }

    head = {
        "question": question,
        "model": used.model,
        "method": used.method,
        "keep": used.keep,
        "options": used.options,
        "dropped": used.policy.dropped,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "versions": describe()["versions"],
        "expected": expected,
    }
    return head | (told(*found[0]) if len(found) == 1 else {"results": [told(*each) for each in found]})


def _print_comparison(result: Comparison, question: str, method: str, expected: str | None) -> None:
    from zooprune.evaluation.report import times

    full, pruned = result.full, result.pruned
    table = Table(title=_text(question), title_justify="left")
    table.add_column("")
    table.add_column("all tokens", justify="right")
    table.add_column(_text(method), justify="right")
    table.add_column("change", justify="right")
    table.add_row(
        "answer", _text(full.text), _text(pruned.text), "changed" if result.changed else "same", end_section=True
    )
    for name, before, after, form, better, worse in (
        ("visual tokens", full.visual_tokens, pruned.visual_tokens, "{:,}", "fewer", "more"),
        ("prefill GFLOPs", full.prefill_flops / 1e9, pruned.prefill_flops / 1e9, "{:,.2f}", "fewer", "more"),
        ("KV cache MB", full.kv_cache_bytes / 1e6, pruned.kv_cache_bytes / 1e6, "{:,.2f}", "smaller", "larger"),
    ):
        table.add_row(
            name, form.format(before), form.format(after), times(before, after, better, worse),
            end_section=name == "KV cache MB",
        )  # fmt: skip
    for stage in _STAGES:
        before, after = (answer.seconds.get(stage, 0.0) for answer in (full, pruned))
        change = times(before, after) if stage in _FASTER else ""
        table.add_row(
            f"{stage} ms", f"{before * 1e3:,.1f}", f"{after * 1e3:,.1f}", change, end_section=stage == "decode"
        )
    table.add_row("total ms", f"{full.total * 1e3:,.1f}", f"{pruned.total * 1e3:,.1f}", times(full.total, pruned.total))
    _out.print(table)
    if expected is not None:
        _say(f"right answer: {expected}")


def _print_folder(found: Sequence[tuple[_Prompt, Comparison | str]], question: str, method: str) -> None:
    """Print a line per image, and a total."""
    from zooprune.evaluation.report import times

    table = Table(title=_text(question), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("image", "all tokens", method, "answer", "tokens", "time"):
        table.add_column(_text(heading), justify="right" if heading in ("tokens", "time") else "left", overflow="fold")
    done = [result for _, result in found if not isinstance(result, str)]
    for number, (prompt, result) in enumerate(found, 1):
        name = Path(prompt.names[0]).name
        if isinstance(result, str):
            table.add_row(_text(name), "not asked, see below", end_section=number == len(found))
            continue
        full, pruned = result.full, result.pruned
        shown = (
            name, full.text, pruned.text, "changed" if result.changed else "same",
            f"{full.visual_tokens:,} to {pruned.visual_tokens:,}", times(full.total, pruned.total),
        )  # fmt: skip
        table.add_row(*map(_text, shown), end_section=number == len(found))
    same = sum(not result.changed for result in done)
    tokens = [sum(getattr(result, kind).visual_tokens for result in done) for kind in ("full", "pruned")]
    seconds = [sum(getattr(result, kind).total for result in done) for kind in ("full", "pruned")]
    table.add_row(
        "total", "", "", f"{same:,} of {len(done):,} same", f"{tokens[0]:,} to {tokens[1]:,}", times(*seconds)
    )
    _out.print(table)
    for _, result in found:
        if isinstance(result, str):
            _warn(f"not asked: {result}", UserWarning)
