"""Loading a model: the only place of the package that calls from_pretrained.

No code from a checkpoint is run, and only safetensors weights are read (pickled ones could
run code).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    PROCESSOR_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.image_processing_utils import BaseImageProcessor

# The top-level name is a stub that raises when torchvision is absent (transformers 5.10).
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.processing_auto import processor_class_from_name
from transformers.processing_utils import ProcessorMixin

from vlmend.errors import ConfigError, ModelError
from vlmend.models.checks import cheap_checks, has_parts, require_all
from vlmend.models.decoder_classifier import decoder_as_classifier
from vlmend.models.families import FAMILIES
from vlmend.models.placement import spread_options
from vlmend.models.processors import image_text_class, take_tensors, uses_pil
from vlmend.models.sources import check_location, resolve_alias
from vlmend.models.spec import FamilySpec
from vlmend.models.vlm import Vlm

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

DTYPES: dict[str, torch.dtype | str] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_MODEL_CLASSES: tuple[tuple[Any, Any], ...] = (
    (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText),
    (MODEL_FOR_MULTIMODAL_LM_MAPPING, AutoModelForMultimodalLM),
    (MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM),
)
"""Where transformers lists models that write text about pictures, the likeliest first."""

SPREAD = "spread"
"""As a device: over all GPUs, then main memory, then the disk, as far as each goes."""


def load_vlm(
    name_or_path: str | Path,
    *,
    dtype: DtypeName = "auto",
    device: str = "cpu",
    max_memory: Mapping[int | str, int | str] | None = None,
    offload_folder: Path | None = None,
    family: FamilySpec | None = None,
) -> Vlm:
    """Load a vision-language model and prove the cheap half of its contract.

    Args:
        name_or_path: A folder that `save_pretrained` wrote, a Hugging Face model id, or
            "organism" for the model organism that comes with vlmend.
        dtype: "auto" takes the checkpoint's own.
        device: "cpu", "cuda", "cuda:1" ..., or "auto": a GPU where there is one. "spread" puts
            a model that is too large for one device on all GPUs, then into main memory, and
            leaves the rest on the disk, to be read at each pass: for audits, not for training.
        max_memory: With "spread": the most to use of each GPU (by number) and of "cpu", in bytes
            or as "20GiB"; by default what is free.
        offload_folder: With "spread": where weights that the checkpoint does not hold in this
            dtype are kept; by default a folder that is removed when the process ends.
        family: A map of your own, instead of a family file or a discovery; the whole contract
            is run on it at each load.

    Raises:
        ModelError: Unknown or incomplete model, text-only model, unsupported family, or one
            whose anatomy is not what its config or the given map says.
        ConfigError: Unknown dtype or device.
    """
    name = (
        str(Path(name_or_path).expanduser())
        if str(name_or_path).startswith("~")
        else str(name_or_path)
    )
    spread = device == SPREAD
    if not spread and (max_memory is not None or offload_folder is not None):
        raise ConfigError("max_memory and offload_folder are for device 'spread' only.")
    target = None if spread else resolve_device(device)
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}. Allowed: {', '.join(DTYPES)}.")
    source = resolve_alias(name)
    check_location(source)
    config = _load_config(source, listed=family is None)
    placed = spread_options(max_memory, offload_folder) if spread else {}
    model = _load_weights(source, config, DTYPES[dtype], **placed)
    if target is not None:
        model = model.to(target)
    processor = _load_processor(source, config)
    vlm = Vlm(model, processor, name=name, spec=_find_spec(model, processor, name, family))
    require_all(vlm, cheap_checks(vlm))
    return vlm


def _find_spec(model: Any, processor: Any, name: str, given: FamilySpec | None) -> FamilySpec:
    """The map of a known family, or one that is proven on this very model."""
    known = FAMILIES.get(model.config.model_type)
    if given is None and known is not None and has_parts(model, known):
        return known
    # Above us in the import order, hence by name: a proof hooks into the model.
    prove: Any = importlib.import_module("vlmend.hooks.prove")
    if given is not None:
        return prove.prove_given(model, processor, name, given)
    return prove.prove_spec(model, processor, name, known)


def load_parts(name_or_path: str | Path) -> tuple[Any, Any]:
    """Load a model's config and processor, without its weights.

    Args:
        name_or_path: As for `load_vlm`.

    Returns:
        (config, processor), of a supported family.

    Raises:
        ModelError: Unknown or incomplete model, text-only model, unsupported family.
    """
    source = resolve_alias(str(Path(name_or_path).expanduser()))
    check_location(source)
    config = _load_config(source)
    return config, _load_processor(source, config)


def load_sequence_classifier(name_or_path: str | Path, *, device: str = "cpu") -> tuple[Any, Any]:
    """Load a text classifier (a reward model ...) with its tokenizer, in evaluation mode.

    Args:
        name_or_path: A folder that `save_pretrained` wrote, or a Hugging Face model id.
        device: As for `load_vlm`.

    Returns:
        (model, tokenizer).

    Raises:
        ModelError: Unknown or incomplete model, one without a trained classification head, or
            one without a tokenizer.
        ConfigError: Unknown device.
    """
    name = str(Path(name_or_path).expanduser())
    target = resolve_device(device)
    check_location(name)
    model, info, tokenizer = _load_classifier(name)
    _require_complete(name, info)
    return model.to(target).eval(), tokenizer


def load_classifier_base(
    name_or_path: str | Path, *, seed: int, device: str = "cpu"
) -> tuple[Any, Any]:
    """Load what a classifier with one output can be trained from, in float32.

    A text model gets a new head; a reward model keeps the head that it has. Of a vision-language
    model its decoder is taken, see `decoder_as_classifier`.

    Args:
        name_or_path: As for `load_vlm`.
        seed: Of the new head.
        device: As for `load_vlm`.

    Returns:
        (model, tokenizer), the model in evaluation mode.

    Raises:
        ModelError: Unknown or incomplete model, a classifier with several outputs, one without a
            tokenizer, or one that transformers has no classifier for.
        ConfigError: Unknown device.
    """
    name = resolve_alias(str(Path(name_or_path).expanduser()))
    target = resolve_device(device)
    check_location(name)
    config = _read_config(name)
    if config.model_type in FAMILIES:
        model, tokenizer = decoder_as_classifier(load_vlm(name_or_path, dtype="float32"), seed=seed)
        return model.to(target).eval(), tokenizer
    is_classifier = any(
        kind.endswith("ForSequenceClassification") for kind in config.architectures or ()
    )
    if is_classifier and config.num_labels != 1:
        raise ModelError(
            f"{name!r} is a classifier with {config.num_labels} outputs, and a reward model has "
            "one. Give a language model, which gets a new head, or a reward model."
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, info, tokenizer = _load_classifier(name, dtype=torch.float32, num_labels=1)
    if not is_classifier:
        # The head is new, and so is what some models put between body and head.
        body = f"{model.base_model_prefix}."
        info["missing_keys"] = [
            key for key in info["missing_keys"] if key.startswith(body) and ".pooler." not in key
        ]
    _require_complete(name, info)
    return model.to(target).eval(), tokenizer


def load_text_model(name_or_path: str | Path, *, device: str = "cpu") -> tuple[Any, Any]:
    """Load a language model with its tokenizer, in evaluation mode and the checkpoint's dtype.

    Args:
        name_or_path: A folder that `save_pretrained` wrote, or a Hugging Face model id. May be
            an adapter (adapter_config.json), which names its base model and needs peft.
        device: As for `load_vlm`.

    Returns:
        (model, tokenizer).

    Raises:
        ModelError: Unknown or incomplete model, or one without a tokenizer.
        ConfigError: Unknown device.
    """
    return _load_judge(name_or_path, AutoModelForCausalLM, AutoTokenizer, device)


def load_image_text_model(name_or_path: str | Path, *, device: str = "cpu") -> tuple[Any, Any]:
    """Load any model that writes text about pictures, proven or not, in evaluation mode.

    For models that judge: `load_vlm` is for models that are audited, and takes proven families
    only.

    Args:
        name_or_path: A folder that `save_pretrained` wrote, or a Hugging Face model id.
        device: As for `load_vlm`.

    Returns:
        (model, processor); the tokenizer in place of a processor that needs torchvision where
        that is not installed.

    Raises:
        ModelError: Unknown or incomplete model, or one without a processor.
        ConfigError: Unknown device.
    """
    return _load_judge(name_or_path, AutoModelForImageTextToText, AutoProcessor, device)


def load_image_classifier(name_or_path: str | Path, *, device: str = "cpu") -> tuple[Any, Any]:
    """Load a model that classifies pictures, with its processor, in evaluation mode.

    Args:
        name_or_path: A folder that `save_pretrained` wrote, or a Hugging Face model id.
        device: As for `load_vlm`.

    Returns:
        (model, processor).

    Raises:
        ModelError: Unknown or incomplete model, or one without a processor.
        ConfigError: Unknown device.
    """
    model, processor = _load_judge(
        name_or_path, AutoModelForImageClassification, AutoProcessor, device
    )
    if not hasattr(processor, "image_processor"):
        raise ModelError(
            f"the image processor of {str(name_or_path)!r} needs torchvision. Install the "
            "torchvision that fits your PyTorch."
        )
    return model, processor


def _load_judge(
    name_or_path: str | Path, model_class: Any, processor_class: Any, device: str
) -> tuple[Any, Any]:
    """A model for judging with what prepares its input."""
    name = str(Path(name_or_path).expanduser())
    target = resolve_device(device)
    if not (Path(name) / "adapter_config.json").is_file():
        check_location(name)
    try:
        loaded: Any = model_class.from_pretrained(
            name,
            dtype="auto",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        processor = _load_judge_processor(name, processor_class)
    except (OSError, ValueError, RuntimeError, TypeError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"cannot load the judge model {name!r}: {_shorten(error)} Needed: config.json, "
            "complete .safetensors files and the files of its tokenizer or processor, in a folder "
            "or on the Hugging Face Hub (gated models: after `hf auth login`)."
        ) from error
    model, info = loaded
    _require_complete(name, info)
    return model.to(target).eval(), processor


def _load_judge_processor(name: str, processor_class: Any) -> Any:
    if processor_class is AutoTokenizer:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    try:
        processor = processor_class.from_pretrained(name, trust_remote_code=False)
    except ImportError:
        # Some image processors exist for torchvision only; the tokenizer still judges texts.
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if not uses_pil(processor.image_processor):
        processor.image_processor = AutoImageProcessor.from_pretrained(name, backend="pil")
    return processor


def _load_classifier(name: str, **options: Any) -> tuple[Any, dict[str, Any], Any]:
    """A text classifier, what was missing of it, and its tokenizer."""
    try:
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            name,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, TypeError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"cannot load the text classifier {name!r}: {_shorten(error)} Needed: config.json, "
            "complete .safetensors files and the tokenizer's files, in a folder or on the Hugging "
            "Face Hub (without a connection: in a folder)."
        ) from error
    model, info = loaded
    return model, dict(info), tokenizer


def resolve_device(device: str) -> torch.device:
    """The device of a name, "auto" being a GPU where there is one; ConfigError for no device."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"unknown device {device!r}. Allowed: auto, cpu, cuda, cuda:0 ...; for a model that "
            "is audited also spread."
        ) from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} was asked for, but PyTorch sees no GPU. Use 'cpu'.")
    return target


