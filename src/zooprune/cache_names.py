"""By what name transformers passes the cache of keys and values.

It is `cache` from transformers 5.24 on and `past_key_values` in older versions. Newer versions still take the old name
from callers. Knows nothing of what a cache holds.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from transformers.masking_utils import create_causal_mask

_NAMES: Final = ("cache", "past_key_values")

#: The name that models of the installed version give the cache, among their arguments and in their outputs.
CACHE: Final = next(name for name in _NAMES if name in inspect.signature(create_causal_mask).parameters)


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """Return the cache among the arguments of a call, by whichever name it was given; None if there is none."""
    return next((arguments[name] for name in _NAMES if arguments.get(name) is not None), None)
