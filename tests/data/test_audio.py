"""Decoding, resampling and the rejection of broken audio."""

import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from hf_distil_whisper.data.audio import (
    SAMPLING_RATE,
    AudioError,
    audio_blocks,
    audio_duration,
    encode_flac,
    load_audio,
)

FORMATS = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("MP3", None), ("OGG", "VORBIS"), ("OGG", "OPUS")]


def tone(rate: int = SAMPLING_RATE, seconds: float = 1.0) -> np.ndarray:
    """A sine of 440 Hz and amplitude 0.3."""
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def speechlike(seconds: float = 3.0) -> np.ndarray:
    """Noise and tones: compresses badly, so that a cut file lacks audio and not only padding."""
    noise = np.random.default_rng(0).standard_normal(round(SAMPLING_RATE * seconds))
    return tone(seconds=seconds) + (0.05 * noise).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = SAMPLING_RATE, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def loudest_frequency(samples: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * SAMPLING_RATE / len(samples))


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_and_channel_count_becomes_mono_at_16_khz(kind: str, subtype: str | None, channels: int):
    """Interleaved stereo taken for mono plays at half speed; a rate that is not resampled shifts every frequency."""
    rate = 48_000 if subtype == "OPUS" else 44_100
    samples = tone(rate)
    if channels == 2:
        samples = np.stack([samples, 0.5 * samples], axis=1)
    result = load_audio(encoded(samples, rate, kind, subtype))
    assert result.dtype == np.float32
    assert result.shape == (SAMPLING_RATE,)
    assert loudest_frequency(result) == pytest.approx(440, abs=1)
    middle = result[4000:12000]
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(0.3 if channels == 1 else 0.225, rel=0.05)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000])
def test_any_sampling_rate_is_resampled(rate: int):
    """Taken for 16 kHz, speech at 8 kHz is an octave too high and twice as fast."""
    result = load_audio((tone(rate, seconds=0.5), rate))
    assert len(result) == pytest.approx(8_000, abs=1)
    assert loudest_frequency(result) == pytest.approx(440, abs=3)


def test_every_form_of_audio_gives_the_same_samples(tmp_path: Path):
    """Data sets, files, pipelines and microphones each have another form for the same recording."""
    samples = (np.round(tone() * 32768) / 32768).astype(np.float32)
    content = encoded(samples, kind="FLAC")
    path = tmp_path / "tone.flac"
    path.write_bytes(content)
    stored = [(content, None), (content, "gone.flac"), (None, str(path))]
    files = [path, str(path), content, *({"bytes": data, "path": name} for data, name in stored)]
    dicts = [{"array": array, "sampling_rate": 16_000} for array in (samples, samples.tolist())]
    arrays = [samples, samples.astype(np.float64), np.round(samples * 32768).astype(np.int16)]
    arrays += [np.stack([samples, samples], axis=axis) for axis in (0, 1)]
    for form in [*files, *dicts, *arrays, (samples, 16_000)]:
        np.testing.assert_allclose(load_audio(form), samples, atol=1e-7)
        assert audio_duration(form) == pytest.approx(1.0)


def test_flac_gives_16_bit_samples_back_exactly_and_clips_the_rest():
    """Floats are scaled by 32767 on writing and 1/32768 on reading: a corpus loses a step with each rewriting."""
    samples = np.random.default_rng(0).integers(-32768, 32768, 1000).astype(np.float32) / 32768
    content = encode_flac(samples)
    np.testing.assert_array_equal(load_audio(content), samples)
    assert encode_flac(load_audio(content)) == content
    assert np.abs(load_audio(encode_flac(np.float32([0.1, 0.2]))) - [0.1, 0.2]).max() <= 0.5 / 32768 + 1e-9
    np.testing.assert_array_equal(load_audio(encode_flac(np.float32([2, -2]))), np.float32([32767 / 32768, -1]))


