"""The commands: each parses, calls and prints."""

from __future__ import annotations

import io
import json
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from zooprune.cli.pictures import save_gallery, save_kept
from zooprune.cli.requests import (
    NO_QUESTION,
    Prompt,
    as_setting,
    check_placement,
    check_writable,
    find_prompts,
    load_plan,
    make_plan,
    make_policies,
    parse_keep,
    policy_of,
)
from zooprune.cli.results import (
    answers_as_json,
    gallery_as_json,
    print_comparison,
    print_figures,
    print_folder,
    print_gallery,
    print_method,
    print_methods,
    warn_of_left_out,
)
from zooprune.cli.terminal import following, progress_bar, quiet_libraries, refuse, say, show, text, waiting, warn
from zooprune.failures import is_ours

if TYPE_CHECKING:
    from zooprune.asking import Comparison
    from zooprune.evaluation.runner import Setting

app = typer.Typer(
    help="Make vision-language models fast by dropping the visual tokens they do not need.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


#: The heading of the options that only 'bench serve' takes, and the default address of the server.
_SERVE, _LOCAL = "With serve", "http://127.0.0.1:8000"

#: Options that several commands take.
Checkpoint = Annotated[str, typer.Option(help="'bundled', a folder with a checkpoint, or a hub id.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
AnswerLength = Annotated[int, typer.Option(min=1, help="Length of an answer at most.")]
FolderQuestion = Annotated[str | None, typer.Option(help="Question about the images of a folder.")]
Tasks = Annotated[list[str] | None, typer.Option(help="Only this kind of question; repeatable.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Number of questions, from the first.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Questions per batch.")]
Keep = Annotated[
    str | None, typer.Option(help="Visual tokens to keep: a number, or a share such as 0.25. Default: 64.")
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed for methods that draw random numbers.")]
Dropped = Annotated[
    str | None, typer.Option(help="What becomes of dropped tokens: discard, mean, mass. Default: 'stand in'.")
]
Positions = Annotated[str | None, typer.Option(help="Positions of kept tokens: auto, contiguous, original.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


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
    model: Checkpoint = "bundled",
    method: Annotated[str | None, typer.Option(help="Pruning method; see 'zooprune methods'. Default: zoo.")] = None,
    keep: Keep = None,
    seed: Seed = None,
    dropped: Dropped = None,
    positions: Positions = None,
    plan: Annotated[
        Path | None, typer.Option(help="Use a plan from 'calibrate' or 'tune' instead of the options for pruning.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write a picture of the kept tokens to this file: .png, .jpg or .webp. With a folder of "
            "images: the folder for one picture each."
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    max_new_tokens: AnswerLength = 64,
    as_json: AsJson = False,
) -> None:
    """Ask a model about an image with all visual tokens and with the kept ones."""
    if not asked and save is None:
        save = Path("answer.png")
    prompts, question, expected = find_prompts(asked or [], save)
    budget = parse_keep(keep or "64")
    with waiting("loading torch and transformers", quiet=as_json):
        from zooprune.asking import ask as ask_model
        from zooprune.loading import load_model
    check_placement(dtype, device)
    if plan is None:
        used = make_plan(model, method or "zoo", budget, seed, policy_of(method or "zoo", dropped, positions))
    else:
        used = load_plan(plan, [model], method, keep, seed, dropped, positions)
    quiet_libraries()
    with waiting(f"loading {model}", quiet=as_json):
        loaded, processor = load_model(model, dtype=dtype, device=device)
    found: list[tuple[Prompt, Comparison | str]] = []
    with progress_bar(quiet=as_json) as progress:
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
                save_kept(prompt.save, question, result, used.method)
                result = replace(result, seen=())
            found.append((prompt, result))
    if all(isinstance(result, str) for _, result in found):
        raise ValueError(f"no question could be asked; the first one: {found[0][1]}")
    # The answers are printed first, so that they are not lost if the picture cannot be made.
    (prompt, first), *others = found
    if as_json:
        print(json.dumps(answers_as_json(found, question, used, loaded, expected)))
    elif others:
        print_folder(found, question, used.method)
    elif not isinstance(first, str):
        print_comparison(first, question, used.method, expected)
    if not others and not isinstance(first, str):
        save_kept(prompt.save, question, first, used.method)
    if save is not None and not as_json:
        say(f"pictures: {save}" if others else f"picture: {prompt.save}", soft_wrap=True)


@app.command()
def gallery(
    image: Annotated[Path | None, typer.Argument(help="Image file. Default: a bundled scene.")] = None,
    question: Annotated[str | None, typer.Argument(help="Question about the image.")] = None,
    model: Checkpoint = "bundled",
    method: Annotated[
        list[str] | None, typer.Option(help="Pruning method; repeatable. Default: all that work with the model.")
    ] = None,
    keep: Annotated[str, typer.Option(help="Visual tokens to keep: a number, or a share such as 0.25.")] = "64",
    seed: Annotated[int, typer.Option(min=0, help="Seed for methods that draw random numbers.")] = 0,
    save: Annotated[
        Path | None, typer.Option(help="Picture file: .png, .jpg, .webp. Default: gallery.png, or none with --json.")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    max_new_tokens: AnswerLength = 64,
    as_json: AsJson = False,
) -> None:
    """Draw a picture of what every method keeps of an image, with the model's answers."""
    if save is None and not as_json:
        save = Path("gallery.png")
    if image is not None and question is None:
        raise ValueError(NO_QUESTION)
    ((prompt,), question, expected) = find_prompts([] if image is None else [str(image), str(question)], save)
    budget = parse_keep(keep)
    with waiting("loading torch and transformers", quiet=as_json):
        from zooprune.evaluation.gallery import choose, hang
        from zooprune.loading import load_model
        from zooprune.pruners import pruner_class
    check_placement(dtype, device)
    for name in method or ():
        pruner_class(name)
    quiet_libraries()
    with waiting(f"loading {model}", quiet=as_json):
        loaded, processor = load_model(model, dtype=dtype, device=device)
    pruners, left_out = choose(loaded, method, budget, seed)
    with waiting(f"asking under {len(pruners)} methods", quiet=as_json):
        (picture,) = prompt.load()
        found = hang(loaded, processor, picture, question, pruners, expected=expected, max_new_tokens=max_new_tokens)
    # The answers are printed first, so that they are not lost if the picture cannot be made.
    if as_json:
        print(json.dumps(gallery_as_json(found, question, expected, left_out, save)))
    else:
        print_gallery(found, question, expected, left_out)
    if save is not None:
        save_gallery(save, found, question, expected)
        if not as_json:
            say(f"picture: {save}")


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="A method, to see its description and options.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the pruning methods, or describe one of them with its options."""
    from zooprune.catalogue import catalogue, describe

    quiet_libraries()
    entries = catalogue() if name is None else (describe(name),)
    if as_json:
        print(json.dumps([asdict(entry) for entry in entries]))
    elif name is None:
        print_methods(entries)
    else:
        print_method(entries[0])


@app.command()
def models(
    model: Annotated[
        str | None, typer.Argument(help="A folder or hub id, to see whether this model is supported.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the model families, or say whether a model is supported."""
    from zooprune.families import FAMILIES, find_family
    from zooprune.loading import load_skeleton

    quiet_libraries()
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
        table.add_row(*map(text, (*shown, ", ".join(row["traits"]))))
    show(table)


@app.command("eval")
def evaluate(
    model: Annotated[list[str] | None, typer.Option(help="'bundled', a folder or a hub id; repeatable.")] = None,
    data: Annotated[
        str, typer.Option(help="'bundled', a .jsonl or .parquet file, a folder or a data set.")
    ] = "bundled",
    question: FolderQuestion = None,
    task: Tasks = None,
    limit: Limit = None,
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
    batch: BatchSize = 8,
    timed: Annotated[int, typer.Option(min=0, help="Questions that are also timed, one by one.")] = 8,
    max_new_tokens: AnswerLength = 64,
    out: Annotated[Path, typer.Option(help="Output folder. An interrupted run in it is resumed.")] = Path("runs/eval"),
    dtype: Dtype = "auto",
    device: Device = "auto",
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at an image that cannot be read or a column that is not known.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure how many answers pruning keeps, by method and budget, and how much time and memory it saves."""
    names = list(dict.fromkeys(model or ["bundled"]))
    budgets = [parse_keep(each) for each in keep or ("192", "64")]
    asked = {"positions": positions, "scope": scope, "newlines": newlines, "dropped": dropped}
    policies = make_policies({name: values for name, values in asked.items() if values})
    with waiting("loading torch and transformers", quiet=as_json):
        from zooprune.data.examples import fingerprint, load_examples
        from zooprune.evaluation import runner
        from zooprune.evaluation.publish import draw_cases, publish
        from zooprune.families import find_family
        from zooprune.loading import load_model, load_skeleton, model_version
    check_placement(dtype, device)
    quiet_libraries()
    # Whether a method draws random numbers, and so needs seeds, depends on the model.
    settings: dict[str, list[Setting]] = {}
    planned = None if plan is None else as_setting(load_plan(plan, names, method, keep, seed, *asked.values()))
    for name in names:
        if planned is None:
            sensitivity = find_family(load_skeleton(name)).sensitivity
            settings[name] = runner.grid(
                method or ("zoo", "random"), budgets, seed or (0,), policies, sensitivity=sensitivity
            )
        else:
            settings[name] = [runner.Setting(), planned]
    with waiting(f"loading {data}", quiet=as_json):
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
    with progress_bar() as progress:
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
        warn_of_left_out(left_out[name])
    if as_json:
        print(json.dumps({"run": str(out), "models": found, "cases": cases, "left_out": left_out}))
        return
    from zooprune.evaluation.report import headline, overview

    for name in names:
        print_figures(overview(found[name], brief=True), f"{name} on {data}")
        say(headline(found[name]))
    say(f"written: {', '.join(map(str, paths))}", soft_wrap=True)


@app.command()
def calibrate(
    data: Annotated[str, typer.Option(help="A .jsonl or .parquet file, a folder, a data set, or 'bundled'.")],
    model: Checkpoint = "bundled",
    question: FolderQuestion = None,
    task: Tasks = None,
    limit: Limit = None,
    keep_quality: Annotated[float, typer.Option(help="Share of the answers to keep.")] = 0.99,
    method: Annotated[list[str] | None, typer.Option(help="Pruning method; repeatable. Default: zoo.")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Candidate budget; repeatable. Default: shares from 0.75 to 0.028.")
    ] = None,
    dropped: Annotated[
        str, typer.Option(help="What becomes of dropped tokens: discard, mean, mass or 'stand in'.")
    ] = "discard",
    positions: Positions = None,
    batch: BatchSize = 8,
    max_new_tokens: AnswerLength = 64,
    out: Annotated[Path, typer.Option(help="File to write the plan to.")] = Path("plan.json"),
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Find the smallest budget that keeps a model's answers to your questions, with 95 % confidence."""
    check_writable(out, "--out")
    (policy,) = make_policies({"dropped": [dropped], "positions": [positions or "auto"]})
    budgets = [parse_keep(each) for each in keep or ()]
    with waiting("loading torch and transformers", quiet=as_json):
        from zooprune.data.examples import load_examples
        from zooprune.evaluation.calibrate import SHARES, check_request
        from zooprune.evaluation.calibrate import calibrate as find_plan
        from zooprune.evaluation.runner import Subject
        from zooprune.loading import load_model
    check_placement(dtype, device)
    check_request(method or ["zoo"], budgets or SHARES, quality=keep_quality)
    quiet_libraries()
    with waiting(f"loading {data}", quiet=as_json):
        examples = load_examples(data, question=question, tasks=task, limit=limit)
    with waiting(f"loading {model}", quiet=as_json):
        subject = Subject(model, *load_model(model, dtype=dtype, device=device), max_new_tokens)
    with progress_bar() as progress:
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
        "method", "keep", "asked", "kept", "certified", title=text(f"{plan.certified['measure']}, {model} on {data}")
    )
    for tried in candidates:
        shown = (
            tried.setting.method,
            tried.setting.keep,
            tried.trials,
            tried.successes,
            "" if tried.dropped else "yes",
        )
        table.add_row(*map(text, shown))
    show(table)
    say(
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
    model: Checkpoint = "bundled",
    question: FolderQuestion = None,
    task: Tasks = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of questions, from the first.")] = 30,
    trials: Annotated[int, typer.Option(min=1, help="Number of options to try; the published ones are first.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    batch: BatchSize = 8,
    out: Annotated[Path, typer.Option(help="File to write the plan to.")] = Path("plan.json"),
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Find the options of a method that change the model's last hidden state least."""
    check_writable(out, "--out")
    budget = parse_keep(keep)
    with waiting("loading torch and transformers", quiet=as_json):
        from zooprune.data.examples import load_examples
        from zooprune.evaluation.runner import Subject
        from zooprune.evaluation.tuning import check_method
        from zooprune.evaluation.tuning import tune as find_options
        from zooprune.loading import load_model
    check_placement(dtype, device)
    check_method(method)
    quiet_libraries()
    with waiting(f"loading {data}", quiet=as_json):
        examples = load_examples(data, question=question, tasks=task, limit=limit)
    with waiting(f"loading {model}", quiet=as_json):
        subject = Subject(model, *load_model(model, dtype=dtype, device=device))
    with progress_bar() as progress:
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
        "options", *plan.options, "likeness", title=text(f"{method} with keep={plan.keep}, {model} on {data}")
    )
    for name, trial in (("published", published), ("found", best)):
        table.add_row(
            *map(text, (name, *(f"{value:.4g}" for value in trial.options.values()), f"{trial.likeness:.4f}"))
        )
    show(table)
    say(f"{out}: the best of {trials} trials on {len(examples)} questions", soft_wrap=True)


@app.command("batch")
def answer_batch(
    source: Annotated[
        str, typer.Option("--input", help="A .jsonl or .parquet file, a folder, a data set, or 'bundled'.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the answers. An interrupted job in it is resumed.")],
    question: FolderQuestion = None,
    limit: Limit = None,
    model: Checkpoint = "bundled",
    method: Annotated[str | None, typer.Option(help="Pruning method. Default: zoo.")] = None,
    keep: Keep = None,
    seed: Seed = None,
    dropped: Dropped = None,
    positions: Positions = None,
    scope: Annotated[str | None, typer.Option(help="What a budget is for: image, tile, prompt.")] = None,
    newlines: Annotated[str | None, typer.Option(help="Which row separators are kept: drop, keep, rows.")] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Use a plan from 'calibrate' or 'tune' instead of the options for pruning.")
    ] = None,
    batch: BatchSize = 8,
    shard: Annotated[int, typer.Option(min=1, help="Rows per output file.")] = 256,
    max_new_tokens: AnswerLength = 64,
    dtype: Dtype = "auto",
    device: Device = "auto",
    address: Annotated[
        str | None, typer.Option(help="Ray cluster: auto, ray://HOST:PORT, or local for this machine.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Copies of the model on the cluster.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a line.")] = False,
) -> None:
    """Answer a whole data set into Parquet files, on this machine or a Ray cluster.

    Exit code: 0 if all rows were answered, 1 if some failed (column 'error' says why), 2 if the job could not run.
    """
    budget = parse_keep(keep or "64")
    with waiting("loading torch and transformers", quiet=as_json):
        from zooprune.batching import answer_all
    pruning = {"positions": positions, "scope": scope, "newlines": newlines, "dropped": dropped}
    if plan is None:
        given = {name: [value] for name, value in pruning.items() if value is not None}
        (policy,) = make_policies({"dropped": ["stand in"]} | given)
        used = make_plan(model, method or "zoo", budget, seed, policy)
    else:
        used = load_plan(plan, [model], method, keep, seed, *pruning.values())
    quiet_libraries()
    with following() as follow:
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
        say(f"this run: {end.asked:,} rows in {end.seconds:,.1f} s{rate}")
        say(f"{output}: {end.total:,} rows, {end.failed:,} failed", soft_wrap=True)
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
    device: Device = "auto",
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
    quiet_libraries()
    where = find_device(device)
    found = {}
    for name in QUESTIONS if question is None else (question,):
        with waiting(f"measuring {name}", quiet=as_json):
            found[name] = measure(name, shape, repeats=repeats, device=str(where))
        if not as_json:
            show(table(found[name], f"{name}, {shape}: {QUESTIONS[name]}"))
    if as_json:
        print(json.dumps(found))


@app.command("app")
def page(
    model: Checkpoint = "bundled",
    host: Annotated[
        str, typer.Option(help="Address to listen at. With 0.0.0.0, other machines can open the page.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 for any free port.")] = 7860,
    dtype: Dtype = "auto",
    device: Device = "auto",
    max_new_tokens: AnswerLength = 64,
) -> None:
    """Open a page in the browser to try methods and budgets on your own pictures."""
    from zooprune.app import check_gradio

    check_gradio()
    with waiting("loading torch, transformers and gradio", quiet=False):
        from zooprune.app.serving import listen, serve
        from zooprune.app.workbench import Workbench
    quiet_libraries()
    # The port is opened first, so that a port in use is noticed before a model is loaded.
    with listen(host, port) as socket:
        with waiting(f"loading {model}", quiet=False):
            bench = Workbench(model, dtype=dtype, device=device, max_new_tokens=max_new_tokens)
        serve(
            bench, model, socket,
            ready=lambda address: say(f"The page is at {address}; Ctrl+C stops it.", soft_wrap=True),
        )  # fmt: skip


def _bench_server(plot: Path | None, as_json: bool, **load: Any) -> None:
    from zooprune.benching import serving

    if plot is not None:
        check_writable(plot, "--plot")
    with waiting(f"loading {load['url']}", quiet=as_json):
        found = serving.load(**load)
    if plot is not None:
        serving.plot(found, plot)
    if as_json:
        print(json.dumps(found))
        return
    show(serving.table(found))
    for error in found["errors"]:
        say(f"error: {error}")


def main() -> None:
    """Run the command line; bad input is answered with one sentence and exit code 2.

    Only errors that are meant for users become a sentence. A ValueError that this package did not raise itself, or an
    error of another kind, is a fault of the program and keeps its traceback.
    """
    # A formula or an answer may have signs that the encoding of the output lacks; their codes are printed then.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: warn(message)
            app(prog_name="zooprune")
    except (ValueError, ImportError, OSError) as error:
        if isinstance(error, ValueError) and not is_ours(error):
            raise
        refuse(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
