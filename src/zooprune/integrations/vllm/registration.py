"""How vLLM learns of the plug-in, and how the configuration reaches every process."""

from __future__ import annotations

import functools
import os
from typing import Any

from zooprune.integrations.vllm.configuration import KEY, VARIABLE, Pruning, RefusedError
from zooprune.integrations.vllm.kept import METHOD

_PACKAGE = "zooprune.integrations.vllm"
#: Stands before the name of an architecture whose images are pruned.
_PREFIX = "ZooPrune"
#: The models that can be served, by their names in `config.json`.
MODELS = {
    "LlavaForConditionalGeneration": f"{_PACKAGE}.llava:PrunedLlava",
    "LlavaNextForConditionalGeneration": f"{_PACKAGE}.llava_next:PrunedLlavaNext",
    "Qwen2_5_VLForConditionalGeneration": f"{_PACKAGE}.qwen_vl:PrunedQwen2_5_VL",
    "Qwen3VLForConditionalGeneration": f"{_PACKAGE}.qwen_vl:PrunedQwen3VL",
}
#: Those that place tokens on several axes.
_MROPE = ("Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration")
#: Formats in which the checkpoint's own weights pass by.
_READABLE = (
    "auto", "hf", "safetensors", "fastsafetensors", "instanttensor", "npcache", "pt", "runai_streamer", "dummy",
)  # fmt: skip


def register() -> None:
    """Make the models known to vLLM; the entry point of the group ``vllm.general_plugins``, run in every process.

    None of vLLM's models is replaced: ours have names of their own, and a server takes one only where it is configured
    to prune.
    """
    from vllm import ModelRegistry
    from vllm.config import VllmConfig
    from vllm.platforms import current_platform
    from vllm.v1.worker.worker_base import WorkerBase

    for name, where in MODELS.items():
        ModelRegistry.register_model(_PREFIX + name, where)
    VllmConfig.try_verify_and_update_config = _then_configure(VllmConfig.try_verify_and_update_config)
    setattr(WorkerBase, METHOD, _kept)
    if current_platform.is_cpu():
        _let_the_cpu_recompute_positions()


def _then_configure(inner: Any) -> Any:
    """Return vLLM's hook for models that adapt the configuration, followed by our own."""

    @functools.wraps(inner)
    def configured(self: Any) -> None:
        first = self.model_config is not None and not getattr(self.model_config, "config_updated", False)
        inner(self)
        if first:
            configure(self)

    return configured


def configure(vllm_config: Any) -> None:
    """Read and check what is asked for, and have the server take the pruned form of the model.

    Parameters
    ----------
    vllm_config : VllmConfig
        Of a whole server, in the process that makes it. What is written into the model's own configuration reaches all
        the others.

    Raises
    ------
    RefusedError
        If the configuration is not valid, or the server cannot do as it says.
    """
    from vllm.logger import init_logger

    additional = vllm_config.additional_config
    given = additional.get(KEY) if isinstance(additional, dict) else None
    variable = os.environ.get(VARIABLE)
    if given is not None and variable:
        raise RefusedError(f"zooprune: configured twice; give --additional-config or {VARIABLE}, not both")
    if given is None and not variable:
        return
    pruning = Pruning.read(given if given is not None else variable)
    model = vllm_config.model_config
    reason = _reason_against(vllm_config)
    if reason is not None:
        raise RefusedError(f"zooprune: {reason}")
    setattr(model.hf_config, KEY, pruning.as_json())
    architecture = model.architecture
    model.hf_config.architectures = [_PREFIX + architecture]
    if architecture in _MROPE:
        from zooprune.integrations.vllm.recomputing import recompute_for

        recompute_for(model.multimodal_config)
    # Below vLLM's name, which its logging is set up for.
    init_logger("vllm.zooprune").info("zooprune prunes the images of %s: %s", model.model, pruning)


def _reason_against(vllm_config: Any) -> str | None:
    model, multimodal = vllm_config.model_config, vllm_config.model_config.multimodal_config
    architecture = model.architecture
    if architecture not in MODELS:
        return f"{architecture} cannot be pruned in vLLM; it serves {', '.join(MODELS)}"
    if multimodal is None or multimodal.get_limit_per_prompt("image") == 0:
        return "the server takes no images, so there is nothing to prune; leave the configuration out"
    if getattr(model.hf_config.vision_config, "model_type", "") == "pixtral":
        return "a LLaVA with a Pixtral tower cannot be pruned in vLLM; choose one with a CLIP or SigLIP tower"
    if model.runner_type != "generate":
        return "only models that generate can be pruned; leave out --runner and --convert"
    if multimodal.enable_mm_embeds:
        return "embeddings of images come unpruned; leave out --enable-mm-embeds"
    if KEY in (multimodal.mm_processor_kwargs or {}):
        return "a server is configured by --additional-config; --mm-processor-kwargs is for requests"
    if multimodal.is_multimodal_pruning_enabled():
        return "vLLM's own pruning of videos cannot run beside it; leave out --video-pruning-rate"
    if multimodal.mm_encoder_tp_mode == "data":
        return 'the encoder cannot be spread by images; leave out --mm-encoder-tp-mode "data"'
    if vllm_config.compilation_config.cudagraph_mm_encoder:
        return "CUDA graphs of the encoder would leave pruning out; set cudagraph_mm_encoder to false"
    if vllm_config.lora_config is not None and vllm_config.lora_config.enable_tower_connector_lora:
        return "scoring reads the projector without adapters; leave out --enable-tower-connector-lora"
    if vllm_config.load_config.load_format not in _READABLE:
        return f"load format {vllm_config.load_config.load_format} does not show the projector's weights; leave it out"
    if architecture in _MROPE and vllm_config.parallel_config.pipeline_parallel_size > 1:
        return "positions are set on the first pipeline stage alone; leave out --pipeline-parallel-size"
    if architecture in _MROPE and vllm_config.speculative_config is not None:
        return "speculative decoding would read positions of tokens before they are known; leave it out"
    return None


def _kept(worker: Any, label: str) -> list[dict[str, Any]]:
    """Return what is remembered of the images of a request; a method that workers get."""
    images: list[dict[str, Any]] = worker.get_model().chooser.memory.images(label)
    return images


def _let_the_cpu_recompute_positions() -> None:
    """Do what vLLM's runner for CPUs leaves out after loading, and its runner for GPUs does."""
    from vllm.model_executor.models.interfaces import supports_multimodal_pruning
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    inner = CPUModelRunner.load_model

    @functools.wraps(inner)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        inner(self, *args, **kwargs)
        if hasattr(self.model_config.hf_config, KEY) and supports_multimodal_pruning(self.get_model()):
            self.is_multimodal_pruning_enabled = self.model_config.multimodal_config.is_multimodal_pruning_enabled()

    CPUModelRunner.load_model = load_model