def test_a_missing_file_is_named(tmp_path: Path):
    """'Error opening: System error' after an hour of labelling helps nobody."""
    path = tmp_path / "gone.wav"
    for read in (load_audio, audio_duration):
        with pytest.raises(AudioError, match=r"gone\.wav: no such audio file"):
            read(path)
        with pytest.raises(AudioError, match=r"row 7: .*gone\.wav: no such audio file"):
            read({"bytes": None, "path": str(path)}, name="row 7")
        with pytest.raises(AudioError, match="directory"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (None, "got nothing"),
        ({"bytes": None, "path": None}, "got nothing"),
        ({"array": None, "sampling_rate": 16_000}, "got nothing"),
        (b"", "empty"),
        (np.zeros(0, dtype=np.float32), "0 samples"),
        ((np.zeros(0, dtype=np.float32), 8_000), "0 samples"),
        ((np.zeros((0, 2)), 44_100), "0 samples"),
        ((np.zeros(1), 96_000), "too short"),
        (np.zeros((0, 2), dtype=np.float32), "0 samples"),
        (encoded(np.zeros(0)), "0 samples"),
        (np.float32([0.0, np.nan, np.inf]), "2 of 3 samples are NaN or infinite"),
        (encoded(np.float32([0.1, np.nan]), subtype="FLOAT"), "1 of 2 samples are NaN"),
        (b"this is not audio at all" * 10, "cannot be read as audio"),
        (np.array(["a", "b"]), "got ndarray"),
        (np.zeros((2, 2, 2), dtype=np.float32), r"shape \(2, 2, 2\)"),
        ([[0.0, 1.0], [0.0]], "expected an array of samples"),
        ({"array": np.zeros(10), "sampling_rate": None}, "sampling rate in Hz"),
        ((np.zeros(10), 0), "sampling rate in Hz"),
        (np.arange(10), "int64"),
    ],
    # Not the bytes: a file of floats holds the time at which it was written.
    ids=lambda value: "file" if isinstance(value, bytes) else None,
)
def test_what_is_not_audio_is_refused_with_the_name_of_the_row(audio: object, message: str):
    """NaN samples make the log-mel NaN and then the weights; integers of unknown scale make silence or noise."""
    for read in (load_audio, audio_blocks):
        with pytest.raises(AudioError, match=f"row-3: .*{message}"):
            list(read(audio, name="row-3"))


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
@pytest.mark.parametrize("share", [0.9, 0.5, 0.02])
def test_a_truncated_file_is_refused_in_every_format(kind: str, subtype: str | None, share: float):
    """Libsndfile decodes cut WAV, MP3 and Ogg files without a word: the text then says more than the audio."""
    content = encoded(speechlike(), kind=kind, subtype=subtype)
    assert len(load_audio(content)) == 48_000
    cut = content[: int(len(content) * share)]
    with pytest.raises(AudioError, match=r"row-1: .*(truncated|cut short|empty|0 samples)") as whole:
        load_audio(cut, name="row-1")
    # Block by block too: hours would be transcribed up to the cut, and the rest be missing without an error.
    blocks = []
    with pytest.raises(AudioError) as block:
        blocks.extend(audio_blocks(cut, name="row-1", block_seconds=0.1))
    if share == 0.5:
        assert str(block.value) == str(whole.value)
        assert bool(blocks) == (kind not in ("WAV", "OGG"))


def test_files_written_into_a_pipe_are_read_completely_or_refused_with_the_reason():
    """Their headers leave the length open: no truncation, but soundfile would ask for an array of 2⁶³ samples."""
    wav = bytearray(encoded(speechlike()))
    start = wav.find(b"data")
    wav[start + 4 : start + 8] = b"\xff" * 4
    assert len(load_audio(bytes(wav))) == 48_000
    flac = bytearray(encoded(speechlike(), kind="FLAC"))
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    for read in (load_audio, audio_duration):
        with pytest.raises(AudioError, match=r"row-2: .*leaves its length open"):
            read(bytes(flac), name="row-2")


def test_an_mp3_whose_length_would_be_guessed_too_short_is_refused():
    """Variable bit rate without a Xing header: libsndfile guesses from the first frame and drops the rest."""
    quiet = 0.01 * speechlike()
    content = encoded(np.concatenate([speechlike(), quiet, speechlike()]), kind="MP3")
    headerless = content[next(i for i in range(100, len(content)) if content[i : i + 2] == content[:2]) :]
    with pytest.raises(AudioError, match="would stay unread"):
        load_audio(headerless)
    tagged = b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256) + content
    assert len(load_audio(tagged)) == len(load_audio(content)) == 144_000


def test_a_torchcodec_that_does_not_load_costs_only_what_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The registry's build wants CUDA and raises OSError where torch is a CPU build: not an ImportError."""
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec" / "__init__.py").write_text("raise OSError('libcudart.so')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchcodec", raising=False)
    assert len(load_audio(encoded(tone(), kind="OGG"))) == SAMPLING_RATE
    with pytest.raises(AudioError, match="install a torchcodec"):
        load_audio(b"M4A " * 100)


