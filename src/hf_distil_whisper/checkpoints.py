"""Load, save, check and fingerprint Whisper checkpoints; repair of generation configs."""

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AddedToken,
    GenerationConfig,
    PreTrainedConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES
from transformers.utils import cached_file
from whisper_normalizer.english import EnglishSpellingNormalizer

from hf_distil_whisper.ctranslate2_format import load_ctranslate2

START_TOKEN = "<|startoftranscript|>"

OFFICIAL_VOCABULARIES = {51_864: 50_256, 51_865: 50_257, 51_866: 50_257}
"""Tokens of OpenAI's checkpoints (English-only, multilingual, large-v3) → id of `<|endoftext|>`."""

NUM_TIMESTAMPS = 1501
"""`<|0.00|>` to `<|30.00|>`, with which every Whisper's vocabulary ends."""

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
    """Loads a Whisper with its language-model head, from safetensors or CTranslate2's format.

    A folder of a LoRA adapter gives its base model with the adapter merged. What the generation config lacks, or old
    versions of transformers left in it, is mended, see [`complete_generation_config`].

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
    if _is_ctranslate2(config):
        file = cached_file(str(name_or_path), "model.bin", **location)
        model = load_ctranslate2(
            Path(file), config, OFFICIAL_VOCABULARIES, dtype=dtype, attn_implementation=attn_implementation
        )
        model.generation_config = complete_generation_config(model.generation_config, model.config)
        return model
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
    model.generation_config = complete_generation_config(model.generation_config, model.config)
    model.config.forced_decoder_ids = None  # old checkpoints force a language from here too
    return model


def complete_generation_config(generation_config: GenerationConfig, config: WhisperConfig) -> GenerationConfig:
    """Completes a generation config that is old, or that transformers made of `config.json` alone.

    OpenAI's vocabularies hold the special tokens in one order, so their size decides about `is_multilingual`,
    `lang_to_id`, `task_to_id`, `no_timestamps_token_id` and `prev_sot_token_id`: those that are missing are filled in.
    For another vocabulary nothing is guessed. A `max_length` of 20 becomes the decoder's length, and
    `forced_decoder_ids`, which force a language, are cleared.

    Args:
        generation_config (`GenerationConfig`): not changed.
        config (`WhisperConfig`): of the same model.

    Returns:
        `GenerationConfig`: a completed copy.
    """
    completed = copy.deepcopy(generation_config)
    if completed.max_length == _LIBRARY_MAX_LENGTH:  # transformers#27445: transcripts would be cut
        completed.max_length = config.max_target_positions
    completed.forced_decoder_ids = None
    completed._from_model_config = None  # from here on it is no longer what config.json says
    for name, value in _entries_of_vocabulary(config).items():
        if getattr(completed, name, None) is None:
            setattr(completed, name, value)
    return completed


def _entries_of_vocabulary(config: WhisperConfig) -> dict[str, Any]:
    """Entries of the generation config that an official vocabulary implies; none for other vocabularies."""
    size, end = config.vocab_size, OFFICIAL_VOCABULARIES.get(config.vocab_size)
    if end is None or config.eos_token_id != end:
        return {}
    # ... <|endoftext|> <|startoftranscript|> languages <|translate|> <|transcribe|> <|startoflm|> <|startofprev|>
    # <|nospeech|> <|notimestamps|> <|0.00|> ... <|30.00|>
    no_timestamps = size - NUM_TIMESTAMPS - 1
    entries = {
        "is_multilingual": size > 51_864,
        "no_timestamps_token_id": no_timestamps,
        "prev_sot_token_id": no_timestamps - 2,
    }
    if entries["is_multilingual"]:
        codes = list(LANGUAGES)[: no_timestamps - 5 - (end + 2)]
        entries["lang_to_id"] = {f"<|{code}|>": end + 2 + index for index, code in enumerate(codes)}
        entries["task_to_id"] = {"translate": no_timestamps - 5, "transcribe": no_timestamps - 4}
    return entries


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

    What older conversions of Whisper left out is completed: the feature extractor of a CTranslate2 folder, timestamp
    tokens, the first merge of the multilingual vocabulary, without which " there" becomes two tokens, and the padding
    token of English-only models, without which the pipeline takes no batches.

    Args:
        name_or_path (`str` or `Path`): folder of a checkpoint, or name of a model on the Hub.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        subfolder (`str`, *optional*, defaults to `""`): folder inside the repository.

    Raises:
        FileNotFoundError: if the files of a processor are missing.
    """
    location = {"revision": revision, "subfolder": subfolder}
    try:
        processor = WhisperProcessor.from_pretrained(str(name_or_path), **location)
    except OSError as error:
        try:
            config, _ = PreTrainedConfig.get_config_dict(str(name_or_path), **location)
            if not _is_ctranslate2(config):
                raise error
            tokenizer = WhisperTokenizer.from_pretrained(str(name_or_path), **location)
        except OSError:
            raise _not_found(name_or_path, "preprocessor_config.json and tokenizer.json", error) from error
        # Those of faster-whisper before large-v3 have the tokenizer alone; all these have 80 mel bins.
        processor = WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer)
    processor.tokenizer = _complete_tokenizer(processor.tokenizer)
    if processor.tokenizer.pad_token is None:  # of English-only models: the pipeline would refuse batches
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    # OpenAI's files ask for a clean-up that transformers 5 ignores for byte-level BPE, with a warning at each start.
    # The second place is what `save_pretrained` writes: students must not inherit the warning.
    processor.tokenizer.clean_up_tokenization_spaces = False
    processor.tokenizer.init_kwargs["clean_up_tokenization_spaces"] = False
    return processor


