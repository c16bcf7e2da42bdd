"""Train the bundled model from nothing, as real VLMs are: the tower first, then all together, then at full size.

    python training/train.py --out runs/bundled

Killed and started again, it goes on from its last checkpoint. A GPU is used where there is one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data import IGNORED, QUESTIONS, Examples
from model import build_model, build_processor
from zooprune.bundled.questions import KINDS
from zooprune.bundled.scenes import SIDE
from zooprune.bundled.vocabulary import CHARACTERS, COLOURS, NAMES


@dataclass(frozen=True)
class Stage:
    """A stretch of training at one image size.

    `answers` says whether the language model takes part, `character` how much a patch that shows a character weighs,
    `signs` how many signs a scene has if not one or none, and `horizon` lays the cosine of the learning rate out over
    more steps than are taken.
    """

    name: str
    side: int
    steps: int
    batch: int
    rate: float
    answers: bool
    character: float = 1.0
    signs: int | None = None
    horizon: int | None = None


STAGES = (
    Stage("tower", side=168, steps=2600, batch=32, rate=1e-3, answers=False),
    Stage("answers", side=168, steps=1208, batch=32, rate=1e-3, answers=True, horizon=1700),
    Stage("characters", side=168, steps=500, batch=32, rate=8e-4, answers=False, character=6.0, signs=4),
    Stage("reading", side=168, steps=800, batch=32, rate=8e-4, answers=True, character=3.0),
    Stage("full size", side=SIDE, steps=211, batch=16, rate=6e-4, answers=True, character=3.0, horizon=340),
)
WARMUP = 100
#: Most patches show nothing; they should not drown the rest.
NOTHING_WEIGHT = 0.15
VALIDATION_FIRST, VALIDATION_SCENES = 1_000_000, 64


class Probes(nn.Module):
    """Heads that exist only in training: they make the visual tokens say more than a name."""

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.colour = nn.Linear(text_width, 1 + len(COLOURS))
        self.order = nn.Linear(text_width, 5)
        self.centre = nn.Linear(text_width, 2)
        self.present = nn.Linear(vision_width, len(NAMES))


class Trainer:
    """The model, its probes and the losses."""

    def __init__(self, device: torch.device) -> None:
        self.processor = build_processor()
        self.model = build_model(self.processor.tokenizer).to(device)
        config = self.model.config
        self.decoder = torch.compile(self.model.model.language_model, dynamic=False)
        self.probes = Probes(config.vision_config.hidden_size, config.text_config.hidden_size).to(device)
        images = self.processor.image_processor
        self.mean = torch.tensor(images.image_mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(images.image_std, device=device).view(3, 1, 1)
        self.device = device
        tokenizer = self.processor.tokenizer
        self.nothing = tokenizer.convert_tokens_to_ids("nothing")
        spelt = [piece for one in CHARACTERS for piece in (one, f"##{one}")]
        self.characters = torch.tensor(tokenizer.convert_tokens_to_ids(spelt), device=device)
        self.prefix = torch.tensor(tokenizer("USER:").input_ids, device=device)
        self.masks: dict[int, Tensor] = {}

    def parameters(self) -> dict[str, nn.Parameter]:
        named = {f"model.{name}": value for name, value in self.model.named_parameters()}
        return named | {f"probes.{name}": value for name, value in self.probes.named_parameters()}

    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the visual tokens (B, N, d_text) and the tower's pooled output (B, d_vision)."""
        images = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        # Smaller images sample the one table of position embeddings more coarsely.
        small = pixels.shape[1] != SIDE
        seen = self.model.model.vision_tower(images, interpolate_pos_encoding=small)
        return self.model.model.multi_modal_projector(seen.last_hidden_state[:, 1:]), seen.pooler_output

    def patch_loss(self, visual: Tensor, pooled: Tensor, batch: dict[str, Tensor], character: float) -> Tensor:
        """Every visual token says the word for what it shows, in the language model's own embedding."""
        words = self.model.get_input_embeddings().weight
        weight = torch.ones(len(words), device=self.device)
        weight[self.nothing] = NOTHING_WEIGHT
        weight[self.characters] = character
        loss = F.cross_entropy((visual @ words.T).flatten(0, 1).float(), batch["name"].flatten(), weight=weight)
        shown = batch["name"].flatten() != self.nothing
        for kind in ("colour", "order", "centre"):
            those = shown
            if kind == "order" and character > 1:
                those = batch["order"].flatten() > 0
            logits = getattr(self.probes, kind)(visual).flatten(0, 1)[those].float()
            loss = loss + 0.5 * F.cross_entropy(logits, batch[kind].flatten()[those])
        present = self.probes.present(pooled).float()
        return loss + F.binary_cross_entropy_with_logits(present, batch["present"])

    def answer_logits(self, visual: Tensor, tokens: Tensor, stretch: Tensor) -> Tensor:
        """Return logits (B, questions, block, vocabulary); a question sees the image and itself, no other question."""
        rows, patches = visual.shape[:2]
        block = tokens.shape[-1]
        embed = self.model.get_input_embeddings()
        start = embed(self.prefix).expand(rows, -1, -1)
        inputs = torch.cat([start, visual.to(start.dtype), embed(tokens.flatten(1))], dim=1)
        lead = len(self.prefix)
        # Squeezed positions teach the decoder not to count on one fixed number of visual tokens.
        seen = lead + torch.arange(patches, device=self.device) * stretch[:, None]
        asked = (seen[:, -1:] + 1 + torch.arange(block, device=self.device)).repeat(1, QUESTIONS)
        positions = torch.cat([torch.arange(lead, device=self.device).expand(rows, -1), seen, asked], dim=1)
        hidden = self.decoder(
            inputs_embeds=inputs, attention_mask=self._mask(lead + patches, block), position_ids=positions,
            use_cache=False,
        ).last_hidden_state  # fmt: skip
        asked_hidden = hidden[:, lead + patches :].unflatten(1, (QUESTIONS, block))
        return self.model.lm_head(asked_hidden)

    def _mask(self, shared: int, block: int) -> Tensor:
        if shared not in self.masks:
            length = shared + QUESTIONS * block
            place = torch.arange(length, device=self.device)
            group = torch.where(place < shared, -1, (place - shared) // block)
            visible = (group[None] == -1) | (group[None] == group[:, None])
            self.masks[shared] = (visible & (place[None] <= place[:, None]))[None, None]
        return self.masks[shared]

    def loss(self, batch: dict[str, Tensor], stage: Stage, generator: torch.Generator) -> dict[str, Tensor]:
        visual, pooled = self.see(batch["pixels"])
        losses = {"patch": self.patch_loss(visual, pooled, batch, stage.character)}
        if stage.answers:
            draws = torch.rand(2, len(visual), generator=generator).to(self.device)
            stretch = torch.where(draws[0] < 0.5, 1.0, 0.1 + 0.9 * draws[1])
            logits = self.answer_logits(visual, batch["tokens"], stretch)
            losses["answer"] = F.cross_entropy(
                logits.float().flatten(0, 2), batch["targets"].flatten(), ignore_index=IGNORED
            )
        return losses

    @torch.no_grad()
    def validate(self, stage: Stage, loader: DataLoader) -> dict[str, float]:
        """Return the accuracy per kind of question, and of patch names, on held-out material."""
        right = torch.zeros(len(KINDS))
        asked = torch.zeros(len(KINDS))
        named = shown = 0
        for raw in loader:
            batch = {key: value.to(self.device) for key, value in raw.items()}
            with torch.autocast(self.device.type, torch.bfloat16):
                visual, _ = self.see(batch["pixels"])
                guess = (visual @ self.model.get_input_embeddings().weight.T).argmax(-1)
                if stage.answers:
                    stretch = torch.ones(len(visual), device=self.device)
                    logits = self.answer_logits(visual, batch["tokens"], stretch)
            somewhere = batch["name"] != self.nothing
            named += int((guess == batch["name"])[somewhere].sum())
            shown += int(somewhere.sum())
            if stage.answers:
                scored = batch["targets"] != IGNORED
                exact = ((logits.argmax(-1) == batch["targets"]) | ~scored).all(-1)
                for kind in range(len(KINDS)):
                    those = batch["kinds"] == kind
                    right[kind] += exact[those].sum().cpu()
                    asked[kind] += those.sum().cpu()
        figures = {"patches": named / shown}
        if stage.answers:
            share = right / asked
            figures |= {kind: float(value) for kind, value in zip(KINDS, share, strict=True)}
            figures["accuracy"] = float(share.mean())
        return figures


def save_checkpoint(folder: Path, trainer: Trainer, optimizer: torch.optim.AdamW, step: int) -> None:
    """Write everything needed to go on; the old checkpoint stays until the new one is whole."""
    tensors = {name: value.detach().contiguous() for name, value in trainer.parameters().items()}
    for name, parameter in trainer.parameters().items():
        for key in ("exp_avg", "exp_avg_sq"):
            if parameter in optimizer.state:
                tensors[f"{key}/{name}"] = optimizer.state[parameter][key].contiguous()
    temporary = folder / "checkpoint.tmp"
    save_file(tensors, temporary, {"step": str(step)})
    os.replace(temporary, folder / "checkpoint.safetensors")


def load_checkpoint(folder: Path, trainer: Trainer, optimizer: torch.optim.AdamW) -> int:
    """Restore the last checkpoint and return the next step, 0 when there is none."""
    from safetensors import safe_open

    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as opened:
        step = int(opened.metadata()["step"])
    tensors = load_file(path, device=str(trainer.device))
    with torch.no_grad():
        for name, parameter in trainer.parameters().items():
            parameter.copy_(tensors[name])
            if f"exp_avg/{name}" in tensors:
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": tensors[f"exp_avg/{name}"],
                    "exp_avg_sq": tensors[f"exp_avg_sq/{name}"],
                }
    return step


