"""Whispers that others have converted to CTranslate2 come back as they were."""

from pathlib import Path

import pytest
import torch

from hf_distil_whisper.checkpoints import load_model, load_processor
from hf_distil_whisper.inference.ctranslate2 import convert_to_ctranslate2
from official_models import needs_files, official_whisper

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
    features = torch.randn(1, 80, 3000)
    inputs = {"input_features": features, "decoder_input_ids": torch.tensor([[50258, 50259, 50359]])}
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, expected.eval()(**inputs).logits)
    ours, theirs = loaded.generation_config.to_dict(), model.generation_config.to_dict()
    for entry in ("is_multilingual", "lang_to_id", "suppress_tokens", "eos_token_id", "decoder_start_token_id"):
        assert ours.get(entry) == theirs.get(entry), entry
    assert load_processor(folder).tokenizer("a b").input_ids


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
