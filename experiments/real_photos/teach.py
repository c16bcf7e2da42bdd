r"""Teach the assembled model: the projector solved in closed form and refined, then projector and LoRA together.

    python experiments/real_photos/teach.py --base runs/real_photos/base --photographs caltech101 \
        --out runs/real_photos/train --minutes 60

An interrupted run resumes when the command is repeated, with the same numbers as if it had not been interrupted. A GPU
is used where there is one.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from asking import TASKS
from assemble import SIDE
from batches import Batch, Examples, tasks_of
from features import Features
from kinds import find_photographs
from learner import Learner
from packing import IGNORED, Packed, Packer
from projector import Words, label_patches, refine, solve


@dataclass(frozen=True)
class Stage:
    """A stretch of training at one image size.

    A step is about `sequences` scenes with up to `questions` about each; every `pairs`-th step is about as many images
    in sequences of two. `rate` is the highest learning rate; it falls along a cosine to the share `final`. An answer of
    a task in `stress` counts so many times in the loss. A stage that begins `anew` starts from the averaged weights,
    with an optimizer that has seen nothing.
    """

    name: str
    side: int
    steps: int
    sequences: int
    questions: int
    rate: float
    final: float
    pairs: int = 5
    stress: Mapping[str, float] = field(default_factory=dict)
    anew: bool = False


#: Small scenes first: 144 tokens an image teach what is asked four times as fast as 576. The last stage is for a GPU.
#: A scene has a single "odd" or "small" question at most and a description of many words, so without stress the latter
#: would drown out the former.
STAGES = (
    Stage("small scenes", side=168, steps=600, sequences=4, questions=14, rate=1e-3, final=0.5),
    Stage("full size", side=336, steps=300, sequences=4, questions=24, rate=5e-4, final=0.0),
    Stage(
        "many scenes", side=336, steps=300, sequences=16, questions=12, rate=7e-4, final=0.0,
        stress={"odd": 8, "small": 8, "count": 3, "describe": 0.25}, anew=True,
    ),
)  # fmt: skip
WARMUP = 30
#: The average of the weights that is validated and exported follows them by so much a step, and by more at first.
FOLLOW = 0.01
#: Scenes that the projector is solved on, by side.
SOLVED_ON = {168: 2016, 336: 480}
VALIDATE_EVERY, VALIDATION_SEQUENCES, LOG_EVERY, SAVE_SECONDS = 200, 24, 10, 180


class Lessons:
    """The batches of a split as tensors, with what the tower makes of their scenes."""

    def __init__(self, model: Any, processor: Any, examples: Examples, cache: Path) -> None:
        self.examples, self.processor = examples, processor
        self.features = Features(model, processor, examples.photographs, examples.split, cache)
        self.patch = model.config.vision_config.patch_size

    def draw(self, stage: Stage, first: int, count: int, pair: bool) -> tuple[Batch, Tensor, Any]:
        """Return a batch about `count` images from scene `first` on, its features and its packed questions."""
        images = 2 if pair else 1
        batch = self.examples.batch(first, count // images, images, stage.questions, stage.side)
        visual = torch.stack(
            [torch.cat([self.features.get(number, stage.side) for number in numbers]) for numbers in batch.scenes]
        )
        packer = Packer(self.processor, (stage.side // self.patch) ** 2)
        asked = [[(question.text, question.answer) for question in questions] for questions in batch.questions]
        return batch, visual, packer.pack(images, asked)


def solve_projector(learner: Learner, lessons: Lessons, held_out: Lessons) -> dict[str, float]:
    """Solve and refine the projector, and return the share of held-out patches that it names right after each."""
    examples = lessons.examples
    kinds = list(examples.photographs)
    words = Words(learner.model, lessons.processor.tokenizer, kinds)
    features, labels = [], []
    for side, count in SOLVED_ON.items():
        for number in track(range(count), f"seeing scenes of {side} px"):
            features.append(lessons.features.get(number, side))
            labels.append(label_patches(examples.mosaic(number, side), kinds, lessons.patch))
    targets = [words.targets(label[None])[0] for label in labels]

    def named(how: str) -> dict[str, float]:
        found = {}
        for side in SOLVED_ON:
            numbers = range(VALIDATION_SEQUENCES)
            shown = [label_patches(held_out.examples.mosaic(number, side), kinds, lessons.patch) for number in numbers]
            seen = torch.stack([held_out.features.get(number, side) for number in numbers])
            with torch.no_grad():
                found[f"{how}, {side} px"] = words.naming(learner.projector(seen.float()), torch.stack(shown))
        return found

    solve(learner.projector, features, targets)
    found = named("patches named when solved")
    refine(learner.projector, words, features, labels, targets)
    learner.average = {name: value.detach().clone() for name, value in learner.weights().items()}
    return found | named("patches named when refined")


def validate(learner: Learner, held_out: Lessons, stage: Stage) -> dict[str, float]:
    """Return the accuracy of the averaged weights per task, on photographs that training does not show."""
    right, asked = [0] * len(TASKS), [0] * len(TASKS)
    present = {name: value.detach().clone() for name, value in learner.weights().items()}
    learner.adopt(learner.average)
    for first in range(0, 2 * VALIDATION_SEQUENCES, 4):
        # The second half of the scenes is shown in pairs.
        batch, visual, packed = held_out.draw(stage, first, 4, pair=first >= VALIDATION_SEQUENCES)
        for task, hit in zip(tasks_of(batch), learner.right(visual, packed), strict=True):
            right[task] += hit
            asked[task] += 1
    learner.adopt(present)
    return {task: right[number] / asked[number] for number, task in enumerate(TASKS) if asked[number]}


def learning_rate(stage: Stage, step: int) -> float:
    """Warm up, then fall along a cosine to the stage's final share."""
    progress = step / stage.steps
    falling = stage.final + (1 - stage.final) * 0.5 * (1 + math.cos(math.pi * progress))
    return stage.rate * min(1.0, (step + 1) / WARMUP) * falling


