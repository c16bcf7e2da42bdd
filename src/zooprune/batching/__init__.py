"""Answer many questions about images, in this process or on a Ray cluster, in files that a killed job keeps."""

from zooprune.batching.job import Progress, answer_all

__all__ = ["Progress", "answer_all"]
