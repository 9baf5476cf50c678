"""Log-mel features without the silence behind the recordings: those of Whisper's extractor."""

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from hf_distil_whisper.data.array_store import content_key
from hf_distil_whisper.data.audio import SAMPLING_RATE
from hf_distil_whisper.data.features import log_mel, recording_features, recording_key
from memory import in_new_process
from toy_models import toy_audio


@pytest.mark.parametrize("mel_bins", [80, 128])
@pytest.mark.parametrize("seconds", [[0.0], [1 / 16_000], [0.3, 4.0, 2.51], [29.93], [29.96, 30.0], [30.0], [31.0]])
def test_features_are_those_of_the_extractor_for_any_length(seconds: list[float], mel_bins: int):
    """The last frames reach into silence, and a signal's end is mirrored: half a frame too little, and they differ."""
    extractor = WhisperFeatureExtractor(feature_size=mel_bins)
    recordings = [toy_audio(length, seed=number) for number, length in enumerate(seconds)]
    expected = extractor(recordings, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
    torch.testing.assert_close(log_mel(extractor, recordings), expected, rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):  # a training with --bf16 on a CPU reads its rows within it
        torch.testing.assert_close(log_mel(extractor, recordings), expected, rtol=0, atol=1e-5)


def test_silence_is_silence_and_other_windows_have_their_frames():
    """Of nothing but zeros the largest value is that of silence itself; not all models take windows of 30 s."""
    extractor, silence = WhisperFeatureExtractor(chunk_length=6), [np.zeros(SAMPLING_RATE, np.float32)]
    expected = extractor(silence, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
    assert expected.shape == (1, 80, 600)
    assert torch.equal(log_mel(extractor, silence), expected)


def test_dither_differs_in_every_frame_and_block():
    """Dither is noise: a single frame of it, repeated, would be another signal."""
    extractor = WhisperFeatureExtractor(dither=1e-3)
    features = log_mel(extractor, [toy_audio(1.0)])
    assert features[0, :, -10:].std(dim=1).min() > 0
    torch.manual_seed(0)
    features, _ = recording_features(extractor, [np.zeros(SAMPLING_RATE, np.float32)] * 3)
    assert features.shape == (1, 80, 300)
    assert (features[0, :, 110:190] - features[0, :, 210:290]).abs().min() > 0


@pytest.mark.parametrize("mel_bins", [80, 128])
@pytest.mark.parametrize("samples", [201, 400, 16_000, 480_001, 700_159, 700_160, 700_161])
@pytest.mark.parametrize("block", [1_000_000, 48_000, 33_333, 1050])
def test_features_of_a_recording_in_blocks_are_those_of_the_whole(samples: int, block: int, mel_bins: int):
    """A frame at the border of two blocks, and the loudest value behind the first block, which scales all of them."""
    extractor = WhisperFeatureExtractor(feature_size=mel_bins)
    recording = np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)
    recording[: samples // 2] *= 1e-5
    expected = extractor(
        recording, sampling_rate=SAMPLING_RATE, truncation=False, padding="longest", return_tensors="pt"
    ).input_features
    blocks = (recording[start : start + block] for start in range(0, samples, block))
    features, counted = recording_features(extractor, blocks)
    assert counted == samples
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


def test_every_part_of_a_recording_has_its_key():
    """Under one key all rows of a call would get the teacher's states of the first; a new key of whole ones, none."""
    audio = {"bytes": b"RIFF", "path": None}
    parts = [{}, {"offset": 1.0}, {"offset": 1.0, "duration": 2.0}, {"duration": 1.0}, {"channel": 0}, {"channel": 1}]
    assert len({recording_key(audio | part, b"settings", "row 0") for part in parts}) == len(parts)
    absent = dict.fromkeys(("offset", "duration", "channel"))
    assert recording_key(audio | absent, b"settings", "row 0") == content_key(b"RIFF", b"settings")
    # Arrays print alike: those of two data sets must not share the key of their row.
    arrays = [np.r_[np.zeros(5000), value, np.zeros(5000)].astype(np.float32) for value in (0.1, 0.2)]
    assert len({recording_key({"array": array, "sampling_rate": 16_000}, b"", "row 0") for array in arrays}) == 2


def noise(minutes: int) -> float:
    random = np.random.default_rng(0)
    blocks = (random.normal(0, 0.1, 30 * SAMPLING_RATE).astype(np.float32) for _ in range(2 * minutes))
    return float(recording_features(WhisperFeatureExtractor(), blocks)[0].shape[2])


def test_an_hour_takes_the_memory_of_two_minutes():
    """The extractor takes 1.8 GB for it; here 115 MB lie in a file."""
    few, many = in_new_process(noise, 2), in_new_process(noise, 60)
    assert (few[0], many[0]) == (12_000, 360_000)
    assert many[1] - few[1] < 20e6
