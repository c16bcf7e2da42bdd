"""Prune a model's visual tokens for the length of a `with` block."""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, get_args

import torch
from packaging.version import Version
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.utils import ModelOutput

from zooprune.budgeting import Newlines, Scope, spend
from zooprune.callbacks import FirstToken, WholeCriterion, WholeProcessor, WholePrompt, WholeStreamer
from zooprune.compaction import Prompt, check_prompt, compact
from zooprune.encoding import encode
from zooprune.families import Modality, Visual, find_family
from zooprune.families.base import Positions, joined_visuals
from zooprune.plan import Plan
from zooprune.precision import all_finite
from zooprune.profiling import Timings, recording, stage
from zooprune.pruners import Pruner, get_pruner
from zooprune.tokens import Selection

#: The first transformers whose models take encoded images (`mm_encoder_outputs`).
OLDEST_TRANSFORMERS = "5.18.0"

_REFUSED = {
    "inputs_embeds": "the image placeholders cannot be found in embeddings; pass input_ids",
    "past_key_values": "the images must be in the prompt that is prefilled; start without a cache",
    "position_ids": "they are worked out from the pruned prompt; leave them out",
    "mm_encoder_outputs": "the images are encoded here; pass pixel_values",
    "assistant_model": "assisted generation is not supported; leave the assistant out",
    "prefix_allowed_tokens_fn": "it would see the pruned prompt; write a logits_processor instead",
}


def prune(
    model: PreTrainedModel,
    pruner: Pruner | str | Plan,
    *,
    positions: Positions = "auto",
    scope: Scope = "image",
    newlines: Newlines = "drop",
    **options: Any,
) -> Session:
    """Make a model's `generate` drop the visual tokens it does not need.

    The call stays as it was: the ids that come back start with the caller's prompt, limits on the length count all of
    it, and a streamer, logits processors and stopping criteria that are passed in see it whole. What transformers adds
    by itself, such as a repetition penalty, looks at the pruned ids, which differ only in how often the image token
    occurs. Calls without images pass through.

    Parameters
    ----------
    model : PreTrainedModel
        A vision-language model of transformers. Only the attribute `generate` of this one instance is shadowed.
    pruner : Pruner, str or Plan
        A configured method, the name of one with its options: ``prune(model, "zoo", keep=64)``, or what
        ``zooprune calibrate`` found: ``prune(model, Plan.load("plan.json"))``. A plan sets all that follows.
    positions : {"auto", "contiguous", "original"}
        Whether kept tokens are numbered anew or keep their positions. "auto" is what suits the model family.
    scope : {"image", "tile", "prompt"}
        What one choice is made among: an image, or all images of a prompt together; "tile" deals the budget of an
        image out to its tiles, or that of a video to its frames, as the paper does for LLaVA-NeXT.
    newlines : {"drop", "keep", "rows"}
        What becomes of the separators that LLaVA-NeXT and its kin put after every row of patches: all dropped, all
        kept, or kept where their row still has a token. They count inside the budget.
    **options
        Fields of the method, when it is given by name.

    Returns
    -------
    Session
        A context manager; `close` does what leaving the block does.

    Raises
    ------
    ImportError
        If transformers is older than 5.18.
    TypeError, ValueError
        If the model, the method or an option is not valid, or the model is being pruned already.
    """
    return Session(model, pruner, positions=positions, scope=scope, newlines=newlines, **options)


