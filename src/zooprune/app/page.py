"""The page itself: what stands where, and which control calls what."""

from __future__ import annotations

import base64
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from zooprune.app import fragments
from zooprune.app.pictures import (
    MAX_MEGABYTES,
    MAX_PICTURES,
    Picture,
    example_ids,
    load_example,
    read_pictures,
    too_large,
)
from zooprune.app.record import as_json, as_png
from zooprune.app.settings import MAX_QUESTION, Settings
from zooprune.app.workbench import Look, Workbench
from zooprune.asking import Answer
from zooprune.failures import is_ours

#: The example that the page begins with.
FIRST = "place-0"
#: So many answers of a visitor are kept.
_ANSWERS = 24
_DROPPED = [
    ("Kept tokens stand in for them", "stand in"),
    ("Kept tokens become means with them", "mean"),
    ("Kept tokens count more often", "mass"),
    ("They are discarded, as published", "discard"),
]
_POSITIONS = [
    ("The model's default", "auto"),
    ("Numbered anew, without gaps", "contiguous"),
    ("As before pruning", "original"),
]
_INTRODUCTION = (
    "# zooprune\n"
    "A vision-language model turns a picture into visual tokens. A pruning method keeps some of them, and the model "
    "answers faster. Choose a budget and see what stays."
)
_FAULT = "Something went wrong; the terminal in which zooprune app runs shows what"
CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
#: Save what a hidden field holds. The file is made in the browser: it is stored nowhere on the server.
_SAVE = """(file) => {
  if (!file) return;
  const [name, kind, content] = file.split("\\n");
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const link = document.createElement("a");
  link.download = name;
  link.href = URL.createObjectURL(new Blob([bytes], {type: kind}));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}"""

#: Refuse files that are too large before Gradio sees them: it would refuse them with a sentence of its own.
_REFUSE = """() => {
  const refuse = (event, files) => {
    document.querySelector("#refused")?.remove();
    const large = [...(files ?? [])].find((file) => file.size > LIMIT);
    if (!large) return;
    event.preventDefault();
    event.stopPropagation();
    const told = document.createElement("p");
    told.id = "refused";
    told.className = "zoo-alert";
    told.setAttribute("role", "alert");
    told.textContent = SENTENCE.replace("NAME", () => large.name) + ".";
    document.querySelector("#pictures").after(told);
  };
  document.addEventListener("change", (event) => {
    if (!event.target.matches("#pictures input[type=file]")) return;
    refuse(event, event.target.files);
  }, true);
  document.addEventListener("drop", (event) => {
    if (event.target.closest("#pictures")) refuse(event, event.dataTransfer.files);
  }, true);
}""".replace("LIMIT", str(MAX_MEGABYTES * 1_000_000)).replace("SENTENCE", json.dumps(too_large("NAME")))


def theme() -> gr.themes.Base:
    """Return Gradio's plain theme, with fonts that every machine has and a button whose text is legible."""
    plain = gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", radius_size="sm",
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"],
    )  # fmt: skip
    return plain.set(
        button_primary_background_fill="*primary_600", button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_700", button_primary_background_fill_hover_dark="*primary_800",
    )  # fmt: skip


