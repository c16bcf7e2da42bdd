"""Load a model by hub id or folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from zooprune.bundled import BUNDLED_FOLDER, load_bundled
from zooprune.families import find_family

#: The name of the model that ships with the package.
BUNDLED = "bundled"
DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(name: str, *, dtype: str = "auto", device: str = "auto") -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a vision-language model and its processor.

    Parameters
    ----------
    name : str
        "bundled", a folder, or an id on the Hugging Face hub. Weights must be safetensors, and code that comes with
        a checkpoint is never run.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        "auto" takes what the checkpoint was saved in.
    device : str
        "auto" takes a GPU where there is one; else a device of torch, such as "cpu" or "cuda:1".

    Raises
    ------
    ValueError
        If the model cannot be found or read, lacks weights, is not a supported vision-language model, needs a package
        that is not installed, or the dtype or device is not available.
    """
    check_dtype(dtype)
    target = find_device(device)
    model, processor = _load_bundled(dtype) if name == BUNDLED else _load_checkpoint(name, dtype)
    find_family(model)
    return model.to(device=target).eval(), processor


def check_dtype(dtype: str) -> None:
    """Raise a ValueError if there is no dtype of that name."""
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")


def _load_bundled(dtype: str) -> tuple[Any, ProcessorMixin]:
    model: Any
    model, processor = load_bundled()
    return (model if dtype == "auto" else model.to(dtype=DTYPES[dtype])), processor


def load_skeleton(name: str) -> PreTrainedModel:
    """Build a model without its weights, to see what kind of model it is.

    Parameters
    ----------
    name : str
        "bundled", a folder, or an id on the Hugging Face hub.

    Raises
    ------
    ValueError
        If there is no such model, or transformers knows no vision-language model of its kind.
    """
    config = _load_config(str(BUNDLED_FOLDER) if name == BUNDLED else name)
    try:
        with torch.device("meta"):
            skeleton: PreTrainedModel = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise ValueError(
            f"{name} is no vision-language model of transformers ({_reason(error)}); give one, see: zooprune models"
        ) from None
    return skeleton


def model_version(name: str) -> str:
    """Return what changes when the files of a model do, without reading the weights.

    For a model on the hub it is the commit. For a folder, and the bundled model, it is a digest of the names, sizes and
    times of change of its files: reading tens of gigabytes would take minutes, and nobody changes weights and keeps
    both size and time.

    Raises
    ------
    ValueError
        If there is no such model.
    """
    folder = BUNDLED_FOLDER if name == BUNDLED else Path(name)
    if not folder.is_dir():
        return str(_load_config(name)._commit_hash)
    found = [
        f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}"
        for file in sorted(folder.iterdir())
        if file.is_file()
    ]
    return hashlib.sha256("\n".join(found).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _load_config(name: str) -> Any:
    _check_name(name)
    try:
        # Said outright: asked for nothing, transformers would ask whoever sits at the terminal.
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        # A config of wrong types fails in as many ways as there are fields: with a KeyError, an AttributeError, or what
        # huggingface_hub's strict dataclasses raise, which is no ValueError.
        reason = _reason(error)
        raise ValueError(
            f"cannot load model {name!r} ({reason}); give {BUNDLED!r}, a folder with a checkpoint or a hub id"
        ) from None
    if getattr(config, "vision_config", None) is None:
        raise ValueError(f"{name} is a text-only model ({config.model_type}); give a vision-language model")
    return config


def _check_name(name: str) -> None:
    """Refuse what the hub would not take for an id either, and say what it looks like instead."""
    if "://" in name:
        raise ValueError(f"{name} is an address on the web; give the model's id, such as owner/name, or a folder")
    # An id of the hub has one slash at most, and does not begin with a dot.
    looks_local = name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1 or Path(name).is_file()
    if looks_local and not Path(name).is_dir():
        wrong = "is a file" if Path(name).is_file() else "does not exist"
        raise ValueError(f"the model's folder {name} {wrong}; give {BUNDLED!r}, a folder with a checkpoint or a hub id")


def _load_checkpoint(name: str, dtype: str) -> tuple[Any, ProcessorMixin]:
    _load_config(name)
    loaded: Any
    try:
        loaded = AutoModelForImageTextToText.from_pretrained(
            name, dtype=DTYPES[dtype], use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
        # The figures were measured with the Pillow image processors; what reads videos exists for torchvision alone,
        # so the backend cannot be chosen for all of the processor at once.
        processor.image_processor = AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=False)
    except ImportError as error:
        reason = _reason(error).split(". ")[0]
        raise ValueError(f"cannot load the processor of {name!r} ({reason}); install that package") from None
    except Exception as error:
        reason = _reason(error)
        raise ValueError(
            f"cannot load model {name!r} ({reason}); its files must be whole and fit config.json"
        ) from None
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        # transformers would fill these in at random and answer nonsense.
        raise ValueError(f"the checkpoint {name!r} lacks {len(missing)} weights, {missing[0]} first; download it again")
    return model, processor


def _reason(error: Exception) -> str:
    """Return in a few words what went wrong while somebody else's code read a checkpoint."""
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if first.endswith(":") and others:
        first = f"{first} {others[0]}"
    if not first or not isinstance(error, (OSError, ValueError, RuntimeError, ImportError)):
        first = f"{type(error).__name__}: {first}"
    return first.rstrip(" :.")


def find_device(device: str) -> torch.device:
    """Return the device of that name, a GPU where there is one for "auto"; a ValueError if it is not available."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}; use auto, cpu or cuda") from None
    try:
        torch.empty(0, device=chosen).cpu()
    except (RuntimeError, AssertionError):
        raise ValueError(f"torch has no device {device!r} here; use --device cpu") from None
    return chosen
