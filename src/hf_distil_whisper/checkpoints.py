"""Load, save, check and fingerprint Whisper checkpoints; repair of generation configs."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from whisper_normalizer.english import EnglishSpellingNormalizer

START_TOKEN = "<|startoftranscript|>"
_LIBRARY_MAX_LENGTH = 20
"""What transformers writes into a generation config without a length; it truncates transcripts."""


def load_model(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    subfolder: str = "",
    attn_implementation: str | None = None,
) -> WhisperForConditionalGeneration:
    """Loads a Whisper with its language-model head, from safetensors only.

    A folder of a LoRA adapter gives its base model with the adapter merged. A `max_length` of 20, which old versions
    of transformers left in generation configs, becomes the decoder's length.

    Args:
        name_or_path (`str` or `Path`): folder of a checkpoint or an adapter, or name of a model on the Hub.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): of the weights, whatever the file holds:
            otherwise a checkpoint in half precision would be trained in half precision.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        subfolder (`str`, *optional*, defaults to `""`): folder inside the repository that holds the checkpoint.
        attn_implementation (`str`, *optional*): "sdpa", "eager" or "flash_attention_2"; by default chosen by
            transformers.

    Returns:
        `WhisperForConditionalGeneration`: in eval mode.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if it is not a Whisper with a language-model head.
    """
    folder = Path(name_or_path, subfolder)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return _load_adapted(folder, dtype, attn_implementation)
    location = {"revision": revision, "subfolder": subfolder}
    try:
        config, _ = PreTrainedConfig.get_config_dict(str(name_or_path), **location)
    except OSError as error:
        raise _not_found(name_or_path, "config.json and model.safetensors", error) from error
    if config.get("model_type") != "whisper":
        raise ValueError(
            f"{name_or_path}: expected a Whisper checkpoint (model_type 'whisper' in config.json), got model_type "
            f"{config.get('model_type')!r}. Only Whisper models can be teacher or student."
        )
    try:
        model, report = WhisperForConditionalGeneration.from_pretrained(
            str(name_or_path),
            dtype=dtype,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
            **location,
        )
    except OSError as error:
        if (folder / "pytorch_model.bin").is_file():
            raise FileNotFoundError(
                f"{name_or_path}: expected model.safetensors, got pytorch_model.bin, a pickle, which can run code "
                'when it is read. If you trust it, convert it once: python -c "from transformers import '
                "WhisperForConditionalGeneration as Whisper; "
                f"Whisper.from_pretrained('{folder}', use_safetensors=False).save_pretrained('{folder}')\""
            ) from error
        raise _not_found(name_or_path, "model.safetensors", error) from error
    if report["missing_keys"]:
        raise ValueError(
            f"{name_or_path}: {len(report['missing_keys'])} weights are missing, {sorted(report['missing_keys'])[0]} "
            "for one; they would be random. Expected a complete WhisperForConditionalGeneration, the file holds "
            f"{', '.join(config.get('architectures') or ['an unnamed architecture'])}."
        )
    if model.generation_config.max_length == _LIBRARY_MAX_LENGTH:  # transformers#27445: transcripts would be cut
        model.generation_config.max_length = model.config.max_target_positions
    return model


def _load_adapted(
    folder: Path, dtype: torch.dtype, attn_implementation: str | None
) -> WhisperForConditionalGeneration:
    """The base model of an adapter with the adapter merged into its weights."""
    from peft import PeftModel  # costs a second, and hardly anybody has an adapter

    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{folder} is an adapter whose adapter_config.json names no base model (base_model_name_or_path). Write "
            "its folder or Hub name there, or merge the adapter with peft's `merge_and_unload` and save the result."
        )
    model = load_model(base, dtype=dtype, attn_implementation=attn_implementation)
    return PeftModel.from_pretrained(model, str(folder)).merge_and_unload().eval()


def load_processor(name_or_path: str | Path, *, revision: str | None = None, subfolder: str = "") -> WhisperProcessor:
    """Loads the feature extractor and tokenizer that lie beside a checkpoint.

    Args:
        name_or_path (`str` or `Path`): folder of a checkpoint, or name of a model on the Hub.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        subfolder (`str`, *optional*, defaults to `""`): folder inside the repository.

    Raises:
        FileNotFoundError: if the files of a processor are missing.
    """
    try:
        processor = WhisperProcessor.from_pretrained(str(name_or_path), revision=revision, subfolder=subfolder)
    except OSError as error:
        raise _not_found(name_or_path, "preprocessor_config.json and tokenizer.json", error) from error
    # OpenAI's files ask for a clean-up that transformers 5 ignores for byte-level BPE, with a warning at each start.
    # The second place is what `save_pretrained` writes: students must not inherit the warning.
    processor.tokenizer.clean_up_tokenization_spaces = False
    processor.tokenizer.init_kwargs["clean_up_tokenization_spaces"] = False
    return processor


def save_checkpoint(model: WhisperForConditionalGeneration, processor: WhisperProcessor, folder: str | Path) -> None:
    """Saves a model with every file that transformers, faster-whisper, whisper.cpp and transformers.js read.

    The weights go to safetensors in the model's dtype. The generation config is written repaired (see
    `repair_generation_config`); the model's is not changed.

    Args:
        model (`WhisperForConditionalGeneration`): the model.
        processor (`WhisperProcessor`): its feature extractor and tokenizer.
        folder (`str` or `Path`): created if it does not exist.

    Example:
        ```python
        save_checkpoint(student, processor, "distil-small")
        pipeline("automatic-speech-recognition", model="distil-small")
        ```
    """
    model.save_pretrained(str(folder))
    save_generation_config(model, folder)
    save_processor(processor, folder)


def save_generation_config(model: WhisperForConditionalGeneration, folder: str | Path) -> None:
    """Writes `generation_config.json`, repaired for the model's decoder."""
    config = model.config
    repaired = repair_generation_config(
        model.generation_config, config.decoder_layers, max_length=config.max_target_positions
    )
    repaired.save_pretrained(str(folder))


