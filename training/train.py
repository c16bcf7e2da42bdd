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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data import IGNORED, NOWHERE, Examples
from layouts import PATCH
from model import build_model, build_processor
from questions import SINGLE_KINDS
from vocabulary import NAMES, ORDINALS
from zooprune.bundled.benchmark import KINDS
from zooprune.bundled.layout import SIDE
from zooprune.bundled.vocabulary import CHARACTERS, COLOURED, COLOURS, THINGS


@dataclass(frozen=True)
class Stage:
    """A stretch of training at one image size.

    `rate` is the learning rate at its start and `final` the share of it left after `horizon` steps, which is the end
    unless said otherwise. Every `reading`-th pair of scenes shows little but signs and labels, every `counting`-th
    copies of several things (0: none does). So many `questions` are asked about each; without any, the language model
    takes no part. Every `whole`-th batch it sees all visual tokens, else a third of them, mostly those that show
    something (0: always a third). With `tower` off, only the language model learns. With `patches`, the tower itself
    reads only so many of them, and the language model all of these, which makes a step three times as fast. After one
    question of each kind, the kinds in `focus` are asked about. Every third batch has so many `pair_questions` about
    two scenes at once.
    """

    name: str
    side: int
    steps: int
    batch: int
    rate: float
    final: float
    questions: int
    reading: int = 0
    counting: int = 0
    whole: int = 3
    tower: bool = True
    patches: int | None = None
    pair_questions: int = 0
    focus: tuple[str, ...] = SINGLE_KINDS
    horizon: int | None = None


#: What the last stages have in common.
COUNTING = Stage(
    "counting",
    side=SIDE,
    steps=866,
    batch=16,
    rate=5e-4,
    final=0.0,
    questions=12,
    reading=7,
    counting=3,
    whole=2,
    pair_questions=6,
    focus=("count", "count", "sign", "place"),
    horizon=1500,
)
STAGES = (
    Stage("tower", side=168, steps=3000, batch=32, rate=1e-3, final=0.3, questions=0, reading=2),
    Stage("answers", side=168, steps=1002, batch=32, rate=1e-3, final=0.3, questions=10, reading=4, horizon=1900),
    Stage("full size", side=SIDE, steps=517, batch=16, rate=6e-4, final=0.0, questions=10, horizon=1300),
    Stage(
        "questions",
        side=SIDE,
        steps=270,
        batch=32,
        rate=8e-4,
        final=0.3,
        questions=20,
        whole=0,
        tower=False,
        horizon=700,
    ),
    Stage(
        "all again",
        side=SIDE,
        steps=400,
        batch=16,
        rate=6e-4,
        final=0.0,
        questions=20,
        whole=2,
        focus=("place", "count", "sign"),
    ),
    Stage(
        "part of the patches",
        side=SIDE,
        steps=691,
        batch=16,
        rate=8e-4,
        final=0.25,
        questions=12,
        reading=8,
        patches=256,
        pair_questions=6,
        focus=("count", "sign", "print"),
        horizon=2300,
    ),
    Stage(
        "copies of several things",
        side=SIDE,
        steps=1000,
        batch=16,
        rate=5e-4,
        final=0.2,
        questions=12,
        reading=7,
        counting=3,
        patches=288,
        pair_questions=6,
        focus=("count", "sign", "print"),
    ),
    Stage(
        "all patches",
        side=SIDE,
        steps=480,
        batch=16,
        rate=4e-4,
        final=0.0,
        questions=12,
        counting=4,
        whole=2,
        pair_questions=6,
        focus=("count", "sign", "print"),
    ),
    COUNTING,
    replace(COUNTING, name="copies and middles", steps=295, rate=4e-4, reading=8, counting=2, horizon=1000),
    replace(COUNTING, name="looking", steps=700, reading=8, counting=2, horizon=None),
    replace(COUNTING, name="looking again", steps=469, rate=4.5e-4, reading=8, counting=2, horizon=1400),
    replace(COUNTING, name="looking at all of it", steps=1150, reading=8, counting=2, horizon=None),
    replace(COUNTING, name="pairs of a sort", steps=1400, reading=8, counting=2, pair_questions=10, horizon=None),
)
WARMUP = 100
#: Muon bears a higher learning rate than AdamW; a stage's own is AdamW's.
MUON_RATE = 4.0
#: Most patches show nothing; they should not drown the rest. Characters are the hardest to tell apart.
NOTHING_WEIGHT, CHARACTER_WEIGHT = 0.15, 3.0
#: One visual token in so many is left when they are thinned.
THINNED = 3
#: After so many layers of the language model a visual token must know which image it belongs to, and after so many a
#: token that names a thing where the thing is. In the layer behind the latter one head of such a token looks at every
#: such thing, evenly at all of it, and at the start of the prompt, at each for as long: what is left for the start
#: tells how many there are.
PLACED_AFTER, GROUNDED_AFTER = 1, 2
#: Answers are few beside patches, and counting is the hardest to learn.
LOSS_WEIGHTS = {"answer": 2.0, "pair_answer": 2.0, "looks": 2.0}
VALIDATION_FIRST, VALIDATION_SCENES = 1_000_000, 128


