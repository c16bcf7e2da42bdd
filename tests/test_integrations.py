"""What the adapters have in common, and VLMEvalKit's adapter on a stand-in for its base class."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
from PIL import Image

from zooprune import ZooPrune, get_pruner, prune
from zooprune.answering import Answerer, _before_stop
from zooprune.bundled.benchmark import load_benchmark, scene_image
from zooprune.prompting import build_inputs


@pytest.fixture(scope="module")
def items():
    return [item for item in load_benchmark()[:9] if len(item.scenes) == 1][:8]


def asked(*items):
    """Return one conversation for every item."""
    return [
        [
            {
                "role": "user",
                "content": [
                    *({"type": "image", "image": scene_image(scene)} for scene in item.scenes),
                    {"type": "text", "text": item.question},
                ],
            }
        ]
        for item in items
    ]


def direct(model, processor, item):
    inputs = build_inputs(processor, [[scene_image(scene) for scene in item.scenes]], [item.question])
    output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("method", ["none", "zoo", "random"])
def test_it_answers_as_the_library_does_one_by_one(bundled, items, method):
    if method == "none":
        expected = [direct(*bundled, item) for item in items]
        answerer = Answerer("bundled", method="none", device="cpu")
    else:
        with prune(bundled[0], get_pruner(method, keep=48)):
            expected = [direct(*bundled, item) for item in items]
        answerer = Answerer("bundled", method=method, keep=48, device="cpu")
    replies = answerer.answer(asked(*items), max_new_tokens=16)
    assert list(replies.texts) == expected
    kept = 0 if method == "none" else 48 * len(items)
    assert (replies.visual_tokens, replies.kept_tokens) == (576 * len(items) if kept else 0, kept)


def test_the_length_of_a_reply_counts_its_own_tokens(items):
    answerer = Answerer("bundled", keep=64, device="cpu")
    together = answerer.answer(asked(*items))
    alone = [answerer.answer(asked(item)).new_tokens[0] for item in items]
    assert list(together.new_tokens) == alone and len(set(alone)) > 1


def test_several_images_and_none_share_a_batch(items):
    several = asked(*items[:2])
    pair = several[0][0]["content"][:1] + several[1][0]["content"]
    conversations = [[{"role": "user", "content": pair}], [{"role": "user", "content": pair[-1:]}]]
    answerer = Answerer("bundled", keep=64, device="cpu")
    replies = answerer.answer(conversations, max_new_tokens=4)
    assert replies.kept_tokens == 128 and len(replies.texts) == 2
    assert answerer.answer(conversations[1:], max_new_tokens=4).kept_tokens == 0


@pytest.mark.parametrize(
    ("text", "until", "expected"),
    [("a b c", ("c", "b"), "a "), ("a b", ("x",), "a b"), ("a", (), "a"), ("\n\nb", ("\n\n",), "")],
)
def test_a_reply_ends_before_the_first_stop(text, until, expected):
    assert _before_stop(text, until) == expected


def test_stops_apply_to_replies(items):
    sign = next(item for item in items if item.task == "sign")
    answerer = Answerer("bundled", method="none", device="cpu")
    whole = answerer.answer(asked(sign)).texts[0]
    assert answerer.answer(asked(sign), until=[whole[1:]]).texts == (whole[:1],)


def test_closing_gives_the_model_back():
    answerer = Answerer("bundled", keep=64, device="cpu")
    assert "generate" in vars(answerer.model)
    answerer.close()
    assert "generate" not in vars(answerer.model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "zoo"}, "how much shall zoo keep"),
        ({"method": "none", "keep": 64}, "leave out keep"),
        ({"method": "none", "seed": 1}, "leave out seed"),
        ({"method": "zo", "keep": 64}, "did you mean 'zoo'"),
        ({"keep": 0}, "keep"),
        ({"keep": 64, "positions": "left"}, "positions='left' is not one of"),
        ({"keep": 64, "dtype": "int8"}, "unknown dtype"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Answerer("bundled", **{"device": "cpu"} | arguments)


def test_options_are_those_of_the_method():
    with pytest.raises(TypeError, match="zoo has no option colour; it has keep"):
        Answerer("bundled", keep=64, colour="red")
    assert Answerer("bundled", keep=64, fusion="sum", device="cpu")._session.pruner == ZooPrune(keep=64, fusion="sum")


@pytest.fixture
def vlmevalkit(monkeypatch):
    """Return the adapter, on a base class with what it uses of VLMEvalKit's own."""

    class BaseModel:
        def generate(self, message, dataset=None):
            assert all(part["type"] in self.allowed_types for part in message)
            return self.generate_inner(message, dataset)

    for name in ("vlmeval", "vlmeval.vlm", "vlmeval.vlm.base"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["vlmeval.vlm.base"].BaseModel = BaseModel
    yield importlib.import_module("zooprune.integrations.vlmevalkit")
    sys.modules.pop("zooprune.integrations.vlmevalkit")


def test_vlmevalkit_answers_as_the_library_does(vlmevalkit, bundled, items, tmp_path):
    with prune(bundled[0], "zoo", keep=64):
        expected = [direct(*bundled, item) for item in items]
    model = vlmevalkit.ZooPruneVLM("bundled", method="zoo", keep=64, device="cpu")
    replies = []
    for number, item in enumerate(items):
        path = tmp_path / f"{number}.png"
        scene_image(item.scenes[0]).save(path)
        message = [{"type": "image", "value": str(path)}, {"type": "text", "value": item.question}]
        replies.append(model.generate(message, dataset="MME"))
    assert replies == expected


def test_vlmevalkit_says_whether_to_use_vllm(vlmevalkit):
    # It does to models called Qwen2.5-VL and the like, whether or not vLLM is asked for.
    vlmevalkit.ZooPruneVLM("bundled", method="none", use_vllm=False)
    with pytest.raises(ValueError, match="leave out --use-vllm"):
        vlmevalkit.ZooPruneVLM("bundled", method="none", use_vllm=True)


def test_vlmevalkit_takes_images_between_texts(vlmevalkit, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    model = vlmevalkit.ZooPruneVLM("bundled", method="none", max_new_tokens=2, device="cpu")
    seen = []
    original = model.answerer.answer
    model.answerer.answer = lambda conversations, **options: (
        seen.append(conversations) or original(conversations, **options)
    )
    image = str(tmp_path / "a.png")
    model.generate_inner(
        [{"type": "text", "value": "one"}, {"type": "image", "value": image}, {"type": "text", "value": "two"}]
    )
    content = seen[0][0][0]["content"]
    assert [part["type"] for part in content] == ["text", "image", "text"] and content[1]["image"] == image
