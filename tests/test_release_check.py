"""What `make release-check` tries, and that it notices what does not work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import release_check
from release_check import TRIES, Environment, FailedError, bare, find_python, try_extra


def test_every_extra_is_tried():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    # Those for whoever works on zooprune need a checkout.
    assert {*TRIES} == {"none", *project["optional-dependencies"]} - {"training", "docs", "dev"}


def test_pythons_are_found_only_if_they_start(tmp_path, monkeypatch):
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_python("3.10") is None
    for version, script in ((own, f'exec {sys.executable} "$@"'), ("3.10", "exit 127")):
        (tmp_path / f"python{version}").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / f"python{version}").chmod(0o755)
    assert find_python(own) == sys.executable
    assert own == "3.10" or find_python("3.10") is None


def test_commands_find_neither_the_checkout_nor_the_hub(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "src")
    assert "PYTHONPATH" not in bare() and bare()["HF_HUB_OFFLINE"] == "1"


def test_what_fails_or_writes_nothing_is_told(tmp_path, monkeypatch):
    environment = object.__new__(Environment)
    environment.folder, environment.python = tmp_path, sys.executable
    environment.zooprune = tmp_path / "zooprune"
    for script, told in (("raise SystemExit(3)", "failed: .* ask"), ("", r"no file answer\.png was written")):
        environment.zooprune.write_text(script)
        monkeypatch.setitem(release_check.TRIES, "none", ([["ask"]], ["answer.png"]))
        with pytest.raises(FailedError, match=told):
            try_extra(environment, tmp_path / "no.whl", "none", tmp_path)
        (tmp_path / "work").rmdir()
    environment.zooprune.write_text("open('answer.png', 'w')")
    try_extra(environment, tmp_path / "no.whl", "none", tmp_path)
