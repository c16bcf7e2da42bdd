"""Prune a model's visual tokens for the length of a `with` block: the session and its contract with `generate`.

Knows what `generate` takes and gives back. What a prompt becomes is worked out in `zooprune.prefill`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import threading
import types
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from zooprune.cache_names import CACHE, cache_of
from zooprune.calling import call, check_copies, option
from zooprune.compaction import Prompt
from zooprune.continuing import BEAMS, Conversation, adding, recall, remember
from zooprune.decoder.mass import Mass, WeighedOutputs, Weighing, counting
from zooprune.decoder.thinning import Crowd, Run, Thinning, check_call, running
from zooprune.families import find_family
from zooprune.plan import Plan
from zooprune.policy import Dropped, Newlines, Policy, Positions, Scope
from zooprune.prefill import Prefilled, check_positions, check_signals, prefill
from zooprune.profiling import Timings, recording
from zooprune.pruners import UNPRUNED, InsidePruner, Pruner, get_pruner
from zooprune.reports import Report
from zooprune.sensitivity import weight_cache

#: The first transformers whose models take encoded images (`mm_encoder_outputs`), and the first that is not tested:
#: minor versions rename arguments that pruning depends on.
OLDEST_TRANSFORMERS, TOO_NEW_TRANSFORMERS = "5.18.0", "5.25.0"

#: What hides images from a session, whatever else a call holds.
_HIDING = {
    "inputs_embeds": "the image placeholders cannot be found in embeddings; pass input_ids",
    "mm_encoder_outputs": "the images are encoded here; pass pixel_values",
}
#: What cannot be had together with images.
_REFUSED = {
    "position_ids": "they are worked out from the pruned prompt; leave them out",
    "assistant_model": "assisted generation is not supported; leave the assistant out",
    "prefix_allowed_tokens_fn": "it would see the pruned prompt; write a logits_processor instead",
}


def prune(
    model: PreTrainedModel,
    pruner: Pruner | str | Plan | None,
    *,
    inside: InsidePruner | str | None = None,
    positions: Positions = "auto",
    scope: Scope = "image",
    newlines: Newlines = "drop",
    dropped: Dropped = "discard",
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
    pruner : Pruner, str, Plan or None
        A configured method, the name of one with its options: ``prune(model, "zoo", keep=64)``, or what
        ``zooprune calibrate`` found: ``prune(model, Plan.load("plan.json"))``. A plan sets all that follows. None, or
        "none", prunes nothing before the language model. A method that prunes inside it may stand here as well.
    inside : InsidePruner or str, optional
        A method that prunes inside the language model, behind the first: ``inside=FastV(keep=64)``, or its name for the
        schedule of its paper: ``inside="fastv"``. Its `keep` counts the visual tokens that a layer reads on average.
    positions : {"auto", "contiguous", "original"}
        Whether kept tokens are numbered anew or keep their positions. "auto" keeps them with M-RoPE and in prompts with
        several images; inside the language model, it does what the method's paper does, and keeps them with M-RoPE.
    scope : {"image", "tile", "prompt"}
        What one choice is made among: an image, or all images of a prompt together; "tile" deals the budget of an
        image out to its tiles, or that of a video to its frames, as the paper does for LLaVA-NeXT.
    newlines : {"drop", "keep", "rows"}
        What becomes of the separators that LLaVA-NeXT and its kin put after every row of patches: all dropped, all
        kept, or kept where their row still has a token. They count inside the budget.
    dropped : {"discard", "mean", "mass", "stand in"}
        What becomes of the tokens that are not kept: forgotten, as the paper does; or each belongs to the nearest kept
        token, which becomes the mean of its tokens ("mean"), counts in attention as often as it has tokens ("mass"), or
        both ("stand in"). See `zooprune.standing_in`.
    **options
        Fields of the method, when it is given by name.

    Returns
    -------
    Session
        A context manager; `close` does what leaving the block does. Keep it open for many calls: what ZOO-Prune works
        out about the projector, once, is given back when the last session of a model closes.

    Raises
    ------
    ImportError
        If transformers is older than 5.18, or 5.25 or newer.
    TypeError, ValueError
        If the model, the method or an option is not valid, the model is being pruned already, its tokens cannot
        count several times, or they cannot become fewer inside its language model.
    """
    return Session(model, pruner, Policy(positions, scope, newlines, dropped), inside=inside, **options)


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
        pruner: Pruner | str | Plan | None,
        policy: Policy | None = None,
        *,
        inside: InsidePruner | str | None = None,
        **options: Any,
    ) -> None:
        _check_transformers()
        policy = policy or Policy()
        if isinstance(pruner, Plan):
            if options or inside is not None or policy != Policy():
                raise TypeError("a plan says all about how to prune; leave out the other arguments or change the plan")
            policy, pruner = pruner.policy, pruner.pruner()
        pruner = UNPRUNED if pruner is None else pruner
        if isinstance(pruner, str):
            pruner = get_pruner(pruner, **options)
        elif options:
            raise TypeError(f"{', '.join(options)}: set on the pruner itself, as in ZooPrune(keep=64, seed=1)")
        if not isinstance(pruner, Pruner):
            raise TypeError(f"expected a Pruner, the name of one or a Plan, got {type(pruner).__name__}")
        before, behind = _two_stages(pruner, inside, policy)
        self._family = find_family(model)
        check_signals(model, self._family, before)
        check_positions(model, self._family, policy)
        self.model, self.pruner, self.inside, self.policy = model, before, behind, policy
        self.reports: list[Report] = []
        with _opening:
            if session_of(model) is not None:
                raise ValueError(
                    "this model is being pruned already; close that session first, "
                    "with zooprune.generation.session_of(model).close() if you do not hold it"
                )
            self._weighing = Weighing(model) if policy.weighs else None
            self._thinning = None if behind is None else Thinning(model, behind)
            # Somebody else's patch, if there is one, stays underneath.
            self._beneath = vars(model).get("generate")
            self._original: Callable[..., Tensor | ModelOutput] = getattr(model, "generate")  # noqa: B009
            self._shadow = _Shadow(self)
            vars(model)["generate"] = self._shadow
            # The model holds the session; the list of sessions must not, or no model would ever be freed.
            _sessions[model] = weakref.ref(self)
        # What is worked out about the projector is given back with the last session.
        weight_cache.hold(model)

    @property
    def _open(self) -> bool:
        return session_of(self.model) is self

    def __enter__(self) -> Session:
        if not self._open:
            raise ValueError("this session is closed; open another with prune()")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the model its own `generate` back. Closing twice does no harm."""
        with _opening:
            if not self._open:
                return
            del _sessions[self.model]
            if self._weighing is not None:
                self._weighing.remove()
            if self._thinning is not None:
                self._thinning.remove()
            # What somebody else has put over ours stays; ours passes calls on from now on.
            if vars(self.model).get("generate") is self._shadow:
                if self._beneath is None:
                    del vars(self.model)["generate"]
                else:
                    vars(self.model)["generate"] = self._beneath
        weight_cache.release(self.model)

    def prepare(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what to call the model with: ``model(**session.prepare(inputs))``.

        Gradients flow through tower and projector unless the caller switched them off. Decoding by hand goes on as
        usual with models that count positions themselves. Where tokens keep their positions (``positions="original"``,
        or "auto" and several images) and the model has no M-RoPE, give `position_ids` to every further step, one above
        the last. With ``dropped="mass"`` or ``"stand in"``, call
        the model while the session is open.

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
        if not self._open:
            raise ValueError("this session is closed; open another with prune()")
        if self._thinning is not None:
            raise ValueError("pruning inside the language model works with generate() alone; call model.generate()")
        _refuse(inputs, _HIDING)
        if _filled(cache_of(inputs)):
            raise ValueError("a filled cache cannot be used while pruning by hand; go on with generate()")
        if not self._has_images(inputs):
            return inputs
        self._check_ids(inputs)
        done = prefill(self.model, self._family, self.pruner, self.policy, inputs)
        labels = inputs.get("labels")
        if labels is not None:
            inputs["labels"] = done.prompt.gather(labels, -100)
        self._replace(inputs, done.prompt)
        self.reports.append(done.report)
        self._family.count_on(self.model, done.prompt)
        outputs, mass = done.encoder_outputs, done.prompt.mass
        return inputs | {
            "position_ids": done.prompt.position_ids + self._family.first_position,
            "mm_encoder_outputs": outputs if mass is None else WeighedOutputs(outputs, Mass(mass)),
        }

    def _generate(self, *args: Any, **kwargs: Any) -> Tensor | ModelOutput:
        """Stand in for `model.generate`; the caller gets its own prompt ids back."""
        if not self._open:
            return self._original(*args, **kwargs)
        kwargs |= _named(self._original, args)
        _refuse(kwargs, _HIDING)
        conversation = recall(cache_of(kwargs))
        has_images = self._has_images(kwargs)
        if not has_images and conversation is None:
            self._check_cache(kwargs)
            return self._original(**kwargs)
        if kwargs.get("inputs") is not None:
            kwargs["input_ids"] = kwargs.pop("inputs")
        self._check_ids(kwargs)
        if self._thinning is not None:
            given = (option(self.model, name, kwargs) for name in ("cache_implementation", "prefill_chunk_size"))
            check_call(kwargs, *given)
        if conversation is not None:
            return self._go_on(conversation, kwargs)
        if _filled(cache_of(kwargs)):
            raise ValueError(
                "a filled cache cannot be used while pruning: the images must be in the prompt that is prefilled; "
                "start without a cache"
            )
        with torch.no_grad():
            done = prefill(self.model, self._family, self.pruner, self.policy, kwargs)
        check_copies(self.model, kwargs, done.encoder_outputs, done.report)
        ids = kwargs["input_ids"]
        self._replace(kwargs, done.prompt)
        kwargs["mm_encoder_outputs"] = done.encoder_outputs
        known = Conversation(ids.cpu(), done.prompt.to(torch.device("cpu")), ids.new_empty(len(ids), 0, device="cpu"))
        run = self._run(done)
        output = self._answer(kwargs, ids, done.prompt, done.report._timings, known, run)
        self.reports.append(done.report if run is None else run.told(done.report))
        return output

    def _run(self, done: Prefilled) -> Run | None:
        """Return how a prompt becomes shorter inside the language model, if it does."""
        if self._thinning is None:
            return None
        crowds = []
        for number, image in enumerate(done.report.images):
            columns = (done.owners[image.row] == number).nonzero()[:, 0]
            crowds.append(Crowd(image, columns, done.tokens[image.row, columns]))
        wanted: str = self._thinning.method.numbers() if self.policy.positions == "auto" else self.policy.positions
        keeps = wanted == "original" or (self.policy.positions == "auto" and self._family.positions == "original")
        return Run(self._thinning, done.prompt.to(torch.device("cpu")), crowds, anew=not keeps)

    def _go_on(self, conversation: Conversation, kwargs: dict[str, Any]) -> Tensor | ModelOutput:
        """Answer a conversation whose beginning is in a cache."""
        ids: Tensor = kwargs["input_ids"]
        if not self._family.continues:
            raise ValueError(
                f"{type(self.model).__name__} cannot go on from a cache, since all of its prompt sees all of it; "
                "start without a cache and pass the whole conversation"
            )
        prompt = conversation.goes_on(ids, kwargs.get("attention_mask"))
        new = ids[:, conversation.ids.shape[1] + conversation.after.shape[1] :]
        if any(bool(self._family.slots(self.model, kind, new).any()) for kind in self._family.modalities):
            raise ValueError(
                "new images cannot be added to a conversation in a cache; "
                "start without a cache and pass the whole conversation with all of its images"
            )
        # Pixels that come along are those of the images in the cache.
        self._replace(kwargs, prompt.to(ids.device))
        run = None
        if conversation.thinned is not None:
            if self._thinning is None:
                raise ValueError(
                    "the cache holds a prompt that was pruned inside the language model; go on in a session with "
                    "inside, or start without a cache"
                )
            run = Run.resumed(self._thinning, prompt, conversation.thinned, cache_of(kwargs))
        return self._answer(kwargs, ids, prompt, Timings(), conversation, run)

    def _answer(
        self,
        kwargs: dict[str, Any],
        ids: Tensor,
        prompt: Prompt,
        timings: Timings,
        known: Conversation,
        run: Run | None,
    ) -> Tensor | ModelOutput:
        """Generate from the cut prompt, and note with the cache which ids it holds."""
        if not prompt.counts_like_text:
            kwargs["position_ids"] = prompt.position_ids.to(ids.device)
        beams = option(self.model, "num_beams", kwargs) or 1
        with adding(), counting(self.model, prompt.mass), running(run), recording(timings):
            output = call(self.model, self._original, kwargs, ids, prompt, timings)
        if isinstance(output, Tensor):
            cache, sequences = cache_of(kwargs), output
        else:
            cache, sequences = output.get(CACHE), output["sequences"]
        if run is not None and run.cuts:
            known = dataclasses.replace(known, thinned=run.thinned)
        if cache is not None and _filled(cache):
            remember(cache, BEAMS if beams > 1 else known.grown(sequences, cache.get_seq_length()))
        return output

    def _has_images(self, inputs: Mapping[str, Any]) -> bool:
        kind, family = type(self.model).__name__, self._family
        if inputs.get("pixel_values_videos") is not None and not family.video_arguments:
            raise ValueError(f"videos are not supported for {kind}; pass images")
        known = {*family.image_arguments, *family.video_arguments}
        for name, value in inputs.items():
            if name.startswith("pixel_values") and value is not None and name not in known:
                raise ValueError(
                    f"{name} cannot be pruned: of {kind}, zooprune reads {', '.join(sorted(known))}; leave it out"
                )
        return bool(family.present(inputs))

    def _check_ids(self, inputs: Mapping[str, Any]) -> None:
        _refuse(inputs, _REFUSED)
        ids = inputs.get("input_ids")
        if ids is None:
            raise ValueError("no input_ids; pass what the processor returned")
        if not isinstance(ids, Tensor):
            raise TypeError(f'input_ids must be a tensor, not {type(ids).__name__}; give return_tensors="pt"')

    def _check_cache(self, inputs: Mapping[str, Any]) -> None:
        """Refuse a cache that does not hold the images of a prompt that comes without them."""
        cache = cache_of(inputs)
        ids = inputs.get("input_ids") if inputs.get("inputs") is None else inputs["inputs"]
        if not _filled(cache) or not isinstance(ids, Tensor):
            return
        rest = ids[:, cache.get_seq_length() :]
        if any(bool(self._family.slots(self.model, kind, rest).any()) for kind in self._family.modalities):
            raise ValueError(
                "the cache holds less than the images of this prompt; start without a cache and pass the images"
            )

    def _replace(self, inputs: dict[str, Any], prompt: Prompt) -> None:
        """Put the cut prompt in the place of the caller's, and take out what has been used."""
        family = self._family
        for name in (*family.image_arguments, *family.video_arguments, *family.consumed):
            inputs.pop(name, None)
        for name in family.per_token:
            if inputs.get(name) is not None:
                inputs[name] = prompt.gather(inputs[name], 0)
        inputs |= {"input_ids": prompt.input_ids, "attention_mask": prompt.attention_mask}


