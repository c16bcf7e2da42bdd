"""Let the visual tokens of a prompt become fewer on their way through the layers of a language model.

Hooks on the model's own modules do it for the length of a session; nothing is patched, and calls that are not those of
the session pass as if no hook were there. In front of a layer the rows that stay are gathered. From there on, every
layer gets the rotary tables and the mask of these rows, and its cache holds no others. Knows decoder layers, rotary
tables, masks and caches; it asks a method which tokens stay, and knows none by name.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, StaticCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from zooprune.cache_names import CACHE, cache_of
from zooprune.compaction import Prompt
from zooprune.decoder.cuts import (
    Cut,
    Thinned,
    cut_positions,
    cut_rows,
    gathered,
    gathered_mask,
    lowered,
    with_returning,
    with_tail,
)
from zooprune.decoder.layer import Layer, Passage, View, of_one_prompt
from zooprune.profiling import stage as timed
from zooprune.pruners.inside import InsidePruner, Mixed, layer_numbers
from zooprune.reports import ImageReport, Report
from zooprune.tokens import NEWLINE

#: Layers that hold a key for every token.
_WITH_KEYS = {"full_attention", "sliding_attention"}
#: Words in the names of caches that have their size before they are filled.
_SIZED = ("static", "sliding", "hybrid")

Changed = tuple[tuple[Any, ...], dict[str, Any]]


class Thinning:
    """The hooks that let a model's visual tokens become fewer inside its language model.

    Parameters
    ----------
    model : PreTrainedModel
    method : InsidePruner

    Raises
    ------
    ValueError
        If the language model is not made of the usual attention layers, or has too few of them for the method.
    """

    def __init__(self, model: PreTrainedModel, method: InsidePruner) -> None:
        decoder: Any = model.get_decoder()
        self.layers = _usual_layers(model, decoder)
        layer_numbers(method.places(), len(self.layers))
        if method.watches() and not all(hasattr(layer, "mlp") for layer in self.layers):
            raise ValueError(
                f"{method.name} measures feed-forward modules, and the language model of {type(model).__name__} has "
                "layers without the usual one; choose another method"
            )
        self.method, self.rotary, self.config = method, decoder.rotary_emb, decoder.config
        self._handles = [
            model.register_forward_pre_hook(self._enter_model, with_kwargs=True),
            model.register_forward_hook(self._leave_model, always_call=True),
            decoder.register_forward_pre_hook(self._enter_decoder, with_kwargs=True),
            self.rotary.register_forward_hook(self._note_tables, with_kwargs=True),
        ]
        for number, layer in enumerate(self.layers):
            self._handles.append(layer.register_forward_pre_hook(self._entering(number), with_kwargs=True))
            self._handles.append(layer.register_forward_hook(self._leaving(number)))
            if method.watches():
                self._watch(number)

    def remove(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()

    def _watch(self, number: int) -> None:
        """Let the method measure a layer."""
        modules = self.layers[number].self_attn, self.layers[number].mlp

        def passed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            now = self._pass()
            # A twin of the attention, which looks at its queries and keys, has its hooks as well.
            if now is not None and now.choosing and module in modules:
                gave = output[0] if isinstance(output, tuple) else output
                now.passed(number, args[0] if args else kwargs["hidden_states"], gave)

        for module in modules:
            self._handles.append(module.register_forward_hook(passed, with_kwargs=True))

    def _pass(self) -> Pass | None:
        """Return the forward pass that this thread is in, if it is one of a pruned call."""
        run = _running.get()
        return run.now if run is not None and run.thinning is self else None

    def _enter_model(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        run = _running.get()
        if run is not None and run.thinning is self:
            run.begin(kwargs)

    def _leave_model(self, _module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        now = self._pass()
        if now is not None:
            now.run.now = None

    def _enter_decoder(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Changed | None:
        now = self._pass()
        return None if now is None else (args, now.without_deeper(kwargs))

    def _note_tables(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        now = self._pass()
        if now is not None:
            arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            now.tables.append((dict(arguments), output))

    def _entering(self, number: int) -> Callable[..., Changed | None]:
        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Changed | None:
            now = self._pass()
            if now is None:
                return None
            hidden, *rest = args or (kwargs["hidden_states"],)
            hidden, kwargs = now.enter(number, hidden, kwargs)
            return ((hidden, *rest), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

        return enter

    def _leaving(self, number: int) -> Callable[..., Any]:
        def leave(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
            now = self._pass()
            return None if now is None else now.add_deeper(number, output)

        return leave


def _usual_layers(model: PreTrainedModel, decoder: Any) -> list[Any]:
    """Return the layers of a language model, or say why its tokens cannot become fewer on the way."""
    config = model.config.get_text_config()
    layers = list(getattr(decoder, "layers", ()))
    needed = {"position_embeddings", "attention_mask", CACHE}
    usual = all(
        hasattr(layer, "self_attn") and needed <= {*inspect.signature(layer.self_attn.forward).parameters}
        for layer in layers
    )
    other = sorted(set(getattr(config, "layer_types", None) or ()) - _WITH_KEYS)
    if other or not usual or len(layers) < 2 or not hasattr(decoder, "rotary_emb"):
        has = f"{', '.join(other).replace('_', ' ')} layers" if other else "layers without the usual attention"
        raise ValueError(
            f"the language model of {type(model).__name__} has {has}, so nothing can be pruned inside it; "
            "prune before the language model"
        )
    return layers


def check_call(kwargs: Mapping[str, Any], implementation: Any, chunk: Any) -> None:
    """Raise a ValueError if a call of `generate` asks for what cannot be had while pruning inside.

    Parameters
    ----------
    kwargs : mapping
        The caller's arguments.
    implementation, chunk
        Its `cache_implementation` and `prefill_chunk_size`, wherever they come from.
    """
    sized = any(word in str(implementation or "") for word in _SIZED)
    if sized or isinstance(cache_of(kwargs), StaticCache):
        raise ValueError(
            "a cache of fixed size cannot be used while pruning inside the language model, whose layers keep different "
            "numbers of tokens; leave it out"
        )
    if chunk is not None:
        raise ValueError(
            "prefill_chunk_size cannot be used while pruning inside the language model, which looks at the whole "
            "prompt to choose; leave it out"
        )


class Crowd:
    """The visual tokens of one image, or of all images of a prompt, on their way through the layers.

    Parameters
    ----------
    report : ImageReport
    columns : Tensor of int64, (n,)
        Where they stand in the prompt that enters the language model.
    tokens : Tensor of int64, (n,)
        Which of the image's tokens they are; -1 for separators.
    """

    def __init__(self, report: ImageReport, columns: Tensor, tokens: Tensor) -> None:
        self.report, self.columns, self.tokens = report, columns, tokens
        self.positions = torch.where(tokens[:, None] < 0, NEWLINE, report.positions[tokens.clamp_min(0)])
        #: Which of them are still there, from which layer on.
        self.alive: list[tuple[int, Tensor]] = [(0, torch.arange(len(columns)))]

    def told(self, depth: int) -> ImageReport:
        """Return the report with what became of the tokens."""
        ends = [*(layer for layer, _ in self.alive[1:]), depth]
        read = [len(there) for (start, there), end in zip(self.alive, ends, strict=True) for _ in range(start, end)]
        kept = [(layer, self.tokens[there]) for layer, there in self.alive]
        survivors = tuple((layer, tokens[tokens >= 0]) for layer, tokens in kept)
        return dataclasses.replace(self.report, read=tuple(read), survivors=survivors)


class Run:
    """One call of `generate`.

    Parameters
    ----------
    thinning : Thinning
    prompt : Prompt
        As it enters the language model; on the CPU.
    crowds : sequence of Crowd
        The images of all prompts.
    anew : bool
        Whether rows that stay are numbered anew.

    Raises
    ------
    ValueError
        If the budget of an image cannot be met.
    """

    def __init__(self, thinning: Thinning, prompt: Prompt, crowds: Sequence[Crowd], *, anew: bool) -> None:
        self.thinning, self.crowds, self.anew = thinning, crowds, anew
        depth = len(thinning.layers)
        #: Of each image by layer, which stage that is and how many tokens stay.
        self.stages: list[dict[int, tuple[int, int | None]]] = []
        last = {crowd.report.row: crowd for crowd in crowds}
        for crowd in crowds:
            total = crowd.report.selection.total + crowd.report.separators[1]
            is_last = last[crowd.report.row] is crowd
            planned = thinning.method.schedule(len(crowd.columns), total, depth, last=is_last)
            self.stages.append({layer: (stage, keep) for stage, (layer, keep) in enumerate(planned)})
        self.layers = sorted({layer for stages in self.stages for layer in stages})
        self.rows, self.width = prompt.input_ids.shape
        #: The column of the prompt that each row is of, in front of the layer at hand.
        self.held = torch.arange(self.width).expand(self.rows, -1).masked_fill(prompt.attention_mask == 0, -1)
        self.cuts: list[Cut] = []
        #: In front of which layer which tokens become mixtures: the prompt, their columns, and what they become.
        self.mixed: dict[int, list[tuple[int, Tensor, Tensor]]] = {}
        #: What the method measured in a layer, by prompt: the columns of the rows, and a number for each.
        self.noted: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
        self.cache: Cache | None = None
        self.chosen = False
        self.now: Pass | None = None

    @classmethod
    def resumed(cls, thinning: Thinning, prompt: Prompt, thinned: Thinned, cache: Cache) -> Run:
        """Return a call that goes on from a cache."""
        run = cls(thinning, prompt, (), anew=False)
        run.cuts, run.width, run.cache, run.chosen = list(thinned.cuts), thinned.width, cache, True
        return run

    @property
    def thinned(self) -> Thinned:
        """What became of the prompts."""
        return Thinned(self.width, tuple(self.cuts))

    def told(self, report: Report) -> Report:
        """Return the report of the call with what became of its images."""
        images = tuple(crowd.told(len(self.thinning.layers)) for crowd in self.crowds)
        return dataclasses.replace(report, images=images)

    def begin(self, kwargs: Mapping[str, Any]) -> None:
        """Find out what a forward pass of the model is: one of this call, or one that somebody else runs meanwhile."""
        self.now = None
        ids, mask, cache = kwargs.get("input_ids"), kwargs.get("attention_mask"), cache_of(kwargs)
        if not isinstance(ids, Tensor) or len(ids) % self.rows:
            return
        if mask is None:
            # So `generate` says that nothing is padding.
            past = 0 if cache is None else cache.get_seq_length()
            mask = torch.ones(len(ids), past + ids.shape[1], dtype=torch.bool, device=ids.device)
        choosing = not self.chosen
        if choosing:
            self.cache, self.chosen = cache, True
        whole = choosing or cache is None
        if cache is self.cache and (not whole or ids.shape[1] >= self.width):
            self.now = Pass(self, choosing, whole, mask.bool(), len(ids) // self.rows)


@dataclass
class Pass:
    """One forward pass of the model.

    Parameters
    ----------
    run : Run
    choosing : bool
        Whether it is the first, in which is chosen what stays.
    whole : bool
        Whether the prompt is read in it, from its beginning.
    mask : Tensor of bool, (R, L)
        Where there is no padding in the prompts and what follows them.
    copies : int
        How often each prompt is there.
    """

    run: Run
    choosing: bool
    whole: bool
    mask: Tensor
    copies: int
    #: What the rotary module was given, and what it made of that.
    tables: list[tuple[dict[str, Any], Any]] = field(default_factory=list)
    #: What the layer before the next stage reads.
    _before: tuple[Tensor, Any, Any] | None = None
    #: The whole prompts as the first layer reads them.
    _entered: Tensor | None = None
    #: What the attention of the layer at hand read and gave.
    _attention: tuple[Tensor, Tensor] | None = None
    #: Rows that deeper layers of the vision tower add, and where.
    _deeper: tuple[Tensor, Sequence[Tensor]] | None = None
    _made: dict[Any, Any] = field(default_factory=dict)

    def enter(self, number: int, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Return what a layer is to read, and with what."""
        run, mask = self.run, kwargs.get("attention_mask")
        if number == 0 and self.whole:
            self._entered = hidden
        if self.choosing and number in run.layers:
            with torch.no_grad(), timed("choose inside", hidden.device):
                self._choose(number, hidden, kwargs["position_embeddings"], mask)
            self._before = None
        cut = self._cut(number, hidden.device)
        if cut is not None:
            if cut.layer == number and self.whole:
                before = self._cut(number - 1, hidden.device)
                width = run.width if before is None else before.columns.shape[1]
                places = with_tail(cut.source, width, hidden.shape[1])
                hidden = gathered(hidden, places)
                if cut.back:
                    assert self._entered is not None
                    hidden = with_returning(hidden, places, self._entered.to(hidden.device))
                self._mix(number, hidden)
            kwargs = kwargs | self._fitting(cut, number, hidden, kwargs)
        if self.choosing and number + 1 in run.layers:
            self._before = hidden, kwargs["position_embeddings"], mask
        return hidden, kwargs

    def _mix(self, number: int, hidden: Tensor) -> None:
        """Write mixtures over the tokens that become them."""
        for row, columns, rows in self.run.mixed.get(number, ()):
            held = next(cut for cut in self.run.cuts if cut.layer == number).columns[row].contiguous()
            places = torch.searchsorted(held, columns).to(hidden.device)
            hidden[row * self.copies : (row + 1) * self.copies, places] = rows.to(hidden.device, hidden.dtype)

    def passed(self, number: int, read: Tensor, gave: Tensor) -> None:
        """Let the method measure a layer, of which first the attention and then the feed-forward module has run."""
        if self._attention is None:
            self._attention = read, gave
            return
        (attended, made), self._attention = self._attention, None
        if not self.run.layers or not self.run.layers[0] - 1 <= number < self.run.layers[-1]:
            return
        for row in {crowd.report.row for crowd in self.run.crowds}:
            there = (self.run.held[row] >= 0).nonzero()[:, 0]
            parts = [part[row * self.copies][there.to(part.device)] for part in (attended, made, read, gave)]
            with torch.no_grad(), timed("choose inside", read.device):
                measured = self.run.thinning.method.measure(Passage(*parts[:2]), Passage(*parts[2:]))
            self.run.noted.setdefault(number, {})[row] = self.run.held[row][there], measured

    def _cut(self, number: int, device: torch.device) -> Cut | None:
        """Return the last cut up to a layer, for all copies of the prompts."""
        last = next(
            (place for place in reversed(range(len(self.run.cuts))) if self.run.cuts[place].layer <= number), None
        )
        if last is None:
            return None
        return self._once(("cut", last, device), lambda: self.run.cuts[last].repeated(self.copies).on(device))

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _fitting(self, cut: Cut, number: int, hidden: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a layer that fit the rows that stay."""
        mask, tables = kwargs.get("attention_mask"), kwargs["position_embeddings"]
        sliding = self._slides(number)
        changed = {
            "position_embeddings": self._tables(cut, tables),
            # Of one kind, layers between two cuts share a mask.
            "attention_mask": self._once(
                ("mask", cut.layer, sliding, hidden.device), lambda: self._mask(cut, number, hidden, mask, sliding)
            ),
        }
        if self.whole and kwargs.get("position_ids") is not None:
            # They only order rows; gaps in them would pass for the seams of packed prompts.
            present = self._present(cut)
            changed["position_ids"] = (present.long().cumsum(1) - 1).clamp_min(0)
        return changed

    def _present(self, cut: Cut) -> Tensor:
        """Return where there is no padding in the rows that stay and what follows them."""
        return torch.cat([cut.present, self.mask[:, self.run.width :].to(cut.present.device)], dim=1)

    def _slides(self, number: int) -> bool:
        config = self.run.thinning.config
        kinds = getattr(config, "layer_types", None)
        if kinds is not None:
            return bool(kinds[number] == "sliding_attention")
        return getattr(config, "sliding_window", None) is not None

    def _mask(self, cut: Cut, number: int, hidden: Tensor, given: Any, sliding: bool) -> Any:
        if self.whole and isinstance(given, Tensor) and given.ndim == 4:
            return gathered_mask(given, with_tail(cut.columns, self.run.width, given.shape[-1]).to(given.device))
        # Where there is none or it is in a kernel's own form, transformers makes it anew, to fit this layer's cache.
        make: Callable[..., Any] = create_sliding_window_causal_mask if sliding else create_causal_mask
        return make(
            config=self.run.thinning.config,
            inputs_embeds=hidden,
            attention_mask=self._present(cut),
            layer_idx=number,
            **{CACHE: self.run.cache},
        )

    def _tables(self, cut: Cut | None, tables: Any) -> Any:
        """Return the rotary tables of the rows that stay, made by the model's own module."""
        if cut is None or not (self.whole or cut.anew):
            return tables
        place, (arguments, _) = self._given(tables)

        def make() -> Any:
            positions = self._positions(arguments)
            new = cut_positions(positions, cut.on(positions.device), self.run.width, self.whole)
            return self.run.thinning.rotary.forward(**arguments | {"position_ids": new})

        return self._once(("tables", cut.layer, place), make)

    def _given(self, tables: Any) -> tuple[int, tuple[dict[str, Any], Any]]:
        """Return the call of the rotary module that made some tables."""
        return next((place, call) for place, call in enumerate(self.tables) if call[1][0] is tables[0])

    def _positions(self, arguments: Mapping[str, Any]) -> Tensor:
        """Return the positions that tables were made from, those of every row, (..., R, L)."""
        positions: Tensor = arguments["position_ids"]
        return positions.expand(*positions.shape[:-2], self.copies * self.run.rows, -1)

    def _choose(self, number: int, hidden: Tensor, tables: Any, mask: Any) -> None:
        """Ask the method which tokens stay, and note what goes."""
        run = self.run
        held = torch.zeros(run.rows, run.width + 1, dtype=torch.bool)
        # Padding has a column of its own here.
        held.scatter_(1, run.held.masked_fill(run.held < 0, run.width), True)
        before, stays = held[:, :-1], held[:, :-1].clone()
        here = hidden, self._tables(self._cut(number - 1, hidden.device), tables), mask
        views: dict[int, tuple[View, View]] = {}
        shown = [(crowd.report.row, crowd.columns[crowd.alive[-1][1]]) for crowd in run.crowds]
        for crowd, stages in zip(run.crowds, run.stages, strict=True):
            row, alive = crowd.report.row, crowd.alive[-1][1]
            stage, keep = stages.get(number, (0, len(alive)))
            if keep == len(alive) or not len(alive):
                continue
            if keep is not None and keep > len(alive):
                # They come back, which they do all together.
                chosen = torch.arange(len(crowd.columns))
            elif keep == 0:
                chosen = alive[:0]
            else:
                there = (run.held[row] >= 0).nonzero()[:, 0]
                if row not in views:
                    views[row] = self._view(number, here, row, there), self._view_before(number, here, row, there)
                columns = run.held[row][there]
                images = [places for owner, places in shown if owner == row]
                layer = self._layer(number, min(stages), stage, views[row], columns, images, crowd)
                chosen = self._chosen(layer, keep, crowd)
            stays[row, crowd.columns[alive]] = False
            stays[row, crowd.columns[chosen]] = True
            crowd.alive.append((number, chosen))
        if torch.equal(stays, before):
            return
        cut = cut_rows(number, run.held, stays, run.anew)
        if run.anew:
            _, (arguments, _) = self._given(tables)
            positions = self._positions(arguments)[..., :: self.copies, :].cpu()
            cut = dataclasses.replace(cut, shift=lowered(positions, cut, run.width))
        run.cuts.append(cut)
        run.held = cut.columns

    def _view_before(self, number: int, here: tuple[Tensor, Any, Any], row: int, there: Tensor) -> View:
        """Return what the layer before has read of a prompt; none is before the first."""
        if number == 0:
            return self._view(number, here, row, there)
        assert self._before is not None
        return self._view(number - 1, self._before, row, there)

    def _view(self, number: int, read: tuple[Tensor, Any, Any], row: int, there: Tensor) -> View:
        hidden, tables, mask = read
        first = row * self.copies
        visible = None
        if isinstance(mask, Tensor) and mask.ndim == 4:
            # Masks are those of the whole prompt.
            seen, columns = mask[first % len(mask), 0], self.run.held[row][there].to(mask.device)

            def visible(queries: Tensor) -> Tensor:
                lines = seen[columns[queries.to(mask.device)][:, None], columns].to(queries.device)
                return lines if lines.dtype == torch.bool else lines == 0

        there = there.to(hidden.device)
        tables = of_one_prompt(tables, first, there)
        return View(self.run.thinning.layers[number], hidden[first][there], tables, visible)

    def _layer(
        self,
        number: int,
        first: int,
        stage: int,
        views: tuple[View, View],
        columns: Tensor,
        images: Sequence[Tensor],
        crowd: Crowd,
    ) -> Layer:
        """Return what the method sees of one image.

        Parameters
        ----------
        number, first : int
            Of the layer, and of that in front of which the stages of the image begin.
        stage : int
        views : pair of View
            Of the layer at hand and of the one before.
        columns : Tensor of int64, (L,)
            Those of the prompt that are there.
        images : sequence of Tensor of int64
            Those of them that each image of the prompt has.
        crowd : Crowd
        """
        here, before = views
        device = here.hidden.device
        row, alive = crowd.report.row, crowd.alive[-1][1]
        shown = torch.cat([other.columns for other in self.run.crowds if other.report.row == row])
        text = (~torch.isin(columns, shown)).nonzero()[:, 0]
        question = text[columns[text] > shown.max()]
        if not len(question):
            question = torch.tensor([len(columns) - 1])
        noted = []
        for at, measured in self.run.noted.items():
            held, numbers = measured[row]
            if first - 1 <= at < number:
                noted.append(numbers[torch.searchsorted(held, crowd.columns[alive]).to(numbers.device)].to(device))
        assert self._entered is not None
        entered = self._entered[row * self.copies]
        return Layer(
            number=number,
            depth=len(self.run.thinning.layers),
            stage=stage,
            here=here,
            before=before,
            visual=torch.searchsorted(columns, crowd.columns[alive]).to(device),
            text=text.to(device),
            question=question.to(device),
            positions=crowd.positions[alive].to(device),
            index=alive.to(device),
            images=tuple(torch.searchsorted(columns, places).to(device) for places in images),
            patches=entered[crowd.columns.to(entered.device)].to(device),
            words=entered[columns[question].to(entered.device)].to(device),
            noted=torch.stack(noted) if noted else here.hidden.new_zeros(0, len(alive), dtype=torch.float32),
        )

    def _chosen(self, layer: Layer, keep: int | None, crowd: Crowd) -> Tensor:
        """Return which tokens of an image stay, and note which of them become mixtures."""
        method, alive = self.run.thinning.method, crowd.alive[-1][1]
        found = method.choose_at(method.score_at(layer), layer, keep)
        index = found.index if isinstance(found, Mixed) else found
        chosen = index.sort().values.cpu()
        if keep is not None and len(chosen) != keep:
            raise ValueError(
                f"{method} kept {len(chosen)} tokens at layer {layer.number} when asked for {keep}; "
                "choose_at() must return as many indices as it is asked for"
            )
        if isinstance(found, Mixed) and len(found.anchors):
            columns = crowd.columns[alive[found.anchors.cpu()]]
            self.run.mixed.setdefault(layer.number, []).append((crowd.report.row, columns, found.rows))
        return alive[chosen]

    def without_deeper(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Take out the rows that deeper layers of the tower add, which are added to those that stay."""
        deeper, where = kwargs.get("deepstack_visual_embeds"), kwargs.get("visual_pos_masks")
        cuts = [*self.run.layers, *(cut.layer for cut in self.run.cuts)]
        if deeper is None or where is None or len(deeper) <= min(cuts, default=len(deeper)):
            return kwargs
        self._deeper = where, deeper
        return kwargs | {"deepstack_visual_embeds": None, "visual_pos_masks": None}

    def add_deeper(self, number: int, hidden: Any) -> Any:
        """Return what a layer gave with the rows added that deeper layers of the tower have for it."""
        if self._deeper is None or number >= len(self._deeper[1]):
            return hidden
        where, deeper = self._deeper[0].to(hidden.device), self._deeper[1][number].to(hidden.device, hidden.dtype)
        # Which of these rows stands in a column.
        order = (where.flatten().long().cumsum(0) - 1).view(where.shape)
        cut = self._cut(number, hidden.device)
        if cut is not None:
            places = with_tail(cut.columns, self.run.width, where.shape[1])
            order = order.gather(1, places.clamp_min(0))
            where = where.gather(1, places.clamp_min(0)) & (places >= 0)
        hidden = hidden.clone()
        hidden[where] = hidden[where] + deeper[order[where]]
        return hidden


_running: ContextVar[Run | None] = ContextVar("zooprune_thinning", default=None)


@contextmanager
def running(run: Run | None) -> Iterator[None]:
    """Let visual tokens become fewer in the forward passes of a block."""
    token = _running.set(run)
    try:
        yield
    finally:
        _running.reset(token)
