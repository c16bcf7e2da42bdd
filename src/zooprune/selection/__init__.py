"""Pure tensor algorithms that pick tokens; they know nothing of models."""

from zooprune.selection.greedy import greedy_diverse, rescale

__all__ = ["greedy_diverse", "rescale"]