def learning_rate(stage: Stage, step: int) -> float:
    """Warm up, then fall along a cosine to a twentieth; the last stage falls to nothing."""
    if step < WARMUP:
        return stage.rate * (step + 1) / WARMUP
    floor = 0.0 if stage is STAGES[-1] else 0.3
    progress = (step - WARMUP) / max(1, (stage.horizon or stage.steps) - WARMUP)
    return stage.rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and the log")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes ahead")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(device)
    tokenizer = trainer.processor.tokenizer
    decay = [value for value in trainer.parameters().values() if value.ndim > 1]
    rest = [value for value in trainer.parameters().values() if value.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.98)
    )
    done = load_checkpoint(arguments.out, trainer, optimizer)
    print(f"{sum(value.numel() for value in trainer.model.parameters()) / 1e6:.2f} M parameters, step {done}, {device}")
    before = images_before = 0
    for stage in STAGES:
        if done < before + stage.steps:
            skip = max(0, done - before)
            left = (stage.steps - skip) * stage.batch
            train = Examples(tokenizer, "train", stage.side, images_before + skip * stage.batch, left, stage.signs)
            held_out = Examples(tokenizer, "test", stage.side, VALIDATION_FIRST, VALIDATION_SCENES, stage.signs)
            loader = DataLoader(train, stage.batch, num_workers=arguments.workers, prefetch_factor=8)
            checking = DataLoader(held_out, stage.batch)
            run_stage(stage, trainer, optimizer, loader, checking, arguments.out, before, skip)
        before += stage.steps
        images_before += stage.steps * stage.batch


