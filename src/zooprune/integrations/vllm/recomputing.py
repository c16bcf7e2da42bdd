"""Have vLLM ask the model for positions after encoding, which it does only where videos are pruned."""

from __future__ import annotations

from typing import Any

from vllm.config.multimodal import MultiModalConfig


class PrunedMultiModalConfig(MultiModalConfig):
    """A multi-modal configuration that says that something is pruned, though no video is."""

    def is_multimodal_pruning_enabled(self) -> bool:
        """Return True."""
        return True


def recompute_for(config: Any) -> None:
    """Let a configuration that vLLM already holds say so, in this process and, being pickled, in all others."""
    config.__class__ = PrunedMultiModalConfig
