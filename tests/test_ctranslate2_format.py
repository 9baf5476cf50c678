"""Whispers that others have converted to CTranslate2 come back as they were."""

import json
from pathlib import Path

import pytest
import torch

from hf_distil_whisper.checkpoints import load_model, load_processor, save_processor
from hf_distil_whisper.inference.ctranslate2 import convert_to_ctranslate2
from official_models import WHISPER_FILES, needs_files, official_whisper

pytest.importorskip("ctranslate2")
pytestmark = needs_files


def converted(folder: Path, name: str = "whisper-tiny.en", quantization: str = "float32"):
    """A random model with 2 encoder and 3 decoder layers, and the folder of its conversion."""
    model, processor = official_whisper(name)
    folder.mkdir()
    convert_to_ctranslate2(model, processor, folder, quantization)
    return model, folder


@pytest.mark.parametrize(
    ("name", "quantization"),
    [("whisper-tiny.en", "float32"), ("whisper-tiny", "float16"), ("whisper-tiny", "bfloat16")],
)
def test_a_converted_model_is_the_model_again(tmp_path: Path, name: str, quantization: str) -> None:
    """Keys and values exchanged, or a layer left out, give fluent text of another model."""
    model, folder = converted(tmp_path / "model", name, quantization)
    loaded, expected = load_model(folder), model.to(getattr(torch, quantization)).float()
    assert loaded.dtype == torch.float32
    for (ours, weight), (theirs, other) in zip(
        loaded.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        assert ours == theirs
        assert torch.equal(weight, other), ours
    assert loaded.proj_out.weight is loaded.model.decoder.embed_tokens.weight
    # CTranslate2 writes equal tensors once; here all biases are zeros.
    assert len({weight.data_ptr() for weight in loaded.parameters()}) == len(list(loaded.parameters()))
    features = torch.randn(1, 80, 3000)
    inputs = {"input_features": features, "decoder_input_ids": torch.tensor([[50258, 50259, 50359]])}
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, expected.eval()(**inputs).logits)
    ours, theirs = loaded.generation_config.to_dict(), model.generation_config.to_dict()
    for entry in ("is_multilingual", "lang_to_id", "suppress_tokens", "eos_token_id", "decoder_start_token_id"):
        assert ours.get(entry) == theirs.get(entry), entry
    assert load_processor(folder).tokenizer("a b").input_ids


@pytest.mark.parametrize(
    ("name", "first_merge", "timestamps"),
    [("whisper-tiny", False, False), ("whisper-tiny", False, True), ("whisper-tiny.en", True, False)],
)
def test_a_folder_with_a_tokenizer_alone_has_a_whole_processor(
    tmp_path: Path, name: str, first_merge: bool, timestamps: bool
) -> None:
    """As faster-whisper publishes them: labels would be split into tokens that the teacher never writes."""
    official = load_processor(WHISPER_FILES / name)
    content = json.loads((WHISPER_FILES / name / "tokenizer.json").read_text())
    if not first_merge:
        assert content["model"]["merges"].pop(0) in ("Ġ t", ["Ġ", "t"])
    if not timestamps:
        content["added_tokens"] = [token for token in content["added_tokens"] if token["special"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match=r"expected a folder with preprocessor_config\.json"):
        load_processor(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"suppress_ids": [1], "lang_ids": [50259]}))
    processor = load_processor(tmp_path)
    ours, theirs = processor.tokenizer, official.tokenizer
    text = "<|startoftranscript|><|notimestamps|> Over there, at ten to two.<|2.04|> Straße<|endoftext|>"
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours(text).input_ids == theirs(text).input_ids
    for skip in (False, True):
        ids = theirs(text).input_ids
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert processor.feature_extractor.to_dict() == official.feature_extractor.to_dict()
    save_processor(processor, tmp_path / "saved")
    assert load_processor(tmp_path / "saved").tokenizer(text).input_ids == ours(text).input_ids


def test_a_model_with_a_head_of_its_own_keeps_it(tmp_path: Path) -> None:
    model, processor = official_whisper()
    model.config.tie_word_embeddings = False
    model.proj_out.weight = torch.nn.Parameter(torch.randn_like(model.proj_out.weight))
    convert_to_ctranslate2(model, processor, tmp_path)
    loaded = load_model(tmp_path)
    assert torch.equal(loaded.proj_out.weight, model.proj_out.weight)
    assert not torch.equal(loaded.proj_out.weight, loaded.model.decoder.embed_tokens.weight)


def test_what_is_no_whisper_of_whole_weights_is_refused(tmp_path: Path) -> None:
    """Weights of 8 bits are others than the model's; a torn file would be half a model."""
    _, folder = converted(tmp_path / "int8", quantization="int8")
    with pytest.raises(ValueError, match=r"weights of 8 bits.*--quantization float16"):
        load_model(folder)
    content = (folder / "model.bin").read_bytes()
    for changed, found in (
        (content[: len(content) // 2], "expected a Whisper in CTranslate2's format"),
        (content.replace(b"WhisperSpec", b"Transformer", 1), "got a Transformer"),
        (b"\x09" + content[1:], "got version 9"),
        (b"", "expected a Whisper in CTranslate2's format"),
    ):
        (folder / "model.bin").write_bytes(changed)
        with pytest.raises(ValueError, match=found):
            load_model(folder)