def _two_stages(
    pruner: Pruner, inside: InsidePruner | str | None, policy: Policy
) -> tuple[Pruner, InsidePruner | None]:
    """Return the method before the language model and the one inside it."""
    found = get_pruner(inside) if isinstance(inside, str) else inside
    if isinstance(found, Pruner) and not isinstance(found, InsidePruner):
        raise TypeError(f"{found.name} prunes before the language model; give it as the first method")
    if found is not None and not isinstance(found, InsidePruner):
        raise TypeError(f"inside must be an InsidePruner or the name of one, not {type(found).__name__}")
    before = pruner
    if isinstance(pruner, InsidePruner):
        if found is not None:
            raise TypeError(f"{pruner.name} prunes inside the language model, and so does {found.name}; leave out one")
        before, found = get_pruner(UNPRUNED), pruner
    if found is not None and policy.weighs:
        raise ValueError(
            f'dropped="{policy.dropped}" cannot be used while pruning inside the language model; use dropped="mean"'
        )
    return before, found


class _Shadow:
    """What stands in the place of a model's `generate`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        functools.update_wrapper(self, session._original)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | ModelOutput:
        return self._session._generate(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the model is a model of its own, which nobody prunes."""
        model = memo.get(id(self._session.model))
        return self if model is None else types.MethodType(type(model).generate, model)


