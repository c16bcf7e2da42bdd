"""Everything up to the language model: encode the images, choose their tokens, cut the prompt to match.

Knows how a model's inputs are cut, and nothing of `generate`, sessions or caches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from zooprune.budgeting import spend
from zooprune.compaction import Prompt, compact
from zooprune.encoding import encode, once
from zooprune.families import Family
from zooprune.policy import Policy
from zooprune.precision import all_finite
from zooprune.profiling import Timings, recording, stage
from zooprune.pruners import Pruner
from zooprune.reports import ImageReport, Report
from zooprune.sensitivity.weight_cache import unchanged
from zooprune.signals import PromptSignal, TowerSignal, find_signal, tower_signals
from zooprune.standing_in import stand_in
from zooprune.tokens import Selection
from zooprune.visuals import Merged, Modality, Visual, joined_visuals


@dataclass(frozen=True)
class Prefilled:
    """What the language model is to read.

    Parameters
    ----------
    prompt : Prompt
        On the model's device.
    encoder_outputs : dict of str to ModelOutput
        The rows of the tokens that stay, as `mm_encoder_outputs` of a model's forward pass.
    report : Report
    owners, tokens : Tensor of int64, (B, L)
        For each column of the prompts, which image of the report fills it, and which of that image's tokens it is; -1
        for text and padding, and for separators.
    """

    prompt: Prompt
    encoder_outputs: dict[str, ModelOutput]
    report: Report
    owners: Tensor
    tokens: Tensor


def prefill(
    model: PreTrainedModel, family: Family, pruner: Pruner, policy: Policy, inputs: Mapping[str, Any]
) -> Prefilled:
    """Encode the images of a batch, choose which of their tokens stay, and cut the prompts.

    Parameters
    ----------
    model : PreTrainedModel
    family : Family
        Of the model.
    pruner : Pruner
    policy : Policy
    inputs : mapping
        What the processor returned, on the model's device.

    Raises
    ------
    TypeError
        If a pixel argument is no tensor.
    ValueError
        If the prompts are empty or padded on the right, do not fit the images, or the images give no finite features.
    """
    present = family.present(inputs)
    device = _check_devices(model, family, present, inputs)
    # What is about prompts is done on the host, which then waits for the device only where tokens are chosen.
    ids: Tensor = inputs["input_ids"].cpu()
    mask = inputs.get("attention_mask")
    pad = pad_token_id(model)
    if mask is None:
        if pad is not None and bool((ids == pad).any()):
            raise ValueError("input_ids hold padding; pass the attention_mask that came with them")
        mask = torch.ones_like(ids)
    mask = mask.cpu()
    check_prompt(ids, mask)
    timings = Timings()
    of_tower = tower_signals(pruner.reads())
    of_prompt = [one for one in map(find_signal, pruner.reads()) if isinstance(one, PromptSignal)]
    slots = {modality: family.slots(model, modality, ids) for modality in present}
    visual_slots = torch.stack(list(slots.values())).any(0)
    text = mask.bool() & ~visual_slots
    context = [
        {signal.name: signal.of(model, row[its].to(device)) for signal in of_prompt}
        for row, its in zip(ids, text, strict=True)
    ]
    stays = torch.ones_like(ids, dtype=torch.bool)
    mass = torch.ones(ids.shape, dtype=torch.float32)
    shown = torch.zeros(len(ids), dtype=torch.int64)
    owners, numbers = torch.full_like(ids, -1), torch.full_like(ids, -1)
    outputs: dict[str, ModelOutput] = {}
    images: list[ImageReport] = []
    # The weights are looked at once for all images and tiles.
    with recording(timings), unchanged():
        for modality in present:
            with stage("encode", device):
                encoded = encode(family, model, modality, inputs, of_tower)
            kept, weights, merged, first, fills = [], [], {}, 0, []
            for number, (row, visual) in enumerate(_groups(modality, encoded.visuals, slots[modality], policy)):
                tokens = dataclasses.replace(visual.tokens, context=context[row])
                asked = dataclasses.replace(visual, tokens=tokens)
                # In words, since 1 == 1.0.
                key = number, type(pruner), repr(pruner), policy.scope, policy.newlines
                selection, stay = once(encoded, key, partial(spend, pruner, asked, policy))
                selection = stand_in(selection, visual, policy)
                if selection.merged is not None:
                    merged[first] = Merged(visual.places, selection)
                first += visual.length
                kept.append(stay)
                weights.append(_mass(selection, visual))
                shown[row] += 1 if visual.images is None else int(visual.images[-1]) + 1
                fills.append(_fills(len(images), visual))
                separators = int(stay.sum()) - len(selection), visual.length - len(visual.tokens)
                positions = tokens.positions.cpu()
                images.append(ImageReport(row, selection.cpu(), positions, modality, separators, layout=visual.layout))
            everywhere = torch.cat(kept)
            stays[slots[modality]] = everywhere
            mass[slots[modality]] = torch.cat(weights)
            owners[slots[modality]], numbers[slots[modality]] = torch.cat(fills, dim=1)
            per_prompt = (stays & slots[modality]).sum(1)[slots[modality].any(1)].tolist()
            outputs[family.placeholder(modality)] = encoded.keep(everywhere, per_prompt, merged)
        axes = family.axes(model, inputs, mask)
    # Padding is masked, so any id serves where the model names none.
    prompt = compact(
        ids, mask, visual_slots, stays[visual_slots],
        original=_keep_positions(policy, family, shown), pad_token_id=pad or 0, axes=axes,
        mass=mass[visual_slots] if policy.weighs and bool((mass > 1).any()) else None,
    )  # fmt: skip
    report = Report(tuple(images), ids.shape[1], prompt.input_ids.shape[1], timings)
    return Prefilled(prompt.to(device), outputs, report, prompt.gather(owners, -1), prompt.gather(numbers, -1))


def _keep_positions(policy: Policy, family: Family, images: Tensor) -> Tensor:
    """Return which prompts keep the positions of their tokens, given how many images each has: bool, (B,)."""
    if policy.positions == "auto":
        # Renumbered, the images of a prompt move closer together; see docs/standing-in.md for what that costs.
        several = images > 1 if family.takes_positions else torch.zeros_like(images, dtype=torch.bool)
        return several | (family.positions == "original")
    return torch.full_like(images, policy.positions == "original", dtype=torch.bool)


def _fills(number: int, visual: Visual) -> Tensor:
    """Return an image's number for each of its slots, and the number of the token there, -1 for separators: (2, L)."""
    tokens = torch.full((visual.length,), -1)
    tokens[visual.places] = torch.arange(len(visual.tokens))
    return torch.stack([torch.full_like(tokens, number), tokens])