class Probes(nn.Module):
    """Heads that exist only in training: they make the visual tokens say more than a name."""

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.colour = nn.Linear(text_width, 1 + len(COLOURS))
        self.order = nn.Linear(text_width, 5)
        self.centre = nn.Linear(text_width, 2)
        self.patch_where = nn.Linear(text_width, 2)
        self.name_where = nn.Linear(text_width, 3)
        self.image = nn.Linear(text_width, len(ORDINALS))
        self.offset = nn.Linear(text_width, 2)
        self.share = nn.Linear(text_width, 1)
        self.present = nn.Linear(vision_width, len(NAMES))


class Trainer:
    """The model, its probes and the losses."""

    def __init__(self, device: torch.device) -> None:
        self.processor = build_processor()
        self.model = build_model(self.processor.tokenizer).to(device)
        config = self.model.config
        self.encode = torch.compile(self._encode, dynamic=False)
        self.decode = torch.compile(self._decode, dynamic=False)
        self.probes = Probes(config.vision_config.hidden_size, config.text_config.hidden_size).to(device)
        images = self.processor.image_processor
        self.mean = torch.tensor(images.image_mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(images.image_std, device=device).view(3, 1, 1)
        self.device = device
        tokenizer = self.processor.tokenizer
        self.nothing = tokenizer.convert_tokens_to_ids("nothing")
        spelt = [piece for one in CHARACTERS for piece in (one, f"##{one}")]
        self.name_weight = torch.ones(len(tokenizer), device=device)
        self.name_weight[tokenizer.convert_tokens_to_ids(spelt)] = CHARACTER_WEIGHT
        self.name_weight[self.nothing] = NOTHING_WEIGHT
        prefix = tokenizer("USER:").input_ids
        ordinals = tokenizer.convert_tokens_to_ids(list(ORDINALS))
        #: What stands in front of each image: of one alone, and of two.
        self.leads = {
            number: [torch.tensor(ids, device=device) for ids in leads]
            for number, leads in ((1, [prefix]), (2, [[*prefix, ordinals[0]], [ordinals[1]]]))
        }
        self.masks: dict[tuple[int, int], Tensor] = {}
        self.countable = torch.tensor(
            [name in THINGS or name in COLOURED for name in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))],
            device=device,
        )

    def parameters(self) -> dict[str, nn.Parameter]:
        named = {f"model.{name}": value for name, value in self.model.named_parameters()}
        return named | {f"probes.{name}": value for name, value in self.probes.named_parameters()}

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Return Muon for the matrices of the layers, and AdamW for all else."""
        matrices, tables, vectors = [], [], []
        for name, value in self.parameters().items():
            inside = ".layers." in name or "multi_modal_projector" in name
            kind = matrices if inside and value.ndim == 2 else tables if value.ndim > 1 else vectors
            kind.append(value)
        return [
            torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                [{"params": tables, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.98)
            ),
        ]

    def patch_places(self, side: int, origin: Tensor) -> Tensor:
        """Return of every patch the row and column in the full scene and the number in this one, (B, N, 3)."""
        line = torch.arange(side // PATCH, device=self.device)
        places = torch.cartesian_prod(line, line) + origin[:, None]
        return torch.cat(
            [places, torch.arange(places.shape[1], device=self.device).expand(len(origin), -1)[..., None]], 2
        )

    def see(self, pixels: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return the visual tokens at `places` (B, N, 3) as (B, N, d_text), and the tower's pooled output."""
        images = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        return self.encode(images, places)

    def _encode(self, images: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        # The tower's own forward, but a window of a scene takes the position embeddings of its place in the whole.
        tower = self.model.model.vision_tower
        embeddings = tower.embeddings
        patches = embeddings.patch_embedding(images).flatten(2).transpose(1, 2)
        if (kept := places[..., 2:]).shape[1] < patches.shape[1]:
            patches = patches.gather(1, kept.expand(-1, -1, patches.shape[2]))
        whole = embeddings.class_embedding.expand(len(images), 1, -1).to(patches.dtype)
        numbers = 1 + places[..., 0] * (SIDE // PATCH) + places[..., 1]
        positions = embeddings.position_embedding(F.pad(numbers, (1, 0)))
        hidden = tower.pre_layrnorm(torch.cat([whole, patches], dim=1) + positions)
        for layer in tower.encoder.layers:
            hidden = layer(hidden, None)
        return self.model.model.multi_modal_projector(hidden[:, 1:]), tower.post_layernorm(hidden[:, 0])

    def _decode(self, hidden: Tensor, mask: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The language model's own forward, which also shows what it knows on the way.
        language = self.model.model.language_model
        rotary = language.rotary_emb(hidden, position_ids=positions)
        for number, layer in enumerate(language.layers, start=1):
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary, use_cache=False)
            if number == PLACED_AFTER:
                early = hidden
            if number == GROUNDED_AFTER:
                halfway = hidden
        return language.norm(hidden), halfway, early

    def patch_losses(self, visual: Tensor, pooled: Tensor, places: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Every visual token says the word for what it shows, in the decoder's own embedding, and where that is."""
        words = self.model.get_input_embeddings().weight
        names = batch["name"].flatten()
        loss = F.cross_entropy((visual @ words.T).flatten(0, 1).float(), names, weight=self.name_weight)
        for kind, those in (("colour", names != self.nothing), ("order", batch["order"].flatten() > 0),
                            ("centre", names != self.nothing)):  # fmt: skip
            logits = getattr(self.probes, kind)(visual).flatten(0, 1)[those].float()
            loss = loss + 0.5 * F.cross_entropy(logits, batch[kind].flatten()[those])
        shown = names != self.nothing
        offsets = self.probes.offset(visual).flatten(0, 1)[shown].float()
        loss = loss + F.smooth_l1_loss(offsets, batch["offset"].flatten(0, 1)[shown], beta=0.5)
        shares = self.probes.share(visual).flatten()[shown].float()
        loss = loss + F.smooth_l1_loss(shares, batch["share"].flatten()[shown].log(), beta=0.1)
        loss = loss + place_loss(self.probes.patch_where(visual), (places[..., :2] + 0.5) * (PATCH / SIDE))
        return loss + F.binary_cross_entropy_with_logits(self.probes.present(pooled).float(), batch["present"])

    def answer(
        self, visual: Tensor, tokens: Tensor, stretch: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Return logits (B, questions, block, vocabulary), questions half-way, visual tokens early, and all half-way.

        `visual` is (B, images, N, d_text). A question sees the images and itself, no other question.
        """
        rows, images, patches = visual.shape[:3]
        questions, block = tokens.shape[1:]
        embed = self.model.get_input_embeddings()
        parts, steps = [], []
        ones = torch.ones(rows, 1, device=self.device)
        # Squeezed positions teach the decoder not to count on one fixed number of visual tokens.
        squeezed = torch.cat([ones, stretch[:, None].expand(-1, patches - 1)], dim=1)
        for image, lead in enumerate(self.leads[images]):
            start = embed(lead).expand(rows, -1, -1)
            parts += [start, visual[:, image].to(start.dtype)]
            steps += [ones.expand(-1, len(lead)), squeezed]
        shown = torch.cat(steps, dim=1).cumsum(dim=1) - 1
        asked = (shown[:, -1:] + 1 + torch.arange(block, device=self.device)).repeat(1, questions)
        length = shown.shape[1]
        inputs = torch.cat([*parts, embed(tokens.flatten(1))], dim=1)
        positions = torch.cat([shown, asked], dim=1)
        final, halfway, early = self.decode(inputs, self._mask(length, questions, block), positions)
        # Behind the lead of each image come its patches.
        ends = torch.tensor([len(lead) for lead in self.leads[images]]).cumsum(0) + patches * torch.arange(
            1, images + 1
        )
        seen = torch.stack([early[:, end - patches : end] for end in ends.tolist()], dim=1)
        final, asked = (hidden[:, length:].unflatten(1, (questions, block)) for hidden in (final, halfway))
        return self.model.lm_head(final), asked, seen, (halfway, positions)

    def _mask(self, shared: int, questions: int, block: int) -> Tensor:
        if (shared, questions) not in self.masks:
            length = shared + questions * block
            place = torch.arange(length, device=self.device)
            group = torch.where(place < shared, -1, (place - shared) // block)
            visible = (group[None] == -1) | (group[None] == group[:, None])
            visible &= place[None] <= place[:, None]
            # Added to the scores, since eager attention would add a boolean mask as well: as ones.
            mask = torch.zeros(visible.shape, dtype=torch.bfloat16, device=self.device)
            self.masks[shared, questions] = mask.masked_fill(~visible, -torch.inf)[None, None]
        return self.masks[shared, questions]

    def choose(self, names: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return the numbers of `count` patches of each image in their order, mostly of those that show something.

        Every other pair of images keeps all of those as far as they fit, so that what there is can be counted.
        """
        shown = (names != self.nothing).float()
        luck = torch.rand(names.shape, generator=generator).to(self.device) + 0.7 * shown
        luck.unflatten(0, (-1, 2))[::2] += shown.unflatten(0, (-1, 2))[::2]
        return luck.topk(count).indices.sort().values

    def losses(self, batch: dict[str, Tensor], stage: Stage, step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(step)
        places = self.patch_places(stage.side, batch["origin"])
        if stage.patches:
            kept = self.choose(batch["name"], stage.patches, generator)
            places = gather(places, kept)
            batch |= {key: batch[key].gather(1, kept) for key in ("name", "colour", "order", "centre", "share")}
            batch["offset"] = gather(batch["offset"], kept)
        with torch.set_grad_enabled(stage.tower):
            visual, pooled = self.see(batch["pixels"], places)
        losses = {"patch": self.patch_losses(visual, pooled, places, batch)} if stage.tower else {}
        if stage.questions:
            if not stage.patches and (not stage.whole or step % stage.whole):
                kept = self.choose(batch["name"], visual.shape[1] // THINNED, generator)
                visual = gather(visual, kept)
                batch |= {key: batch[key].gather(1, kept) for key in ("name", "share")}
            losses |= self.answer_losses(visual[:, None], batch, "", generator)
            if stage.pair_questions and step % 3 == 0:
                pairs = visual.unflatten(0, (-1, 2))
                losses |= self.answer_losses(pairs, batch, "pair_", generator)
        return losses

    def answer_losses(
        self, visual: Tensor, batch: dict[str, Tensor], about: str, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the losses of the questions about one scene, or about each pair of scenes that follow each other."""
        tokens, targets, where = (batch[about + key][:: visual.shape[1]] for key in ("tokens", "targets", "where"))
        draws = torch.rand(2, len(visual), generator=generator).to(self.device)
        stretch = torch.where(draws[0] < 0.5, 1.0, 0.1 + 0.9 * draws[1])
        logits, halfway, seen, whole = self.answer(visual, tokens, stretch)
        named = where[..., 0] != NOWHERE
        losses = {}
        if seen.shape[1] > 1:
            # Every visual token knows which image it belongs to.
            image = torch.arange(seen.shape[1], device=self.device)[:, None].expand(seen.shape[:3]).flatten()
            losses[f"{about}image"] = F.cross_entropy(self.probes.image(seen).flatten(0, 2).float(), image)
        else:
            losses["looks"] = self.looks_loss(whole, tokens, targets, batch)
        return losses | {
            f"{about}answer": F.cross_entropy(logits.float().flatten(0, 2), targets.flatten(), ignore_index=IGNORED),
            f"{about}ground": place_loss(self.probes.name_where(halfway[named]), where[named]),
        }

    def looks_loss(
        self, halfway: tuple[Tensor, Tensor], tokens: Tensor, targets: Tensor, batch: dict[str, Tensor]
    ) -> Tensor:
        """Return how far the first head of the layer behind `GROUNDED_AFTER` is from looking where it should.

        A token that names a thing should look at each such thing and at the start of the prompt for as long.
        """
        hidden, positions = halfway
        _, questions, block = tokens.shape
        language = self.model.model.language_model
        layer = language.layers[GROUNDED_AFTER]
        normed, width = layer.input_layernorm(hidden), layer.self_attn.head_dim
        cosine, sine = language.rotary_emb(hidden, position_ids=positions)
        queries, keys = (
            turned(F.linear(normed, one.weight[:width]), cosine, sine)
            for one in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        length = hidden.shape[1] - questions * block
        asking = self.countable[tokens] & ((targets != IGNORED).cumsum(-1) == 0)
        row, place = asking.flatten(1).nonzero(as_tuple=True)
        visible = self._mask(length, questions, block)[0, 0, length + place]
        logits = (queries[row, length + place, None] @ keys[row].mT)[:, 0].float() * width**-0.5 + visible
        wanted = torch.zeros_like(logits)
        wanted[:, 0] = 1
        patches = batch["name"].shape[1]
        named = batch["name"][row] == tokens.flatten(1)[row, place][:, None]
        wanted[:, length - patches : length] = named * batch["share"][row]
        number = wanted.sum(1)
        # Less what it would be at best. Things that are there several times are rare, and weigh as many times more.
        best = number.log() - torch.xlogy(wanted, wanted).sum(1) / number
        spread = logits.logsumexp(1) - (wanted * logits.masked_fill(wanted == 0, 0)).sum(1) / number - best
        return (spread * number).sum() / number.sum()

    @torch.no_grad()
    def validate(self, stage: Stage, loader: DataLoader) -> dict[str, float]:
        """Return the accuracy per kind of question, and of patch names, on held-out material."""
        right = torch.zeros(len(KINDS))
        asked = torch.zeros(len(KINDS))
        named: dict[str, list[Tensor]] = {"things": [], "characters": []}
        for raw in loader:
            batch = {key: value.to(self.device) for key, value in raw.items()}
            with torch.autocast(self.device.type, torch.bfloat16):
                visual, _ = self.see(batch["pixels"], self.patch_places(stage.side, batch["origin"]))
                guess = (visual @ self.model.get_input_embeddings().weight.T).argmax(-1)
                asked_now = {"": visual[:, None]} if stage.questions else {}
                if stage.pair_questions:
                    asked_now["pair_"] = visual.unflatten(0, (-1, 2))
                for about, shown in asked_now.items():
                    tokens, targets, kinds = (
                        batch[about + key][:: shown.shape[1]] for key in ("tokens", "targets", "kinds")
                    )
                    logits, *_ = self.answer(shown, tokens, torch.ones(len(shown), device=self.device))
                    exact = ((logits.argmax(-1) == targets) | (targets == IGNORED)).all(-1)
                    for kind in range(len(KINDS)):
                        right[kind] += exact[kinds == kind].sum().cpu()
                        asked[kind] += (kinds == kind).sum().cpu()
            hit = guess == batch["name"]
            spelt = batch["order"] > 0
            named["characters"].append(hit[spelt].float())
            named["things"].append(hit[~spelt & (batch["name"] != self.nothing)].float())
        figures = {f"patches of {kind}": float(torch.cat(hits).mean()) for kind, hits in named.items()}
        if stage.questions:
            share = (right / asked)[asked > 0]
            figures |= {
                kind: float(right[number] / asked[number]) for number, kind in enumerate(KINDS) if asked[number]
            }
            figures["accuracy"] = float(share.mean())
        return figures


def turned(rows: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return queries or keys (B, L, d) turned by their positions."""
    one, other = rows.chunk(2, dim=-1)
    return rows * cosine + torch.cat([-other, one], dim=-1) * sine


def gather(tokens: Tensor, kept: Tensor) -> Tensor:
    """Return the rows (B, k) of tokens (B, N, d)."""
    return tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))


def place_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Return how far places are from where they should be, in shares of the image's side."""
    return 10 * F.smooth_l1_loss(found.float(), wanted, beta=0.05)


def save_checkpoint(folder: Path, trainer: Trainer, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    """Write everything needed to go on; the old checkpoint stays until the new one is whole."""
    tensors = {name: value.detach().contiguous() for name, value in trainer.parameters().items()}
    for name, parameter in trainer.parameters().items():
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value.contiguous()
    temporary = folder / "checkpoint.tmp"
    save_file(tensors, temporary, {"step": str(step)})
    os.replace(temporary, folder / "checkpoint.safetensors")


def load_checkpoint(folder: Path, trainer: Trainer, optimizers: list[torch.optim.Optimizer]) -> int:
    """Restore the last checkpoint and return the next step, 0 when there is none."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as opened:
        step = int(opened.metadata()["step"])
    tensors = load_file(path, device=str(trainer.device))
    named = trainer.parameters()
    owner = {id(value): o for o in optimizers for group in o.param_groups for value in group["params"]}
    with torch.no_grad():
        for key, tensor in tensors.items():
            state, slash, name = key.rpartition("/")
            if slash:
                # AdamW keeps its count of steps on the CPU.
                kept = tensor.cpu() if state == "step" else tensor
                owner[id(named[name])].state[named[name]][state] = kept
            else:
                named[name].copy_(tensor)
    return step


def learning_rate(stage: Stage, step: int) -> float:
    """Warm up, then fall along a cosine to the stage's final share."""
    if step < WARMUP:
        return stage.rate * (step + 1) / WARMUP
    progress = (step - WARMUP) / max(1, (stage.horizon or stage.steps) - WARMUP)
    return stage.rate * (stage.final + (1 - stage.final) * 0.5 * (1 + math.cos(math.pi * progress)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and the log")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes ahead (0: none)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(device)
    tokenizer = trainer.processor.tokenizer
    optimizers = trainer.optimizers()
    done = load_checkpoint(arguments.out, trainer, optimizers)
    print(f"{sum(value.numel() for value in trainer.model.parameters()) / 1e6:.2f} M parameters, step {done}, {device}")
    before = images_before = 0
    for stage in STAGES:
        if done < before + stage.steps:
            skip = max(0, done - before)
            left = (stage.steps - skip) * stage.batch
            first = images_before + skip * stage.batch
            draw = partial(
                Examples,
                tokenizer,
                side=stage.side,
                reading=stage.reading,
                counting=stage.counting,
                questions=stage.questions,
                pair_questions=stage.pair_questions,
                focus=stage.focus,
            )
            train = draw("train", first=first, count=left)
            held_out = draw("test", first=VALIDATION_FIRST, count=VALIDATION_SCENES, reading=0, counting=0)
            ahead = 16 if arguments.workers else None
            loader = DataLoader(train, stage.batch, num_workers=arguments.workers, prefetch_factor=ahead)
            checking = DataLoader(held_out, stage.batch)
            run_stage(stage, trainer, optimizers, loader, checking, arguments.out, before, skip)
        before += stage.steps
        images_before += stage.steps * stage.batch


def run_stage(
    stage: Stage,
    trainer: Trainer,
    optimizers: list[torch.optim.Optimizer],
    loader: DataLoader,
    checking: DataLoader,
    out: Path,
    before: int,
    first: int,
) -> None:
    """Train one stage from its step `first`, logging and saving as it goes."""
    # On a CPU plain attention is the faster one while sequences are short.
    short = (stage.side < SIDE or stage.patches) and trainer.device.type == "cpu"
    for part in (trainer.model.model.vision_tower, trainer.model.model.language_model):
        part.set_attn_implementation("eager" if short else "sdpa")
    began, saved = time.time(), time.time()
    running: dict[str, float] = {}
    for step, raw in enumerate(loader, start=first):
        batch = {key: value.to(trainer.device) for key, value in raw.items()}
        with torch.autocast(trainer.device.type, torch.bfloat16):
            losses = trainer.losses(batch, stage, before + step)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
            faster = MUON_RATE if isinstance(optimizer, torch.optim.Muon) else 1.0
            for group in optimizer.param_groups:
                group["lr"] = faster * learning_rate(stage, step)
        torch.stack([LOSS_WEIGHTS.get(key, 1.0) * value for key, value in losses.items()]).sum().backward()
        nn.utils.clip_grad_norm_(list(trainer.parameters().values()), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        for key, value in losses.items():
            latest = float(value.detach())
            running[key] = running.get(key, latest) * 0.95 + 0.05 * latest
        last = step + 1 == stage.steps
        if (step + 1) % 100 == 0 or last:
            figures = trainer.validate(stage, checking) if (step + 1) % 400 == 0 or last else {}
            pace = (step + 1 - first) / (time.time() - began)
            row = {"stage": stage.name, "step": before + step + 1, "loss": running, "held_out": figures,
                   "images_per_second": pace * stage.batch}  # fmt: skip
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            shown = {key: round(value, 3) for key, value in (running | figures).items()}
            print(f"{stage.name} {step + 1}/{stage.steps}, {(stage.steps - step - 1) / pace / 60:.0f} min left", shown)
        if last or time.time() - saved > 120:
            save_checkpoint(out, trainer, optimizers, before + step + 1)
            saved = time.time()


if __name__ == "__main__":
    main()