_opening = threading.Lock()
_sessions: WeakKeyDictionary[nn.Module, weakref.ref[Session]] = WeakKeyDictionary()


def session_of(model: PreTrainedModel) -> Session | None:
    """Return the open session that prunes a model, None if there is none."""
    known = _sessions.get(model)
    return None if known is None else known()


def _named(function: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Any]:
    """Return positional arguments of `generate` by their names."""
    return dict(inspect.signature(function).bind_partial(*args).arguments) if args else {}


def _refuse(inputs: Mapping[str, Any], reasons: Mapping[str, str]) -> None:
    for name, reason in reasons.items():
        if inputs.get(name) is not None:
            raise ValueError(f"{name} cannot be used while pruning: {reason}")


def _filled(cache: Any) -> bool:
    return cache is not None and (not hasattr(cache, "get_seq_length") or cache.get_seq_length() > 0)


def _check_transformers() -> None:
    # Reading the version of a distribution takes a millisecond, and every session asks.
    installed = transformers.__version__
    if not Version(OLDEST_TRANSFORMERS) <= Version(installed) < Version(TOO_NEW_TRANSFORMERS):
        wanted = f"transformers>={OLDEST_TRANSFORMERS},<{TOO_NEW_TRANSFORMERS}"
        raise ImportError(f"zooprune does not work with transformers {installed}; run: pip install '{wanted}'")
