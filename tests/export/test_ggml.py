"""Export for whisper.cpp: the tokens of transformers, blocks of ggml's quantiser, models that it cannot run."""

import ctypes
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_distil_whisper.export.ggml import (
    GGML_FILE,
    GgmlGenerator,
    check_whisper_cpp,
    export_ggml,
    pack_q5_0,
    pack_q8_0,
)
from hf_distil_whisper.inference.encoder import encode, window_features
from hf_distil_whisper.inference.generation import generate_tokens
from hf_distil_whisper.inference.prompt import decoder_prefix, detect_languages, is_multilingual
from official_models import needs_files, official_whisper
from toy_models import toy_audio, toy_processor, toy_whisper

RECORDINGS = [toy_audio(2 + row, seed=row) for row in range(3)]


@needs_files
@pytest.mark.parametrize(("name", "language"), [(".en", None), ("", "de"), ("", None)])
@pytest.mark.parametrize("quantization", ["float16", "q8_0"])
def test_the_runtime_writes_the_tokens_of_transformers(
    name: str, language: str | None, quantization: str, tmp_path: Path
) -> None:
    """A swapped name or a turned matrix loads without a word; so does a mel filter of the other layout.

    Between two equally likely tokens rounding decides: where the runtime's is another one, it has to be as likely.
    """
    model, processor = official_whisper(f"whisper-tiny{name}")
    export_ggml(model, processor, tmp_path / "export", quantization=quantization)
    features = window_features(model, processor, RECORDINGS)
    expected = [one.tokens for one in generate_tokens(model, features, max_new_tokens=8, language=language)]
    generator = GgmlGenerator(model, tmp_path / "export", max_new_tokens=8, language=language)
    from_features = [one.tokens for one in generator(features)]
    from_samples = [generator._search(samples, language).tokens for samples in RECORDINGS]
    for result in (from_features, from_samples):
        same = np.array(result) == np.array(expected)
        assert same.mean() >= 0.8
        assert max(behind(model, features, result, language)) < 0.1  # of logits that reach from -2 to 2
    assert len({token for tokens in expected for token in tokens}) > 2


def behind(model, features: torch.Tensor, tokens: list[list[int]], language: str | None) -> list[float]:
    """How far the logits of tokens lie behind the largest of their position, in transformers."""
    codes = [language] * len(tokens)
    if language is None and is_multilingual(model):
        codes = [one.code for one in detect_languages(model, encode(model, features))]
    prefixes = [decoder_prefix(model, code, "transcribe", False) for code in codes]
    inputs = torch.tensor([prefix + row for prefix, row in zip(prefixes, tokens, strict=True)])
    with torch.no_grad():
        logits = model(input_features=features, decoder_input_ids=inputs).logits[:, len(prefixes[0]) - 1 : -1]
    rules = model.generation_config
    logits[..., [*rules.suppress_tokens, *range(rules.no_timestamps_token_id, logits.shape[-1])]] = float("-inf")
    logits[:, 0, rules.begin_suppress_tokens] = float("-inf")
    chosen = logits.gather(2, torch.tensor(tokens)[..., None])[..., 0]
    return (logits.amax(dim=2) - chosen).flatten().tolist()


@needs_files
def test_sizes_follow_the_precision(tmp_path: Path) -> None:
    model, processor = official_whisper()
    sizes = [
        (export_ggml(model, processor, tmp_path / name, quantization=name) / GGML_FILE).stat().st_size
        for name in ("float16", "q8_0", "q5_0")
    ]
    vocabulary = 1_000_000  # the words themselves, about half of it, and vectors
    matrices = 51_864 * 64
    assert sizes[0] - sizes[1] == pytest.approx(matrices * (16 - 8.5) / 8, abs=vocabulary)
    assert sizes[0] > sizes[1] > sizes[2]


