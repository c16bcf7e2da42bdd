r"""Prune a video: how many tokens of each frame stay.

The bundled model takes no videos, so this builds a tiny Video-LLaVA with random weights. It shows what is pruned; its
replies mean nothing. With a checkpoint, replace all lines above "the part that matters" by

    model, processor = load_model("LanguageBind/Video-LLaVA-7B-hf")  # from zooprune.loading
    inputs = processor(text="USER: <video>\nWhat happens? ASSISTANT:", videos=frames, return_tensors="pt")
"""

from __future__ import annotations

import torch
from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration

from zooprune import get_pruner, prune

FRAMES, SIDE, VIDEO = 8, 112, 2
torch.manual_seed(0)
tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
config = VideoLlavaConfig(
    vision_config={**tower, "model_type": "clip_vision_model", "image_size": SIDE, "patch_size": 14},
    text_config={**tower, "model_type": "llama", "vocab_size": 64, "pad_token_id": 0, "eos_token_id": None},
    image_token_index=3, video_token_index=VIDEO,
)  # fmt: skip
model = VideoLlavaForConditionalGeneration(config).eval()
video = torch.randn(1, 3, SIDE, SIDE).expand(FRAMES, -1, -1, -1).clone()
for frame in range(4, FRAMES):  # from the fifth frame on, a bright square moves across the picture
    video[frame, :, 28:70, 14 * frame - 42 : 14 * frame] = 3.0
ids = torch.tensor([[1, *[VIDEO] * FRAMES * (1 + (SIDE // 14) ** 2), 20, 21]])
inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": video[None]}

# The part that matters: the budget is for the whole video.
for name in ("zoo", "vidcom2"):
    with prune(model, get_pruner(name, keep=64)) as session:
        model.generate(**inputs, max_new_tokens=1)
    (seen,) = session.reports[-1].images
    per_frame = seen.positions[seen.selection.index, 0].bincount(minlength=FRAMES).tolist()
    print(f"{name}: {seen.kept} of {seen.total} tokens; per frame {per_frame}")
