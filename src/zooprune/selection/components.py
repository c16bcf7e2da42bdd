"""Principal components of tokens: groups by them, how many there are in effect; and suppression of look-alikes."""

from __future__ import annotations

import torch
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.selection.arguments import check_rows


@torch.no_grad()
@exact_float32()
def group_by_component(features: Tensor, groups: int) -> Tensor:
    """Assign each token to the principal component it weighs most in.

    Tokens are the variables and channels the samples: the sigmoid of the features is centred over the channels of each
    token, and a component is a direction over tokens.

    Parameters
    ----------
    features : Tensor, (N, d)
    groups : int
        How many components; at most as many as the smaller of N and d are used.

    Returns
    -------
    Tensor of int64, (N,)
        The number of each token's component; components are in the order of variance. Ties go to the lowest number.

    Raises
    ------
    ValueError
        If there is no feature, a feature is NaN or infinite, or `groups` is not positive.
    """
    check_rows(features, groups)
    # In float64, because eigenvectors of close eigenvalues are sensitive to rounding.
    samples = torch.sigmoid(features.float()).double()
    samples = samples - samples.mean(1, keepdim=True)
    tokens_first = samples.shape[0] <= samples.shape[1]
    values, vectors = torch.linalg.eigh(samples @ samples.T if tokens_first else samples.T @ samples)
    # They come in ascending order.
    values, vectors = values.flip(0), vectors.flip(1)
    loadings = vectors if tokens_first else samples @ vectors / values.clamp_min(1e-30).sqrt()
    # A component without variance is no more than rounding.
    loadings = loadings.where(values > 1e-12 * values[0], 0.0)
    return loadings[:, :groups].abs().argmax(1)


@torch.no_grad()
@exact_float32()
def effective_rank(features: Tensor) -> Tensor:
    """Return how many directions features spread over: the exponential of the entropy of their singular values.

    Singular values are those of the features without their mean, brought to a sum of one.

    Source: Roy and Vetterli, "The effective rank: A measure of effective dimensionality", EUSIPCO 2007.

    Parameters
    ----------
    features : Tensor, (N, d)

    Returns
    -------
    Tensor of float32, ()
        At least 1, which is that of features that are all the same.

    Raises
    ------
    ValueError
        If there is no feature, or a feature is NaN or infinite.
    """
    check_rows(features, 1)
    # In float64, because rounding in float32 makes many small singular values.
    rows = features.double()
    rows = rows - rows.mean(0)
    product = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    strengths = torch.linalg.eigvalsh(product).clamp_min(0).sqrt()
    shares = strengths / strengths.sum().clamp_min(1e-30)
    return torch.special.entr(shares).sum().exp().float()


def suppress(similarity: Tensor, order: Tensor, threshold: float | Tensor) -> Tensor:
    """Return which tokens are left by non-maximum suppression.

    Tokens are taken in an order. Each token that is left removes all later tokens that are more similar to it than a
    threshold.

    Parameters
    ----------
    similarity : Tensor, (N, N)
    order : Tensor of int64, (N,)
        The order in which tokens are taken.
    threshold : float or Tensor, (N, 1)
        The same for all tokens, or one for each token that removes others.

    Returns
    -------
    Tensor of bool, (N,)
        On the CPU.
    """
    # Each step depends on the one before, so the steps are taken on the host, after a single transfer.
    alike = (similarity > threshold).cpu()
    left = torch.ones(len(alike), dtype=torch.bool)
    ahead = torch.ones(len(alike), dtype=torch.bool)
    for token in order.tolist():
        ahead[token] = False
        if left[token]:
            left &= ~(alike[token] & ahead)
    return left