def _read_config(name: str) -> Any:
    supported = ", ".join(sorted(FAMILIES))
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        where = (
            "Its config.json cannot be used."
            if Path(name).is_dir()
            else "It is neither a folder here nor a model that could be fetched from the "
            "Hugging Face Hub (a wrong name, a gated model, or no connection: without one, "
            "download the model elsewhere and give its folder)."
        )
        raise ModelError(
            f"cannot load model {name!r}. {where} Known families: {supported}; others are "
            "discovered. "
            f"transformers says: {_shorten(error)}"
        ) from error


def _load_config(name: str, *, listed: bool = True) -> Any:
    """The config of a model that can be audited; `listed`: of a type that is known for pictures."""
    supported = ", ".join(sorted(FAMILIES))
    config = _read_config(name)
    kind = config.model_type
    known = kind in FAMILIES or type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if listed and not known:
        raise ModelError(
            f"model {name!r} has model_type {kind!r}: no vision-language model. Known families: "
            f"{supported}; others are discovered and proven when they are loaded, if transformers "
            "has them as image-text-to-text models."
        )
    decoder = config.get_text_config(decoder=True)
    if config.is_encoder_decoder or decoder.is_encoder_decoder:
        raise ModelError(
            f"model {name!r} ({kind!r}) encodes prompts apart from its answers, with "
            f"{decoder.model_type!r}; vlmend audits decoders that read both as one sequence. Take "
            "a variant of the family with such a decoder, if there is one."
        )
    return config


