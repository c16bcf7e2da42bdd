"""Build the distributions, then try the wheel with each extra in a bare environment: `make release-check`.

Torch and the wheel without extras stand in one environment per Python. The environment of an extra stands on it and
holds only what the extra adds. Commands run in an empty folder, so that the checkout cannot be imported.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: The oldest Python that zooprune takes, and those that torch has wheels for, newest first.
OLDEST, NEWER = "3.10", ("3.14", "3.13", "3.12", "3.11")
FEW = ["--limit", "4", "--batch", "4"]
EVAL = ["eval", "--method", "zoo", "--keep", "64", "--timed", "0", "--out", "run"]

A_PARQUET_FILE = """
import pyarrow, pyarrow.parquet
from zooprune.bundled import demo_scene

image, question, answer = demo_scene()
image.save("scene.png")
rows = pyarrow.table({"image": ["scene.png"], "question": [question], "answers": [[answer]]})
pyarrow.parquet.write_table(rows, "questions.parquet")
"""
A_HEIC_FILE = """
import pillow_heif
from zooprune.bundled import demo_scene

pillow_heif.from_pillow(demo_scene()[0]).save("scene.heic")
"""

#: What is run with each extra: arguments of `zooprune`, or a script. Then the files that must be there.
TRIES: dict[str, tuple[list[list[str] | str], list[str]]] = {
    "none": (
        [["--version"], ["ask"], [*EVAL, *FEW]],
        ["answer.png", "run/results.jsonl", "run/report.md"],
    ),
    "data": (
        [A_PARQUET_FILE, [*EVAL, "--data", "questions.parquet"],
         ["batch", "--input", "questions.parquet", "--output", "answers"]],
        ["run/results.jsonl", "answers/part-00000.parquet"],
    ),
    # No server listens there: the plot is of requests that were refused.
    "report": (
        [["bench", "serve", "--url", "http://127.0.0.1:9", "--model", "none", "--requests", "4",
          "--plot", "load.html"]],
        ["load.html"],
    ),
    "calibrate": (
        [["calibrate", "--data", "bundled", "--keep", "288", "--keep-quality", "0.5", "--limit", "16",
          "--out", "plan.json"]],
        ["plan.json"],
    ),
    "tune": (
        [["tune", "--data", "bundled", "--method", "vflowopt", "--keep", "64", "--trials", "2", *FEW,
          "--out", "plan.json"]],
        ["plan.json"],
    ),
    "heic": ([A_HEIC_FILE, ["ask", "scene.heic", "Is there a dog?", "--save", "kept.png"]], ["kept.png"]),
    "ray": (
        [["batch", "--input", "bundled", *FEW, "--output", "answers", "--address", "local", "--workers", "1"]],
        ["answers/part-00000.parquet"],
    ),
    "app": ([["app", "--port", "0"]], []),
    # Its wheels need a GPU, so that pip only has to find versions that go together.
    "vllm": ([], []),
}  # fmt: skip

#: No release of vLLM that the extra takes runs there.
NOT_TRIED = {("3.10", "vllm")}


class FailedError(Exception):
    """A sentence about what did not work."""


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command and show it."""
    shown = " ".join(str(part) if "\n" not in str(part) else "SCRIPT" for part in command)
    print("+", shown, flush=True)
    if subprocess.run(list(map(str, command)), cwd=cwd, env=bare()).returncode:
        raise FailedError(f"failed: {shown}")


