"""What each family says about a model's images."""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers
from transformers import (
    CLIPConfig,
    CLIPModel,
    GlmOcrConfig,
    GlmOcrForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from conftest import GRID, IMAGE, Row, clip_llama, deprecations, make_inputs, pixtral_mistral, siglip_qwen2
from zoo_of_models import BOS, TEXT, TOWER
from zooprune import ZooPrune, prune
from zooprune.families import find_family
from zooprune.families.generic import CONFIGURED
from zooprune.families.llava import Llava
from zooprune.tokens import NEWLINE


def grid(rows, columns):
    return [[0, 0, row, column] for row in range(rows) for column in range(columns)]


def test_features_and_embeddings_are_the_models_own(model):
    inputs = make_inputs(Row(2, 3), Row(1, 1))
    seen = []
    hook = model.model.multi_modal_projector.register_forward_hook(lambda _module, args, out: seen.append((*args, out)))
    with torch.no_grad():
        plain = model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
        hook.remove()
        encoded = find_family(model).encode(model, "image", inputs)
    ((features, embeddings),) = seen
    assert len(encoded.visuals) == len(plain) == 3
    for visual, x, z, own in zip(encoded.visuals, features, embeddings, plain, strict=True):
        tokens = visual.tokens
        assert torch.equal(tokens.features, x) and torch.equal(tokens.embeddings, z) and torch.equal(z, own)
        assert torch.equal(tokens.projector(tokens.features), z)
        assert tokens.positions.tolist() == grid(GRID, GRID)
    assert not model.model.multi_modal_projector._forward_hooks


def test_the_hook_is_gone_after_an_error(llava):
    with pytest.raises(ValueError):
        Llava().encode(llava, "image", {"pixel_values": torch.zeros(1, 3, 7, 7)})
    assert not llava.model.multi_modal_projector._forward_hooks


def test_images_of_different_sizes():
    model = pixtral_mistral()
    shapes = [(2, 3), (4, 2), (1, 5)]
    # As Pixtral's processor writes it: a break after every row of patches.
    rows = [
        [1, *([IMAGE] * 3 + [4]) * 2, 9, *([IMAGE] * 2 + [4]) * 4, 8, 7],
        [0] * 18 + [1, *[IMAGE] * 5, 4, 11],
    ]
    width = len(rows[0])
    ids = torch.tensor([rows[0], rows[1][-width:]])
    inputs = {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "pixel_values": torch.randn(3, 3, 4 * 14, 5 * 14, generator=torch.Generator().manual_seed(0)),
        "image_sizes": torch.tensor(shapes) * 14,
    }
    options = {"max_new_tokens": 4, "do_sample": False}
    plain = model.generate(**inputs, **options)
    with prune(model, ZooPrune(keep=1.0)):
        assert torch.equal(model.generate(**inputs, **options), plain)
    with prune(model, ZooPrune(keep=3)) as session:
        pruned = model.generate(**inputs, **options)
        logits = model(**session.prepare(inputs)).logits
    images = session.reports[0].images
    assert [image.positions.tolist() for image in images] == [grid(*shape) for shape in shapes]
    assert [(image.row, len(image.selection), image.selection.total) for image in images] == [
        (0, 3, 6), (0, 3, 8), (1, 3, 5),
    ]  # fmt: skip
    assert torch.equal(pruned[:, :width], ids)
    assert torch.equal(logits[:, -1].argmax(-1), pruned[:, width])


def test_several_vision_layers():
    parts = clip_llama().config
    config = LlavaConfig(
        vision_config=parts.vision_config, text_config=parts.text_config, image_token_id=IMAGE,
        vision_feature_layer=[-3, -2, -1], vision_feature_select_strategy="default", image_seq_length=GRID * GRID,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        tokens = Llava().encode(model, "image", make_inputs(Row(1, 2))).visuals[0].tokens
    assert tokens.features.shape == (GRID * GRID, 3 * 24)
    torch.testing.assert_close(tokens.projector(tokens.features), tokens.embeddings)


def test_a_class_token_shows_no_patch(llava):
    llava.config.vision_feature_select_strategy = "full"
    with torch.no_grad():
        tokens = Llava().encode(llava, "image", make_inputs(Row(1, 2))).visuals[0].tokens
    assert tokens.positions.tolist() == [[0, 0, NEWLINE, NEWLINE], *grid(GRID, GRID)]


def test_a_patch_taken_for_a_class_token_is_noticed():
    model = siglip_qwen2()
    model.config.vision_feature_select_strategy = "default"
    with pytest.raises(ValueError, match=r'gives 35 tokens for 6 x 6 patches.*"full"'):
        Llava().encode(model, "image", make_inputs(Row(1, 2)))


def test_slots_are_the_placeholders(model):
    inputs = make_inputs(Row(2, 3), Row(0, 1))
    assert find_family(model).slots(model, "image", inputs["input_ids"]).sum(1).tolist() == [2 * GRID * GRID, 0]


def test_a_subclass_belongs_to_the_family_of_its_parent():
    class Mine(LlavaForConditionalGeneration):
        pass

    assert type(find_family(Mine(clip_llama().config))) is Llava


def test_other_models_are_refused_with_what_is_supported():
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = LlamaForCausalLM(LlamaConfig(vocab_size=8, **small))
    with pytest.raises(ValueError, match="has no vision tower"):
        find_family(text)
    clip = CLIPModel(
        CLIPConfig(text_config=small | {"vocab_size": 8}, vision_config=small | {"image_size": 28, "patch_size": 14})
    )
    with pytest.raises(ValueError, match="CLIPModel is not supported, it lacks a forward pass that takes mm_enc"):
        find_family(clip)
    with pytest.raises(TypeError, match="transformers model"):
        find_family(torch.nn.Linear(2, 2))


def test_a_model_with_positions_on_several_axes_needs_a_family_of_its_own():
    with torch.device("meta"):
        model = GlmOcrForConditionalGeneration(GlmOcrConfig())
    with pytest.raises(ValueError, match=r"reads image_grid_thw and positions that follow the text's order; see"):
        find_family(model)


#: All classes that transformers loads as AutoModelForImageTextToText.
CLASSES = sorted(
    {
        name
        for names in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()
        for name in ([names] if isinstance(names, str) else names)
    }
)


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_of_transformers_is_served_or_refused(name):
    """None is accepted whose encoder needs more than it will be given."""
    kind = getattr(transformers, name)
    try:
        with torch.device("meta"):
            model = kind(kind.config_class())
    except Exception as error:
        pytest.skip(f"its default configuration makes no model: {type(error).__name__}")
    try:
        family = find_family(model)
    except ValueError as refusal:
        assert str(refusal).startswith(name) and str(refusal).endswith("see: zooprune models")
        return
    assert "mm_encoder_outputs" in inspect.signature(model.forward).parameters
    for modality in family.modalities:
        takes = inspect.signature(getattr(model.model, f"get_{modality}_features")).parameters
        given = family.arguments(modality)
        needed = [one.name for one in takes.values() if one.default is one.empty and one.kind != one.VAR_KEYWORD]
        if family.architectures:
            assert set(given) <= {*takes, *CONFIGURED}
        assert set(needed) <= set(given)
    if family.gives_tower_signals:
        assert family.attentions(model)


@pytest.mark.parametrize("adjacent", [False, True])
def test_a_class_without_a_family(adjacent):
    """Janus: tokens without places, and images that stand apart."""
    config = transformers.JanusConfig(
        vision_config={**TOWER, "image_size": 56, "patch_size": 14, "projection_dim": 32, "num_image_tokens": 16},
        text_config={**TEXT, "model_type": "llama"}, image_token_id=IMAGE,
        vq_config={"embed_dim": 8, "num_embeddings": 16, "base_channels": 32, "channel_multiplier": [1, 1]},
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.JanusForConditionalGeneration(config).eval()
    model.generation_config.pad_token_id = 0
    ids = torch.tensor([[BOS, *[IMAGE] * 16, *[20] * (not adjacent), *[IMAGE] * 16, 9, 8]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(2, 3, 56, 56)}
    options = {"max_new_tokens": 4, "do_sample": False}
    plain = model.generate(**inputs, **options)
    with prune(model, ZooPrune(keep=1.0)):
        assert torch.equal(model.generate(**inputs, **options), plain)
    with prune(model, ZooPrune(keep=5)) as session:
        model.generate(**inputs, **options)
    images = session.reports[0].images
    assert [len(image.selection) for image in images] == ([5] if adjacent else [5, 5])
    assert bool((images[0].positions[:, 2:] == NEWLINE).all())
    # Its own `generate` passes an argument in a way that transformers is about to drop.
    deprecations.messages = [message for message in deprecations.messages if "guidance_scale" not in message]


# Models that something wraps


def outputs_inside(model, wrapped, inputs):
    options = {"max_new_tokens": 4, "do_sample": False}
    with prune(model, ZooPrune(keep=3)) as session:
        alone = model.generate(**inputs, **options)
        through = wrapped.generate(**inputs, **options)
    assert len(session.reports) == 2 and torch.equal(alone, through)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_a_peft_model_is_pruned_by_what_it_wraps():
    peft = pytest.importorskip("peft")
    model, inputs = clip_llama(), make_inputs(Row(1, 2))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(TypeError, match=r"prune\(model.get_base_model\(\), ...\): calls through the PeftModel"):
        find_family(wrapped)
    outputs_inside(wrapped.get_base_model(), wrapped, inputs)


def test_a_compiled_model_is_pruned_by_what_it_wraps():
    model, inputs = clip_llama(), make_inputs(Row(1, 2))
    wrapped = torch.compile(model, backend="eager")
    with pytest.raises(TypeError, match=r"prune\(model._orig_mod, ...\): calls through the OptimizedModule"):
        find_family(wrapped)
    outputs_inside(wrapped._orig_mod, wrapped, inputs)


def test_a_parallel_model_is_pruned_by_what_it_wraps():
    model = clip_llama()
    with pytest.raises(TypeError, match=r"prune what it wraps, prune\(model.module, ...\)"):
        find_family(torch.nn.DataParallel(model))
    with pytest.raises(TypeError, match=r"got Sequential$"):
        find_family(torch.nn.Sequential(model))