def test_blocks_are_worked_out_by_hand() -> None:
    """One scale of half precision, then 32 numbers: 127 for the largest, and for 5 bits the sign of the largest."""
    weights = np.zeros((1, 32), dtype=np.float32)
    weights[0, :3] = [1.0, -0.5, 0.25]
    (block,) = pack_q8_0(weights)
    assert block[:2].view("<f2")[0] == np.float16(1 / 127)
    assert block[2:].view(np.int8)[:4].tolist() == [127, -64, 32, 0]
    (block,) = pack_q5_0(weights)
    assert block[:2].view("<f2")[0] == np.float16(-1 / 16)
    levels = (block[6:] & 15) + 16 * np.unpackbits(block[2:6], bitorder="little")[:16]
    assert levels[:4].tolist() == [0, 24, 12, 16]  # -1/16 * (level - 16): 1.0, -0.5, 0.25, 0
    zeros = np.zeros((2, 64), dtype=np.float32)
    assert [pack(zeros).shape for pack in (pack_q8_0, pack_q5_0)] == [(4, 34), (4, 22)]


@pytest.mark.parametrize(("kind", "pack", "size"), [(8, pack_q8_0, 34), (6, pack_q5_0, 22)], ids=["q8_0", "q5_0"])
def test_blocks_are_those_of_ggml(kind: int, pack, size: int) -> None:
    """The reference implementation: `ggml_quantize_chunk` of the library that reads the file."""
    spec = importlib.util.find_spec("pywhispercpp")
    libraries = sorted(Path(str(spec.origin)).parents[1].glob("pywhispercpp.libs/libggml-base*")) if spec else []
    if not libraries:
        pytest.skip("pywhispercpp brings no libggml-base here")
    library = ctypes.CDLL(str(libraries[0]))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    weights = np.random.default_rng(0).standard_normal((50, 96)).astype(np.float32)
    weights[3] = 0
    packed = np.zeros(weights.size // 32 * size, dtype=np.uint8)
    arguments = [ctypes.c_int(kind), weights.ctypes.data_as(ctypes.c_void_p), packed.ctypes.data_as(ctypes.c_void_p)]
    counts = [ctypes.c_int64(number) for number in (0, *weights.shape)]
    assert library.ggml_quantize_chunk(*arguments, *counts, None) == packed.size
    assert pack(weights).ravel().tolist() == packed.tolist()


def test_what_the_runtime_cannot_run_is_refused(tmp_path: Path) -> None:
    """It ends the process, or writes other tokens than the model was trained on."""
    model, processor = official_whisper()
    with pytest.raises(ValueError, match=r"official vocabularies.*51,864, 51,865, 51,866.*CTranslate2 or ONNX"):
        export_ggml(toy_whisper(), toy_processor(), tmp_path / "export")
    model.config.tie_word_embeddings = False
    model.proj_out = torch.nn.Linear(64, 51_864, bias=False)
    with pytest.raises(ValueError, match=r"token embedding as language-model head.*CTranslate2 or ONNX"):
        export_ggml(model, processor, tmp_path / "export")
    with pytest.raises(ValueError, match=r"expected one of float16, q8_0, q5_0, got 'float32'"):
        export_ggml(model, processor, tmp_path / "export", quantization="float32")
    official = {"vocab_size": 51_864, "eos_token_id": 50_256}
    with pytest.raises(ValueError, match="windows of 30 s"):
        check_whisper_cpp(toy_whisper(**official, max_source_positions=500))
    with pytest.raises(ValueError, match=r"4 x d_model = 64, the model has 32"):
        check_whisper_cpp(toy_whisper(**official))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_runtime_or_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = official_whisper()
    with pytest.raises(FileNotFoundError, match=r"holds no ggml-model.bin"):
        GgmlGenerator(model, tmp_path)
    (tmp_path / GGML_FILE).write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"whisper.cpp does not load .*ggml-model.bin: .*bad magic"):
        GgmlGenerator(model, tmp_path)
    monkeypatch.setitem(sys.modules, "pywhispercpp", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-distil-whisper\[ggml\]'"):
        GgmlGenerator(model, tmp_path)
