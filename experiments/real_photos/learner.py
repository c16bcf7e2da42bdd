"""The model while it learns: a frozen tower and decoder, a projector in float32, and LoRA on the decoder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from packing import IGNORED, Packed

RANK, ALPHA = 16, 32
#: The projector learns so much slower: the closed form has small weights, and a few full steps would overwrite it.
PROJECTOR_SHARE = 0.03
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Learner:
    """A LLaVA, its adapters, their running average and their optimizer.

    Parameters
    ----------
    model
        In bfloat16, on its device; changed in place.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = model.device
        model.requires_grad_(False)
        self.projector = model.model.multi_modal_projector.float().requires_grad_(True)
        torch.manual_seed(0)
        decoder = model.model.language_model
        inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS)), decoder)
        for weight in decoder.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
        for module in decoder.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                # Autocast casts; to float32 and back would be two more passes over every activation.
                module.cast_input_dtype_enabled = False
        self.average = {name: value.detach().clone() for name, value in self.weights().items()}
        adapters = [weight for weight in decoder.parameters() if weight.requires_grad]
        groups = [
            {"params": list(self.projector.parameters()), "share": PROJECTOR_SHARE},
            {"params": adapters, "share": 1.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)

    def attend(self, plain: bool) -> None:
        """Compute the decoder's attention in plain steps; on a CPU that is faster while sequences are short."""
        wanted = "eager" if plain else "sdpa"
        decoder = self.model.model.language_model
        if decoder.config._attn_implementation != wanted:
            decoder.set_attn_implementation(wanted)

    def weights(self) -> dict[str, torch.nn.Parameter]:
        """Return what is learnt, by name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def logits(self, features: Tensor, packed: Packed) -> Tensor:
        """Return the logits (answer tokens, vocabulary) at every target that counts.

        Parameters
        ----------
        features : (sequences, images * patches, d_vision) tensor
        packed : Packed
        """
        ids = packed.ids.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            visual = self.projector(features.to(self.device).float())
            words = self.model.get_input_embeddings()(ids)
            shown = (ids == self.model.config.image_token_id)[..., None]
            hidden = self.model.model.language_model(
                inputs_embeds=words.masked_scatter(shown, visual.to(words.dtype)),
                attention_mask=packed.mask(words.dtype, self.device),
                position_ids=packed.positions.to(self.device),
                use_cache=False,
            ).last_hidden_state
            return self.model.lm_head(hidden[packed.targets.to(self.device) != IGNORED]).float()

    def step(self, features: Tensor, packed: Packed, worth: Tensor, rate: float, follow: float) -> float:
        """Take a step of gradient descent, let the average follow by that share, and return the loss before it.

        `worth` says how much each token of the answers counts; `rate` is that of the adapters.
        """
        each = F.cross_entropy(self.logits(features, packed), wanted(packed).to(self.device), reduction="none")
        worth = worth.to(self.device)
        loss = (each * worth).sum() / worth.sum()
        loss.backward()
        weights = self.weights()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, value in weights.items():
                self.average[name].lerp_(value, follow)
        return float(loss.detach())

    @torch.no_grad()
    def right(self, features: Tensor, packed: Packed) -> list[bool]:
        """Return for every question, in order, whether each token of its answer is the most probable."""
        hits = (self.logits(features, packed).argmax(-1).cpu() == wanted(packed)).tolist()
        sequence, place = (packed.targets != IGNORED).nonzero(as_tuple=True)
        blocks = zip(sequence.tolist(), packed.blocks[sequence, place].tolist(), strict=True)
        found: dict[tuple[int, int], bool] = {}
        for block, hit in zip(blocks, hits, strict=True):
            found[block] = found.get(block, True) and hit
        return list(found.values())

    def begin_anew(self) -> None:
        """Go on from the averaged weights, with an optimizer that has seen nothing."""
        self.adopt(self.average)
        self.optimizer.state.clear()

    def save(self, path: Path, step: int) -> None:
        """Write everything needed to go on; the checkpoint before it stays until this one is whole."""
        tensors = {f"weights/{name}": value.detach() for name, value in self.weights().items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        for name, value in self.weights().items():
            tensors |= {f"{key}/{name}": part for key, part in self.optimizer.state.get(value, {}).items()}
        temporary = path.with_suffix(".tmp")
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, {"step": str(step)})
        os.replace(temporary, path)

    def load(self, path: Path) -> int:
        """Read a checkpoint and return the next step."""
        weights = self.weights()
        with torch.no_grad():
            for key, value in load_file(path).items():
                part, _, name = key.partition("/")
                if part == "weights":
                    weights[name].copy_(value)
                elif part == "average":
                    self.average[name].copy_(value)
                else:
                    # AdamW keeps its count of steps on the CPU.
                    kept = value if part == "step" else value.to(self.device)
                    self.optimizer.state[weights[name]][part] = kept
        with safe_open(path, "pt") as opened:
            return int(opened.metadata()["step"])

    @torch.no_grad()
    def adopt(self, weights: Mapping[str, Tensor]) -> None:
        """Take these weights for what is learnt."""
        for name, value in self.weights().items():
            value.copy_(weights[name])


def wanted(packed: Packed) -> Tensor:
    """Return the tokens of all answers, in order."""
    return packed.targets[packed.targets != IGNORED]