def _is_ctranslate2(config: dict[str, Any]) -> bool:
    return "model_type" not in config and bool({"lang_ids", "suppress_ids"} & config.keys())


def _complete_tokenizer(tokenizer: WhisperTokenizer) -> WhisperTokenizer:
    """The same tokenizer, or one with the first merge and the timestamps that its file lacks."""

    def known(token: str) -> bool:
        return bool(tokenizer.convert_tokens_to_ids(token) != tokenizer.unk_token_id)

    # A converter took the first line of merges.txt for a heading, which OpenAI's multilingual one does not have.
    merge_lost = known("Ġt") and tokenizer.tokenize(" t") != ["Ġt"]
    if not merge_lost and (known("<|0.00|>") or not known("<|notimestamps|>")):
        return tokenizer
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in ([["Ġ", "t"]] if merge_lost else []) + bpe["merges"]]
    added = [token for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    complete = WhisperTokenizer(
        vocab=bpe["vocab"], merges=merges, pad_token=tokenizer.eos_token,
        extra_special_tokens=[token for token in added if token.special and str(token) != tokenizer.eos_token],
    )  # fmt: skip
    complete.add_tokens([AddedToken(f"<|{0.02 * step:.2f}|>", normalized=False) for step in range(NUM_TIMESTAMPS)])
    return complete


def save_checkpoint(model: WhisperForConditionalGeneration, processor: WhisperProcessor, folder: str | Path) -> None:
    """Saves a model with every file that transformers, faster-whisper, whisper.cpp and transformers.js read.

    The weights go to safetensors in the model's dtype. The generation config is written repaired (see
    [`complete_generation_config`] and [`repair_generation_config`]); the model's is not changed.

    Args:
        model (`WhisperForConditionalGeneration`): the model.
        processor (`WhisperProcessor`): its feature extractor and tokenizer.
        folder (`str` or `Path`): created if it does not exist.

    Raises:
        ValueError: if the processor is another model's, or a checkpoint would hold another model than this one.

    Example:
        ```python
        save_checkpoint(student, processor, "distil-small")
        pipeline("automatic-speech-recognition", model="distil-small")
        ```
    """
    check_weights(model)
    check_compatible(model, None, processor)
    model.save_pretrained(str(folder))
    save_generation_config(model, folder)
    save_processor(processor, folder)


def save_generation_config(model: WhisperForConditionalGeneration, folder: str | Path) -> None:
    """Writes `generation_config.json`, repaired for the model's decoder."""
    config = model.config
    completed = complete_generation_config(model.generation_config, config)
    repaired = repair_generation_config(completed, config.decoder_layers, max_length=config.max_target_positions)
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


def weights_fingerprint(model: WhisperForConditionalGeneration, dtype: torch.dtype | None = None) -> str:
    """16 hexadecimal digits over weights, dtypes and generation config: identifies the model behind cached outputs."""
    return module_fingerprint(model, model.generation_config.to_json_string(), dtype)


def module_fingerprint(module: nn.Module, settings: str = "", dtype: torch.dtype | None = None) -> str:
    """Fingerprint of a part of a model, for example its encoder, and of a text that its outputs depend on.

    With `dtype`, of its weights in that type: a teacher in bfloat16 has the encoder of the student made from it.
    """
    digest = hashlib.sha256(settings.encode())
    for name, weight in sorted(module.state_dict().items()):
        weight = weight if dtype is None else weight.to(dtype)
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

    Every function that takes a model and its processor calls it, with that model as `student`.

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
    entries = model.generation_config.to_dict()
    ids = {START_TOKEN: config.decoder_start_token_id, **(entries.get("lang_to_id") or {})}
    ids["<|notimestamps|>"] = entries.get("no_timestamps_token_id")  # timestamps follow it: of large-v3, one id later
    for token, expected in ids.items():
        actual = tokenizer.convert_tokens_to_ids(token)
        if expected is not None and actual != expected:
            raise ValueError(
                f"{token} is token {actual} of the tokenizer, but {expected} of the model: their vocabularies differ. "
                f"{hint}"
            )
    added = tokenizer.convert_ids_to_tokens(range(tokenizer.convert_tokens_to_ids("<|notimestamps|>"), len(tokenizer)))
    added = [token for token in added[1:] if not re.fullmatch(r"<\|\d+\.\d+\|>", token)]
    if added:
        raise ValueError(
            f"The tokenizer has {len(added)} tokens behind the timestamps, {added[0]!r} for one, but every id from "
            "<|0.00|> on is a timestamp, in transformers' `generate` too: a text with them would lose them. Spell "
            "them with the vocabulary's own tokens (`tokenizer.tokenize`), as every word can be."
        )


def check_weights(model: WhisperForConditionalGeneration) -> None:
    """Checks that the weights are those that the config describes, so that a file of them is the same model.

    Raises:
        ValueError: for a wrapped model, adapters, another number of layers or tokens than the config's, or a
            language-model head of its own that the config says is the embedding.
    """
    if not isinstance(model, WhisperForConditionalGeneration):
        raise ValueError(
            f"Expected a WhisperForConditionalGeneration, got {type(model).__name__}. Merge an adapter first "
            "(`model.merge_and_unload()`); pass the module inside of a compiled or distributed one."
        )
    with torch.device("meta"):
        described = WhisperForConditionalGeneration(copy.deepcopy(model.config))
    expected, actual = (
        {name: list(weight.shape) for name, weight in one.state_dict().items()} for one in (described, model)
    )
    differing = sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))
    if any(".lora_" in name for name in differing):
        raise ValueError(
            "The model carries LoRA adapters beside its weights, which no other runtime reads. Merge them first "
            "(`LoraStudent.save_merged`, or the folder that `train --lora` wrote) and take the merged student."
        )
    if differing:
        name = differing[0]
        raise ValueError(
            f"{len(differing)} weights of the model are not those of its config: {name} has shape "
            f"{actual.get(name, 'none')}, expected {expected.get(name, 'none')}. Whoever loads it would get another "
            "model. Set the config's entry (decoder_layers, vocab_size, ...) to what the model has."
        )
    head, embedding = model.proj_out.weight, model.get_decoder().embed_tokens.weight
    if model.config.tie_word_embeddings and head is not embedding and not torch.equal(head, embedding):
        raise ValueError(
            "The language-model head differs from the token embedding, but the config's `tie_word_embeddings` is "
            "true: whoever loads it would get the embedding as its head. Set it to false."
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