def _mass(selection: Selection, visual: Visual) -> Tensor:
    """Return how often each slot of an image would count in attention, (length,); separators count once."""
    mass = torch.ones(visual.length)
    mass[visual.places[selection.index.cpu()]] = selection.mass.cpu().float()
    return mass


def check_prompt(input_ids: Tensor, attention_mask: Tensor) -> None:
    """Raise a ValueError unless this is a batch of non-empty prompts padded on the left."""
    if input_ids.ndim != 2 or input_ids.numel() == 0:
        raise ValueError(f"the prompt is empty: input_ids has shape {tuple(input_ids.shape)}, expected (B, L)")
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask {tuple(attention_mask.shape)} and input_ids {tuple(input_ids.shape)} must have one shape; "
            "pass both from one processor call"
        )
    if not bool(attention_mask.any(1).all()):
        raise ValueError("a row of attention_mask is all zeros: that prompt is empty; leave the row out")
    if bool((attention_mask[:, 1:] < attention_mask[:, :-1]).any()):
        raise ValueError('the prompts are not padded on the left; set processor.tokenizer.padding_side = "left"')


def check_positions(model: PreTrainedModel, family: Family, policy: Policy) -> None:
    """Raise a ValueError if tokens are to keep their positions and this model does not take any."""
    if policy.positions == "original" and not family.takes_positions:
        raise ValueError(
            f"generate() of {type(model).__name__} takes no positions, so kept tokens cannot keep theirs; "
            'leave out positions="original"'
        )


def check_signals(model: PreTrainedModel, family: Family, pruner: Pruner) -> None:
    """Raise a ValueError if a method needs a signal that this model does not give."""
    for name in pruner.reads():
        signal = find_signal(name)
        if not family.gives(signal):
            raise ValueError(
                f"{pruner.name} reads {name}, which {type(model).__name__} does not give; choose another method"
            )
        if isinstance(signal, TowerSignal):
            family.layer(model, signal.layer)


def pad_token_id(model: PreTrainedModel) -> int | None:
    """Return the id that prompts of a model are padded with, if it names one."""
    for config in (model.generation_config, model.config.get_text_config()):
        value = getattr(config, "pad_token_id", None)
        if value is not None:
            return int(value)
    return None


def _check_devices(
    model: PreTrainedModel, family: Family, present: Sequence[Modality], inputs: Mapping[str, Any]
) -> torch.device:
    """Return the device of the inputs, after making sure that the model takes them there."""
    given = {name: inputs[name] for modality in present for name in family.arguments(modality)[:1]}
    given["input_ids"] = inputs["input_ids"]
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise TypeError(f'{name} must be a tensor, not {type(value).__name__}; give return_tensors="pt"')
    device: torch.device = inputs["input_ids"].device
    # Offloaded weights are on no device, and spread ones on several; accelerate takes inputs anywhere then.
    elsewhere = model.device.type == "meta" or getattr(model, "hf_device_map", None) is not None
    expected = device if elsewhere else model.device
    if device.type == "meta" or any(value.device != expected for value in given.values()):
        raise ValueError(f"the model is on {expected}; move the inputs there with inputs.to(model.device)")
    return device


def _groups(modality: Modality, visuals: Sequence[Visual], slots: Tensor, policy: Policy) -> list[tuple[int, Visual]]:
    """Return the row and the tokens that share a budget, in prompt order."""
    room: list[int] = slots.sum(1).tolist()
    filled = sum(visual.length for visual in visuals)
    if filled != sum(room):
        raise ValueError(
            f"the prompts have {sum(room)} {modality} placeholders but the {modality}s fill {filled}; "
            "pass the ids and pixels of the same processor call"
        )
    groups: list[tuple[int, list[Visual]]] = []
    row = 0
    finite = [all_finite(visual.tokens.embeddings) & all_finite(visual.tokens.features) for visual in visuals]
    for number, (visual, sound) in enumerate(zip(visuals, torch.stack(finite).tolist(), strict=True)):
        if not sound:
            raise ValueError(
                f"{modality} {number} gives NaN or infinite features; check its pixels and the model's dtype"
            )
        while room[row] == 0:
            row += 1
        if visual.length > room[row]:
            raise ValueError(
                f"{modality} {number} fills {visual.length} placeholders but prompt {row} has {room[row]} left "
                "for it; pass the ids and pixels of the same processor call"
            )
        room[row] -= visual.length
        if policy.scope == "prompt" and groups and groups[-1][0] == row:
            groups[-1][1].append(visual)
        else:
            groups.append((row, [visual]))
    return [(row, joined_visuals(group)) for row, group in groups]
