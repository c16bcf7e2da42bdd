"""Adapters that let evaluation harnesses run any model under any pruning method."""

from __future__ import annotations

from typing import Any


def lmms_eval_manifest() -> Any:
    """Return what lmms-eval's registry needs to know of `zooprune.integrations.lmms_eval`.

    It is the entry point of the group ``lmms_eval.models``, called whenever lmms-eval starts, so it imports neither
    torch nor the adapter.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("zooprune", chat_class_path="zooprune.integrations.lmms_eval.ZooPruneLmm")
