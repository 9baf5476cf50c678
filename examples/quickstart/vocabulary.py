"""A small English-only Whisper processor: byte-level BPE, all of Whisper's special and timestamp tokens."""

import json
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    *[f"<|{code}|>" for code in LANGUAGES],
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
]
"""In OpenAI's order: a language's id is that of `<|startoftranscript|>` + 1 + its index."""


def build_processor(texts: Iterable[str], vocab_size: int = 1536) -> WhisperProcessor:
    """Trains a byte-level BPE on `texts` and puts Whisper's special and timestamp tokens behind it.

    Args:
        texts (`Iterable[str]`): sentences to count pairs of bytes in.
        vocab_size (`int`, *optional*, defaults to 1536): tokens before the special ones, at least 256.

    Returns:
        `WhisperProcessor`: 80 mel bins, windows of 30 s.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    vocab = dict(bpe.get_vocab())
    for token in SPECIAL_TOKENS:
        vocab[token] = len(vocab)
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    tokenizer = WhisperTokenizer(vocab=vocab, merges=merges, pad_token="<|endoftext|>", extra_special_tokens=special)
    tokenizer.add_tokens(
        [AddedToken(f"<|{0.02 * step:.2f}|>", special=False, normalized=False) for step in range(1501)]
    )
    return WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer)


def generation_config(tokenizer: WhisperTokenizer, max_length: int = 448) -> GenerationConfig:
    """What `generate` needs to know of an English-only Whisper with this vocabulary."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    return GenerationConfig(
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"],
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        begin_suppress_tokens=None,  # Whisper's forbids a blank, which is the first token of many sentences here
        suppress_tokens=[ids[token] for token in SPECIAL_TOKENS[1:-1]],
        is_multilingual=False,
        max_initial_timestamp_index=50,
        max_length=max_length,
    )
