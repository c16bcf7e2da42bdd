"""What a visitor can set, checked, and as part of a link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from urllib.parse import urlencode

from zooprune.policy import Dropped, Policy, Positions
from zooprune.pruners import UNPRUNED, get_pruner

#: The longest question that is taken, in characters.
MAX_QUESTION = 2_000


@dataclass(frozen=True)
class Settings:
    """What is asked, and how to prune.

    Parameters
    ----------
    model : str
        "bundled", a folder or a hub id.
    question : str
    method : str
    against : str
        A second method to compare with; empty for none.
    keep : int
        Visual tokens per picture.
    dropped : {"discard", "mean", "mass", "stand in"}
        What becomes of dropped tokens.
    positions : {"auto", "contiguous", "original"}
        How kept tokens are numbered.
    example : str
        The example that the pictures are from; empty if they are the visitor's own.

    Raises
    ------
    ValueError
        If a value is not valid.
    """

    model: str
    question: str
    method: str = "zoo"
    against: str = ""
    keep: int = 64
    dropped: Dropped = "stand in"
    positions: Positions = "auto"
    example: str = ""

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError("there is no question; write one, such as: Is there a dog?")
        if len(self.question) > MAX_QUESTION:
            raise ValueError(f"the question has {len(self.question)} characters; shorten it to {MAX_QUESTION}")
        for method in self.methods:
            if method == UNPRUNED:
                raise ValueError(f"method {UNPRUNED} keeps all tokens, which are shown anyway; choose another method")
            get_pruner(method, keep=self.keep)
        _ = self.policy

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods to compare, one or two."""
        return tuple(dict.fromkeys(name for name in (self.method, self.against) if name))

    @property
    def policy(self) -> Policy:
        """How to prune, apart from the choice itself."""
        return Policy(dropped=self.dropped, positions=self.positions)

    def query(self) -> str:
        """Return the part of a link behind the question mark."""
        return urlencode({name: value for name, value in asdict(self).items() if value != ""})

    @classmethod
    def of_query(cls, query: Mapping[str, str], default: Settings) -> Settings:
        """Return what a link holds; names that are not known are ignored.

        Parameters
        ----------
        query : mapping of str to str
            The values of the link, decoded.
        default : Settings
            For what the link leaves out. A link to a visitor's own pictures names no example.

        Raises
        ------
        ValueError
            If a value is not valid.
        """
        given: dict[str, object] = {name: query[name] for name in asdict(default) if name in query}
        if not given:
            return default
        if "keep" in given:
            if not query["keep"].isdecimal():
                raise ValueError(f"keep={query['keep']} in the link is no number of tokens; give one, such as 64")
            given["keep"] = int(query["keep"])
        return cls(**(asdict(default) | {"example": ""} | given))