def save_processor(processor: WhisperProcessor, folder: str | Path) -> None:
    """Saves a processor with the files that `WhisperProcessor.save_pretrained` leaves out.

    These are `preprocessor_config.json` (faster-whisper), `vocab.json`, `merges.txt`, `added_tokens.json`
    (whisper.cpp's converter), `special_tokens_map.json` and `normalizer.json`, without which
    `tokenizer.normalize()` raises after loading.

    Args:
        processor (`WhisperProcessor`): the processor.
        folder (`str` or `Path`): created if it does not exist.
    """
    folder = Path(folder)
    tokenizer = processor.tokenizer
    processor.save_pretrained(str(folder))
    processor.feature_extractor.save_pretrained(str(folder))
    tokenizer.save_vocabulary(str(folder))
    _write_json(folder / "added_tokens.json", dict(sorted(tokenizer.get_added_vocab().items())))
    _write_json(folder / "special_tokens_map.json", _special_tokens(tokenizer))
    spelling = tokenizer.english_spelling_normalizer or EnglishSpellingNormalizer().mapping
    _write_json(folder / "normalizer.json", spelling)


def repair_generation_config(
    config: GenerationConfig,
    num_decoder_layers: int,
    teacher_layers: list[int] | None = None,
    max_length: int = 448,
) -> GenerationConfig:
    """Adapts a generation config to a decoder of other depth, with explicit values in place of library defaults.

    - `alignment_heads` are pairs of decoder layer and head: those of copied layers get the layer's new index, the
      others are dropped. Without `teacher_layers` they stay if the decoder has all the layers they name; otherwise
      they belong to another model and all are dropped (runtimes then fall back to their default heads).
    - `forced_decoder_ids`, which force a language and task, are cleared: `generate` refuses them.
    - `max_length` is made explicit (20 otherwise), and so is `num_beams`: the speech recognition pipeline defaults to
      5 beams, which also disables an assistant model.

    Args:
        config (`GenerationConfig`): the config to adapt; not changed.
        num_decoder_layers (`int`): layers of the decoder that the result is for.
        teacher_layers (`list[int]`, *optional*): index in the teacher of each of the student's decoder layers.
        max_length (`int`, *optional*, defaults to 448): positions of the decoder.

    Returns:
        `GenerationConfig`: a repaired copy.
    """
    repaired = copy.deepcopy(config)
    heads = config.to_dict().get("alignment_heads") or []
    if teacher_layers is not None:
        heads = [[teacher_layers.index(layer), head] for layer, head in heads if layer in teacher_layers]
    elif any(layer >= num_decoder_layers for layer, _ in heads):
        heads = []
    vars(repaired).pop("alignment_heads", None)  # runtimes take a null in the file for no heads at all
    if heads:
        repaired.alignment_heads = heads
    repaired.forced_decoder_ids = None
    if repaired.max_length in (None, _LIBRARY_MAX_LENGTH):
        repaired.max_length = max_length
    if repaired.num_beams is None:
        repaired.num_beams = 1
    return repaired


