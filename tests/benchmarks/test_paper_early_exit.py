"""Table 20: the full depth is greedy search, skipped layers get the state, and counts are those of the tokens."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from toy_scripts import Printed, write_texts

import early_exit
from early_exit import EarlyExit, EarlyExitRow, confidence, early_exit_table
from hf_distil_whisper import WordErrors
from hf_distil_whisper.evaluation.evaluate import EvaluationResult
from hf_distil_whisper.inference.encoder import encode, window_features
from hf_distil_whisper.inference.generation import generate_tokens
from talking_models import multilingual_whisper, talking_whisper
from toy_files import write_toy_corpus
from toy_models import toy_audio, toy_processor


def test_confidence_is_the_distance_of_the_two_likeliest() -> None:
    """Worked by hand: 0.6, 0.3 and 0.1; what is forbidden has no share."""
    scores = torch.tensor([math.log(0.3), math.log(0.6), math.log(0.1), -math.inf])
    assert confidence(scores) == pytest.approx(0.3)
    assert confidence(torch.tensor([1.0, 1.0])) == 0.0


@pytest.mark.parametrize(("attention", "make"), [("sdpa", talking_whisper), ("eager", multilingual_whisper)])
def test_full_depth_writes_the_tokens_of_greedy_search(attention: str, make: type) -> None:
    """Relative latency and WER would be those of another model."""
    model = make(3)
    model.set_attn_implementation(attention)
    features = window_features(model, toy_processor(), [toy_audio(2)])
    search = EarlyExit(model, 1.0)
    (ours,), (theirs,) = search(features), generate_tokens(model, features)
    assert ours.tokens == theirs.tokens
    assert len(theirs.tokens) > 3
    assert search.depths == [4] * (len(theirs.tokens) + (not theirs.truncated))


def test_the_first_layer_that_is_sure_decides_and_skipped_ones_get_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """With holes in their caches, later tokens would not see earlier ones. Reference: all positions anew, no cache."""
    # Above the threshold, not at it; the last layer need not be sure.
    made = itertools.cycle([0.4, 0.9, 0.5, 0.2, 0.6, 0.6, 0.5, 0.5, 0.5])
    monkeypatch.setattr(early_exit, "confidence", lambda scores: next(made))
    model = talking_whisper(4, end_gain=0.0)
    search = EarlyExit(model, 0.5)
    features = window_features(model, toy_processor(), [toy_audio(2)])
    (row,) = search(features)
    assert search.depths[:8] == [2, 3, 1, 4] * 2
    config = model.generation_config
    prefix = [config.decoder_start_token_id, config.no_timestamps_token_id]
    tokens = torch.tensor([[*prefix, *row.tokens]])
    depths = torch.tensor([search.depths[0], *search.depths[: len(row.tokens)]])[:, None]  # the prefix ends at one
    decoder, positions = model.get_decoder(), tokens.shape[1] - 1
    mask = torch.full((positions, positions), -math.inf).triu(1)[None, None]
    with torch.inference_mode():
        states = encode(model, features)
        hidden = decoder.embed_tokens(tokens[:, :-1]) + decoder.embed_positions(tokens[:, :-1])
        for number, layer in enumerate(decoder.layers):
            hidden = torch.where(number < depths, layer(hidden, mask, states, use_cache=False), hidden)
        scores = model.proj_out(decoder.layer_norm(hidden))[0, 1:]
        scores = scores + torch.stack([search.forbidden_first, *[search.forbidden] * (len(row.tokens) - 1)])
    assert scores.argmax(-1).tolist() == row.tokens


def test_the_table_is_laid_out_as_table_20() -> None:
    """0.0 % without references would read as without a fault."""
    depths = [21] * 100
    results = [EvaluationResult(errors, [], 20.0, 60.0) for errors in (WordErrors(97, 3), WordErrors())]
    rows = [EarlyExitRow(0.975, depths, 22.0, result) for result in results]
    assert early_exit_table(rows).splitlines() == [
        "| Threshold | Avg. Dec Layers | Rel. Latency | WER / % | tokens |",
        "|---:|---:|---:|---:|---:|",
        "| 0.9750 | 21.0 | 1.10 | 3.0 | 100 |",
        "| 0.9750 | 21.0 | 1.10 | - | 100 |",
    ]


def test_the_script_prints_and_writes_every_threshold(toys: Path, tmp_path: Path, printed: Printed) -> None:
    """Relative to the highest threshold that was asked for, every saving would look smaller."""
    argv = ["--model_name_or_path", toys / "teacher", "--thresholds", 0.5, 0]
    text = printed(early_exit.main, *argv, "--dataset", toys / "corpus", "--output_dir", tmp_path / "out")
    assert "2 recordings, 18 words" in text
    half, none = json.loads((tmp_path / "out" / "results.json").read_text())["thresholds"]
    assert none["num_layers"] == none["num_tokens"]
    assert half["full_depth_seconds"] == none["full_depth_seconds"] != half["seconds"]
    assert half["relative_latency"] == half["full_depth_seconds"] / half["seconds"]
    words = half["hits"] + half["substitutions"] + half["deletions"]
    assert half["wer"] == (words - half["hits"] + half["insertions"]) / words
    mute = write_texts(write_toy_corpus(tmp_path / "mute", train=1, test=1), "")
    printed(early_exit.main, *argv, "--dataset", mute, "--output_dir", tmp_path / "no")
    assert json.loads((tmp_path / "no" / "results.json").read_text())["thresholds"][0]["wer"] is None
