"""A model for VLMEvalKit.

Source: the interface is `vlmeval.vlm.base.BaseModel`, where a message is a list of parts with a type and a value, and
an image is a path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmeval.vlm.base import BaseModel

from zooprune.answering import MAX_NEW_TOKENS, Answerer


class ZooPruneVLM(BaseModel):
    """Any model of transformers, pruned by any method, as VLMEvalKit wants it.

    Parameters
    ----------
    pretrained : str
        "bundled", a folder, or an id on the Hugging Face hub.
    max_new_tokens : int
        Length of a reply at most.
    use_vllm : bool
        VLMEvalKit gives this to every model whose key there holds a name such as "Qwen2.5-VL". Must be False.
    **options
        `method`, `keep`, `positions`, `scope`, `newlines`, `dropped`, `dtype`, `device` and fields of the method,
        all as in `zooprune.answering.Answerer`.

    Raises
    ------
    ValueError, TypeError
        If an argument is not valid.
    """

    INTERLEAVE = True
    allowed_types = ("text", "image")

    def __init__(
        self,
        pretrained: str = "bundled",
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        use_vllm: bool = False,
        **options: Any,
    ) -> None:
        if use_vllm:
            raise ValueError("zooprune prunes models of transformers, not of vLLM; leave out --use-vllm")
        super().__init__()
        self.max_new_tokens = max_new_tokens
        self.answerer = Answerer(pretrained, **options)

    def generate_inner(self, message: Sequence[dict[str, str]], dataset: str | None = None) -> str:
        """Answer one message.

        Parameters
        ----------
        message : sequence of dict
            Parts in reading order, each with "type", "text" or "image", and "value", the text or the image's path.
        dataset : str, optional
            Not looked at: the prompt is the data set's own.
        """
        content = [{"type": part["type"], part["type"]: part["value"]} for part in message]
        replies = self.answerer.answer([[{"role": "user", "content": content}]], max_new_tokens=self.max_new_tokens)
        return replies.texts[0]
