"""Every example does what its page says, on the bundled model and without a network."""

import json
import runpy
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
#: What each prints, among other things.
PRINTS = {
    "batch_of_pictures": "(64 of 576 tokens)",
    "calibrate_and_use": "plan: zoo with keep=64",
    "folder_to_table": ",64,576",
    "one_picture": "64 of 576 visual tokens; the prompt is 75 tokens long",
    "own_pruner": "unlike: 17 of 18 right",
    "several_pictures": "(128 of 1152 tokens)",
    "video": "vidcom2: 64 of 520 tokens",
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs_and_is_short(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    assert PRINTS[script.stem] in capsys.readouterr().out
    assert len(script.read_text().splitlines()) <= 40


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    notebook = json.loads((EXAMPLES / "walk_through.ipynb").read_text())
    names: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "commit the notebook without outputs"
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert len(plt.get_fignums()) == 5
    plt.close("all")
    assert "64 of 576 visual tokens were read" in capsys.readouterr().out


def test_the_page_names_every_example():
    page = (EXAMPLES / "README.md").read_text()
    assert all(f"({path.name})" in page for path in [*SCRIPTS, *EXAMPLES.glob("*.ipynb")])
