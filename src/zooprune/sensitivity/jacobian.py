"""The Frobenius norm of a two-layer projector's Jacobian at every token, from quadratic forms made of the weights.

A projector brings matrices G that depend on its weights alone; the norm is d^T G d, with d the activation's slopes at
the token, or a sum of such terms. Three ways to work it out are here: whole, as G's diagonal plus a few columns, and
about the slopes that the tokens of an image have in common, which is nearly exact and costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zooprune.precision import exact_float32
from zooprune.projectors import Projector
from zooprune.sensitivity.two_layer import Norm, TwoLayer, affine, as_two_layers, with_second
from zooprune.sensitivity.weight_cache import already, cached

#: Tokens worked on at once. What they give in between stays in a CPU's cache.
_CHUNK = 256
#: Tokens scored together at most, where they are, which bounds the memory.
_TOGETHER = 4096
#: How many means of strips are tried, and the width of the hidden layer from which on that pays.
_STRIPS = (16, 64)
_LEAST_HIDDEN = 1024
#: Random tokens on which a cheaper form is held against the whole one, and what it has to reach there.
_PROBES = 256
_LEAST_CORRELATION = 0.999


#: Gives d^T G d for every row d and each of a few matrices G: (N, d) -> (N, grams).
Quadratic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Whole:
    """d^T G d as it stands.

    Parameters
    ----------
    grams : tuple of Tensor, (d, d) each
        The matrices G, symmetric positive semi-definite.
    """

    grams: tuple[Tensor, ...]

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the values for every row."""
        return torch.stack([((rows @ gram) * rows).sum(-1) for gram in self.grams], dim=-1)


@dataclass(frozen=True)
class LowRank:
    """d^T G d with G ~ diag(r) + L L^T.

    Parameters
    ----------
    residuals : Tensor, (d, grams)
        r: what G's diagonal has beside that of the product, which makes it exact.
    columns : Tensor, (d, grams, rank)
        L.
    """

    residuals: Tensor
    columns: Tensor

    @classmethod
    def of(cls, grams: tuple[Tensor, ...], rank: int) -> LowRank:
        """Return the form at a rank (Nystroem on a power basis)."""
        columns = torch.stack([_leading_columns(gram, rank) for gram in grams], dim=1)
        return cls((_diagonals(grams) - columns.square().sum(-1)).clamp_min(0), columns)

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the values for every row."""
        along = (rows @ self.columns.flatten(1)).unflatten(1, self.columns.shape[1:])
        return rows.square() @ self.residuals + along.square().sum(-1)


def _leading_columns(gram: Tensor, rank: int) -> Tensor:
    rank = min(rank, len(gram))
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(len(gram), rank, generator=generator, dtype=torch.float32, device="cpu").to(gram.device)
    for _ in range(6):
        basis, _ = torch.linalg.qr(gram @ basis)
    image = gram @ basis
    values, vectors = torch.linalg.eigh(basis.T @ image)
    return image @ vectors / values.clamp_min(values.max() * 1e-6).sqrt()


@dataclass(frozen=True)
class AboutMeans:
    """d^T G d, exact as far as the rows go along the means of strips of them.

    With p the part of d in the span of the means and q the rest, d^T G d = p^T G p + 2 p^T G q + q^T G q. The first two
    are exact; of the last one, small as it is, only G's diagonal is taken. G meets a few vectors and not every row.

    Parameters
    ----------
    grams : tuple of Tensor, (d, d) each
    strips : int
        How many runs of following rows are averaged.
    """

    grams: tuple[Tensor, ...]
    strips: int

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the values for every row, given those beside it."""
        means = torch.stack([strip.mean(0) for strip in rows.tensor_split(min(self.strips, len(rows)))])
        basis, _ = torch.linalg.qr(means.T)
        # From the left, along the rows of G as they lie in memory.
        image = torch.cat([basis.T @ gram for gram in self.grams]).T
        inner, diagonals = basis.T @ image, _diagonals(self.grams)
        found = []
        for part in _parted(rows):
            along = rows[part] @ basis
            rest = torch.addmm(rows[part], along, basis.T, alpha=-1)
            linear = (along @ inner + 2 * (rest @ image)).unflatten(1, (len(self.grams), -1))
            found.append((linear * along[:, None]).sum(-1) + rest.square_() @ diagonals)
        return torch.cat(found)


def _parted(rows: Tensor) -> list[slice]:
    """Return chunks of rows; a GPU, where launches cost more than memory, takes all rows at once."""
    size = _CHUNK if rows.device.type == "cpu" else len(rows)
    return [slice(start, start + size) for start in range(0, len(rows), size)]