@dataclass(frozen=True)
class ImageReport:
    """What became of one image or video (or of all images of a prompt, with ``scope="prompt"``).

    Parameters
    ----------
    row : int
        The row of the batch it belongs to.
    selection : Selection
        On the CPU.
    positions : Tensor of int64, (N, 4)
        Frame, tile, row and column of every token, on the CPU.
    modality : {"image", "video"}
    separators : tuple of int
        How many separators were kept, and how many there were.
    """

    row: int
    selection: Selection
    positions: Tensor
    modality: Modality = "image"
    separators: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Report:
    """What one call did.

    Parameters
    ----------
    images : tuple of ImageReport
    prompt_length, pruned_length : int
        Width of the batch before and after, in tokens.
    """

    images: tuple[ImageReport, ...]
    prompt_length: int
    pruned_length: int
    _timings: Timings = field(default_factory=Timings, repr=False)

    @property
    def kept(self) -> int:
        """Visual tokens that reached the language model, separators included, over the batch."""
        return sum(len(image.selection) + image.separators[0] for image in self.images)

    @property
    def total(self) -> int:
        """Visual tokens there were, separators included, over the batch."""
        return sum(image.selection.total + image.separators[1] for image in self.images)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per stage: encode, score, select, and for `generate` prefill and decode."""
        return self._timings.seconds()

    @property
    def notes(self) -> dict[str, Any]:
        """What the method says about how it worked.

        ZOO-Prune in closed form gives `closed_form`, how it was worked out, and `rank_correlation`, how well that ranks
        random tokens compared with the whole.
        """
        return dict(self._timings.notes)


class Session:
    """A model under pruning; see `prune`.

    Attributes
    ----------
    reports : list of Report
        One for every call that had images, the latest last; some kilobytes for each image. Clear it in a long run.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pruner: Pruner | str | Plan,
        *,
        positions: Positions = "auto",
        scope: Scope = "image",
        newlines: Newlines = "drop",
        **options: Any,
    ) -> None:
        _check_transformers()
        if isinstance(pruner, Plan):
            if options or (positions, scope, newlines) != ("auto", "image", "drop"):
                raise TypeError("a plan says all about how to prune; leave out the other arguments or change the plan")
            positions, scope, newlines, pruner = pruner.positions, pruner.scope, pruner.newlines, pruner.pruner()
        if isinstance(pruner, str):
            pruner = get_pruner(pruner, **options)
        elif options:
            raise TypeError(f"{', '.join(options)}: set these on the pruner itself")
        if not isinstance(pruner, Pruner):
            raise TypeError(f"expected a Pruner, the name of one or a Plan, got {type(pruner).__name__}")
        policies = (("positions", positions, Positions), ("scope", scope, Scope), ("newlines", newlines, Newlines))
        for name, value, allowed in policies:
            if value not in get_args(allowed):
                raise ValueError(f"{name}={value!r} is not one of {', '.join(get_args(allowed))}")
        self._family = find_family(model)
        if "generate" in vars(model):
            raise ValueError("this model's generate is replaced already; close the session that prunes it first")
        self.model, self.pruner, self.scope, self.newlines = model, pruner, scope, newlines
        self.positions = self._family.positions if positions == "auto" else positions
        self.reports: list[Report] = []
        self._original: Callable[..., Tensor | ModelOutput] = getattr(model, "generate")  # noqa: B009
        model.__dict__["generate"] = self._generate
        self._open = True

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the model its own `generate` back. Closing twice does no harm."""
        if self._open:
            del self.model.__dict__["generate"]
            self._open = False

    def prepare(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what to call the model with: ``model(**session.prepare(inputs))``.

        Parameters
        ----------
        inputs : mapping
            What the processor returned, with `labels` if a loss is wanted. Without images it comes back as it is.

        Returns
        -------
        dict
            The cut `input_ids`, `attention_mask`, `position_ids` and `labels`, the kept visual tokens, and all else
            unchanged.

        Raises
        ------
        ValueError
            If the prompts are empty or padded on the right, or do not fit the images.
        """
        inputs = dict(inputs)
        if not self._has_images(inputs):
            return inputs
        self._refuse(inputs)
        if inputs.get("input_ids") is None:
            raise ValueError("no input_ids; pass what the processor returned")
        prompt, encoded, report = self._cut(inputs)
        labels = inputs.get("labels")
        if labels is not None:
            inputs["labels"] = prompt.gather(labels, -100)
        self._replace(inputs, prompt)
        self.reports.append(report)
        return inputs | {
            "position_ids": prompt.position_ids + self._family.first_position,
            "mm_encoder_outputs": encoded,
        }

    def _generate(
        self, inputs: Tensor | None = None, generation_config: GenerationConfig | None = None, **kwargs: Any
    ) -> Tensor | ModelOutput:
        """Stand in for `model.generate`; the caller gets its own prompt ids back."""
        if not self._has_images(kwargs):
            return self._original(inputs, generation_config=generation_config, **kwargs)
        if inputs is not None:
            kwargs["input_ids"] = inputs
        self._refuse(kwargs)
        if kwargs.get("input_ids") is None:
            raise ValueError("no input_ids; pass what the processor returned")
        prompt, encoded, report = self._cut(kwargs)
        self._check_copies(generation_config, kwargs, encoded, report)
        whole = WholePrompt(kwargs["input_ids"], report.pruned_length)
        self._replace(kwargs, prompt)
        shorter = report.prompt_length - report.pruned_length
        lowered = self._lowered_limits(generation_config, kwargs, shorter)
        if generation_config is None:
            kwargs |= lowered
        else:
            generation_config = copy.deepcopy(generation_config)
            for limit, value in lowered.items():
                setattr(generation_config, limit, value)
                kwargs.pop(limit, None)
        if kwargs.get("streamer") is not None:
            kwargs["streamer"] = WholeStreamer(kwargs["streamer"], whole)
        if kwargs.get("logits_processor"):
            processors = [WholeProcessor(processor, whole) for processor in kwargs["logits_processor"]]
            kwargs["logits_processor"] = LogitsProcessorList(processors)
        criteria = [WholeCriterion(criterion, whole) for criterion in kwargs.get("stopping_criteria") or ()]
        clock = FirstToken(self.model.device, report._timings)
        kwargs["stopping_criteria"] = StoppingCriteriaList([*criteria, clock])
        if self.positions == "original" or prompt.position_ids.ndim == 3:
            kwargs["position_ids"] = prompt.position_ids
        output = self._original(generation_config=generation_config, mm_encoder_outputs=encoded, **kwargs)
        clock.finish()
        self.reports.append(report)
        if isinstance(output, Tensor):
            return whole(output)
        output["sequences"] = whole(output["sequences"])
        return output

    def _has_images(self, inputs: Mapping[str, Any]) -> bool:
        if inputs.get("pixel_values_videos") is not None and not self._family.video_arguments:
            raise ValueError(f"videos are not supported for {type(self.model).__name__}; pass images")
        return bool(self._family.present(inputs))

    def _refuse(self, inputs: Mapping[str, Any]) -> None:
        if not self._open:
            raise ValueError("this session is closed; open another with prune()")
        for name, reason in _REFUSED.items():
            if inputs.get(name) is not None:
                raise ValueError(f"{name} cannot be used while pruning: {reason}")

    def _replace(self, inputs: dict[str, Any], prompt: Prompt) -> None:
        """Put the cut prompt in the place of the caller's, and take out what has been used."""
        family = self._family
        for name in (*family.image_arguments, *family.video_arguments, *family.consumed):
            inputs.pop(name, None)
        for name in family.per_token:
            if inputs.get(name) is not None:
                inputs[name] = prompt.gather(inputs[name], 0)
        inputs |= {"input_ids": prompt.input_ids, "attention_mask": prompt.attention_mask}

    def _cut(self, inputs: Mapping[str, Any]) -> tuple[Prompt, dict[str, ModelOutput], Report]:
        """Encode, select and cut: everything up to the language model."""
        device = self.model.device
        present = self._family.present(inputs)
        pixels = [inputs[self._family.arguments(modality)[0]] for modality in present]
        if any(given.device != device for given in (*pixels, inputs["input_ids"])):
            raise ValueError(f"the model is on {device}; move the inputs there with inputs.to(model.device)")
        # What is about prompts is done on the host, which then waits for the device only where tokens are chosen.
        ids: Tensor = inputs["input_ids"].cpu()
        mask = inputs.get("attention_mask")
        pad = self._pad_token_id()
        if mask is None:
            if pad is not None and bool((ids == pad).any()):
                raise ValueError("input_ids hold padding; pass the attention_mask that came with them")
            mask = torch.ones_like(ids)
        mask = mask.cpu()
        check_prompt(ids, mask)
        timings = Timings()
        stays = torch.ones_like(ids, dtype=torch.bool)
        slots = torch.zeros_like(stays)
        outputs: dict[str, ModelOutput] = {}
        images: list[ImageReport] = []
        with torch.no_grad(), recording(timings):
            for modality in present:
                with stage("encode", device):
                    encoded = encode(self._family, self.model, modality, inputs)
                mine = self._family.slots(self.model, modality, ids)
                kept = []
                for row, visual in self._groups(modality, encoded.visuals, mine):
                    selection, stay = spend(self.pruner, visual, scope=self.scope, newlines=self.newlines)
                    if selection.total != len(visual.tokens):
                        raise ValueError(
                            f"{self.pruner} selected among {selection.total} tokens of {len(visual.tokens)}"
                        )
                    kept.append(stay)
                    separators = int(stay.sum()) - len(selection), visual.length - len(visual.tokens)
                    places = visual.tokens.positions.cpu()
                    images.append(ImageReport(row, _on_cpu(selection), places, modality, separators))
                everywhere = torch.cat(kept)
                slots |= mine
                stays[mine] = everywhere
                per_prompt = (stays & mine).sum(1)[mine.any(1)].tolist()
                outputs[self._family.placeholder(modality)] = encoded.cut(everywhere, per_prompt)
            axes = self._family.axes(self.model, inputs, mask)
        # Padding is masked, so any id serves where the model names none.
        prompt = compact(ids, mask, slots, stays[slots], positions=self.positions, pad_token_id=pad or 0, axes=axes)
        report = Report(tuple(images), ids.shape[1], prompt.input_ids.shape[1], timings)
        return prompt.to(device), outputs, report

    def _groups(self, modality: Modality, visuals: list[Visual], slots: Tensor) -> list[tuple[int, Visual]]:
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
        finite = [all_finite(one.tokens.embeddings) & all_finite(one.tokens.features) for one in visuals]
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
            if self.scope == "prompt" and groups and groups[-1][0] == row:
                groups[-1][1].append(visual)
            else:
                groups.append((row, [visual]))
        return [(row, joined_visuals(group)) for row, group in groups]

    def _pad_token_id(self) -> int | None:
        for config in (self.model.generation_config, self.model.config.get_text_config()):
            value = getattr(config, "pad_token_id", None)
            if value is not None:
                return int(value)
        return None

    def _lowered_limits(
        self, generation_config: GenerationConfig | None, kwargs: Mapping[str, Any], shorter: int
    ) -> dict[str, int]:
        """Lower the limits that count the prompt, so that as many new tokens come as without pruning."""
        lowered = {}
        for limit, new_tokens in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            value = self._given(limit, generation_config, kwargs)
            if shorter and value is not None and self._given(new_tokens, generation_config, kwargs) is None:
                lowered[limit] = max(0, value - shorter)
        return lowered

    def _given(self, name: str, generation_config: GenerationConfig | None, kwargs: Mapping[str, Any]) -> int | None:
        """Return an option of `generate` from where it counts most."""
        sources = (getattr(generation_config, name, None), getattr(self.model.generation_config, name, None))
        return next((value for value in (kwargs.get(name), *sources) if value is not None), None)

    def _check_copies(
        self,
        generation_config: GenerationConfig | None,
        kwargs: Mapping[str, Any],
        encoded: Mapping[str, Any],
        report: Report,
    ) -> None:
        """Refuse to copy prompts, as beams do, where transformers could not tell whose rows of features are whose."""
        copies = [self._given(name, generation_config, kwargs) or 1 for name in ("num_beams", "num_return_sequences")]
        prompts = {(image.modality, image.row) for image in report.images}
        for modality, output in encoded.items():
            joined = isinstance(output.pooler_output, Tensor) and len(output.pooler_output) == 1
            if max(copies) > 1 and joined and sum(kind == modality for kind, _ in prompts) > 1:
                raise ValueError(
                    f"{type(self.model).__name__} cannot copy prompts that keep different numbers of tokens; "
                    "give an int for keep, or one prompt at a time"
                )


def _on_cpu(selection: Selection) -> Selection:
    scores = None if selection.scores is None else selection.scores.cpu()
    return Selection(selection.index.cpu(), selection.total, scores)


def _check_transformers() -> None:
    installed = importlib.metadata.version("transformers")
    if Version(installed) < Version(OLDEST_TRANSFORMERS):
        raise ImportError(
            f"zooprune needs transformers {OLDEST_TRANSFORMERS} or newer, found {installed}; "
            "run: pip install -U transformers"
        )
