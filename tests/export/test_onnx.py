"""ONNX graphs against transformers: names that others look for, free lengths, the same tokens, shared weights."""

import copy
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from hf_distil_whisper.export import onnx as module
from hf_distil_whisper.export.onnx import USE_CACHE_BRANCH, OnnxGenerator, cache_names, export_onnx
from hf_distil_whisper.inference.generation import generate_tokens
from talking_models import multilingual_whisper, talking_whisper, toy_windows, with_own_head
from toy_models import toy_processor

ATTENTIONS = ["cross_attentions.0", "cross_attentions.1"]
FILES = ["decoder_model", "decoder_model_merged", "decoder_with_past_model", "encoder_model"]


def student() -> WhisperForConditionalGeneration:
    """Cut in both halves, multilingual, its head its own, with attention heads for word times: one tracing."""
    model = multilingual_whisper(3)
    cut = talking_whisper(3, encoder_layers=1, decoder_layers=2)
    cut.generation_config = model.generation_config
    cut.generation_config.alignment_heads = [[1, 1]]
    return with_own_head(cut)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The student in every precision, traced once."""
    folder, model = tmp_path_factory.mktemp("onnx"), student()
    graphs = module._traced(model, with_attentions=True)
    assert model.config._attn_implementation == "sdpa"  # tracing wants another one, of a copy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", 16)  # no Whisper is as narrow as this one
        patch.setattr(module, "_traced", lambda _, with_attentions: copy.deepcopy(graphs) if with_attentions else {})
        return {
            name: export_onnx(model, toy_processor(), folder / name, quantization=name)
            for name in ("float32", "float16", "int8")
        }


@pytest.mark.parametrize("language", ["de", None])
def test_tokens_are_those_of_transformers(exports: dict[str, Path], language: str | None) -> None:
    """Swapped keys, or a position that is off by one, gives fluent text of its own."""
    model = student()
    features, options = toy_windows(model), {"max_new_tokens": 12, "language": language}
    expected = [one.tokens for one in generate_tokens(model, features, **options)]
    generator = OnnxGenerator(model, exports["float32"], **options)
    assert [one.tokens for one in generator(features)] == expected
    assert [one.tokens for one in generator(features[2:3])] == expected[2:3]
    assert len(set(map(tuple, expected))) > 1


PREFIX, TOKEN = np.array([[5, 6, 7], [8, 9, 10]]), np.array([[11], [12]])
HIDDEN = np.random.default_rng(0).standard_normal((2, 1500, 16)).astype(np.float32)


def decoded(folder: Path, end: str = "") -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Outputs for PREFIX, then for TOKEN, of the two decoders and of the merged one."""
    first, further, merged = (_session(folder / f"{name}{end}.onnx") for name in FILES[:1] + FILES[2:3] + FILES[1:2])
    prefix, hidden = {"input_ids": PREFIX}, {"encoder_hidden_states": HIDDEN}
    empty = {name: np.zeros((2, 2, 0, 8), dtype=np.float32) for name in cache_names("past_key_values", 2)}
    expected = first.run(None, prefix | hidden)
    result = merged.run(None, prefix | hidden | empty | {USE_CACHE_BRANCH: np.array([False])})
    past = dict(zip(empty, expected[1:-2], strict=True))
    token = {"input_ids": TOKEN}
    outputs = ["logits", *cache_names("present", 2, ("decoder",)), *ATTENTIONS]
    expected += further.run(outputs, token | past)
    result += merged.run(outputs, token | hidden | past | {USE_CACHE_BRANCH: np.array([True])})
    return expected, result


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_merged_decoder_computes_what_the_two_decoders_compute(exports: dict[str, Path], precision: str) -> None:
    """It is the one that transformers.js loads, and no other test runs it."""
    expected, result = decoded(exports[precision] / "onnx", module.SUFFIXES[precision])
    for ours, theirs in zip(result, expected, strict=True):
        assert np.allclose(ours, theirs, atol=1e-5)


def test_the_attentions_of_prefix_and_token_join_to_those_of_the_model(exports: dict[str, Path]) -> None:
    """Word timestamps of transformers.js are read from these, joined along the tokens."""
    _, result = decoded(exports["float32"] / "onnx")
    of_prefix, of_token = result[1 + len(cache_names("present", 2)) :][:2], result[-2:]
    model = student()
    model.set_attn_implementation("eager")
    tokens, states = torch.from_numpy(np.concatenate([PREFIX, TOKEN], axis=1)), torch.from_numpy(HIDDEN)
    with torch.no_grad():
        attentions = model.get_decoder()(tokens, encoder_hidden_states=states, output_attentions=True).cross_attentions
    for *ours, theirs in zip(of_prefix, of_token, attentions, strict=True):
        assert np.allclose(np.concatenate(ours, axis=2), theirs.numpy(), atol=1e-5)


@pytest.mark.parametrize(("precision", "bound"), [("float16", 0.03), ("int8", 0.3)])
def test_smaller_weights_give_nearly_the_same_numbers(exports: dict[str, Path], precision: str, bound: float) -> None:
    states, logits = [], []
    for name in ("float32", precision):
        folder, end = exports[name] / "onnx", module.SUFFIXES[name]
        encoder, decoder = (_session(folder / f"{graph}{end}.onnx") for graph in ("encoder_model", "decoder_model"))
        states += encoder.run(None, {"input_features": toy_windows(student(), 2).numpy()})
        inputs = {"input_ids": np.full((2, 3), 7), "encoder_hidden_states": states[0]}
        logits += decoder.run(["logits"], inputs)
    for exact, rounded in (states, logits):
        assert np.abs(exact - rounded).mean() < bound * exact.std()
        assert np.abs(exact - rounded).max() > 0
    whole, small = (_bytes(exports[name] / "onnx") for name in ("float32", precision))
    assert small < 0.75 * whole