def build(bench: Workbench, name: str, *, choose_model: bool) -> gr.Blocks:
    """Return the page.

    Parameters
    ----------
    bench : Workbench
    name : str
        The model that visitors begin with.
    choose_model : bool
        Whether visitors can choose another one.
    """
    first = load_example(FIRST)
    begin = Settings(name, first.question, example=FIRST)
    does = _Does(bench, begin, choose_model)
    # Whoever uses the model waits for whoever used it before.
    in_turn: dict[str, Any] = {
        "concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden", "api_visibility": "private",
    }  # fmt: skip
    at_once: dict[str, Any] = {
        "concurrency_limit": 4, "show_progress": "hidden", "api_visibility": "private", "trigger_mode": "always_last",
    }  # fmt: skip
    with gr.Blocks(title="zooprune", analytics_enabled=False, delete_cache=(600, 3600), fill_width=True) as page:
        model, example, answers = gr.State(name), gr.State(FIRST), gr.State({}, time_to_live=3600)
        gr.Markdown(_INTRODUCTION, elem_classes="zoo-head")
        with gr.Row(elem_classes="zoo-columns"):
            with gr.Column(elem_classes="zoo-controls", scale=0, min_width=320):
                files = gr.File(
                    label=f"Your pictures (at most {MAX_PICTURES}, {MAX_MEGABYTES} MB each)", file_count="multiple",
                    height=144, elem_id="pictures",
                )  # fmt: skip
                with gr.Column(elem_classes="zoo-examples"):
                    gr.HTML("<p>Examples, by what they ask for</p>")
                    with gr.Row():
                        examples = {
                            one: gr.Button(load_example(one).task, size="sm", min_width=60) for one in example_ids()
                        }
                question = gr.Textbox(first.question, label="Question", max_length=MAX_QUESTION, elem_id="question")
                methods = bench.load(name).methods
                with gr.Row():
                    method = gr.Dropdown(list(methods), value=begin.method, label="Method", min_width=140)
                    against = gr.Dropdown(_with_none(methods), value="", label="Compare with", min_width=140)
                keep = gr.Slider(1, 576, begin.keep, step=1, label="Visual tokens to keep")
                dropped = gr.Dropdown(_DROPPED, value=begin.dropped, label="Dropped tokens")
                positions = gr.Dropdown(_POSITIONS, value=begin.positions, label="Positions of kept tokens")
                ask = gr.Button("Answer", variant="primary", elem_id="answer")
                if choose_model:
                    with gr.Accordion("Model", open=False):
                        wanted = gr.Textbox(
                            name, label="Checkpoint", info="'bundled', a folder, or a name on the Hugging Face hub"
                        )
                        load = gr.Button("Load", size="sm")
            with gr.Column(elem_classes="zoo-results", min_width=320):
                now = gr.HTML(fragments.status("Encoding the picture"), elem_id="status")
                view = gr.HTML(elem_id="results")
                with gr.Row(elem_classes="zoo-downloads"):
                    png = gr.Button("Download picture (PNG)", size="sm")
                    record = gr.Button("Download settings and results (JSON)", size="sm")
                file = gr.Textbox(visible="hidden", label="Download")
        set_ = [model, example, files, question, method, against, keep, dropped, positions, answers]
        fields = [example, question, method, against, dropped, positions]
        drawn = [now, view, keep]
        redrawing = [keep.input, method.input, against.input, dropped.input, positions.input]
        gr.on(redrawing, does.redraw, set_, [now, view], **at_once)
        looks: list[Callable[..., Any]] = [question.blur]
        looks.append(files.upload(lambda: "", None, example, **at_once).then)
        looks.append(gr.on([files.clear, files.delete], lambda: "", None, example, **at_once).then)
        for one, button in examples.items():
            choose = partial(_chosen, one)
            looks.append(button.click(choose, None, [example, question, files], **at_once).then)
        for event in looks:
            event(does.look, set_, drawn, trigger_mode="always_last", **in_turn)
        asked = gr.on([ask.click, question.submit], does.answer, set_, [now, answers], **in_turn)
        asked.then(does.show_answers, set_, view, **at_once)
        for button, save in ((png, does.picture), (record, does.record)):
            button.click(save, set_, [now, file], **in_turn).then(None, file, None, js=_SAVE)
        if choose_model:
            changed = [*drawn, model, method, against]
            gr.on([load.click, wanted.submit], does.load, [wanted, *set_], changed, **in_turn)
        page.load(None, js=_REFUSE)
        page.load(does.restore, None, [*drawn, *fields], **in_turn)
    page.queue(max_size=64, api_open=False)
    return page


def _chosen(example: str) -> tuple[str, str, None]:
    """Return an example, its question, and no files."""
    return example, load_example(example).question, None


def _with_none(methods: Sequence[str]) -> list[tuple[str, str]]:
    return [("none", ""), *((name, name) for name in methods)]


