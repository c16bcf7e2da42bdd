"""What a server is asked to prune, and what a request may ask of it. Knows nothing of vLLM."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zooprune.policy import Dropped, Newlines, Policy, Scope
from zooprune.pruners import UNPRUNED, Pruner, get_pruner, pruner_class
from zooprune.tokens import Budget

#: The name under which vLLM's additional configuration and the requests' processor arguments hold our own.
KEY = "zooprune"
#: Holds the same JSON where `--additional-config` cannot be given.
VARIABLE = "ZOOPRUNE_VLLM"
#: The signal that a request has to bring along, since vLLM's encoder never sees the prompt.
QUESTION = "question"
_EXAMPLE = '{"method": "zoo", "keep": 64}'
#: A label is part of an address.
_LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RefusedError(RuntimeError):
    """Something cannot be done as asked; the server does not start.

    It is no ValueError, which vLLM would wrap in a report of its own.
    """


@dataclass(frozen=True)
class Pruning:
    """How a server prunes.

    Parameters
    ----------
    method : str
    keep : int or float
        Tokens per image, or a share of them; requests may ask for fewer.
    options : dict
        Further fields of the method.
    scope : {"image", "tile"}
    newlines : {"drop", "keep", "rows"}
    dropped : {"discard", "mean"}
        As in `zooprune.policy.Policy`.

    Raises
    ------
    RefusedError
        If a value is not valid, or an engine cannot do what it asks for.
    """

    method: str
    keep: int | float
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    scope: Scope = "image"
    newlines: Newlines = "drop"
    dropped: Dropped = "discard"

    def __post_init__(self) -> None:
        try:
            pruner = self.pruner(self.keep)
            policy = self.policy
        except (TypeError, ValueError) as error:
            raise RefusedError(f"zooprune: {error}") from None
        reason = _reason_against(pruner, policy)
        if reason is not None:
            raise RefusedError(f"zooprune: {reason}")

    @classmethod
    def read(cls, given: Any) -> Pruning:
        """Read a configuration, given as a mapping or as JSON.

        Raises
        ------
        RefusedError
            If it is none.
        """
        if isinstance(given, str):
            try:
                given = json.loads(given)
            except ValueError:
                raise RefusedError(f"zooprune: the configuration is not JSON; give {_EXAMPLE}") from None
        if not isinstance(given, Mapping):
            raise RefusedError(f"zooprune: the configuration is no JSON object; give {_EXAMPLE}")
        known = [each.name for each in dataclasses.fields(cls)]
        unknown = sorted(set(given) - set(known))
        missing = [name for name in ("method", "keep") if name not in given]
        if unknown or missing:
            wrong = f"does not know {', '.join(unknown)}" if unknown else f"lacks {', '.join(missing)}"
            raise RefusedError(f"zooprune: the configuration {wrong}; it has {', '.join(known)}")
        if not isinstance(given["method"], str) or not isinstance(given.get("options", {}), Mapping):
            raise RefusedError(f"zooprune: method must be a name and options an object; give {_EXAMPLE}")
        return cls(**given)

    @property
    def policy(self) -> Policy:
        """Everything but the choice itself."""
        return Policy(scope=self.scope, newlines=self.newlines, dropped=self.dropped)

    def pruner(self, keep: int | float) -> Pruner:
        """Return the configured method with another budget."""
        return get_pruner(self.method, keep=keep, **self.options)

    def as_json(self) -> dict[str, Any]:
        """Return its fields, for `read`."""
        return dataclasses.asdict(self)

    @property
    def key(self) -> str:
        """What tells the results of one configuration from those of another."""
        return json.dumps(self.as_json(), sort_keys=True)

    def __str__(self) -> str:
        kept = f"{self.keep:.1%} of the" if isinstance(self.keep, float) else str(self.keep)
        further = [f"{name}={value}" for name, value in self.options.items()]
        further += [f"{name}={value}" for name, value in self.policy.unusual.items()]
        return ", ".join([f"method {self.method}", f"{kept} tokens per image", *further])

    @property
    def reads_question(self) -> bool:
        """Whether every request with images has to bring its question."""
        return QUESTION in self.pruner(self.keep).reads()

    def check(self, asked: Asked) -> None:
        """Raise a ValueError if a request brings no question where one is read, or one where none is."""
        if self.reads_question and asked.question is None:
            raise ValueError(
                f"method {self.method} reads the question; give it as mm_processor_kwargs "
                '{"zooprune": {"question": ...}}, too'
            )
        if asked.question is not None and not self.reads_question:
            raise ValueError(f"method {self.method} reads no question; leave it out of mm_processor_kwargs")

    def rows(self, total: int, asked: int | float | None = None) -> int:
        """Return how many rows stay of an image.

        Parameters
        ----------
        total : int
            Rows of the whole image, separators included.
        asked : int or float, optional
            The budget of one request.

        Raises
        ------
        ValueError
            If the request asks for more than the server gives.
        """
        allowed = Budget(self.keep).count(total)
        if asked is None:
            return allowed
        wanted = Budget(asked).count(total)
        if wanted > allowed:
            raise ValueError(f"keep={asked} is {wanted} tokens of this image, but this server keeps at most {allowed}")
        return wanted


@dataclass(frozen=True)
class Asked:
    """What a request asks for.

    Parameters
    ----------
    keep : int or float, optional
        A smaller budget than the server's.
    question : str, optional
        What methods that look at the question are to read.
    label : str, optional
        Under which to remember what is kept of its images.
    """

    keep: int | float | None = None
    question: str | None = None
    label: str | None = None


def split_request(arguments: Mapping[str, Any]) -> tuple[Asked, dict[str, Any]]:
    """Return what a request asks of us, and the processor arguments that are not ours.

    Parameters
    ----------
    arguments : mapping
        The request's `mm_processor_kwargs`.

    Raises
    ------
    ValueError
        If what is ours is not valid.
    """
    rest = dict(arguments)
    given = rest.pop(KEY, None)
    if given is None:
        return Asked(), rest
    known = [each.name for each in dataclasses.fields(Asked)]
    if not isinstance(given, Mapping) or not set(given) or not set(given) <= set(known):
        raise ValueError(f"mm_processor_kwargs: zooprune takes an object with {', '.join(known)}, and nothing else")
    keep, question, label = (given.get(name) for name in known)
    if question is not None and (not isinstance(question, str) or not question.strip()):
        raise ValueError("mm_processor_kwargs: zooprune: question must be a text")
    if label is not None and not (isinstance(label, str) and _LABEL.fullmatch(label)):
        raise ValueError(
            "mm_processor_kwargs: zooprune: label must be 1 to 64 letters, digits, dots, dashes or underscores"
        )
    try:
        return Asked(None if keep is None else Budget(keep).keep, question, label), rest
    except TypeError as error:
        raise ValueError(f"mm_processor_kwargs: zooprune: {error}") from None


def reason_against(name: str) -> str | None:
    """Return why a method cannot be used in vLLM, or None where it can."""
    method = pruner_class(name)
    return "it keeps every token; leave the configuration out" if name == UNPRUNED else _method_reason(method())


def _method_reason(pruner: Pruner) -> str | None:
    if "image" not in pruner.modalities:
        return "it is made for videos, which are served whole"
    if not pruner.is_exact():
        return "it does not keep an exact number of tokens, which vLLM has to know before it encodes"
    if pruner.trained or pruner.where != "before the language model":
        return "it is not a training-free choice before the language model"
    of_tower = [name for name in pruner.reads() if name != QUESTION]
    if of_tower:
        return f"it reads {of_tower[0]}, which the fused attention of vLLM's towers does not give"
    return None


def _reason_against(pruner: Pruner, policy: Policy) -> str | None:
    if pruner.name == UNPRUNED:
        return "method none keeps every token; leave the configuration out"
    reason = _method_reason(pruner)
    if reason is not None:
        return f"method {pruner.name} cannot be served: {reason}; choose zoo, for example"
    if policy.scope == "prompt":
        return 'scope="prompt" cannot be served: vLLM encodes and caches every image by itself; give "image" or "tile"'
    if policy.weighs:
        return f'dropped="{policy.dropped}" cannot be served: vLLM\'s attention takes no bias; give "mean" or "discard"'
    return None