def test_a_torchcodec_that_loads_reads_what_libsndfile_cannot(monkeypatch: pytest.MonkeyPatch):
    """Its samples are (channels, frames), the other way round than libsndfile's."""

    class AudioDecoder:
        def __init__(self, source: bytes):
            assert source == b"M4A " * 100

        def get_all_samples(self) -> SimpleNamespace:
            return SimpleNamespace(data=torch.stack([torch.full((800,), 0.5), torch.zeros(800)]), sample_rate=8_000)

    decoders = ModuleType("torchcodec.decoders")
    decoders.AudioDecoder = AudioDecoder
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    samples = load_audio(b"M4A " * 100)
    assert samples.shape == (1600,)
    assert samples[800] == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("block_seconds", [0.0301, 0.5, 30.0])
def test_blocks_joined_are_the_whole_recording(
    kind: str, subtype: str | None, rate: int, block_seconds: float, tmp_path: Path
):
    """A resampler that starts anew at every border clicks there, and shifts all that follows by a sample."""
    rate = 48_000 if subtype == "OPUS" and rate == 44_100 else rate
    noise = 0.1 * np.random.default_rng(0).standard_normal((rate * 3 + 17, 2))
    path = tmp_path / "stereo"
    path.write_bytes(encoded(noise, rate, kind, subtype))
    whole = load_audio(path)
    for source in (path, path.read_bytes()):
        blocks = list(audio_blocks(source, block_seconds=block_seconds))
        assert len(blocks) == 1 if block_seconds > 3 else len(blocks) > 5
        np.testing.assert_array_equal(np.concatenate(blocks), whole)
    assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
    assert max(map(len, blocks)) < (block_seconds + 0.1) * SAMPLING_RATE


def test_an_array_comes_as_one_block_and_a_block_counts_its_samples_that_are_not_finite():
    """A copy of hours in memory would take as much again; NaN at their end must not pass for their sound beginning."""
    samples = tone(seconds=70)
    (block,) = audio_blocks(samples)
    assert np.shares_memory(block, samples)
    content = encoded(np.float32([*[0.1] * 20_000, np.nan]), subtype="FLOAT")
    with pytest.raises(AudioError, match="row-3: 1 of 5000 samples are NaN"):
        list(audio_blocks(content, name="row-3", block_seconds=15_001 / SAMPLING_RATE))


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
@pytest.mark.parametrize("form", ["file", "bytes", "array"])
def test_a_part_of_a_recording_is_cut_to_the_sample(kind: str, subtype: str | None, form: str, tmp_path: Path):
    """A manifest that picks minute 50 of an hour must neither get the whole hour nor decode it for each row."""
    stereo = np.stack([speechlike(), 0.5 * speechlike()[::-1]], axis=1)
    (tmp_path / "call").write_bytes(content := encoded(stereo, kind=kind, subtype=subtype))
    whole = np.stack([load_audio(content, channel=channel) for channel in (0, 1)], axis=1)
    audio = {
        "file": {"path": str(tmp_path / "call"), "bytes": None},
        "bytes": {"path": None, "bytes": content},
        "array": {"array": whole, "sampling_rate": SAMPLING_RATE},
    }[form]
    assert np.abs(whole - stereo).mean() < 0.05
    for offset, duration, channel in ((1.25, 0.5, 0), (None, 0.5, 1), (2.5, None, None), (2.5, 0.9, 1)):
        part = audio | {"offset": offset, "duration": duration, "channel": channel}
        start = round((offset or 0) * SAMPLING_RATE)
        expected = whole[start : None if duration is None else start + round(duration * SAMPLING_RATE)]
        expected = expected.mean(axis=1) if channel is None else expected[:, channel]
        np.testing.assert_allclose(load_audio(part), expected, atol=1e-6)
        np.testing.assert_array_equal(np.concatenate(list(audio_blocks(part, block_seconds=0.1))), load_audio(part))
        assert audio_duration(part) == len(expected) / SAMPLING_RATE


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"offset": 3.0}, "the part from 3.00 s to 3.00 s is not there, the recording ends at 3.00 s"),
        ({"offset": 2.0, "duration": 1.6}, "the part from 2.00 s to 3.60 s is not there"),
        ({"offset": -1.0}, "seconds as `offset`, got -1.0"),
        ({"duration": 0.0}, "seconds as `duration`, got 0.0"),
        ({"duration": "4.2"}, "seconds as `duration`, got '4.2'"),
        ({"channel": 1}, "no channel 1, the recording has 1 channel, counted from 0"),
    ],
)
def test_a_part_that_is_not_there_is_refused(part: dict, message: str):
    """Python's slices would give something shorter, or something else, to a text that says more."""
    for audio in ({"bytes": encoded(speechlike())}, {"array": speechlike(), "sampling_rate": SAMPLING_RATE}):
        with pytest.raises(AudioError, match=f"row-4: .*{message}"):
            load_audio(audio | part, name="row-4")
