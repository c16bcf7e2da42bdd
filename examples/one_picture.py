"""Ask about one picture, with all visual tokens and with 64 of them."""

from __future__ import annotations

from zooprune import ZooPrune, prune
from zooprune.bundled import demo_scene
from zooprune.loading import load_model

MODEL = "bundled"  # a checkpoint of your own: its folder, or its name on the hub, "llava-hf/llava-1.5-7b-hf"

model, processor = load_model(MODEL)  # with a GPU: load_model(MODEL, dtype="bfloat16", device="cuda")
image, question, _ = demo_scene()  # a photo of your own: PIL.Image.open("photo.jpg").convert("RGB")

content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
).to(model.device, model.dtype)  # fmt: skip


def reply() -> str:
    """Return the model's answer. Nothing in here knows about pruning."""
    output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


print(question)
print("all tokens:", reply())
with prune(model, ZooPrune(keep=64), dropped="stand in") as session:
    print("pruned:", reply())
report = session.reports[-1]
print(f"{report.kept} of {report.total} visual tokens; the prompt is {report.pruned_length} tokens long")
