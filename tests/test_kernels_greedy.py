"""The kernel picks what the tensor form picks, by Triton's interpreter or on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zooprune.selection import greedy, greedy_diverse

SHAPES = [(1, 1, 4, 1), (1, 5, 3, 5), (3, 37, 8, 20), (2, 64, 16, 64), (1, 129, 6, 128)]


def problem(images: int, total: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(total)
    unit = torch.nn.functional.normalize(torch.randn(images, total, width, generator=generator), dim=-1)
    worth = greedy.rescale(torch.rand(images, total, generator=generator))
    if total > 8:
        # Twins, whose ties go to the lower index, and excluded tokens.
        unit[:, 3], worth[:, 3] = unit[:, 5], worth[:, 5]
        worth[:, 7] = -torch.inf
    return unit, worth


def check_against_the_tensor_form() -> None:
    from zooprune.kernels.greedy import greedy_picks

    for images, total, width, keep in SHAPES:
        unit, worth = problem(images, total, width)
        keep = min(keep, int((worth > -torch.inf).sum(-1).min()))
        for fusion in ("product", "sum"):
            # What decides the first pick, and another that makes a token in the middle the first.
            for opening in (worth, worth.index_fill(1, torch.tensor([total // 2]), torch.inf)):
                expected, _ = greedy._step_by_step(unit, worth, opening, keep, fusion)
                found = greedy_picks(unit @ unit.mT, worth, opening, keep, product=fusion == "product")
                assert torch.equal(found, expected), (images, total, keep, fusion)


def test_the_kernel_under_the_interpreter():
    pytest.importorskip("triton", reason="needs triton: make test-extras")
    # Whether kernels are compiled or interpreted is settled when they are imported.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, __file__], check=True, env=environment, cwd=Path(__file__).parent)


@pytest.mark.gpu
@pytest.mark.parametrize(("images", "total", "width", "keep"), [*SHAPES, (4, 576, 1024, 64), (1, 2880, 512, 320)])
def test_on_a_gpu_the_picks_are_the_same(images, total, width, keep):
    pytest.importorskip("triton", reason="needs triton: make test-extras")
    unit, worth = problem(images, total, width)
    keep = min(keep, int((worth > -torch.inf).sum(-1).min()))
    assert torch.equal(greedy_diverse(unit.cuda(), worth.cuda(), keep).cpu(), greedy_diverse(unit, worth, keep))
    first = torch.full((images,), total // 2)
    expected, _ = greedy.picks_and_cosines(unit, worth, keep, first=first)
    found, _ = greedy.picks_and_cosines(unit.cuda(), worth.cuda(), keep, first=first.cuda())
    assert torch.equal(found.cpu(), expected)


if __name__ == "__main__":
    check_against_the_tensor_form()
