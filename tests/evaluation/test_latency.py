"""Latency: the same work for every model, in turn, after a warm-up."""

import pytest
from transformers import WhisperForConditionalGeneration

from hf_distil_whisper.evaluation import latency
from hf_distil_whisper.evaluation.latency import Latency, measure_latency
from hf_distil_whisper.inference.generation import generate_tokens
from talking_models import count_encoder_windows, talking_whisper
from talking_models import toy_windows as windows


def test_every_model_generates_the_number_asked_for() -> None:
    """A student that stops at once would be reported as very fast."""
    silent, endless = talking_whisper(end_gain=2.0), talking_whisper(end_gain=0.0)
    times = measure_latency({"silent": silent, "endless": endless}, windows(silent, 2), num_tokens=20, repeats=2)
    assert list(times) == ["silent", "endless"]
    assert [time.num_tokens for time in times.values()] == [20, 20]
    free = measure_latency({"silent": silent}, windows(silent, 2), repeats=1)
    assert free["silent"].num_tokens == 0


@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_window_is_measured_once_per_repetition_after_the_warm_up(batch_size: int) -> None:
    """A dropped last batch, or the warm-up counted in, shifts the time per window."""
    model = talking_whisper()
    inputs = windows(model, 3)
    count = count_encoder_windows(model)
    times = measure_latency({"model": model}, inputs, batch_size=batch_size, num_tokens=3, repeats=4)
    assert count() == batch_size + 4 * 3
    assert len(times["model"].seconds) == 4
    assert times["model"].batch_size == batch_size
    assert all(seconds > 0 for seconds in times["model"].seconds)


def test_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured one after the other, a machine that slows down makes the second model look slow."""
    first, second = talking_whisper(0), talking_whisper(1)
    order: list[str] = []

    def watched(model: WhisperForConditionalGeneration, *args: object, **kwargs: object) -> object:
        order.append("first" if model is first else "second")
        return generate_tokens(model, *args, **kwargs)

    monkeypatch.setattr(latency, "generate_tokens", watched)
    measure_latency({"first": first, "second": second}, windows(first, 1), num_tokens=2, repeats=2)
    assert order == ["first", "second"] * 3


def test_median_ignores_a_disturbed_repetition() -> None:
    """One pause of the machine must not halve the speed-up."""
    teacher, student = Latency([2.0, 2.0, 9.0], 1, 5.0), Latency([1.0, 8.0, 1.0], 1, 5.0)
    assert (teacher.median, student.fastest) == (2.0, 1.0)
    assert student.speedup_over(teacher) == 2.0


def test_nothing_to_measure_is_refused() -> None:
    """An empty table looks like a table that is still to come."""
    model = talking_whisper()
    with pytest.raises(ValueError, match="got 0 models, 1 windows"):
        measure_latency({}, windows(model, 1))
    with pytest.raises(ValueError, match="repeats=0"):
        measure_latency({"model": model}, windows(model, 1), repeats=0)
