"""See what passes through a model during one forward pass, without changing what comes out.

This is the only place outside the session that touches a model. It knows modules; no family, no signal, no method.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


@dataclass
class Seen:
    """What passed through one module, call by call, detached.

    Parameters
    ----------
    inputs, outputs : list of Tensor
        First positional argument and output of a module.
    queries, keys : list of Tensor, (B, heads, N, d_head)
        What an attention module gave to its attention function, rotary positions applied.
    masks : list of Tensor or None
        Added to, or allowing, the products of queries and keys.
    scalings : list of float
        What the products of queries and keys are multiplied with.
    calls : list of (arguments, named arguments)
        Of a method.
    """

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    masks: list[Tensor | None] = field(default_factory=list)
    scalings: list[float] = field(default_factory=list)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    @property
    def read(self) -> Tensor:
        """All rows that the module read, (rows, d_in)."""
        return torch.cat([rows.flatten(0, -2) for rows in self.inputs])

    @property
    def gave(self) -> Tensor:
        """All rows that the module gave, (rows, d_out)."""
        return torch.cat([rows.flatten(0, -2) for rows in self.outputs])


Change = Callable[[Tensor], Tensor]


@contextmanager
def reading(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    *,
    attentions: Mapping[str, nn.Module] | None = None,
    methods: Mapping[str, tuple[Any, str]] | None = None,
    change: Mapping[str, Change] | None = None,
) -> Iterator[dict[str, Seen]]:
    """Record what passes through parts of a model while the block runs.

    Only calls of this thread are recorded; those of other threads pass as if nothing were there. Blocks on the same
    model wait for each other. All is undone at the end, also after an error.

    Parameters
    ----------
    model : torch.nn.Module
    modules : mapping of str to Module
        Whose inputs and outputs to record.
    attentions : mapping of str to Module, optional
        Attention modules whose queries and keys to record. They go on with the attention function that is set for them.
    methods : mapping of str to (object, name), optional
        Methods whose arguments to record.
    change : mapping of str to callable, optional
        Applied to the output of modules of the same name.

    Yields
    ------
    dict of str to Seen
    """
    seen: dict[str, Seen] = {name: Seen() for name in (*modules, *(attentions or ()), *(methods or ()))}
    thread = threading.get_ident()
    with _lock_of(model), ExitStack() as undo:
        for name, module in modules.items():
            hook = _hook(seen[name], thread, (change or {}).get(name))
            undo.callback(module.register_forward_hook(hook).remove)
        for name, module in (attentions or {}).items():
            undo.enter_context(_probed(module, seen[name]))
        for name, (owner, method) in (methods or {}).items():
            undo.enter_context(_noted(owner, method, seen[name], thread))
        yield seen


def run(model: nn.Module, call: Callable[[], Any], seen: Mapping[str, Seen]) -> Any:
    """Call what is to be recorded, uncompiled where it was compiled: compiled code does not show its modules.

    Parameters
    ----------
    model : torch.nn.Module
    call : callable
        Runs the forward pass.
    seen : mapping of str to Seen
        What `reading` yielded.

    Raises
    ------
    ValueError
        If something is not reached.
    """
    with _uncompiled():
        output = call()
    missing = [name for name, record in seen.items() if not any(vars(record).values())]
    if missing:
        raise ValueError(
            f"the forward pass of {type(model).__name__} does not reach its {missing[0]}; "
            "prune the model before it is wrapped or changed"
        )
    return output


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Let compiled code run as it was before, in all threads, for as long as any thread is in such a block."""
    global _inside
    if "torch._dynamo" not in sys.modules:
        # Nothing is compiled, and the compiler takes a second to import.
        yield
        return
    with _making:
        _inside += 1
        if _inside == 1:
            _stance.enter_context(torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _making:
            _inside -= 1
            if _inside == 0:
                _stance.close()


def _hook(record: Seen, thread: int, change: Change | None) -> Callable[..., Tensor | None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
        if threading.get_ident() != thread:
            return None
        record.inputs.append(args[0].detach())
        record.outputs.append(output.detach())
        return None if change is None else change(output)

    return hook


@contextmanager
def _probed(module: nn.Module, record: Seen) -> Iterator[None]:
    """Let one attention module, and no other, look up a function that notes queries and keys and does as before."""
    config: Any = module.config
    probed = copy.copy(config)
    probed._attn_implementation_internal = _probe_of(config._attn_implementation)
    noted = _probing.noted = {**getattr(_probing, "noted", {}), id(module): record}
    try:
        module.config = probed
        yield
    finally:
        module.config = config
        _probing.noted = {key: value for key, value in noted.items() if key != id(module)}


def _probe_of(implementation: str) -> str:
    """Return the name of the noting form of an attention function, which stays registered from its first use on.

    Were it taken away again, another thread might just have read its name.
    """
    # The name holds the old one, from which models tell whether masks and sequences come in the form of a flash kernel.
    name = f"{implementation}|zooprune"
    if name in ALL_ATTENTION_FUNCTIONS:
        return name

    def probe(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Any:
        record: Seen | None = getattr(_probing, "noted", {}).get(id(module))
        if record is not None:
            # A flash kernel takes all images or windows in one row and is told where each ends.
            ends = kwargs.get("cu_seq_lens_k")
            lengths = [key.shape[2]] if ends is None else ends.diff().tolist()
            record.queries += query.detach().split(lengths, dim=2)
            record.keys += key.detach().split(lengths, dim=2)
            record.masks += [attention_mask] * len(lengths)
            record.scalings += [float(kwargs.get("scaling") or query.shape[-1] ** -0.5)] * len(lengths)
        # The default, for "eager", is in the module's own file.
        default: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, default)
        return function(module, query, key, value, attention_mask, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register(name, probe)
    return name


@contextmanager
def _noted(owner: Any, method: str, record: Seen, thread: int) -> Iterator[None]:
    """Note the arguments of a method of one object."""
    original = getattr(owner, method)
    shadowed = vars(owner).get(method)

    def noting(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            record.calls.append((args, kwargs))
        return original(*args, **kwargs)

    vars(owner)[method] = noting
    try:
        yield
    finally:
        if shadowed is None:
            del vars(owner)[method]
        else:
            vars(owner)[method] = shadowed


# Locks cannot be copied or saved, so they are kept beside the models and not on them.
_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_making = threading.Lock()
#: What this thread notes of attention modules, by their ids.
_probing = threading.local()
#: How many threads run uncompiled, and what undoes it after the last.
_inside = 0
_stance = ExitStack()


def _lock_of(model: nn.Module) -> Any:
    with _making:
        return _locks.setdefault(model, threading.RLock())


_tails: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def lasting(projector: nn.Module, tail: nn.Module) -> nn.Module:
    """Return a tail of a projector: the same object for as long as it is made of the same layers.

    What is worked out about a tail, such as the closed form of its sensitivity, is kept with it. A layer that was
    replaced, by training, LoRA or quantisation, makes another tail.
    """
    known = _tails.get(projector)
    if known is None or _parts(known) != _parts(tail):
        _tails[projector] = known = tail
    return known


def _parts(tail: nn.Module) -> list[int]:
    layers = [id(module) for module in tail.modules() if next(module.children(), None) is None]
    return layers + [id(value) for value in (*tail.parameters(), *tail.buffers())]
