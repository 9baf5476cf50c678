"""A student keeps the chunk length that its training data ask for, and it is what long recordings are cut to."""

from pathlib import Path

import pytest
from datasets import Dataset, IterableDataset
from transformers import pipeline

from hf_distil_whisper.checkpoints import (
    load_model,
    save_checkpoint,
)
from hf_distil_whisper.data.audio import encode_flac
from hf_distil_whisper.data.dataset import SpeechDataset
from hf_distil_whisper.data.mixture import Mixture
from hf_distil_whisper.data.streaming import SpeechStream
from hf_distil_whisper.inference.chunked import (
    chunk_length_after,
    default_chunk_length,
)
from hf_distil_whisper.inference.transcribe import transcribe_chunked
from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.trainer import DistillationTrainer
from talking_models import talking_whisper
from toy_models import SENTENCES, toy_audio, toy_processor, toy_whisper
from toy_training import small_args, small_processor


def rows(seconds: list[float | None], with_audio: float = 1.0) -> Dataset:
    audio = {"bytes": encode_flac(toy_audio(with_audio)), "path": None}
    return Dataset.from_list([{"audio": audio, "text": SENTENCES[0], "duration": length} for length in seconds])


def speech(data: Dataset, mixture: Mixture | None = None) -> SpeechDataset:
    return SpeechDataset(data, toy_processor(), transcript_column="text", mixture=mixture)


@pytest.mark.parametrize(("mean", "expected"), [(7.1, 15.0), (15.0, 15.0), (15.1, 30.0), (30.0, 30.0)])
def test_the_rule_holds_both_points_of_table_23(mean: float, expected: float) -> None:
    """Distil-Whisper's mean of 7.1 s: 15 s; Whisper's windows of 30 s: 30 s."""
    assert chunk_length_after(mean) == expected


def test_mean_duration_comes_from_the_column_the_headers_or_the_first_rows() -> None:
    """A corpus whose durations are not found is taken for one of windows, and its student hallucinates."""
    assert speech(rows([2.0, 4.0, None])).mean_duration() == 3.0
    assert speech(rows([None, None], 2.0)).mean_duration() == 2.0
    assert speech(rows([1.0, 2.0], 2.0).remove_columns("duration")).mean_duration() == 2.0
    drawn = Mixture(("short", "long"), (2, 1), (3.0, 1.0))
    assert speech(rows([10.0, 10.0, 30.0]), drawn).mean_duration() == pytest.approx((3 * 10 + 30) / 4)
    streams = {name: rows([length] * 2).to_iterable_dataset() for name, length in {"a": 10.0, "b": 30.0}.items()}
    stream = SpeechStream(streams, toy_processor(), weights={"a": 1.0, "b": 3.0}, transcript_column="text")
    assert stream.mean_duration() == 25.0
    assert all(isinstance(one, IterableDataset) for one in streams.values())


@pytest.mark.parametrize(("seconds", "expected"), [(7.0, 15.0), (28.0, 30.0)])
def test_a_trained_student_carries_its_chunk_length(tmp_path: Path, seconds: float, expected: float) -> None:
    """An entry lost on the way leaves every student at 30 s, where Table 23 has 7.4 % WER in place of 4.2 %."""
    teacher = toy_whisper()
    student = create_student(teacher, decoder_layers=1)
    trainer = DistillationTrainer(
        student,
        teacher,
        small_args(tmp_path, max_steps=1, per_device_train_batch_size=1, save_strategy="steps", save_steps=1),
        train_dataset=speech(rows([seconds])),
        processing_class=toy_processor(),
    )
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        model = load_model(folder)
        assert default_chunk_length(model, toy_processor()) == expected
    assert default_chunk_length(teacher, toy_processor()) == 30.0
    save_checkpoint(model, toy_processor(), tmp_path / "again")
    assert load_model(tmp_path / "again").generation_config.chunk_length_s == expected
    recognise = pipeline("automatic-speech-recognition", model=str(tmp_path / "again"))
    assert isinstance(recognise(toy_audio(1.0), max_new_tokens=3)["text"], str)


def test_recordings_are_cut_to_the_length_of_the_model_unless_told_otherwise() -> None:
    """A default that wins over what was asked for makes a sweep of equal rows."""
    model, audio = talking_whisper(4), toy_audio(40)
    windows = {}
    for entry in (None, 15.0, 10):
        model.generation_config.chunk_length_s = entry
        windows[entry] = [
            transcribe_chunked(model, toy_processor(), audio, chunk_length=length).statistics.num_windows
            for length in (None, 30.0)
        ]
    assert windows == {None: [2, 2], 15.0: [4, 2], 10: [6, 2]}


def test_no_default_exceeds_the_window_and_no_entry_is_guessed_at() -> None:
    """A model that hears 1 s at once would be sent chunks of 30 s, cut off unheard."""
    model = toy_whisper()
    assert default_chunk_length(model, small_processor()) == 1.0
    model.generation_config.chunk_length_s = "fifteen"
    with pytest.raises(ValueError, match=r"`chunk_length_s` .* is 'fifteen'"):
        default_chunk_length(model, toy_processor())
