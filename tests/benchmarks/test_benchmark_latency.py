"""Latency over batch sizes and attention: the same speech, true lengths, ratios within one setting."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_scripts import Printed, killed

import latency
import memory
from inputs import LoadedModel
from latency import LatencyRow, check_attention, latency_grid, latency_table, rtf_table
from talking_models import count_encoder_windows, talking_whisper
from toy_files import write_toy_model
from toy_models import toy_audio, toy_processor, toy_rows


def toy(seed: int = 0, **changes: object) -> LoadedModel:
    return LoadedModel(talking_whisper(seed, **changes), toy_processor())


def measure(rows: list[dict], loaded: LoadedModel | None = None, **options: Any) -> list[LatencyRow]:
    """One model, one token a window."""
    settings = {"batch_sizes": [1], "num_tokens": 1, "repeats": 1, "memory": False, **options}
    return latency_grid({"model": loaded or toy()}, rows, **settings)


def row(model: str, *seconds: float, **changes: Any) -> LatencyRow:
    """40 s of audio and 100 tokens."""
    settings = {"attn_implementation": "sdpa", "batch_size": 1, "timestamps": False} | changes
    counts = {"audio_seconds": 40.0, "num_recordings": 4, "num_windows": 4, "num_tokens": 100, "parameters": 2_500_000}
    return LatencyRow(model, seconds=seconds, **counts, **settings)


def test_rates_are_those_of_the_median_and_tables_are_laid_out_as_the_papers() -> None:
    """Worked by hand: 2 s for 40 s of audio; the disturbed repetition does not count."""
    one = row("student", 2.0, 9.0, 1.0)
    assert (one.median, one.rtf, one.inverse_rtf, one.tokens_per_second) == (2.0, 0.05, 20.0, 50.0)
    rows = [
        row("teacher", 4.0, relative_latency=1.0),
        row("student", 1.0, relative_latency=4.0, peak_bytes=12_000_000),
    ]
    eager = [row("teacher", 2.0, attn_implementation="eager"), row("student", 0.5, attn_implementation="eager")]
    assert rtf_table([*rows, *eager]).splitlines() == [
        "| RTF / 10⁻³ | sdpa, batch 1 | eager, batch 1 |",
        "|---|---:|---:|",
        "| teacher | 100.0 | 50.0 |",
        "| student | 25.0 | 12.5 |",
    ]
    assert latency_table(rows).splitlines()[2:] == [
        "| teacher | 2.5 | 1 | sdpa | no | 4.00 | 100.0 | 10.0 | 25 | - | 1.00 |",
        "| student | 2.5 | 1 | sdpa | no | 1.00 | 25.0 | 40.0 | 100 | 12 | 4.00 |",
    ]


def test_models_take_turns_after_a_warm_up_on_the_true_length_of_the_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding to 30 s counted as audio would make every model ten times as fast on short recordings."""
    used, timed_pass = [], latency.timed_pass

    def watched(model: Any, *args: Any, **options: Any) -> Any:
        used.append(model.config._attn_implementation)
        return timed_pass(model, *args, **options)

    monkeypatch.setattr(latency, "timed_pass", watched)
    models = {"teacher": toy(0), "student": toy(1, decoder_layers=2)}
    rows = latency_grid(
        models, toy_rows(3, seconds=2.0), teacher="teacher", batch_sizes=[1, 2],
        attn_implementations=["sdpa", "eager"], num_tokens=4, timestamps=["teacher"], repeats=2, memory=False,
    )  # fmt: skip
    assert used == ["sdpa", "sdpa", "eager", "eager"] * 3 * 2
    assert {one.audio_seconds for one in rows} == {6.0}
    assert all(len(one.seconds) == 2 and one.num_tokens == 4 * one.num_windows for one in rows)
    # Larger batches take the 6 s in a row, in one window.
    assert [(one.batch_size, one.num_windows) for one in rows] == [(1, 3)] * 4 + [(2, 1)] * 4
    assert [one.timestamps for one in rows] == [False] * 4 + [True, False] * 2
    teachers = {(one.attn_implementation, one.batch_size): one for one in rows if one.model == "teacher"}
    for one in rows:
        baseline = teachers[one.attn_implementation, one.batch_size]
        assert one.relative_latency == pytest.approx(baseline.median / one.median)
    assert models["teacher"].model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("chunked", "windows"), [(True, 3), (False, 4)])
