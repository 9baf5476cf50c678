"""Early exit: the full depth is greedy search, skipped layers get the state, and counts are those of the tokens."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList, WhisperForConditionalGeneration

import early_exit_search
from early_exit import (
    EarlyExit,
    early_exit_table,
    evaluate_early_exit,
)
from early_exit_search import (
    EarlyExitSearch,
    softmax_difference,
)
from hf_distil_whisper.evaluation.evaluate import (
    EvaluationResult,
    evaluate_model,
)
from hf_distil_whisper.inference.encoder import window_features
from hf_distil_whisper.inference.generation import generate_tokens
from hf_distil_whisper.metrics import WordErrors
from talking_models import count_encoder_windows, multilingual_whisper, talking_whisper
from toy_models import toy_audio, toy_processor, toy_rows


def heard(model: WhisperForConditionalGeneration) -> Tensor:
    return window_features(model, toy_processor(), [toy_audio(2)])


def test_confidence_is_the_distance_of_the_two_likeliest() -> None:
    """Worked by hand: 0.6, 0.3 and 0.1; what is forbidden has no share."""
    scores = torch.tensor([math.log(0.3), math.log(0.6), math.log(0.1), -math.inf])
    assert softmax_difference(scores) == pytest.approx(0.3)
    assert softmax_difference(torch.tensor([1.0, 1.0])) == 0.0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [talking_whisper, multilingual_whisper])
def test_full_depth_writes_the_tokens_of_greedy_search(attention: str, make: type) -> None:
    """Relative latency and WER would be those of another model."""
    model = make(3)
    model.set_attn_implementation(attention)
    search = EarlyExitSearch(1.0)
    ours, theirs = generate_tokens(model, heard(model), search=search), generate_tokens(model, heard(model))
    assert ours == theirs
    assert len(theirs[0].tokens) > 3
    assert search.depths == [4] * (len(theirs[0].tokens) + (not theirs[0].truncated))


def test_the_first_layer_that_is_sure_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand-made confidences: above the threshold, not at it; the last layer is not asked whether it is sure."""
    told = iter([0.4, 0.9, 0.5, 0.2, 0.6, 0.5, 0.5, 0.5])
    monkeypatch.setattr(early_exit_search, "softmax_difference", lambda scores: next(told))
    model, search = talking_whisper(3, end_gain=0.0), EarlyExitSearch(0.5)
    generate_tokens(model, heard(model), search=search, max_new_tokens=3)
    assert search.depths == [2, 3, 4]


