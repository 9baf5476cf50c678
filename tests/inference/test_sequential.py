"""Sequential long form: transformers' own text, times within the recording, an end in every case."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from hf_distil_whisper.inference import sequential
from hf_distil_whisper.inference.sequential import StuckTranscriptionError, TemperatureFallback, transcribe_sequential
from talking_models import count_encoder_windows, multilingual_whisper, talking_whisper
from toy_models import toy_audio, toy_processor


def test_text_and_times_are_those_of_transformers() -> None:
    """A different mask, padding or config would move every window after the first."""
    model, processor = talking_whisper(4), toy_processor()
    audio = np.concatenate([toy_audio(20, seed=index) for index in range(4)])
    result = transcribe_sequential(model, processor, audio)
    features = processor.feature_extractor(
        audio, sampling_rate=16_000, truncation=False, padding="longest", return_tensors="pt"
    ).input_features
    assert features.shape[-1] == 8_000
    config = copy.deepcopy(model.generation_config)
    theirs = model.generate(features, generation_config=config, return_timestamps=True, return_segments=True)
    text = processor.tokenizer.decode(theirs["sequences"][0], skip_special_tokens=True).strip()
    assert result.text == text != ""
    starts = {round(min(float(part["start"]), 80.0), 2) for part in theirs["segments"][0]}
    assert {part.start for part in result.segments} <= starts
    assert result.statistics.num_windows > 1


def test_times_stay_within_the_recording_and_in_order() -> None:
    """The last window is padded to 30 s: times in the padding are no times of the recording. Blocks change nothing."""
    model, audio = talking_whisper(2), toy_audio(33, seed=1)
    result = transcribe_sequential(model, toy_processor(), audio)
    assert transcribe_sequential(model, toy_processor(), iter(np.split(audio, [100_000, 300_000]))) == result
    times = [time for part in result.segments for time in (part.start, part.end)]
    assert times
    assert times == sorted(times)
    assert max(times) <= 33.0


def test_temperature_fallback_repeats_unlikely_windows() -> None:
    """An option that is parsed and ignored: one of the two windows is below the threshold at every temperature.

    Temperatures next to zero repeat the greedy text, whatever random numbers a release of torch draws.
    """
    fallback = TemperatureFallback(temperatures=(0.0, 1e-5, 2e-5))
    model = talking_whisper(4)
    count = count_encoder_windows(model)
    once = transcribe_sequential(model, toy_processor(), toy_audio(31))
    assert (greedy := count()) == 2
    repeated = transcribe_sequential(model, toy_processor(), toy_audio(31), temperature_fallback=fallback)
    assert (fallen := count()) - greedy == 1 + 3
    assert repeated.text == once.text
    never = replace(fallback, compression_ratio_threshold=None, logprob_threshold=-1e3)
    transcribe_sequential(model, toy_processor(), toy_audio(31), temperature_fallback=never)
    assert count() - fallen == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperatures": ()}, "at least 0"),
        ({"temperatures": (0.0, -0.2)}, "at least 0"),
        ({"logprob_threshold": None}, "logprob_threshold"),
    ],
)
def test_settings_of_a_fallback_that_cannot_work_are_refused(settings: dict, words: str) -> None:
    """Else transformers fails on the first unlikely window, with an unbound variable."""
    with pytest.raises(ValueError, match=words):
        TemperatureFallback(**settings)


def test_scores_and_settings_of_a_window_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers keeps the scores of a whole vocabulary for every token: gigabytes an hour.

    Its loop also writes lengths, thresholds and languages into the config that it is given.
    """
    segments: list[object] = []
    finish = sequential._transcription
    monkeypatch.setattr(
        sequential, "_transcription", lambda parts, *rest: segments.extend(parts) or finish(parts, *rest)
    )
    model = talking_whisper(4)
    before = model.generation_config.to_dict()
    result = transcribe_sequential(model, toy_processor(), toy_audio(40), temperature_fallback=True)
    assert model.generation_config.to_dict() == before
    assert result.statistics.num_windows > 1
    assert {type(segment["result"]) for segment in segments} == {torch.Tensor}
    assert "_retrieve_segment" not in vars(model)


def test_language_reaches_every_window_and_the_encoder_no_second_time() -> None:
    """Without its language, a multilingual model detects one and runs the encoder once more."""
    model = multilingual_whisper()
    german = model.generation_config.lang_to_id["<|de|>"]
    prefixes: list[list[int]] = []
    model.get_decoder().embed_tokens.register_forward_pre_hook(lambda _, args: prefixes.append(args[0][0].tolist()))
    transcribe_sequential(model, toy_processor(), toy_audio(32), language="German")
    assert all(row[1] == german for row in prefixes if len(row) > 1)
    assert any(len(row) > 1 for row in prefixes)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"temperature_fallback": True}])
def test_assistant_with_beams_or_fallback_is_refused(options: dict) -> None:
    """Transformers would ignore the assistant without a word."""
    model = talking_whisper()
    with pytest.raises(ValueError, match="leave out one or the other"):
        transcribe_sequential(model, toy_processor(), toy_audio(1), assistant=model, **options)


def test_model_whose_times_do_not_move_on_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A student before training can advance by 0.02 s per window: a minute of speech takes 3,000 windows."""

    def creeping(
        self: WhisperForConditionalGeneration, *args: object, monitor_progress: object, **kwargs: object
    ) -> None:
        for frame in range(100_000):
            monitor_progress(torch.tensor([[2 * frame, 6_000]]))

    monkeypatch.setattr(WhisperForConditionalGeneration, "generate", creeping)
    with pytest.raises(StuckTranscriptionError, match=r"After 70 windows .* reached 1\.4 s of 60\.0 s"):
        transcribe_sequential(talking_whisper(), toy_processor(), toy_audio(60))
