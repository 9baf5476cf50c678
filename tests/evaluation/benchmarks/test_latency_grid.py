"""Latency over batch sizes, attention and caches: the same speech, true lengths, ratios within one setting."""

import os
import signal
from typing import Any

import numpy as np
import pytest
import torch

import latency_grid as grid
import pass_memory
from hf_distil_whisper.evaluation import latency
from hf_distil_whisper.inference.generation import generate_tokens
from latency_grid import (
    check_attention,
    latency_grid,
)
from latency_rows import (
    LatencyRow,
    latency_table,
    rtf_table,
)
from pass_memory import pass_bytes
from talking_models import count_encoder_windows, talking_whisper
from toy_models import toy_audio, toy_processor, toy_rows


def row(model: str, seconds: tuple[float, ...], **changes: Any) -> LatencyRow:
    """40 s of audio and 100 tokens."""
    settings = {"attn_implementation": "sdpa", "cache": "dynamic", "batch_size": 1, "timestamps": False} | changes
    counts = {"audio_seconds": 40.0, "num_recordings": 4, "num_windows": 4, "num_tokens": 100, "parameters": 2_500_000}
    return LatencyRow(model, seconds=seconds, **counts, **settings)


def test_rates_are_those_of_the_median() -> None:
    """Worked by hand: 2 s for 40 s of audio; the disturbed repetition does not count."""
    found = row("student", (2.0, 9.0, 1.0))
    assert (found.median, found.rtf, found.inverse_rtf, found.tokens_per_second) == (2.0, 0.05, 20.0, 50.0)


def test_every_setting_is_measured_on_the_true_length_of_the_audio() -> None:
    """Padding to 30 s counted as audio would make every model ten times as fast on short recordings."""
    teacher, student = talking_whisper(0), talking_whisper(1, decoder_layers=2)
    rows = latency_grid(
        {"teacher": teacher, "student": student}, toy_rows(3, seconds=2.0), toy_processor(), teacher="teacher",
        batch_sizes=[1, 2], caches=["dynamic", "static"], attn_implementations=["sdpa", "eager"], num_tokens=4,
        timestamps=["teacher"], repeats=2, memory=False,
    )  # fmt: skip
    assert len(rows) == 2 * 2 * 2 * 2
    assert {one.audio_seconds for one in rows} == {6.0}
    assert all(len(one.seconds) == 2 and one.num_tokens == 4 * one.num_windows for one in rows)
    # Larger batches hear the 6 s in a row, in one window.
    assert [(one.batch_size, one.num_windows) for one in rows] == [(1, 3)] * 8 + [(2, 1)] * 8
    assert [one.timestamps for one in rows] == [False] * 8 + [True, False] * 4
    teachers = {(one.attn_implementation, one.cache, one.batch_size): one for one in rows if one.model == "teacher"}
    for one in rows:
        own = teachers[one.attn_implementation, one.cache, one.batch_size]
        assert one.relative_latency == pytest.approx(own.median / one.median)
    assert teacher.config._attn_implementation == "sdpa"


def test_attention_and_cache_are_those_of_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that is named and not used gives two equal columns."""
    model, used = talking_whisper(0), []

    def watched(model: Any, *args: Any, **kwargs: Any) -> Any:
        used.append((model.config._attn_implementation, kwargs["search"].keywords["static_cache"]))
        return generate_tokens(model, *args, **kwargs)

    monkeypatch.setattr(latency, "generate_tokens", watched)
    options = {"batch_sizes": [1], "attn_implementations": ["eager", "sdpa"], "caches": ["dynamic", "static"]}
    latency_grid({"model": model}, toy_rows(1), toy_processor(), num_tokens=2, repeats=1, memory=False, **options)
    assert used == [("eager", False), ("eager", True), ("sdpa", False), ("sdpa", True)] * 2


@pytest.mark.parametrize("settings", [{"caches": ["dynamic", "static"]}, {"attn_implementations": ["sdpa", "eager"]}])
def test_settings_write_equally_many_tokens_when_models_end_themselves(settings: dict) -> None:
    """A way that stops sooner is no faster way."""
    rows = latency_grid(
        {"model": talking_whisper(0)},
        toy_rows(2),
        toy_processor(),
        batch_sizes=[1],
        repeats=1,
        memory=False,
        **settings,
    )
    assert rows[0].num_tokens == rows[1].num_tokens > 0


@pytest.mark.parametrize(("chunked", "windows"), [(True, 3), (False, 4)])
def test_larger_batches_hear_the_speech_in_a_row(chunked: bool, windows: int) -> None:
    """4 recordings of 16 s are 64 s: chunks begin every 20 s, so that three of 30 s reach the end."""
    model = talking_whisper(0)
    count = count_encoder_windows(model)
    (found,) = latency_grid(
        {"model": model}, toy_rows(4, seconds=16.0), toy_processor(), batch_sizes=[2], num_tokens=1, chunked=chunked,
        repeats=1, memory=False,
    )  # fmt: skip
    assert (found.num_windows, found.num_recordings, found.audio_seconds) == (windows, 4, 64.0)
    assert count() == 2 + windows


def test_a_long_recording_is_cut_into_chunks_at_batch_size_1() -> None:
    """All behind the window would be cut off unheard, and count as audio."""
    rows = [{"audio": toy_audio(40.0)}]
    (found,) = latency_grid(
        {"model": talking_whisper(0)}, rows, toy_processor(), batch_sizes=[1], num_tokens=1, repeats=1, memory=False
    )
    assert (found.num_windows, found.audio_seconds) == (2, 40.0)


def test_a_bad_recording_costs_itself(caplog: pytest.LogCaptureFixture) -> None:
    """Its audio must not count either."""
    rows = [*toy_rows(2), {"id": "broken", "audio": np.full(16_000, np.nan, dtype=np.float32)}]
    (found,) = latency_grid(
        {"model": talking_whisper(0)}, rows, toy_processor(), batch_sizes=[1], num_tokens=1, repeats=1, memory=False
    )
    assert (found.num_recordings, found.audio_seconds) == (2, 2.0)
    with pytest.raises(ValueError, match="could read none of 1"):
        latency_grid({"model": talking_whisper(0)}, rows[2:], toy_processor())


def test_memory_on_a_cpu_is_that_of_weights_and_one_pass() -> None:
    """Measured in a process that has run other models before, it is whatever they left behind."""
    model = talking_whisper(0, d_model=64, encoder_ffn_dim=256)
    found = pass_bytes(model, 1, num_tokens=2)
    assert found is not None
    weights = 4 * sum(weight.numel() for weight in model.parameters())
    assert weights + 1500 * 256 * 4 < found < weights + 200e6


def killed(*_: object) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def test_times_outlast_a_process_that_is_killed_for_its_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Hours of timing, and then a traceback, since a large model fits once and not twice."""
    monkeypatch.setattr(pass_memory, "_taken", killed)
    with caplog.at_level("WARNING", logger="hf_distil_whisper"):
        (found,) = latency_grid(
            {"large": talking_whisper(0)}, toy_rows(1), toy_processor(), batch_sizes=[1], num_tokens=1, repeats=1
        )
    assert (found.peak_bytes, len(found.seconds)) == (None, 1)
    assert latency_table([found]).endswith("| - | - |")
    assert "large at batch size 1: no peak memory. killed: the process ended with -9." in caplog.text
    assert "`memory=False`" in caplog.text


