"""One model that several visitors use in turn: what methods keep of their pictures, and what it answers."""

from __future__ import annotations

import gc
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from PIL import Image

from zooprune.app.pictures import Picture
from zooprune.app.settings import Settings
from zooprune.asking import Answer, answer_and_cost, warm_up
from zooprune.costs import kv_cache_bytes, prefill_flops
from zooprune.encoding import Entries, encode, remembering_encodings
from zooprune.evaluation.gallery import choose
from zooprune.families import find_family
from zooprune.loading import load_model, load_skeleton, model_version
from zooprune.plan import Plan
from zooprune.prefill import prefill
from zooprune.prompting import build_inputs, seen_images
from zooprune.pruners import UNPRUNED
from zooprune.reports import ImageReport
from zooprune.sensitivity.weight_cache import hold, release
from zooprune.signals import TowerSignal, tower_signals

#: For so many questions the encoded pictures are remembered.
REMEMBERED = 8
#: Pictures are shown no larger than this, and kept in memory no larger either.
_SHOWN = (1008, 1008)


@dataclass(frozen=True)
class Loaded:
    """A model that is loaded.

    Parameters
    ----------
    name, version : str
        See `zooprune.loading.model_version`.
    model, processor
    methods : tuple of str
        Those that it can host, in alphabetical order.
    """

    name: str
    version: str
    model: Any
    processor: Any
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """What the language model has to read, known without running it.

    Parameters
    ----------
    visual_tokens, prompt_tokens : int
    prefill_flops, kv_cache_bytes : int
        Of the whole prompt; see `zooprune.costs`.
    """

    visual_tokens: int
    prompt_tokens: int
    prefill_flops: int
    kv_cache_bytes: int


@dataclass(frozen=True)
class Choice:
    """What one method keeps.

    Parameters
    ----------
    plan : Plan
        All that says how to prune.
    images : tuple of ImageReport
        Which tokens stay, and where they lie.
    cost : Cost
    seconds : float
        How long choosing took.
    """

    plan: Plan
    images: tuple[ImageReport, ...]
    cost: Cost
    seconds: float


@dataclass(frozen=True)
class Look:
    """What methods keep of the pictures of a question.

    Parameters
    ----------
    settings : Settings
    pictures : tuple of Picture
    seen : tuple of PIL.Image.Image
        The pictures as the model sees them, scaled down where they are large.
    sizes : tuple of tuple of int
        Width and height of the pictures.
    full : Cost
        With all tokens.
    choices : tuple of Choice
        One per method.
    """

    settings: Settings
    pictures: tuple[Picture, ...]
    seen: tuple[Image.Image, ...]
    sizes: tuple[tuple[int, int], ...]
    full: Cost
    choices: tuple[Choice, ...]

    def key(self, plan: Plan | None) -> str:
        """Return what tells this question under this plan, or with all tokens, from all others."""
        told = self.settings.model, self.settings.question, [picture.sha256 for picture in self.pictures], plan
        return hashlib.sha256(repr(told).encode()).hexdigest()

    @property
    def most(self) -> int:
        """The most visual tokens that a single picture has."""
        return max(image.selection.total for image in self.choices[0].images)


@dataclass(frozen=True)
class _View:
    """A prompt, ready for a model, and what was encoded of it with which signals."""

    loaded: Loaded
    inputs: Any
    seen: tuple[Image.Image, ...]
    sizes: tuple[tuple[int, int], ...]
    encodings: Entries = field(default_factory=dict)
    encoded_with: set[tuple[TowerSignal, ...]] = field(default_factory=set)


