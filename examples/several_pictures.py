"""Ask one question about several pictures, with a budget for each of them or one for all."""

from __future__ import annotations

from zooprune import ZooPrune, prune
from zooprune.bundled.benchmark import load_benchmark, scene_image
from zooprune.loading import load_model

MODEL = "bundled"  # a checkpoint of your own, such as "llava-hf/llava-interleave-qwen-7b-hf"

model, processor = load_model(MODEL)
item = next(item for item in load_benchmark() if item.task == "pair")
images = [scene_image(number) for number in item.scenes]  # yours: any number of PIL images; the bundled model takes two

content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": item.question}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
).to(model.device, model.dtype)  # fmt: skip

print(item.question, "The right answer:", item.answer)
# scope="image" keeps 64 tokens of each picture; scope="prompt" keeps the best 128 of all of them together.
for keep, scope in ((64, "image"), (128, "prompt")):
    with prune(model, ZooPrune(keep=keep), scope=scope, dropped="stand in") as session:
        output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    report = session.reports[-1]
    reply = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"keep={keep}, scope={scope!r}: {reply.strip()} ({report.kept} of {report.total} tokens)")