def _model_class(name: str, config: Any) -> Any:
    """The auto class whose list holds the model: some are not listed with those of pictures."""
    for mapping, auto_class in _MODEL_CLASSES:
        if type(config) in mapping:
            return auto_class
    raise ModelError(
        f"model {name!r} has model_type {config.model_type!r}, for which transformers "
        f"{transformers.__version__} has no class that writes text about pictures. Use a release "
        "of transformers that has one, or another model."
    )


def _load_weights(name: str, config: Any, dtype: torch.dtype | str, **placed: Any) -> Any:
    model_class = _model_class(name, config)
    try:
        loaded: Any = model_class.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **placed,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"cannot load the weights of {name!r}: {_shorten(error)} "
            "Needed: complete .safetensors files that fit config.json. Save or download again."
        ) from error
    model, info = loaded
    _require_complete(name, info)
    return model


def _require_complete(name: str, info: Any) -> None:
    wrong = {key: sorted(map(str, info[key])) for key in ("missing_keys", "mismatched_keys")}
    if any(wrong.values()):
        # transformers would go on with random numbers in their place.
        lines = "; ".join(f"{key}: {', '.join(names[:3])}" for key, names in wrong.items() if names)
        raise ModelError(
            f"the weights of {name!r} are incomplete ({lines}). Save or download the model again."
        )


