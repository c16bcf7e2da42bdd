"""Find the smallest budget that keeps a model's answers, write it to a plan, and use the plan."""

from __future__ import annotations

from zooprune import prune
from zooprune.data.examples import load_examples
from zooprune.evaluation.calibrate import calibrate
from zooprune.evaluation.runner import Subject
from zooprune.loading import load_model
from zooprune.plan import Plan
from zooprune.policy import Policy

MODEL = "bundled"  # a checkpoint of your own: its folder, or its name on the hub, "llava-hf/llava-1.5-7b-hf"
DATA = "bundled"  # your own questions: a .jsonl or .parquet file; see docs/evaluation.md
QUALITY = 0.8  # the share of answers to keep; 0.95 takes 59 questions or more, 0.99 takes 299

subject = Subject(MODEL, *load_model(MODEL))
questions = load_examples(DATA, tasks=["sign"], limit=24)
found, tried = calibrate(subject, questions, ["zoo"], [192, 64], Policy(dropped="stand in"), quality=QUALITY)
for candidate in tried:
    print(f"keep={candidate.setting.keep}: {candidate.successes} of {candidate.trials} answers kept")
found.save("plan.json")

# Elsewhere, the plan is all that is needed. The command line takes it, too: zooprune ask --plan plan.json
plan = Plan.load("plan.json")
print(f"plan: {plan.method} with keep={plan.keep} keeps {plan.certified['lower_bound']:.0%} of the answers or more")
inputs = subject.prepare(questions[:1])
with prune(subject.model, plan):
    output = subject.model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(questions[0].question, subject.processor.decode(output[0, inputs["input_ids"].shape[1] :]))

# A server of vLLM takes method and budget, and of the policies all but "stand in"; see docs/serving.md:
#   vllm serve MODEL --additional-config '{"zooprune": {"method": "zoo", "keep": 64}}'
