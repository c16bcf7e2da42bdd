"""What the algorithms that pick tokens refuse."""

from __future__ import annotations

from operator import index

from torch import Tensor

from zooprune.precision import all_finite


def check_rows(rows: Tensor, keep: int) -> None:
    """Refuse what no selection can be made from.

    Parameters
    ----------
    rows : Tensor, (N, d)
    keep : int
        How many rows to pick.

    Raises
    ------
    TypeError
        If `keep` is not an integer.
    ValueError
        If there is no row, a row holds NaN or infinity, or `keep` is not positive.
    """
    if rows.ndim != 2 or rows.numel() == 0:
        raise ValueError(f"embeddings must be (N, d) and not empty, got {tuple(rows.shape)}")
    if index(keep) < 1:
        raise ValueError(f"keep={keep} must be at least 1")
    if not bool(all_finite(rows)):
        raise ValueError("embeddings contain NaN or infinity; check the image, or run the model in bfloat16 or float32")