def failing(*_: object) -> float:
    os._exit(1)


def test_an_error_in_the_process_of_the_memory_is_no_lack_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_memory, "_taken", failing)
    with pytest.raises(RuntimeError, match="failing: the process ended with 1"):
        latency_grid(
            {"large": talking_whisper(0)}, toy_rows(1), toy_processor(), batch_sizes=[1], num_tokens=1, repeats=1
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": []}, "batch_sizes=\\[\\]"),
        ({"batch_sizes": [4, 0]}, "batch_sizes=\\[4, 0\\]"),
        ({"repeats": 0}, "repeats=0"),
        ({"teacher": "techer"}, "'techer', expected one of model"),
        ({"timestamps": ["whisper"]}, "'whisper', expected one of model"),
        ({"caches": ["stattic"]}, "dynamic, static, got \\['stattic'\\]"),
        ({"attn_implementations": ["flash"]}, "sdpa, eager, flash_attention_2, got \\['flash'\\]"),
        ({"attn_implementations": []}, "got none"),
        ({"attn_implementations": ["flash_attention_2"], "caches": ["static"]}, "no place for a static cache"),
        ({"num_tokens": 500}, "`max_new_tokens` is 500"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(options: dict, message: str) -> None:
    """Found out at the third batch size, hours would be lost."""
    with pytest.raises(ValueError, match=message):
        latency_grid({"model": talking_whisper(0)}, toy_rows(1), toy_processor(), **options)
    with pytest.raises(ValueError, match="0 rows"):
        latency_grid({"model": talking_whisper(0)}, [], toy_processor())


def test_flash_attention_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ImportError from the depth of a library names a package, not the flag."""
    with pytest.raises(ValueError, match="a CUDA GPU and float16 or bfloat16 weights"):
        check_attention(["sdpa", "flash_attention_2"], torch.device("cpu"), torch.float32)
    monkeypatch.setattr(grid, "is_flash_attn_2_available", lambda: True)
    check_attention(["flash_attention_2"], torch.device("cuda"), torch.float16)


def test_tables_are_laid_out_as_the_papers() -> None:
    found = [
        row("teacher", (4.0,), relative_latency=1.0),
        row("student", (1.0,), relative_latency=4.0, peak_bytes=12_000_000),
        row("teacher", (2.0,), cache="static"),
        row("student", (0.5,), cache="static"),
    ]
    assert rtf_table(found).splitlines() == [
        "| RTF / 10⁻³ | sdpa, batch 1 | sdpa, static cache, batch 1 |",
        "|---|---:|---:|",
        "| teacher | 100.0 | 50.0 |",
        "| student | 25.0 | 12.5 |",
    ]
    assert latency_table(found).splitlines()[2:4] == [
        "| teacher | 2.5 | 1 | sdpa | dynamic | no | 4.00 | 100.0 | 10.0 | 25 | - | 1.00 |",
        "| student | 2.5 | 1 | sdpa | dynamic | no | 1.00 | 25.0 | 40.0 | 100 | 12 | 4.00 |",
    ]