def train(
    learner: Learner, lessons: Lessons, held_out: Lessons, out: Path, until: float, steps: int | None = None
) -> int:
    """Train until all stages are through, `steps` are done or it is `until` by the clock; return the next step."""
    path, log = out / "checkpoint.safetensors", out / "log.jsonl"
    if path.exists():
        done = learner.load(path)
        # What was logged after the checkpoint comes again.
        rows = [row for row in log.read_text().splitlines() if json.loads(row)["step"] <= done]
        log.write_text("".join(f"{row}\n" for row in rows))
    else:
        done = 0
        _write(log, {"step": 0, **solve_projector(learner, lessons, held_out)})
        learner.save(path, done)
    total = sum(stage.steps for stage in STAGES)
    last = total if steps is None else steps
    saved, running = time.time(), None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("training", total=total, completed=done)
        for step in range(done, last):
            stage, within, first = place(step)
            learner.attend(plain=stage.side < SIDE and learner.device.type == "cpu")
            if stage.anew and within == 0:
                learner.begin_anew()
            pair = within % stage.pairs == stage.pairs - 1
            batch, visual, packed = lessons.draw(stage, first, stage.sequences, pair)
            worth = weigh(batch, packed, stage.stress)
            loss = learner.step(visual, packed, worth, learning_rate(stage, within), max(FOLLOW, 2 / (step + 2)))
            running = loss if running is None else 0.95 * running + 0.05 * loss
            progress.update(bar, advance=1, description=f"{stage.name}, loss {running:.3f}")
            done = step + 1
            if done % LOG_EVERY == 0:
                row: dict[str, Any] = {
                    "step": done,
                    "stage": stage.name,
                    "loss": round(running, 4),
                    "time": time.time(),
                }
                if done % VALIDATE_EVERY == 0:
                    row["held_out"] = validate(learner, held_out, stage)
                    progress.console.print(row)
                _write(log, row)
            stop = time.time() >= until
            if stop or done == last or time.time() - saved > SAVE_SECONDS:
                learner.save(path, done)
                saved = time.time()
            if stop:
                break
    return done


def weigh(batch: Batch, packed: Packed, stress: Mapping[str, float]) -> Tensor:
    """Return how much each token of the answers counts, in order."""
    sequences, places = (packed.targets != IGNORED).nonzero(as_tuple=True)
    blocks = packed.blocks[sequences, places].tolist()
    tasks = [batch.questions[row][block - 1].task for row, block in zip(sequences.tolist(), blocks, strict=True)]
    return torch.tensor([float(stress.get(task, 1)) for task in tasks])


def place(step: int) -> tuple[Stage, int, int]:
    """Return the stage of a step, the step within it, and the first scene that it shows."""
    shown: Counter[int] = Counter()
    for stage in STAGES:
        if step < stage.steps:
            return stage, step, shown[stage.side] + step * stage.sequences
        step -= stage.steps
        shown[stage.side] += stage.steps * stage.sequences
    raise ValueError(f"training has no step {step} after its end")


def _write(log: Path, row: dict[str, Any]) -> None:
    with log.open("a") as file:
        file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of the assembled model")
    parser.add_argument(
        "--photographs", type=Path, required=True, help="folder with one folder of photographs per class"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint, the log and the features")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many (default: at the end)")
    arguments = parser.parse_args()
    until = time.time() + 60 * arguments.minutes
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = LlavaForConditionalGeneration.from_pretrained(arguments.base, dtype=torch.bfloat16).to(device)
    processor = AutoProcessor.from_pretrained(arguments.base, backend="pil")
    learner = Learner(model)
    lessons, held_out = (
        Lessons(
            model,
            processor,
            Examples(find_photographs(arguments.photographs, split), split),
            arguments.out / "features",
        )
        for split in ("train", "test")
    )
    done = train(learner, lessons, held_out, arguments.out, until)
    print(f"{done} of {sum(stage.steps for stage in STAGES)} steps are done; {arguments.out} holds the checkpoint")


if __name__ == "__main__":
    main()