def run_stage(
    stage: Stage,
    trainer: Trainer,
    optimizer: torch.optim.AdamW,
    loader: DataLoader,
    checking: DataLoader,
    out: Path,
    before: int,
    first: int,
) -> None:
    """Train one stage from its step `first`, logging and saving as it goes."""
    # On a CPU plain attention is the faster one while sequences are short.
    short = stage.side < SIDE and trainer.device.type == "cpu"
    trainer.model.model.vision_tower.set_attn_implementation("eager" if short else "sdpa")
    began, saved = time.time(), time.time()
    running: dict[str, float] = {}
    for step, raw in enumerate(loader, start=first):
        batch = {key: value.to(trainer.device) for key, value in raw.items()}
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(stage, step)
        generator = torch.Generator().manual_seed(before + step)
        with torch.autocast(trainer.device.type, torch.bfloat16):
            losses = trainer.loss(batch, stage, generator)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(list(trainer.parameters().values()), 1.0)
        optimizer.step()
        for key, value in losses.items():
            running[key] = running.get(key, float(value)) * 0.95 + 0.05 * float(value)
        last = step + 1 == stage.steps
        if (step + 1) % 100 == 0 or last:
            figures = trainer.validate(stage, checking) if (step + 1) % 200 == 0 or last else {}
            pace = (step + 1 - first) / (time.time() - began)
            row = {"stage": stage.name, "step": before + step + 1, "loss": running, "held_out": figures,
                   "images_per_second": pace * stage.batch}  # fmt: skip
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            shown = {key: round(value, 3) for key, value in (running | figures).items()}
            print(f"{stage.name} {step + 1}/{stage.steps}, {(stage.steps - step - 1) / pace / 60:.0f} min left", shown)
        if last or time.time() - saved > 120:
            save_checkpoint(out, trainer, optimizer, before + step + 1)
            saved = time.time()


if __name__ == "__main__":
    main()
