"""A wav2vec2 of a few thousand random weights that writes letters, built in milliseconds."""

import json
import string
from pathlib import Path

import torch
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC


def toy_ctc(seed: int = 0, **changes: object) -> Wav2Vec2ForCTC:
    """A wav2vec2 of width 16 whose frames are of 20 ms, in eval mode; `changes` are entries of `Wav2Vec2Config`."""
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"num_hidden_layers": 1, "conv_dim": (8,) * 7}
    sizes |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    torch.manual_seed(seed)
    config = Wav2Vec2Config(**{**sizes, "feat_extract_norm": "layer", "initializer_range": 1.0, **changes})
    return Wav2Vec2ForCTC(config).eval()


def write_toy_ctc(folder: Path, model: torch.nn.Module, do_normalize: bool = True) -> str:
    """Saves a model with a processor for the letters of LibriSpeech's models; returns the path."""
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *string.ascii_uppercase, "'"]
    model.save_pretrained(folder)
    vocabulary = Path(folder, "vocab.json")
    vocabulary.write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(folder)
    Wav2Vec2CTCTokenizer(str(vocabulary)).save_pretrained(folder)
    return str(folder)
