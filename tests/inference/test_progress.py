"""The progress over rows and hours of audio, with and without a bar."""

import pytest
from transformers.utils import logging

from hf_distil_whisper.inference.dataset import AudioProgress


def run_through(progress: AudioProgress) -> None:
    progress.update(2, 10.0)
    progress.complete(4)
    progress.update(9, 1.0)
    progress.close()


def test_rows_are_counted_once_and_never_beyond_the_last() -> None:
    progress = AudioProgress(10, "toys", initial=3)
    run_through(progress)
    assert (progress.bar.n, progress.bar.initial) == (10, 3)


def test_work_goes_on_where_progress_bars_are_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """`disable_progress_bar()` of transformers would end every evaluation."""
    monkeypatch.setattr(logging, "_tqdm_active", False)
    run_through(AudioProgress(10, "toys"))
    run_through(AudioProgress(None, "toys"))