def bare() -> dict[str, str]:
    """Return the environment variables without those that lead to the checkout, to the hub or to telemetry."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept | {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "200"}


def find_python(version: str) -> str | None:
    """Return the path of a Python, or None if the machine does not have it."""
    found = shutil.which(f"python{version}")
    told = found and subprocess.run([found, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True)
    return told.stdout.strip() if told and told.returncode == 0 else None


def build(folder: Path) -> Path:
    """Return the wheel, which is built from the source distribution. Both are checked."""
    run(sys.executable, "-m", "build", "--outdir", folder, cwd=ROOT)
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(folder.iterdir()), cwd=ROOT)
    return next(folder.glob("*.whl"))


def packages(environment: Path) -> Path:
    """Return where an environment holds its packages."""
    return next(environment.glob("lib/python3.*/site-packages"))


class Environment:
    """A virtual environment for one Python, with pip, torch and the wheel, or one that stands on it."""

    def __init__(self, folder: Path, python: str | Path, base: Environment | None = None) -> None:
        run(python, "-m", "venv", *(["--without-pip"] if base else []), folder, cwd=folder.parent)
        self.folder, self.python = folder, folder / "bin/python"
        #: The command is a Python script, and runs under whichever Python is given it.
        self.zooprune = (base or self).folder / "bin/zooprune"
        if base:
            (packages(folder) / "base.pth").write_text(f"{packages(base.folder)}\n")

    def install(self, *wanted: str) -> None:
        """Install packages."""
        run(self.python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *wanted, cwd=self.folder)


def try_python(python: str, wheel: Path, extras: list[str], folder: Path) -> dict[str, str]:
    """Return what was wrong with each extra, an empty text if nothing was."""
    base = Environment(folder / "none", python)
    # Only a new pip resolves without downloading all of it.
    base.install("--upgrade", "pip")
    # torch by itself first, as make does, so that the others do not choose a build of their own.
    base.install(re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0])
    base.install(str(wheel))
    found = {}
    for extra in extras:
        start = time.monotonic()
        try:
            try_extra(base, wheel, extra, folder / extra)
            found[extra] = ""
        except FailedError as error:
            found[extra] = str(error)
        print(f"{extra}: {time.monotonic() - start:.0f} s", flush=True)
    return found


def try_extra(base: Environment, wheel: Path, extra: str, folder: Path) -> None:
    """Install an extra and run what it is for."""
    environment = base
    if extra != "none":
        environment = Environment(folder, base.python, base)
        environment.install(*(["--dry-run"] if extra == "vllm" else []), f"{wheel}[{extra}]")
    work = environment.folder / "work"
    work.mkdir()
    commands, files = TRIES[extra]
    for command in commands:
        if isinstance(command, str):
            run(environment.python, "-c", command, cwd=work)
        elif command[0] == "app":
            visit([environment.python, environment.zooprune, *command], work)
        else:
            run(environment.python, environment.zooprune, *command, cwd=work)
    missing = [name for name in files if not (work / name).is_file()]
    if missing:
        raise FailedError(f"no file {', '.join(missing)} was written")


def visit(command: list[str | Path], work: Path) -> None:
    """Start the page, open it as a browser does, and stop it."""
    print("+", *command, flush=True)
    with subprocess.Popen(list(map(str, command)), cwd=work, env=bare(), stdout=subprocess.PIPE, text=True) as page:
        try:
            told = re.search(r"http://\S+/", page.stdout.readline())
            if told is None:
                raise FailedError("the page did not start")
            first_view(told[0] + "gradio_api/", told[0] + "config")
        except OSError as error:
            raise FailedError(f"the page did not answer: {error}") from None
        finally:
            page.terminate()
        if page.wait(60) != 0:
            raise FailedError(f"the page ended with exit code {page.returncode}")


def first_view(api: str, config: str) -> None:
    """Ask for what the page shows when it is opened: the patches that the model's first example keeps."""
    calls = json.loads(urllib.request.urlopen(config, timeout=60).read())["dependencies"]
    (restore,) = [
        call["id"] for call in calls if [event for _, event in call["targets"]] == ["load"] and call["outputs"]
    ]
    asked = {"data": [], "fn_index": restore, "session_hash": "release"}
    request = urllib.request.Request(
        api + "queue/join", json.dumps(asked).encode(), {"content-type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=60).read()
    shown = urllib.request.urlopen(api + "queue/data?session_hash=release", timeout=120).read().decode()
    if "64 of 576" not in shown:
        raise FailedError(f"the page shows no kept patches: {shown[-500:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("extras", nargs="*", help=f"which of {', '.join(TRIES)}; all, when left out")
    extras = parser.parse_args().extras or list(TRIES)
    if unknown := set(extras) - set(TRIES):
        parser.error(f"no extra {', '.join(sorted(unknown))}; choose of {', '.join(TRIES)}")
    pythons = {version: find_python(version) for version in (OLDEST, *NEWER)}
    newest = [version for version in NEWER if pythons[version]][:1]
    outcomes: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="zooprune-release-") as folder:
        (distributions := Path(folder, "dist")).mkdir()
        wheel = build(distributions)
        for version in [OLDEST, *newest]:
            if pythons[version] is None:
                continue
            (work := Path(folder, version)).mkdir()
            try:
                tried = [extra for extra in extras if (version, extra) not in NOT_TRIED]
                outcomes[version] = try_python(pythons[version], wheel, tried, work)
            except FailedError as error:
                outcomes[version] = dict.fromkeys(extras, str(error))
            shutil.rmtree(work)
    print()
    for version, python in pythons.items():
        if python is None:
            print(f"Python {version}: not tried, this machine does not have it")
    for version, extra in NOT_TRIED:
        print(f"Python {version}, {extra}: not tried, it needs a newer Python")
    for version, found in outcomes.items():
        for extra, wrong in found.items():
            right = "pip finds versions, nothing was run" if extra == "vllm" else "works"
            print(f"Python {version}, {extra}: {wrong or right}")
    sys.exit(not outcomes or any(wrong for found in outcomes.values() for wrong in found.values()))


if __name__ == "__main__":
    main()
