"""What the documentation site says of the code: all public names, and blocks to copy."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from zooprune.bundled import BUNDLED_FOLDER, demo_scene
from zooprune.pruners import Pruner

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
#: Names on the page of the reference, and which of them cannot be imported without VLMEvalKit.
PATHS = re.findall(r"^::: (\S+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.M)
ELSEWHERE = "zooprune.integrations.vlmevalkit."


def named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.fixture(scope="module")
def documented() -> list[Any]:
    """What the reference shows; most of it can be imported from several places."""
    return [named(path) for path in PATHS if not path.startswith(ELSEWHERE)]


@pytest.mark.parametrize("module", ["zooprune", "zooprune.selection", "zooprune.sensitivity", "zooprune.batching"])
def test_the_reference_has_every_public_name(module, documented):
    for name in importlib.import_module(module).__all__:
        value = named(f"{module}.{name}")
        # Modules have a row of their own in this test.
        assert inspect.ismodule(value) or value in documented, name


def test_the_reference_has_what_the_pages_import(documented):
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")]
    imports = re.compile(r"^from (zooprune[\w.]*) import ([\w, ]+)$", re.M)
    for page in pages:
        for module, names in imports.findall(page.read_text(encoding="utf-8")):
            for path in (f"{module}.{name}" for name in names.split(", ")):
                assert path in PATHS or is_method(named(path)) or named(path) in documented, f"{page.name}: {path}"


def is_method(value: Any) -> bool:
    """Return whether it is a class of a method, whose options docs/methods.md shows."""
    return inspect.isclass(value) and issubclass(value, Pruner)


def blocks_to_copy() -> list[str]:
    """Return the blocks of the start page that need a checkpoint and a GPU."""
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    return re.findall(r"^<!-- not run: [^\n]* -->\n```python\n(.*?)^```$", text, re.M | re.S)


@pytest.mark.parametrize("number", range(3))
def test_blocks_to_copy_run_on_the_bundled_model(number, tmp_path, monkeypatch, capsys):
    picture, question, answer = demo_scene()
    picture.save(tmp_path / "photo.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    block = re.sub(r'^name = ".*"$', f"name = {str(BUNDLED_FOLDER)!r}", blocks_to_copy()[number], count=1, flags=re.M)
    exec(block.replace("cuda", "cpu").replace("What is on the table?", question), {})
    assert capsys.readouterr().out.strip() == answer


def test_every_model_of_the_start_page_has_a_block_of_its_own():
    names = [re.search(r'^name = "(.*)"$', block, re.M)[1] for block in blocks_to_copy()]
    assert len(names) == len(set(names)) == 3
