"""The command line: parses, calls, prints."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from zooprune.asking import Answer, Comparison

app = typer.Typer(
    help="Make vision-language models fast by dropping the visual tokens they do not need.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_out, _err = Console(), Console(stderr=True)

_STAGES = ("encode", "score", "select", "prefill", "decode")


@app.command()
def ask(
    image: Annotated[Path | None, typer.Argument(help="Image file; a bundled scene when left out.")] = None,
    question: Annotated[str | None, typer.Argument(help="What to ask about it.")] = None,
    model: Annotated[str, typer.Option(help="'bundled', a folder with a checkpoint, or a hub id.")] = "bundled",
    method: Annotated[str, typer.Option(help="How to choose tokens; see 'zooprune methods'.")] = "zoo",
    keep: Annotated[str, typer.Option(help="Visual tokens to keep: a number, or a share such as 0.25.")] = "64",
    save: Annotated[Path | None, typer.Option(help="Write a picture of what was kept to this PNG file.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer at most.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Ask a model about an image with all visual tokens and with the kept ones."""
    if image is None and save is None:
        save = Path("answer.png")
    if image is not None and question is None:
        raise ValueError('give a question after the image, such as "Is there a dog?"')
    if save is not None:
        _check_writable(save)
    budget = _parse_keep(keep)

    # Everything that can be refused without them is refused before the heavy imports.
    from zooprune.images import load_image

    expected = None
    if image is None:
        from zooprune.bundled import demo_scene

        picture, question, expected = demo_scene()
    else:
        picture = load_image(image)
    with _waiting("loading torch and transformers", quiet=as_json):
        from zooprune.asking import ask as ask_model
        from zooprune.loading import load_model
        from zooprune.pruners import get_pruner
    pruner = get_pruner(method, keep=budget)
    _quiet_libraries()
    with _waiting(f"loading {model}", quiet=as_json):
        loaded, processor = load_model(model, dtype=dtype, device=device)
    assert question is not None
    with _waiting("asking", quiet=as_json):
        result = ask_model(loaded, processor, picture, question, pruner, max_new_tokens=max_new_tokens)
    # The answer first: it is not lost if the picture cannot be made.
    if as_json:
        print(json.dumps(_as_json(result, question, method, expected, save)))
    else:
        _print_comparison(result, question, method, expected)
    if save is not None:
        _save(save, question, result, method)
        if not as_json:
            _out.print(f"picture: {save}", highlight=False)


@app.command()
def methods(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """List the pruning methods."""
    from zooprune.pruners import list_pruners, pruner_class

    rows = []
    for name in list_pruners():
        method = pruner_class(name)
        rows.append({"name": name, "source": method.source, "what": (method.__doc__ or "").splitlines()[0]})
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("method", "what it keeps", "source")
    for row in rows:
        table.add_row(row["name"], row["what"], row["source"])
    _out.print(table)


@app.command()
def models(
    model: Annotated[
        str | None, typer.Argument(help="A folder or hub id, to see whether that one is supported.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the model families, or say whether one model is supported and what is missing."""
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
        table.add_row(*map(str, shown), ", ".join(row["traits"]))
    _out.print(table)


@app.command()
def bench(
    question: Annotated[
        str | None, typer.Argument(help="sensitivity, selection, end-to-end or memory; all four when left out.")
    ] = None,
    shape: Annotated[str, typer.Option(help="Whose shapes, with random weights; 'small' takes minutes.")] = "small",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; every figure is from the time of a round.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure what choosing tokens costs and saves on this machine."""
    from zooprune.benching import QUESTIONS, ask

    if question is not None and question not in QUESTIONS:
        raise ValueError(f"no question {question!r}; choose one of {', '.join(QUESTIONS)}")
    from zooprune.benching.shapes import shape_of
    from zooprune.benching.table import table
    from zooprune.loading import find_device

    shape_of(shape)
    _quiet_libraries()
    where = find_device(device)
    found = {}
    for name in QUESTIONS if question is None else (question,):
        with _waiting(f"measuring {name}", quiet=as_json):
            found[name] = ask(name, shape, repeats=repeats, device=str(where))
        if not as_json:
            _out.print(table(found[name], f"{name}, {shape}: {QUESTIONS[name]}"))
    if as_json:
        print(json.dumps(found))


def main() -> None:
    """Run the command line; bad input is one sentence and exit code 2."""
    try:
        app()
    except (ValueError, TypeError, ImportError, OSError) as error:
        _err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _parse_keep(text: str) -> int | float:
    from zooprune.tokens import Budget

    try:
        value = int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise ValueError(f"--keep {text} is not a number; give tokens such as 64 or a share such as 0.25") from None
    return Budget(value).keep


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"--save {path} is a folder; give a file name")
    if not path.parent.is_dir():
        raise ValueError(f"--save: the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"--save: no permission to write in {path.parent}; choose another folder")


def _quiet_libraries() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _waiting(what: str, *, quiet: bool) -> Any:
    """Show that something is going on, on standard error, unless nobody watches."""
    return Console(stderr=True, quiet=quiet or not sys.stderr.isatty()).status(f"{what} ...")


def _save(path: Path, question: str, result: Comparison, method: str) -> None:
    from zooprune.picture import draw_kept, save_picture

    labels = {"zoo": "sensitivity", "sensitivity": "sensitivity"}
    caption = (
        f"{question}\n"
        f"all {result.full.visual_tokens} tokens: {result.full.text}\n"
        f"{method}, {result.pruned.visual_tokens} tokens: {result.pruned.text}"
    )
    drawn = draw_kept(result.seen, result.pruned.images, caption, scores_label=labels.get(method, "score"))
    save_picture(drawn, path)


def _as_json(result: Comparison, question: str, method: str, expected: str | None, save: Path | None) -> dict[str, Any]:
    def plain(answer: Answer) -> dict[str, Any]:
        fields = {key: value for key, value in vars(answer).items() if key != "images"}
        return fields | {"kept": [image.selection.index.tolist() for image in answer.images]}

    return {
        "question": question,
        "method": method,
        "expected": expected,
        "changed": result.changed,
        "full": plain(result.full),
        "pruned": plain(result.pruned),
        "picture": None if save is None else str(save),
    }


def _print_comparison(result: Comparison, question: str, method: str, expected: str | None) -> None:
    full, pruned = result.full, result.pruned
    table = Table(title=question, title_justify="left")
    table.add_column("")
    table.add_column("all tokens", justify="right")
    table.add_column(method, justify="right")
    table.add_column("ratio", justify="right")
    table.add_row("answer", full.text, pruned.text, "changed" if result.changed else "same", end_section=True)
    rows = [
        ("visual tokens", full.visual_tokens, pruned.visual_tokens, "{:,}"),
        ("prefill GFLOPs", full.prefill_flops / 1e9, pruned.prefill_flops / 1e9, "{:,.2f}"),
        ("KV cache MB", full.kv_cache_bytes / 1e6, pruned.kv_cache_bytes / 1e6, "{:,.2f}"),
    ]
    rows += [
        (f"{name} ms", full.seconds.get(name, 0.0) * 1e3, pruned.seconds.get(name, 0.0) * 1e3, "{:,.1f}")
        for name in _STAGES
    ]
    for name, before, after, form in rows:
        shown = "" if name in ("score ms", "select ms") else f"{after / before:.2f}" if before else ""
        table.add_row(name, form.format(before), form.format(after), shown, end_section=name == "KV cache MB")
    _out.print(table)
    if expected is not None:
        _out.print(f"right answer: {expected}", highlight=False)