class Workbench:
    """A model that is used by one request at a time.

    What is worked out for a question is remembered by the content of its pictures and its words, so that visitors share
    it only if they bring the same ones.

    Parameters
    ----------
    name : str
        The model to begin with: "bundled", a folder or a hub id.
    dtype, device : str
        As in `zooprune.loading.load_model`.
    max_new_tokens : int
        Length of an answer at most.

    Raises
    ------
    ValueError
        If the model cannot be loaded.
    """

    def __init__(self, name: str, *, dtype: str = "auto", device: str = "auto", max_new_tokens: int = 64) -> None:
        self._dtype, self._device, self.max_new_tokens = dtype, device, max_new_tokens
        # Held while the model works; the other one only while the notes are looked at.
        self._in_use, self._noting = threading.Lock(), threading.Lock()
        self._views: OrderedDict[tuple[int, str, str], _View] = OrderedDict()
        self._loaded: Loaded | None = None
        self.load(name)

    def load(self, name: str) -> Loaded:
        """Return a model, which takes the place of the one that was loaded if it is another.

        Raises
        ------
        ValueError
            If it cannot be loaded. If it is no supported model at all, the old one stays.
        """
        name = name.strip()
        loaded = self._loaded
        if loaded is not None and loaded.name == name:
            return loaded
        with self._in_use:
            if self._loaded is None or self._loaded.name != name:
                find_family(load_skeleton(name))
                self._put_away()
                model, processor = load_model(name, dtype=self._dtype, device=self._device)
                # What is worked out about the projector stays for as long as the model does.
                hold(model)
                hosted, _ = choose(model, None, 64, 0)
                methods = tuple(sorted(pruner.name for pruner in hosted if pruner.name != UNPRUNED))
                self._loaded = Loaded(name, model_version(name), model, processor, methods)
            return self._loaded

    def _put_away(self) -> None:
        """Give back the memory of the loaded model, so that there is room for another."""
        if self._loaded is not None:
            release(self._loaded.model)
        self._loaded = None
        with self._noting:
            self._views.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def look(self, settings: Settings, pictures: Sequence[Picture]) -> Look:
        """Choose tokens, without the language model.

        The first look at a question encodes its pictures. Further looks wait for nobody and take milliseconds.

        Raises
        ------
        ValueError
            If a picture cannot be read, or the model cannot host a method or refuses the prompt.
        """
        loaded = self.load(settings.model)
        view = self._view(loaded, settings.question, pictures)
        choices, full = [], None
        for plan in self.plans(settings):
            pruner = plan.pruner()
            with torch.no_grad(), remembering_encodings(encodings=view.encodings):
                self._encode(view, tower_signals(pruner.reads()))
                report = prefill(loaded.model, find_family(loaded.model), pruner, plan.policy, view.inputs).report
            full = _cost(loaded, report.total, report.prompt_length)
            seconds = sum(report.seconds.get(stage, 0.0) for stage in ("score", "select", "assign"))
            choices.append(Choice(plan, report.images, _cost(loaded, report.kept, report.pruned_length), seconds))
        assert full is not None
        return Look(settings, tuple(pictures), view.seen, view.sizes, full, tuple(choices))

    def answer(self, settings: Settings, pictures: Sequence[Picture], plan: Plan | None) -> Answer:
        """Answer a question under a plan from `plans`, or with all tokens.

        Nothing that is remembered is used, so that every stage is timed.

        Raises
        ------
        ValueError
            As `look`.
        """
        loaded = self.load(settings.model)
        inputs = self._view(loaded, settings.question, pictures).inputs
        if plan is None:
            plan = Plan(settings.model, UNPRUNED, 1.0)
        ask = loaded.model, loaded.processor, inputs, plan.pruner(), plan.policy
        with self._in_use:
            warm_up(*ask)
            return answer_and_cost(*ask, max_new_tokens=self.max_new_tokens)

    def plans(self, settings: Settings) -> tuple[Plan, ...]:
        """Return how the methods of the settings prune, with all options.

        Raises
        ------
        ValueError
            If the model cannot host a method.
        """
        loaded, plans = self.load(settings.model), []
        for method in settings.methods:
            hosted, _ = choose(loaded.model, [method], settings.keep, 0)
            options = asdict(hosted[-1])
            plans.append(Plan(settings.model, method, options.pop("keep"), options, settings.policy))
        return tuple(plans)

    def facts(self, settings: Settings) -> dict[str, str]:
        """Return what has to be known of the model to repeat a result."""
        loaded = self.load(settings.model)
        model = loaded.model
        return {
            "name": loaded.name,
            "version": loaded.version,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
        }

    def _encode(self, view: _View, signals: tuple[TowerSignal, ...]) -> None:
        """Encode the pictures unless that was done with these signals; to be called inside `remembering_encodings`."""
        if signals not in view.encoded_with:
            model = view.loaded.model
            family = find_family(model)
            with self._in_use:
                for modality in family.present(view.inputs):
                    encode(family, model, modality, view.inputs, signals)
            view.encoded_with.add(signals)

    def _view(self, loaded: Loaded, question: str, pictures: Sequence[Picture]) -> _View:
        if not pictures:
            raise ValueError("there is no picture; upload one or choose an example")
        content = hashlib.sha256("".join(picture.sha256 for picture in pictures).encode()).hexdigest()
        key = id(loaded), content, question
        view = self._noted(key)
        if view is None:
            with self._in_use:
                view = self._noted(key) or self._prepared(loaded, question, pictures)
            with self._noting:
                self._views[key] = view
                while len(self._views) > REMEMBERED:
                    self._views.popitem(last=False)
        return view

    def _noted(self, key: tuple[int, str, str]) -> _View | None:
        with self._noting:
            if key in self._views:
                self._views.move_to_end(key)
            return self._views.get(key)

    def _prepared(self, loaded: Loaded, question: str, pictures: Sequence[Picture]) -> _View:
        images = [picture.image() for picture in pictures]
        inputs = build_inputs(loaded.processor, [images], [question]).to(loaded.model.device, loaded.model.dtype)
        sizes = tuple(image.size for image in images)
        seen = seen_images(loaded.processor, inputs, images)
        for image in seen:
            image.thumbnail(_SHOWN, Image.Resampling.LANCZOS)
        return _View(loaded, inputs, tuple(seen), sizes)


def _cost(loaded: Loaded, visual_tokens: int, prompt_tokens: int) -> Cost:
    config = loaded.model.config.get_text_config()
    return Cost(
        visual_tokens,
        prompt_tokens,
        prefill_flops(config, prompt_tokens),
        kv_cache_bytes(config, prompt_tokens, loaded.model.dtype),
    )
