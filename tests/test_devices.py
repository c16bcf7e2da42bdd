"""What a GPU would refuse, and where it would be waited for, without one: see `pretend_device`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pretend_device = pytest.importorskip(
    "pretend_device", reason="this torch knows no backends written in Python", exc_type=ImportError
)


@pytest.fixture(scope="module")
def compared() -> dict[str, Any]:
    # In a process of its own: a backend, once registered, stays.
    script = Path(__file__).with_name("pretend_device.py")
    done = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("name", pretend_device.COMPARED)
def test_nothing_mixes_devices(compared, name):
    """An operation that did would have raised; what is kept and what comes back is as on the CPU."""
    found = compared[name]
    assert "error" not in found, found["error"]
    assert found["same tokens"] and found["same prompts"] and found["same rows"]
    assert found["devices"] == ["pretended"]


def test_the_host_waits_little(compared):
    """Four times for a call and five for each of its three images, whatever the number of tokens and picks."""
    assert len(compared["llava, zoo"]["waits"]) == 4 + 5 * 3, "\n".join(compared["llava, zoo"]["waits"])