def _processor_class(name: str, config: Any) -> Any:
    """The class that transformers has for the config, else the one that the checkpoint names."""
    if type(config) in PROCESSOR_MAPPING:
        return PROCESSOR_MAPPING[type(config)]
    # Some families share another one's processor, and only their checkpoints say which.
    readers = (ProcessorMixin.get_processor_dict, BaseImageProcessor.get_image_processor_dict)
    for read in readers:
        said = read(name)[0].get("processor_class")
        found = processor_class_from_name(said) if said else None
        if found is not None:
            return found
    raise ValueError(f"no processor class is known for model_type {config.model_type!r}.")


def _load_processor(name: str, config: Any) -> Any:
    try:
        processor_class = image_text_class(_processor_class(name, config))
        processor = processor_class.from_pretrained(name)
        if not uses_pil(processor.image_processor):
            processor.image_processor = AutoImageProcessor.from_pretrained(name, backend="pil")
        take_tensors(processor.image_processor)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise ModelError(
            f"cannot load the processor of {name!r}: {_shorten(error)} "
            "Needed: tokenizer, image processor and chat template beside the weights, as "
            "`processor.save_pretrained` writes them."
        ) from error
    return processor


def _shorten(error: Exception) -> str:
    """The error's text on one line, at most 300 characters."""
    text = " ".join(str(error).split()) or repr(error)
    return text if len(text) <= 300 else f"{text[:297]}..."
