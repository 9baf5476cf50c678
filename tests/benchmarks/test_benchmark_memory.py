"""Peak memory: what is held counts, what was freed or is only mapped does not."""

import os
from pathlib import Path

import numpy as np
import pytest
from toy_scripts import MEGABYTE, Printed, fail, free, hold, read_mapped

import memory
from memory import ProcessEndedError, in_new_process, long_form_memory, pass_bytes
from talking_models import talking_whisper
from toy_files import write_toy_model


def test_allocated_memory_counts_and_freed_or_mapped_memory_does_not(tmp_path: Path) -> None:
    np.ones(100 * MEGABYTE, dtype=np.uint8).tofile(tmp_path / "file")
    least = in_new_process(hold, 0)[1]
    assert in_new_process(hold, 100)[1] - least > 99 * MEGABYTE
    assert in_new_process(free, 100)[1] - least < 16 * MEGABYTE
    assert in_new_process(read_mapped, str(tmp_path / "file"))[1] - least < 10 * MEGABYTE


def test_a_process_without_a_result_is_an_error_and_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", "mimalloc")
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    with pytest.raises(ProcessEndedError, match="fail: the process ended with 3") as error:
        in_new_process(fail)
    assert not error.value.killed
    assert os.environ["ARROW_DEFAULT_MEMORY_POOL"] == "mimalloc"
    assert "MALLOC_MMAP_THRESHOLD_" not in os.environ


def test_memory_of_a_pass_on_a_cpu_is_that_of_weights_and_one_pass() -> None:
    """Measured in a process that has run other models before, it is whatever they left behind."""
    model = talking_whisper(0, d_model=64, encoder_ffn_dim=256)
    weights = 4 * sum(weight.numel() for weight in model.parameters())
    assert weights + 1500 * 256 * 4 < pass_bytes(model, 1, num_tokens=2) < weights + 200e6


@pytest.mark.slow
def test_three_hours_take_the_memory_of_five_minutes(tmp_path: Path) -> None:
    """Decoded whole, stereo of 3 h at 44.1 kHz takes 3.8 GB before the first word."""
    model = write_toy_model(tmp_path / "toy", encoder_layers=1, decoder_layers=1)
    peaks = long_form_memory(model, minutes=(5, 180), rate=44_100)
    assert peaks[180] - peaks[5] < 30e6


def test_the_table_shows_the_memory_beyond_the_first_recording(
    monkeypatch: pytest.MonkeyPatch, printed: Printed
) -> None:
    calls, peaks = [], {5: 400_000_000, 180: 412_000_000}
    monkeypatch.setattr(memory, "long_form_memory", lambda *args, **options: calls.append(options) or peaks)
    argv = ["--model_name_or_path", "toy", "--method", "sequential", "--temperature_fallback"]
    text = printed(memory.main, *argv)
    assert "| 5 | 400 | +0 |\n| 180 | 412 | +12 |\n" in text
    assert "sequential, stereo at 44100 Hz" in text
    assert calls == [{"method": "sequential", "temperature_fallback": True, "batch_size": 4, "rate": 44_100}]