def test_larger_batches_take_the_speech_in_a_row(chunked: bool, windows: int) -> None:
    """4 recordings of 16 s are 64 s: chunks start every 20 s, so that three of 30 s reach the end."""
    loaded = toy()
    count = count_encoder_windows(loaded.model)
    (one,) = measure(toy_rows(4, seconds=16.0), loaded, batch_sizes=[2], chunked=chunked)
    assert (one.num_windows, one.num_recordings, one.audio_seconds) == (windows, 4, 64.0)
    assert count() == 2 + windows


def test_a_long_recording_is_cut_and_a_bad_one_left_out() -> None:
    """All behind the window would be cut off, and count as audio; so would the audio of a broken file."""
    broken = {"id": "broken", "audio": np.full(16_000, np.nan, dtype=np.float32)}
    (one,) = measure([{"audio": toy_audio(40.0), "id": "long"}, broken])
    assert (one.num_recordings, one.num_windows, one.audio_seconds) == (1, 2, 40.0)
    for rows, message in (([broken], "could read none of 1"), ([], "0 rows")):
        with pytest.raises(ValueError, match=message):
            measure(rows)


def test_times_outlast_a_process_that_is_killed_for_its_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Hours of timing, and then a traceback, since a large model fits once and not twice. An error is still one."""
    monkeypatch.setattr(memory, "_pass_alone", killed)
    with caplog.at_level("WARNING", logger="hf_distil_whisper"):
        (one,) = measure(toy_rows(1), memory=True)
    assert (one.peak_bytes, len(one.seconds)) == (None, 1)
    assert "model at batch size 1: no peak memory. killed: the process ended with -9." in caplog.text
    assert "--memory false" in caplog.text

    def fail(*_: object, **__: object) -> None:
        raise memory.ProcessEndedError("ended with 1", killed=False)

    monkeypatch.setattr(latency, "pass_bytes", fail)
    with pytest.raises(RuntimeError, match="ended with 1"):
        measure(toy_rows(1), memory=True)


def test_flash_attention_names_its_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ImportError from the depth of a library names a package, not the flag."""
    with pytest.raises(ValueError, match="a CUDA GPU and float16 or bfloat16 weights"):
        check_attention(["sdpa", "flash_attention_2"], torch.device("cpu"), torch.float32)
    monkeypatch.setattr(latency, "is_flash_attn_2_available", lambda: True)
    check_attention(["flash_attention_2"], torch.device("cuda"), torch.float16)


def test_the_script_times_samples_of_every_set_and_writes_every_row(
    pair: list[str], tmp_path: Path, printed: Printed
) -> None:
    """Two models of one name would be one row: paths tell them apart."""
    sets = f"{{read: {{path: {pair[-1]}, split: train}}, spoken: {pair[-1]}}}"
    argv = [*pair[:-1], sets, "--other_models", write_toy_model(tmp_path / "student"), "--samples", 1]
    argv += ["--num_tokens", 3, "--batch_sizes", 1, 2, "--repeats", 1, "--memory", "false"]
    text = printed(latency.main, *argv, "--output_dir", tmp_path / "out")
    assert "| RTF / 10⁻³ | sdpa, batch 1 | sdpa, batch 2 |" in text
    assert "2 recordings of 2 s in all, medians of 1, float32" in text
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    names = ["teacher", f"{Path(pair[1]).parent.name}/student", f"{tmp_path.name}/student"]
    assert [one["model"] for one in rows] == names * 2
    assert all(one["num_tokens"] == 3 * one["num_windows"] for one in rows)
    assert {one["timestamps"] for one in rows if one["model"] != "teacher"} == {False}
    assert rows[1]["relative_latency"] > 0