def test_an_export_leaves_the_logging_of_the_process_as_it_was(tmp_path: Path) -> None:
    """The quantiser sets up the root logger when it is imported, which would print every library's messages."""
    code = (
        "import logging; from talking_models import talking_whisper; from toy_models import toy_processor;"
        "from hf_distil_whisper.export.onnx import export_onnx;"
        "before = (logging.root.level, list(logging.root.handlers), logging.root.manager.disable);"
        f"export_onnx(talking_whisper(3), toy_processor(), {str(tmp_path / 'out')!r}, quantization='int8');"
        "assert (logging.root.level, logging.root.handlers, logging.root.manager.disable) == before"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip()


def _session(file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def _bytes(folder: Path) -> int:
    """Of weights: what else is in the graphs of a toy outweighs them."""
    graphs = [onnx.load(file).graph for file in folder.iterdir()]
    return sum(len(weight.raw_data) for graph in graphs for weight in graph.initializer)


def test_layout_and_names_are_those_of_transformers_js(exports: dict[str, Path]) -> None:
    """It looks for them by name and says only that a file or an input is missing."""
    top = {file.name for file in exports["float32"].iterdir()}
    assert {"config.json", "generation_config.json", "preprocessor_config.json", "onnx"} <= top
    assert {"tokenizer.json", "tokenizer_config.json"} <= top
    assert not {name for name in top if name.endswith((".safetensors", ".bin"))}
    config = json.loads((exports["float32"] / "config.json").read_text())
    assert (config["decoder_layers"], config["architectures"]) == (2, ["WhisperForConditionalGeneration"])
    assert json.loads((exports["float32"] / "generation_config.json").read_text())["alignment_heads"] == [[1, 1]]
    for precision, suffix in (("float32", ""), ("float16", "_fp16"), ("int8", "_quantized")):
        names = sorted(file.name for file in (exports[precision] / "onnx").iterdir())
        assert names == sorted(f"{name}{suffix}.onnx" for name in FILES)
        sessions = {name: _session(exports[precision] / "onnx" / f"{name}{suffix}.onnx") for name in FILES}
        inputs = {name: [value.name for value in session.get_inputs()] for name, session in sessions.items()}
        outputs = {name: [value.name for value in session.get_outputs()] for name, session in sessions.items()}
        past, present = cache_names("past_key_values", 2), cache_names("present", 2)
        assert inputs["encoder_model"] == ["input_features"]
        assert outputs["encoder_model"] == ["last_hidden_state"]
        assert inputs["decoder_model"] == ["input_ids", "encoder_hidden_states"]
        assert outputs["decoder_model"] == outputs["decoder_model_merged"] == ["logits", *present, *ATTENTIONS]
        assert inputs["decoder_with_past_model"] == ["input_ids", *past]
        assert outputs["decoder_with_past_model"] == [
            "logits", *cache_names("present", 2, ("decoder",)), *ATTENTIONS
        ]  # fmt: skip
        merged_inputs = {"input_ids", "encoder_hidden_states", *past, USE_CACHE_BRANCH}
        assert sorted(inputs["decoder_model_merged"]) == sorted(merged_inputs)
        values = [value for one in sessions.values() for value in (*one.get_inputs(), *one.get_outputs())]
        assert {value.type for value in values} == {"tensor(float)", "tensor(int64)", "tensor(bool)"}


def test_a_merged_decoder_holds_every_weight_once(exports: dict[str, Path]) -> None:
    """Two copies would double what a browser has to load."""
    files = [exports["float32"] / "onnx" / f"{name}.onnx" for name in ("decoder_model", "decoder_model_merged")]
    single, merged = (onnx.load(file).graph for file in files)
    counts = Counter(weight.raw_data for weight in merged.initializer if len(weight.raw_data) > 100)
    assert max(counts.values()) == 1
    sizes = [sum(len(weight.raw_data) for weight in graph.initializer) for graph in (single, merged)]
    assert sizes[1] < 1.02 * sizes[0]


def test_graphs_do_not_tell_where_they_were_made(exports: dict[str, Path]) -> None:
    """The exporter writes the source line of every node, with its path, into the file."""
    for file in (exports["float32"] / "onnx").iterdir():
        assert b"site-packages" not in file.read_bytes()
        assert b"modeling_whisper" not in file.read_bytes()


def test_weights_beyond_a_files_limit_lie_beside_it(
    exports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protobuf ends at 2 GiB: large-v3's decoder has more."""
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1000)
    module._save(onnx.load(exports["float32"] / "onnx" / "encoder_model.onnx"), tmp_path / "encoder_model.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["encoder_model.onnx", "encoder_model.onnx_data"]
    assert _session(tmp_path / "encoder_model.onnx").get_inputs()[0].name == "input_features"


def test_a_folder_without_graphs_and_word_times_without_heads_are_refused(tmp_path: Path) -> None:
    """Heads of a layer that the student lacks end transformers.js at the first word."""
    model = student()
    model.generation_config.alignment_heads = [[3, 1]]
    with pytest.raises(ValueError, match=r"`alignment_heads` holds \[3, 1\]"):
        export_onnx(model, toy_processor(), tmp_path / "export", word_timestamps=True)
    with pytest.raises(FileNotFoundError, match=r"`folder`: .*onnx holds 0 files encoder_model\*.onnx"):
        OnnxGenerator(student(), tmp_path)
