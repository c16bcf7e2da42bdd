"""Ask different questions about different pictures in one batch. Every picture has its own tokens chosen."""

from __future__ import annotations

from zooprune import ZooPrune, prune
from zooprune.bundled.benchmark import load_benchmark, scene_image
from zooprune.loading import load_model

MODEL = "bundled"  # a checkpoint of your own: its folder, or its name on the hub, "llava-hf/llava-1.5-7b-hf"

model, processor = load_model(MODEL)
items = [next(item for item in load_benchmark() if item.task == task) for task in ("place", "sign", "colour", "digit")]

# Yours: one conversation per question, with PIL images or paths.
conversations = [
    [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": scene_image(item.scenes[0])},
                {"type": "text", "text": item.question},
            ],
        }
    ]
    for item in items
]
processor.tokenizer.padding_side = "left"  # prompts of a batch must end together
inputs = processor.apply_chat_template(
    conversations, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    processor_kwargs={"padding": True},
).to(model.device, model.dtype)  # fmt: skip

with prune(model, ZooPrune(keep=64), dropped="stand in") as session:
    output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
replies = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
for item, reply, image in zip(items, replies, session.reports[-1].images, strict=True):
    print(f"{item.question} {reply.strip()} ({image.kept} of {image.total} tokens)")