def weights_fingerprint(model: WhisperForConditionalGeneration) -> str:
    """16 hexadecimal digits over weights, dtypes and generation config: identifies the model behind cached outputs."""
    return module_fingerprint(model, settings=model.generation_config.to_json_string())


def module_fingerprint(module: nn.Module, settings: str = "") -> str:
    """Fingerprint of a part of a model, for example its encoder, and of a text that its outputs depend on."""
    digest = hashlib.sha256(settings.encode())
    for name, weight in sorted(module.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def checkpoint_fingerprint(folder: str | Path) -> str:
    """16 hexadecimal digits over a checkpoint's weights, config and generation config, without loading it.

    They differ from those of [`weights_fingerprint`].
    """
    digest = hashlib.sha256()
    for pattern in ("*.safetensors", "config.json", "generation_config.json"):
        for path in sorted(Path(folder).glob(pattern)):
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def check_compatible(
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration | None,
    processor: WhisperProcessor | None,
) -> None:
    """Checks that student, teacher and processor share vocabulary, mel bins and window length.

    Raises:
        ValueError: if they differ; says in what, and what to do.
    """
    names = {"vocab_size": "tokens", "num_mel_bins": "mel bins", "max_source_positions": "encoder positions"}
    for name, unit in names.items():
        if teacher is not None and getattr(student.config, name) != getattr(teacher.config, name):
            raise ValueError(
                f"The student has {getattr(student.config, name)} {unit}, the teacher {getattr(teacher.config, name)}:"
                f" both read the same batch, so {name} must be equal. Make the student from this teacher "
                "(create_student), or choose a teacher of the student's family."
            )
    if teacher is not None and student.config.decoder_start_token_id != teacher.config.decoder_start_token_id:
        raise ValueError(
            f"Student and teacher start a transcript with different tokens ({student.config.decoder_start_token_id} "
            f"and {teacher.config.decoder_start_token_id}): their vocabularies differ. Make the student from this "
            "teacher (create_student), or choose a teacher of the student's family."
        )
    if processor is not None:
        _check_processor(student, processor)


def _check_processor(model: WhisperForConditionalGeneration, processor: WhisperProcessor) -> None:
    config, extractor, tokenizer = model.config, processor.feature_extractor, processor.tokenizer
    hint = "Load the processor from the same checkpoint as the model."
    if extractor.feature_size != config.num_mel_bins:
        raise ValueError(
            f"The processor makes {extractor.feature_size} mel bins, the model expects {config.num_mel_bins}. {hint}"
        )
    if extractor.nb_max_frames != 2 * config.max_source_positions:
        raise ValueError(
            f"The processor makes windows of {extractor.nb_max_frames} frames, the model expects "
            f"{2 * config.max_source_positions} (2 x max_source_positions). {hint}"
        )
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"The tokenizer has {len(tokenizer)} tokens, the model only {config.vocab_size}. {hint}")
    start = tokenizer.convert_tokens_to_ids(START_TOKEN)
    if start != config.decoder_start_token_id:
        raise ValueError(
            f"{START_TOKEN} is token {start} of the tokenizer, but {config.decoder_start_token_id} of the model: "
            f"their vocabularies differ. {hint}"
        )


def _special_tokens(tokenizer: WhisperTokenizer) -> dict[str, Any]:
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    roles = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if name in names}
    others = [token for token in tokenizer.all_special_tokens if token not in roles.values()]
    return roles | {"additional_special_tokens": others}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _not_found(name_or_path: str | Path, files: str, error: OSError) -> FileNotFoundError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return FileNotFoundError(
        f"{name_or_path}: expected a folder with {files}, or the name of such a model on the Hub. {reason}"
    )