def _diagonals(grams: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([gram.diagonal() for gram in grams], dim=-1)


@dataclass(frozen=True)
class Form:
    """How the quadratic forms of one projector are worked out.

    Parameters
    ----------
    quadratics : tuple of Quadratic
    name : str
        In words.
    correlation : float
        Spearman's rank correlation, on random tokens, of the scores it gives with those of the whole.
    together : int
        How many tokens are scored at once.
    origins : tuple of str
        What other than plain layers the weights were read from, in words.
    own_layer : bool
        Whether the projector's first layer runs in its own dtype, as the model runs it, and not in float32.
    """

    quadratics: tuple[Quadratic, ...]
    name: str = "whole"
    correlation: float = 1.0
    together: int = _CHUNK
    own_layer: bool = False
    origins: tuple[str, ...] = ()


def has_closed_form(projector: Projector) -> bool:
    """Return whether `squared_norm` knows the projector's form."""
    return as_two_layers(projector) is not None


def squared_norm(projector: nn.Module, features: Tensor, form: Form, hidden: Tensor | None = None) -> Tensor:
    """Return ||J||_F^2 of a projector that has a closed form, float32 (N,).

    Parameters
    ----------
    projector : torch.nn.Module
    features : Tensor of float32, (N, d_vision)
    form : Form
        What `form_of` gives for this projector.
    hidden : Tensor, (N, d_hidden), optional
        The first layer's output for these features, if it is at hand; of no use where several blocks are normed.
    """
    parts = _parts(projector)
    steps = features.split(form.together)
    given = [None] * len(steps) if hidden is None else hidden.split(form.together)
    found = [parts.squared(rows, ready, form) for rows, ready in zip(steps, given, strict=True)]
    return torch.cat(found).clamp_min(0)


@exact_float32()
def form_of(projector: nn.Module, rank: int | Literal["auto"] | None) -> Form:
    """Return how to work out the quadratic forms, made once for as long as the weights stay the same.

    Parameters
    ----------
    projector : torch.nn.Module
        One that has a closed form.
    rank : int, "auto" or None
        None is the whole, a number the diagonal plus so many columns. "auto" is `AboutMeans` with as few strips as rank
        tokens like the whole, and the first layer in its own dtype; or the whole where that fails or the matrices are
        too small for it to pay.
    """
    origins = _parts(projector).origins

    def whole() -> Form:
        return Form(tuple(map(Whole, _kept_grams(projector))), origins=origins)

    def about_means() -> Form | None:
        grams = _kept_grams(projector)
        for strips in _STRIPS:
            quadratics = tuple(AboutMeans(alike, strips) for alike in grams)
            cheap = Form(quadratics, f"about {strips} means", together=_TOGETHER, own_layer=True, origins=origins)
            found = _measured(projector, cheap, grams)
            if found.correlation >= _LEAST_CORRELATION:
                return found
        return None

    def low_rank(columns: int) -> Form:
        # The matrices themselves stay only where another form reads them.
        grams = already(projector, "grams") or _new_grams(projector)
        quadratics = tuple(LowRank.of(alike, columns) for alike in grams)
        return _measured(projector, Form(quadratics, f"diagonal + {columns} columns", origins=origins), grams)

    if isinstance(rank, int):
        return cached(projector, ("form", rank), lambda: low_rank(rank))
    if rank == "auto" and _parts(projector).d_hidden >= _LEAST_HIDDEN:
        form = cached(projector, "about means", about_means)
        if form is not None:
            return form
    return cached(projector, "whole", whole)


Grams = tuple[tuple[Tensor, ...], ...]


def _kept_grams(projector: nn.Module) -> Grams:
    """Return the projector's matrices, which all forms that read them share."""
    return cached(projector, "grams", lambda: _new_grams(projector))


def _new_grams(projector: nn.Module) -> Grams:
    mlp = with_second(projector)
    found = _of(projector, mlp).grams()
    known = as_two_layers(projector)
    if known is not None and not isinstance(known.second, nn.Linear):
        # Weights that only these matrices are made of need not stay beside them.
        known.second = None
    return found


def _measured(projector: nn.Module, form: Form, grams: Grams) -> Form:
    """Return the form with its correlation filled in."""
    # Random tokens differ less than an image's, so this is the harder test.
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(_PROBES, _parts(projector).d_vision, generator=generator, dtype=torch.float32, device="cpu")
    probes = probes.to(grams[0][0].device)
    exact = squared_norm(projector, probes, Form(tuple(map(Whole, grams))))
    return replace(form, correlation=rank_correlation(squared_norm(projector, probes, form), exact))


def slopes(activation: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """Return an elementwise activation's derivative, the shape of `hidden`, float32."""
    with torch.inference_mode(False), torch.enable_grad():
        hidden = hidden.detach().float()
        # Tensors made in inference mode take no part in differentiation, their copies do.
        hidden = (hidden.clone() if hidden.is_inference() else hidden.detach()).requires_grad_()
        (found,) = torch.autograd.grad(activation(hidden), hidden, torch.ones_like(hidden))
    return found


class _Plain:
    """W2 act(W1 x + b1) + b2: ||J||^2 = d^T G d with d the slopes and G = (W1 W1^T) * (W2^T W2), elementwise."""

    def __init__(self, mlp: TwoLayer) -> None:
        self._mlp = mlp
        self.d_hidden, self.d_vision = mlp.first.weight.shape
        self.origins = mlp.origins

    def grams(self) -> Grams:
        """Return G."""
        return (((self._weight @ self._weight.T).mul_(_outputs(self._mlp)),),)

    def squared(self, rows: Tensor, hidden: Tensor | None, form: Form) -> Tensor:
        """Return ||J||^2 of every row."""
        found = [
            slopes(self._mlp.activation, self._hidden(rows[part], form.own_layer) if hidden is None else hidden[part])
            for part in _parted(rows)
        ]
        return form.quadratics[0](torch.cat(found))[:, 0]

    def _hidden(self, rows: Tensor, own: bool) -> Tensor:
        first = self._mlp.first
        if own:
            return F.linear(rows.to(first.weight.dtype), first.weight, _as(first.bias, first.weight.dtype))
        return (rows @ self._weight.T).add_(0.0 if first.bias is None else first.bias.detach().float())

    @cached_property
    def _weight(self) -> Tensor:
        """W1 in float32, once for all tokens of a call."""
        return self._mlp.first.weight.detach().float()


class _Normed:
    """A norm in front of W1, one for each block of the token: a scale and a rank-one term for each block.

    With x^ the block's normalised value, s its scale, n its width and g the norm's weight, the norm's own Jacobian N
    has N N^T = diag(g) (C - c x^ x^^T) diag(g) / s^2, where c = (2 - ||x^||^2 / n) / n and C takes the mean away if
    the norm does.
    """

    def __init__(self, projector: nn.Module, mlp: TwoLayer, norm: Norm) -> None:
        self._projector, self._mlp, self._norm = projector, mlp, norm
        self.d_hidden, self.d_vision = mlp.first.weight.shape
        self.origins = mlp.origins

    def grams(self) -> Grams:
        """Return G of all blocks, then W2^T W2 for the rank-one terms."""
        output, found = _outputs(self._mlp), []
        for columns in self._mlp.first.weight.detach().unflatten(1, (self._mlp.blocks, -1)).unbind(1):
            block = columns.float() * self._norm.gain
            if self._norm.centred:
                block -= block.mean(-1, keepdim=True)
            found.append((block @ block.T).mul_(output))
        return tuple(found), (output,)

    def squared(self, rows: Tensor, hidden: Tensor | None, form: Form) -> Tensor:
        """Return ||J||^2 of every row."""
        blocks = self._mlp.blocks
        constant = cached(self._projector, "constant", self._constant)
        whole, output = form.quadratics
        found = rows.new_empty(len(rows), self.d_hidden)
        turned = rows.new_empty(blocks, len(rows), self.d_hidden)
        taken, scale = rows.new_empty(len(rows), blocks), rows.new_empty(len(rows), blocks)
        for part in _parted(rows):
            unit, scale[part] = self._norm.normalised(rows[part].unflatten(-1, (blocks, -1)))
            taken[part] = (2 - unit.square().mean(-1)) / unit.shape[-1]
            # What each block adds to the hidden units; they sum to what the activation reads.
            if hidden is not None and blocks == 1:
                shares = (hidden[part].float() - constant)[None]
            else:
                shares = self._shares(unit, form.own_layer)
            found[part] = slopes(self._mlp.activation, shares.sum(0) + constant)
            torch.mul(shares, found[part], out=turned[:, part])
        # All blocks together: the matrix is read once.
        along = output(turned.flatten(0, 1)).view(blocks, -1).T
        return ((whole(found) - taken * along) / scale.square()).sum(-1)

    def _shares(self, unit: Tensor, own: bool) -> Tensor:
        """Return W1 diag(g) x^ of every block, (blocks, N, d_hidden)."""
        weight = self._mlp.first.weight.detach() if own else self._weight
        weight = weight.unflatten(1, unit.shape[1:])
        unit = (unit * self._norm.gain).to(weight.dtype)
        return torch.stack([F.linear(unit[:, b], weight[:, b]).float() for b in range(unit.shape[1])])

    def _constant(self) -> Tensor:
        """Return what the first layer gives for the norm's own bias."""
        gain, shift = self._norm.gain, self._norm.shift
        nothing = torch.zeros_like(gain) if shift is None else shift
        return affine(nothing.repeat(self._mlp.blocks)[None], self._mlp.first)[0]

    @cached_property
    def _weight(self) -> Tensor:
        """W1 in float32, once for all tokens of a call."""
        return self._mlp.first.weight.detach().float()


def _outputs(mlp: TwoLayer) -> Tensor:
    """Return W2^T W2, (d_hidden, d_hidden)."""
    assert mlp.second is not None
    weight = mlp.second.weight.detach().float()
    return weight.T @ weight


def _as(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype)


def _parts(projector: Projector) -> _Plain | _Normed:
    mlp = as_two_layers(projector)
    assert mlp is not None and isinstance(projector, nn.Module), "only projectors that have a closed form come here"
    return _of(projector, mlp)


def _of(projector: nn.Module, mlp: TwoLayer) -> _Plain | _Normed:
    return _Plain(mlp) if mlp.norm is None else _Normed(projector, mlp, mlp.norm)


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Return Spearman's rank correlation of two score vectors, (N,) each."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])