class _Does:
    """What controls call: settings go in, what is shown comes out."""

    def __init__(self, bench: Workbench, begin: Settings, choose_model: bool) -> None:
        self._bench, self._begin, self._choose_model = bench, begin, choose_model

    def redraw(self, *values: Any) -> tuple[str, str]:
        """Show what is kept."""
        try:
            return "", self._shown(*_read(*values))
        except Exception as error:
            return _told(error), ""

    def look(self, *values: Any) -> tuple[str, str, Any]:
        """Show what is kept of other pictures, and set how far the slider goes."""
        now, view, most = self._looked(*values)
        return now, view, gr.Slider(maximum=most) if most else gr.skip()

    def show_answers(self, *values: Any) -> Any:
        """Show what is kept and was answered; what went wrong is told already."""
        try:
            return self._shown(*_read(*values))
        except ValueError:
            return gr.skip()

    def answer(self, *values: Any) -> Iterator[tuple[str, Any]]:
        """Answer with all tokens and under each method."""
        try:
            settings, pictures, answers = _read(*values)
            look = self._bench.look(settings, pictures)
            for plan in (None, *(choice.plan for choice in look.choices)):
                yield fragments.status(f"Answering with {plan.method if plan else 'all tokens'} ..."), gr.skip()
                answers = answers | {look.key(plan): self._bench.answer(settings, pictures, plan)}
            yield fragments.status("Answered."), dict(list(answers.items())[-_ANSWERS:])
        except Exception as error:
            yield _told(error), gr.skip()

    def picture(self, *values: Any) -> tuple[str, str]:
        """Make the PNG file."""
        return self._file("zooprune.png", "image/png", lambda look, answers: as_png(look, answers), values)

    def record(self, *values: Any) -> tuple[str, str]:
        """Make the JSON file."""

        def make(look: Look, answers: fragments.Answers) -> bytes:
            return as_json(look, answers, self._bench.facts(look.settings), self._bench.max_new_tokens).encode()

        return self._file("zooprune.json", "application/json", make, values)

    def load(self, name: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Load another model, and say how long it has taken so far."""
        same = [gr.skip()] * 5
        try:
            with ThreadPoolExecutor(1) as pool:
                loading, began = pool.submit(self._bench.load, name), time.monotonic()
                while not wait([loading], timeout=1).done:
                    yield fragments.status(f"Loading {name}: {time.monotonic() - began:.0f} s"), *same
                loaded = loading.result()
            example, files, question, method, against, *others = values[1:]
            method = method if method in loaded.methods else loaded.methods[0]
            against = against if against in loaded.methods else ""
            now, view, keep = self.look(loaded.name, example, files, question, method, against, *others)
            yield (
                now or fragments.status(f"{loaded.name} is loaded."), view, keep, loaded.name,
                gr.Dropdown(list(loaded.methods), value=method),
                gr.Dropdown(_with_none(loaded.methods), value=against),
            )  # fmt: skip
        except Exception as error:
            yield _told(error), *same

    def restore(self, request: gr.Request) -> tuple[Any, ...]:
        """Show what the link asks for."""
        settings, told = self._begin, ""
        try:
            settings = Settings.of_query(request.query_params, self._begin)
            if settings.model != self._begin.model:
                where = "load it under Model" if self._choose_model else "start zooprune app with it"
                told = fragments.alert(f"The link is for the model {settings.model}; {where}")
                settings = replace(settings, model=self._begin.model)
        except ValueError as error:
            told = _told(error)
        chosen = settings.question, settings.method, settings.against
        now, view, most = self._looked(
            settings.model, settings.example, None, *chosen, settings.keep, settings.dropped, settings.positions, {}
        )
        keep = gr.Slider(maximum=max(most, settings.keep), value=settings.keep)
        return told or now, view, keep, settings.example, *chosen, settings.dropped, settings.positions

    def _looked(self, *values: Any) -> tuple[str, str, int]:
        """Return what is going on, what to show, and the most tokens of a picture, 0 if that is not known."""
        try:
            settings, pictures, answers = _read(*values)
            look = self._bench.look(settings, pictures)
            return "", _results(look, answers), look.most
        except Exception as error:
            return _told(error), "", 0

    def _shown(self, settings: Settings, pictures: Sequence[Picture], answers: fragments.Answers) -> str:
        return _results(self._bench.look(settings, pictures), answers)

    def _file(
        self, name: str, kind: str, make: Callable[[Look, fragments.Answers], bytes], values: Sequence[Any]
    ) -> tuple[str, str]:
        """Return what `_SAVE` saves: name, kind and content, a line each."""
        try:
            settings, pictures, answers = _read(*values)
            content = make(self._bench.look(settings, pictures), answers)
            return "", f"{name}\n{kind}\n{base64.b64encode(content).decode()}"
        except Exception as error:
            return _told(error), ""


def _read(
    model: str, example: str, files: Sequence[str] | None, question: str, method: str, against: str, keep: float,
    dropped: Any, positions: Any, answers: dict[str, Answer],
) -> tuple[Settings, tuple[Picture, ...], dict[str, Answer]]:  # fmt: skip
    """Return what the controls are set to."""
    settings = Settings(model, question, method, against, int(keep), dropped, positions, "" if files else example)
    pictures = read_pictures(files) if files else load_example(example).pictures if example else ()
    return settings, pictures, answers


def _results(look: Look, answers: fragments.Answers) -> str:
    example = load_example(look.settings.example) if look.settings.example else None
    known = example is not None and example.question == look.settings.question
    return fragments.results(look, answers, example.answer if example and known else None)


def _told(error: Exception) -> str:
    """Return the sentence for a visitor; what is not bad input is shown in the terminal."""
    if isinstance(error, ValueError) and is_ours(error):
        return fragments.alert(str(error))
    traceback.print_exception(error, file=sys.stderr)
    return fragments.alert(_FAULT)
