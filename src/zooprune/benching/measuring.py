"""Time named rivals side by side in one process."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from zooprune.environment import describe

Providers = Mapping[str, Callable[[], object]]

#: Seconds after which a call is not repeated for the sake of memory and operations.
_LONG = 10.0


def time_in_turn(
    providers: Providers,
    *,
    repeats: int = 5,
    device: torch.device | str = "cpu",
    flops: Mapping[str, int] | None = None,
    **labels: Any,
) -> list[dict[str, Any]]:
    """Measure what each provider takes, turn by turn, so that a slow moment of the machine meets all of them.

    Parameters
    ----------
    providers : mapping of str to callable
        Each is called twice before the first round: for what it works out and keeps, then for memory and operations.
        Where the first call takes more than ten seconds, beside which the former is little, it serves for the latter.
    repeats : int
        Rounds.
    device : torch.device or str
        Where the work is done; a GPU is waited for.
    flops : mapping of str to int, optional
        Floating-point operations of each provider; left out, they are counted: matrix products, convolutions and
        attention, a multiply-add as two.
    **labels
        Written into every row.

    Returns
    -------
    list of dict
        One row for each provider: `provider`, `p20`, `p50` and `p80` in seconds, `times_faster` than the first provider
        (the median of the ratios within a round), `peak_bytes` above what was held before (None where that cannot be
        measured), `flops`, `flops_per_second` at the median, the labels, and `environment`.
    """
    device = torch.device(device)
    counted, peaks = dict(flops or {}), {}
    for name, work in providers.items():
        for _ in range(2):
            began = time.perf_counter()
            with _Counter() as counter:
                peaks[name] = peak_bytes(work, device)
            if time.perf_counter() - began > _LONG:
                break
        counted.setdefault(name, counter.flops)
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    for _ in range(repeats):
        for name, work in providers.items():
            seconds[name].append(_seconds(work, device))
    first = seconds[next(iter(providers))]
    environment, rows = describe(), []
    for name, mine in seconds.items():
        times = torch.tensor(mine, dtype=torch.float64)
        p20, p50, p80 = times.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
        faster = float((torch.tensor(first, dtype=torch.float64) / times).quantile(0.5))
        rows.append(
            {"provider": name, **labels, "p20": p20, "p50": p50, "p80": p80, "times_faster": faster}
            | {"peak_bytes": peaks[name], "flops": counted[name], "flops_per_second": counted[name] / p50}
            | {"repeats": repeats, "environment": environment}
        )
    return rows


class _Counter(TorchDispatchMode):
    """Adds up torch's own counts; `FlopCounterMode` would do, but it breaks gradients taken inside a module's call."""

    flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=result)
        return result


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def peak_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """Return by how much memory rises while `work` runs: of the GPU, or of this process on Linux, else None."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        # What was freed goes back to the system first, or work that fits into it would seem to need nothing.
        ctypes.CDLL(None).malloc_trim(0)
        # Sets the peak that the kernel remembers back to the present size.
        reset.write_text("5")
    except (OSError, AttributeError):
        return None
    held = _field(status, "VmRSS")
    work()
    return max(0, _field(status, "VmHWM") - held)


def _field(status: Path, name: str) -> int:
    return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