def test_skipped_layers_are_given_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """With holes in their caches, later tokens would not see earlier ones. Reference: all positions anew, no cache."""
    sure = itertools.cycle([0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    monkeypatch.setattr(early_exit_search, "softmax_difference", lambda scores: next(sure))
    model, search = talking_whisper(4, end_gain=0.0), EarlyExitSearch(0.5)
    states = torch.randn(1, 1500, model.config.d_model, generator=torch.Generator().manual_seed(1))
    prefix = torch.tensor([[model.generation_config.decoder_start_token_id, 5]])
    end = model.generation_config.eos_token_id
    sequence = search(model, states, prefix, LogitsProcessorList(), end=end, max_new_tokens=20, min_new_tokens=20)
    assert len(set(search.depths)) > 2
    depths = torch.tensor([search.depths[0], *search.depths])[:, None]  # the prefix ends where its first token does
    decoder, positions = model.get_decoder(), sequence.shape[1] - 1
    mask = torch.full((positions, positions), -math.inf).triu(1)[None, None]
    with torch.inference_mode():
        hidden = decoder.embed_tokens(sequence[:, :-1]) + decoder.embed_positions(sequence[:, :-1])
        for number, layer in enumerate(decoder.layers):
            hidden = torch.where(number < depths, layer(hidden, mask, states, use_cache=False), hidden)
        scores = model.proj_out(decoder.layer_norm(hidden))
        scores[..., end] = -math.inf
    assert scores.argmax(-1)[0, 1:].tolist() == sequence[0, 2:].tolist()


def test_a_batch_is_refused() -> None:
    model = talking_whisper()
    features = window_features(model, toy_processor(), [toy_audio(1), toy_audio(2)])
    with pytest.raises(ValueError, match="one window at a time, got a batch of 2"):
        generate_tokens(model, features, search=EarlyExitSearch(0.9))
    with pytest.raises(ValueError, match="`search` is greedy"):
        generate_tokens(model, features[:1], search=EarlyExitSearch(0.9), num_beams=2)


def test_thresholds_are_scored_and_counted() -> None:
    """The encoder runs once a recording beside the warm-up; at 1 the texts are those of the evaluation."""
    model, rows = talking_whisper(4, end_gain=1.0), toy_rows(3)
    count = count_encoder_windows(model)
    full, half, none = evaluate_early_exit(model, rows, toy_processor(), thresholds=[1.0, 0.5, 0.0])
    assert count() == 3 + 3
    expected = evaluate_model(model, rows, toy_processor())
    assert full.errors == expected.errors
    assert [row["prediction"] for row in full.result.rows] == [row["prediction"] for row in expected.rows]
    assert (full.mean_layers, none.mean_layers, full.relative_latency) == (4.0, 1.0, 1.0)
    assert 1.0 <= half.mean_layers <= 4.0
    assert all(one.seconds > 0 and one.num_tokens >= 3 for one in (full, half, none))


def test_the_full_depth_is_measured_where_it_is_not_asked_for() -> None:
    """Relative to the highest threshold of the sweep, every saving would look smaller."""
    (found,) = evaluate_early_exit(talking_whisper(3), toy_rows(1), toy_processor(), thresholds=[0.0])
    assert found.threshold == 0.0
    assert found.relative_latency == found.full_depth_seconds / found.seconds
    assert found.full_depth_seconds != found.seconds


def test_a_bad_row_costs_itself_under_every_threshold() -> None:
    rows = [
        {"id": "nan", "audio": np.full(16_000, np.nan, dtype=np.float32), "text": "a"},
        *toy_rows(1),
        {"id": "long", "audio": toy_audio(31.0), "text": "b"},
        {"id": "silent", "audio": np.zeros(16_000, dtype=np.float32), "text": ""},
        {"id": "10 ms", "audio": toy_audio(0.01), "text": "c"},
    ]
    for found in evaluate_early_exit(talking_whisper(4, end_gain=1.0), rows, toy_processor(), thresholds=[1.0, 0.5]):
        assert [name for name, _ in found.result.row_errors] == ["nan", "long"]
        assert [row["id"] for row in found.result.rows] == ["row-0", "silent", "10 ms"]
        assert found.result.empty_references == 1
    with pytest.raises(ValueError, match="No row could be read"):
        evaluate_early_exit(talking_whisper(3), rows[:1], toy_processor())


@pytest.mark.parametrize("thresholds", [[], [1.1], [0.9, -0.1], [math.nan]])
def test_thresholds_out_of_range_are_refused(thresholds: list[float]) -> None:
    """Above 1 nothing is ever skipped, and the sweep looks like a finding."""
    with pytest.raises(ValueError, match="`thresholds`: expected differences of probabilities from 0 to 1"):
        evaluate_early_exit(talking_whisper(3), toy_rows(1), toy_processor(), thresholds=thresholds)


def test_the_table_is_laid_out_as_table_20() -> None:
    errors = WordErrors(hits=97, substitutions=3)
    found = EarlyExit(0.975, 2100, 100, 22.0, EvaluationResult(errors, [], 20.0, 60.0))
    assert early_exit_table([found]).splitlines() == [
        "| Threshold | Avg. Dec Layers | Rel. Latency | WER / % | tokens |",
        "|---:|---:|---:|---:|---:|",
        "| 0.9750 | 21.0 | 1.10 | 3.0 | 100 |",
    ]


def test_without_references_there_is_no_rate_to_print() -> None:
    """0.0 % reads as without a fault."""
    found = EarlyExit(0.975, 2100, 100, 22.0, EvaluationResult(WordErrors(), [], 20.0, 60.0))
    assert early_exit_table([found]).endswith("| 0.9750 | 21.0 | 1.10 | - | 100 |")
    invented = EvaluationResult(WordErrors(hits=1, insertions=1), [], 20.0, 60.0)
    assert early_exit_table([EarlyExit(0.975, 2100, 100, 22.0, invented)]).endswith("| 100.0 | 100 |")
