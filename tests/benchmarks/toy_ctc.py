"""A wav2vec2 of a few thousand random weights that writes letters, built in milliseconds."""

import json
import string
from pathlib import Path

import torch
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)


def toy_ctc(seed: int = 0, **changes: object) -> Wav2Vec2ForCTC:
    """A wav2vec2 of width 16 whose frames are of 20 ms, in eval mode.

    Args:
        seed (`int`, *optional*, defaults to 0): of the random weights.
        changes: entries of `Wav2Vec2Config`.
    """
    settings = {
        "vocab_size": 32,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": (8,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "feat_extract_norm": "layer",
        "initializer_range": 1.0,
    }
    torch.manual_seed(seed)
    return Wav2Vec2ForCTC(Wav2Vec2Config(**{**settings, **changes})).eval()


def toy_ctc_processor(folder: Path, do_normalize: bool = True) -> Wav2Vec2Processor:
    """The letters of LibriSpeech's models; `folder` holds the vocabulary."""
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *string.ascii_uppercase, "'"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    return Wav2Vec2Processor(
        feature_extractor=Wav2Vec2FeatureExtractor(do_normalize=do_normalize),
        tokenizer=Wav2Vec2CTCTokenizer(str(folder / "vocab.json")),
    )


def write_toy_ctc(folder: Path, seed: int = 0) -> str:
    """Saves model and processor; returns the path."""
    toy_ctc(seed).save_pretrained(folder)
    toy_ctc_processor(folder).save_pretrained(folder)
    return str(folder)
