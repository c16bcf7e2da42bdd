"""The documentation's code runs, its commands exist, and its links lead somewhere.

A page's Python blocks are run in order, in a folder with the files below, with the bundled model at hand as ``model``.
A block that this machine cannot run stands behind a comment, ``<!-- not run: needs a server -->``. Its syntax, its
imports and its names are checked.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import typer

from zooprune import cli
from zooprune.bundled import demo_scene
from zooprune.cache_names import CACHE
from zooprune.data.examples import Example
from zooprune.evaluation.runner import Results, Subject, evaluate, grid
from zooprune.plan import Plan

ROOT = Path(__file__).parent.parent
FOLDERS = ("docs", "training", "recipes")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))
FENCE = re.compile(
    r"(?:^ *<!-- not run: (?P<why>[^\n]+?) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.M | re.S,
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SHELL = {"sh", "bash", "console"}
SCRIPTS = ("benchmarks/", "training/", "tools/", "recipes/", "examples/")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None

    def code(self) -> Any:
        """Return the block as compiled Python; errors show the page and its line."""
        # Pages say what the cache is called before transformers 5.24, which warns of that name.
        text = self.text.replace("past_key_values", CACHE)
        return compile("\n" * self.line + text, self.page, "exec")


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT).as_posix()
    return [
        Block(
            name,
            text.count("\n", 0, found.start("text")),
            found["language"],
            textwrap.dedent(found["text"]),
            found["why"],
        )
        for found in FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def in_python(*, run: bool) -> list[Block]:
    return [block for block in BLOCKS if block.language == "python" and (block.not_run is None) == run]


def where(value: Any) -> str:
    return f"{value.page}:{value.line}" if isinstance(value, Block) else str(value)


@pytest.fixture(scope="module")
def folder(bundled, tmp_path_factory):
    """A folder with the files that the pages read."""
    folder = tmp_path_factory.mktemp("docs")
    picture, question, _ = demo_scene()
    picture.save(folder / "photo.jpg")
    Plan("bundled", "zoo", 64).save(folder / "plan.json")
    rows = [{"image": "photo.jpg", "question": question}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "photos.parquet")
    examples = [Example(str(number), "questions", (lambda: picture,), question, ("yes",), ()) for number in range(2)]
    results = Results(folder / "runs" / "first", {})
    evaluate(Subject("bundled", *bundled), examples, grid(["zoo", "diversity"], [64], [0]), results, timed=0)
    return folder


@pytest.fixture
def names(bundled, folder, monkeypatch):
    """What a page's code may use without defining it."""
    monkeypatch.chdir(folder)
    model, processor = bundled
    image, question, _ = demo_scene()
    inputs = processor(text=f"USER: <image>\n{question} ASSISTANT:", images=image, return_tensors="pt")
    return {"model": model, "processor": processor, "image": image, "question": question, "inputs": inputs}


@pytest.mark.parametrize("page", sorted({block.page for block in in_python(run=True)}))
def test_the_code_of_a_page_runs(page, names):
    for block in in_python(run=True):
        if block.page == page:
            exec(block.code(), names)


@pytest.mark.parametrize("block", in_python(run=False), ids=where)
def test_code_that_is_not_run_imports_and_defines_what_it_uses(block, names):
    block.code()
    tree = ast.parse(block.text)
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            try:
                exec(compile(ast.Module([statement], []), block.page, "exec"), {})
            except ModuleNotFoundError as error:
                # What is missing may be what the block needs, but not a module of this package.
                assert not error.name.startswith("zooprune")
    before = [other for other in BLOCKS if (other.page, other.language) == (block.page, "python")]
    bound = [bindings(ast.parse(other.text)) for other in before if other.line <= block.line]
    known = set(dir(builtins)).union(names, *bound)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    assert used <= known


def bindings(tree: ast.AST) -> set[str]:
    """Return the names that code binds."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(name.asname or name.name).split(".")[0] for name in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def command_lines() -> list[tuple[str, list[str]]]:
    """Return the command lines of all shell blocks as words, without variables that are set in front."""
    found = []
    for block in BLOCKS:
        if block.language in SHELL:
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                found.append((block.page, words))
    return found


@pytest.mark.parametrize(
    ("page", "words"), [(page, words) for page, words in command_lines() if words[:1] == ["zooprune"]], ids=str
)
def test_commands_and_their_options_exist(page, words):
    group = typer.main.get_command(cli.app)
    assert len(words) > 1, "no command"
    if words[1].startswith("-"):
        command, arguments = group, words[1:]
    else:
        assert words[1] in group.commands
        command, arguments = group.commands[words[1]], words[2:]
    # This reads the options and their values as the command would, and does not run it.
    command.make_context(words[1], arguments, resilient_parsing=command is group)


def test_modules_scripts_and_targets_exist():
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    for page, words in command_lines():
        if words[:1] == ["make"]:
            assert set(word for word in words[1:] if "=" not in word) <= set(targets), page
        elif words and words[0].endswith("python"):
            if words[1].startswith(SCRIPTS):
                assert (ROOT / words[1]).is_file(), page
            elif words[1] == "-m" and words[2].startswith("zooprune."):
                assert importlib.util.find_spec(words[2]), page


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ +(.*)$", text, re.M)
    plain = [re.sub(r"\]\([^)]*\)", "", title).lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in LINK.findall(text):
        if not re.match(r"\w+:", link):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or target.suffix != ".md" or anchor in headings(target), link


def test_the_quickstart_answers(names, capsys):
    exec(in_python(run=True)[0].code(), {})
    assert capsys.readouterr().out.splitlines()[0] == demo_scene()[2]
