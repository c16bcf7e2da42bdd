"""The bundled model can be trained again, and the scenes it is tested on are drawn again as they are stored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from layouts import draw_layout
from zooprune.bundled.benchmark import load_benchmark, scene_layout

#: Two steps of a small stage with all kinds of losses; a checkpoint is written at its end.
TWO_STEPS = """
import multiprocessing, sys
sys.path.insert(0, "training")
import train

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv.pop(1))
    train.VALIDATION_SCENES = 4
    train.STAGES = (
        train.Stage("small", side=168, steps=2, batch=4, rate=1e-3, final=0.3, questions=3, reading=2, counting=3,
                    pair_questions=2),
    )
    train.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("start", "workers"), [("spawn", 1), ("fork", 0)])
def test_training_runs_with_fresh_processes_and_with_none(tmp_path, start, workers):
    script = tmp_path / "two_steps.py"
    script.write_text(TWO_STEPS)
    # Compiling would take minutes.
    environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1"}
    command = [sys.executable, str(script), start, "--out", str(tmp_path), "--workers", str(workers)]
    subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[1])
    (row,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert row["step"] == 2 and {"patch", "answer", "ground", "looks"} <= row["loss"].keys()
    assert 0 <= row["held_out"]["accuracy"] <= 1 and (tmp_path / "checkpoint.safetensors").exists()


def test_the_benchmark_is_drawn_again_as_it_is_stored():
    scenes = sorted({scene for item in load_benchmark() for scene in item.scenes})
    assert [draw_layout(scene, "test") for scene in scenes] == [scene_layout(scene) for scene in scenes]
