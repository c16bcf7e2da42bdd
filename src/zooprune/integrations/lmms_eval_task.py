"""The bundled benchmark as a task of lmms-eval.

``python -m zooprune.integrations.lmms_eval_task OUT`` writes the questions and the task's description to the folder
OUT; ``--include_path OUT --tasks zooprune_bundled`` then finds it. Needs `datasets`, which comes with lmms-eval.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from zooprune.bundled.benchmark import KINDS, load_benchmark, scene_image
from zooprune.evaluation.metrics import is_right
from zooprune.files import write_text

TASK = "zooprune_bundled"

_DESCRIPTION = f"""\
task: {TASK}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: questions.parquet
test_split: test
output_type: generate_until
doc_to_visual: !function zooprune.integrations.lmms_eval_task.images
doc_to_text: question
doc_to_target: answer
process_results: !function zooprune.integrations.lmms_eval_task.grade
generation_kwargs:
  max_new_tokens: 16
  temperature: 0
  do_sample: false
  until: []
metadata:
  version: 1.0
metric_list:
"""
_METRIC = """\
  - metric: {name}
    aggregation: mean
    higher_is_better: true
"""


def write_task(folder: Path, count: int | None = None) -> None:
    """Write the first `count` questions, or all, and the task that asks them.

    Parameters
    ----------
    folder : Path
        Made if it does not exist.
    count : int, optional
    """
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    folder.mkdir(parents=True, exist_ok=True)
    features = Features(
        id=Value("string"),
        kind=Value("string"),
        images=List(ImageFeature()),
        question=Value("string"),
        answer=Value("string"),
    )
    rows = [
        {
            "id": item.id,
            "kind": item.task,
            "images": [scene_image(scene) for scene in item.scenes],
            "question": item.question,
            "answer": item.answer,
        }
        for item in load_benchmark()[:count]
    ]
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    unfinished = folder / "questions.parquet.tmp"
    Dataset.from_list(rows, features=features).to_parquet(str(unfinished))
    os.replace(unfinished, folder / "questions.parquet")
    description = _DESCRIPTION + "".join(_METRIC.format(name=name) for name in ("accuracy", *kinds))
    write_text(folder / f"{TASK}.yaml", description)


def images(doc: Mapping[str, Any]) -> list[Image.Image]:
    """Return the images of a question."""
    return [image.convert("RGB") for image in doc["images"]]


def grade(doc: Mapping[str, Any], replies: Sequence[str]) -> dict[str, float]:
    """Return 1 for a right reply and 0 for a wrong one, over all and for its kind of question."""
    right = float(is_right(replies[0], [doc["answer"]]))
    return {"accuracy": right, doc["kind"]: right}


def main(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    count: Annotated[int | None, typer.Option(min=1, help="How many questions; all when left out.")] = None,
) -> None:
    """Write the bundled benchmark as a task of lmms-eval."""
    write_task(out, count)
    print(f"python -m lmms_eval --include_path {out} --tasks {TASK} --model zooprune --model_args ...")


if __name__ == "__main__":
    typer.run(main)
