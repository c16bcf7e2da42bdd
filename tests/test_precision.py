from __future__ import annotations

import pytest
import torch

from zooprune.precision import exact_float32

SWITCHES = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


@pytest.mark.parametrize("mode", ["highest", "high", "medium"])
def test_reduced_modes_are_off_inside_and_as_before_outside(mode):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(mode)
    try:
        settings = [switch.fp32_precision for switch in SWITCHES]
        with pytest.raises(KeyError), torch.autocast("cpu", torch.bfloat16), exact_float32():
            assert all(switch.fp32_precision in ("ieee", "none") for switch in SWITCHES)
            assert not torch.is_autocast_enabled("cpu")
            raise KeyError
        assert [switch.fp32_precision for switch in SWITCHES] == settings
        assert torch.get_float32_matmul_precision() == mode
    finally:
        torch.set_float32_matmul_precision(before)
