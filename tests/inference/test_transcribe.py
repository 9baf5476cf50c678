"""The one call: every kind of audio, in order, with the official vocabularies too."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from hf_distil_whisper.data.audio import AudioError, load_audio
from hf_distil_whisper.inference import transcribe as transcribe_module
from hf_distil_whisper.inference.sequential import transcribe_sequential
from hf_distil_whisper.inference.transcribe import transcribe
from official_models import needs_files, small_official_whisper
from talking_models import count_encoder_windows, multilingual_whisper, talking_whisper
from toy_models import toy_audio, toy_processor


def test_results_come_in_the_order_of_the_recordings() -> None:
    """Batches are sorted by length: texts that stay sorted belong to the wrong files."""
    model, processor = talking_whisper(4), toy_processor()
    audio = [toy_audio(seconds, seed=index) for index, seconds in enumerate((2, 33, 1, 30, 3))]
    alone = [transcribe(model, processor, one)[0] for one in audio]
    together = transcribe(model, processor, audio, batch_size=3)
    assert [one.text for one in together] == [one.text for one in alone]
    assert len({one.text for one in alone}) > 3


def test_audio_is_a_path_an_array_or_a_pair(tmp_path: Path) -> None:
    """The same recording must give the same text however it is handed over."""
    model, processor, audio = talking_whisper(4), toy_processor(), toy_audio(2)
    path = tmp_path / "speech.wav"
    soundfile.write(path, audio, 16_000, subtype="FLOAT")
    kinds = [path, str(path), path.read_bytes(), audio, (audio, 16_000), {"array": audio, "sampling_rate": 16_000}]
    texts = {transcribe(model, processor, kind)[0].text for kind in kinds}
    assert len(texts) == 1
    assert texts != {""}


def test_recording_of_one_window_is_short_and_of_more_is_long() -> None:
    """Exactly 30 s in the slow loop, or 30.1 s with its end cut off: both go unnoticed."""
    model = talking_whisper(4)
    count = count_encoder_windows(model)
    exact = transcribe(model, toy_processor(), toy_audio(30), return_timestamps=False)[0]
    assert (count(), exact.segments) == (1, [])
    longer = toy_audio(30.1)
    result = transcribe(model, toy_processor(), longer, return_timestamps=False)[0]
    assert result == transcribe_sequential(model, toy_processor(), longer)
    assert result.segments


def test_a_long_file_is_read_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hours of samples take 700 MB, and a list of such files all of them at once."""
    model, paths = talking_whisper(4), [tmp_path / "short.wav", tmp_path / "long.wav"]
    for path, seconds in zip(paths, (2, 40), strict=True):
        soundfile.write(path, toy_audio(seconds), 16_000)
    loaded: list[object] = []
    monkeypatch.setattr(transcribe_module, "load_audio", lambda audio: loaded.append(audio) or load_audio(audio))
    texts = [one.text for one in transcribe(model, toy_processor(), paths)]
    assert texts[1] == transcribe_sequential(model, toy_processor(), load_audio(paths[1])).text != ""
    assert loaded == paths[:1]


def test_unreadable_recording_is_named(tmp_path: Path) -> None:
    """A batch that fails without a name leaves a thousand files to search."""
    with pytest.raises(AudioError, match=r"missing\.wav"):
        transcribe(talking_whisper(), toy_processor(), [toy_audio(1), tmp_path / "missing.wav"])


def test_statistics_come_with_every_short_transcription() -> None:
    """They are what users tell hallucinations by."""
    statistics = transcribe(talking_whisper(4), toy_processor(), toy_audio(2), max_new_tokens=1)[0].statistics
    assert (statistics.num_tokens, statistics.num_windows, statistics.truncated) == (1, 1, True)
    assert statistics.mean_log_prob < 0 < statistics.no_speech_prob < 1
    assert statistics.compression_ratio > 0


def test_task_and_language_change_the_prefix() -> None:
    """`translate` that transcribes is a parsed and ignored option."""
    model = multilingual_whisper(4)
    audio = [toy_audio(2, seed=index) for index in range(6)]
    texts = {
        (language, task): [one.text for one in transcribe(model, toy_processor(), audio, language=language, task=task)]
        for language, task in (("de", "transcribe"), ("de", "translate"), ("fr", "transcribe"))
    }
    assert texts["de", "transcribe"] != texts["de", "translate"]
    assert texts["de", "transcribe"] != texts["fr", "transcribe"]


@needs_files
@pytest.mark.parametrize(("name", "language"), [("whisper-tiny.en", None), ("whisper-tiny", "german")])
def test_official_vocabulary_works(name: str, language: str | None) -> None:
    """The real generation configs hold forced ids, alignment heads and lists that no toy has."""
    model, processor = small_official_whisper(name)
    audio = [toy_audio(1), np.zeros(16_000, dtype=np.float32)]
    options = {"language": language, "max_new_tokens": 8}
    plain = transcribe(model, processor, audio, batch_size=2, **options)
    timed = transcribe(model, processor, audio, batch_size=2, return_timestamps=True, **options)
    assert [one.statistics.num_tokens for one in plain] == [8, 8]
    assert all("<|" not in one.text for one in [*plain, *timed])
    assert all(part.end <= 1.0 for one in timed for part in one.segments)
