"""Tell bad input, which gets a sentence, from faults of the program, whose traceback somebody has to see."""

from __future__ import annotations

import traceback
from pathlib import Path


def is_ours(error: Exception) -> bool:
    """Return whether this package raised an error itself."""
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(raised_in).is_relative_to(Path(__file__).parent)
