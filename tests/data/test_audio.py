"""Decoding, resampling and the rejection of broken audio."""

import io
from pathlib import Path
from types import SimpleNamespace

import av
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
# Muxer and codec of FFmpeg: M4A of AAC and of ALAC, the voice notes of telephones, the recordings of browsers.
MEDIA = [("mp4", "aac"), ("ipod", "alac"), ("3gp", "aac"), ("amr", "libopencore_amrnb"), ("webm", "libopus")]
MEDIA += [("mp4 fragments", "aac"), ("webm live", "libopus"), ("adts", "aac"), ("matroska", "aac")]
OPTIONS = {"mp4 fragments": {"movflags": "frag_keyframe+empty_moov"}, "webm live": {"live": "1"}}
CODEC_RATES = {"libopencore_amrnb": 8_000, "libopus": 48_000}


def tone(rate: int = SAMPLING_RATE, seconds: float = 1.0) -> np.ndarray:
    """A sine of 440 Hz and amplitude 0.3."""
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def speechlike(seconds: float = 3.0) -> np.ndarray:
    """Noise and tones: compresses badly, so that a cut file lacks audio and not only padding."""
    noise = np.random.default_rng(0).standard_normal(round(SAMPLING_RATE * seconds))
    return tone(seconds=seconds) + (0.05 * noise).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = SAMPLING_RATE, kind: str = "WAV", subtype: str | None = None) -> bytes:
    """A file with these samples, (frames,) or (frames, channels), by FFmpeg if `kind` is one of its muxers."""
    file = io.BytesIO()
    if kind.isupper():
        soundfile.write(file, samples, rate, format=kind, subtype=subtype)
        return file.getvalue()
    channels = samples.reshape(len(samples), -1).astype(np.float32).T
    layout = "mono" if len(channels) == 1 else "stereo"
    with av.open(file, "w", format=kind.split()[0], options=OPTIONS.get(kind, {})) as container:
        stream = container.add_stream(subtype, rate=CODEC_RATES.get(subtype, rate))
        stream.layout = "mono" if kind == "amr" else layout
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


def silent_video() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


def loudest_frequency(samples: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * SAMPLING_RATE / len(samples))


@pytest.mark.parametrize(("kind", "subtype"), FORMATS + MEDIA)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_and_channel_count_becomes_mono_at_16_khz(kind: str, subtype: str | None, channels: int):
    """Interleaved stereo taken for mono plays at half speed; a rate that is not resampled shifts every frequency."""
    rate = 48_000 if subtype == "OPUS" else 44_100
    samples = tone(rate)
    if channels == 2:
        samples = np.stack([samples, 0.5 * samples], axis=1)
    result = load_audio(encoded(samples, rate, kind, subtype))
    assert result.dtype == np.float32
    # The delay and padding of a codec: four frames of 1024 samples that FFmpeg cannot tell from sound.
    assert SAMPLING_RATE <= len(result) <= SAMPLING_RATE + (0 if kind.isupper() else 4096)
    assert loudest_frequency(result[:SAMPLING_RATE]) == pytest.approx(440, abs=1)
    middle = result[4000:12000]
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(
        0.3 if channels == 1 else 0.225, rel=0.25 if kind == "amr" else 0.05
    )


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
    written = io.BytesIO(content)
    written.seek(100)  # as it is after writing
    dicts = [{"array": array, "sampling_rate": 16_000} for array in (samples, samples.tolist())]
    arrays = [samples, samples.astype(np.float64), np.round(samples * 32768).astype(np.int16)]
    arrays += [np.round(samples * 2.0**31).astype(np.int32), torch.tensor(samples, requires_grad=True)]
    arrays += [np.stack([samples, samples], axis=axis) for axis in (0, 1)]
    decoded = SimpleNamespace(data=torch.tensor(samples)[None], sample_rate=16_000)
    decoder = SimpleNamespace(get_all_samples=lambda: decoded)  # of torchcodec; `datasets` gives it for `Audio`
    with path.open("rb") as file:
        for form in [*files, written, file, *dicts, *arrays, (samples, 16_000), decoder]:
            for _ in range(2):  # a file that was read to its end is read again
                np.testing.assert_allclose(load_audio(form), samples, atol=1e-7)
            assert audio_duration(form) == pytest.approx(1.0)
    np.testing.assert_allclose(load_audio(torch.tensor(samples).bfloat16()), samples, atol=2e-3)


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
        (io.StringIO("speech"), "open as text"),
        (tone() * 32768, r"got a peak of 9830.*, as of 16-bit integers. Divide by 32768"),
        (encoded(tone() * 2.0**31, subtype="FLOAT"), "as of 32-bit integers. Divide by 2147483648"),
        (b"PK\x03\x04 password" * 10, r"starts with b'PK\\x03\\x04 password"),
        (b"#EXTM3U\n#EXTINF:9,\nspeech.wav\n#EXT-X-ENDLIST\n", "cannot be read as audio.* starts with b'#EXTM3U"),
        (b"ffconcat version 1.0\nfile speech.wav\n", "starts with b'ffconcat"),
        (silent_video(), "there is no sound track in it"),
        (SimpleNamespace(get_all_samples=lambda: torch.zeros(2, 3) @ torch.zeros(2)), "got SimpleNamespace: size mis"),
    ],
    # Not the bytes: a file of floats holds the time at which it was written.
    ids=lambda value: "file" if isinstance(value, bytes) else None,
)
def test_what_is_not_audio_is_refused_with_the_name_of_the_row(audio: object, message: str):
    """NaN samples make the log-mel NaN and then the weights; integers of unknown scale make silence or noise.

    And a playlist in a data set must not open other files.
    """
    for read in (load_audio, audio_blocks):
        with pytest.raises(AudioError, match=f"row-3: .*{message}"):
            list(read(audio, name="row-3"))


@pytest.mark.parametrize(("kind", "subtype"), [*FORMATS, ("AIFF", "PCM_16"), *MEDIA])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.02])
def test_a_truncated_file_is_refused_in_every_format(kind: str, subtype: str | None, share: float):
    """Libsndfile decodes cut WAV, MP3 and Ogg files without a word: the text then says more than the audio."""
    content = encoded(speechlike(), kind=kind, subtype=subtype)
    assert 48_000 <= len(load_audio(content)) <= 48_000 + (0 if kind.isupper() else 4096)
    cut = content[: int(len(content) * share)]
    with pytest.raises(AudioError, match=r"row-1: .*(truncated|cut short|empty|0 samples)") as whole:
        load_audio(cut, name="row-1")
    # Block by block too: hours would be transcribed up to the cut, and the rest be missing without an error.
    blocks = []
    with pytest.raises(AudioError) as block:
        blocks.extend(audio_blocks(cut, name="row-1", block_seconds=0.1))
    if share == 0.5:
        assert str(block.value) == str(whole.value)
        assert bool(blocks) == (kind in ("FLAC", "MP3", "AIFF", "amr", "adts", "mp4 fragments"))


def with_data_size(size: int, content: bytes, more: bytes = b"") -> bytes:
    """A WAV file whose header promises `size` bytes, and with other chunks behind its data."""
    start = content.find(b"data")
    return content[: start + 4] + size.to_bytes(4, "little") + content[start + 8 :] + more


def open_flac(content: bytes) -> bytes:
    return content[:21] + bytes([content[21] & 0xF0]) + bytes(4) + content[26:]


WAV, FLAC, VORBIS = encoded(speechlike()), encoded(speechlike(), kind="FLAC"), encoded(speechlike(), kind="OGG")
VARYING = encoded(np.concatenate([speechlike(), 0.01 * speechlike(), speechlike()]), kind="MP3")
CHUNK = b"LIST\x04\x00\x00\x00INFO"
HEADERS: dict[str, tuple[bytes, int | None]] = {
    "WAV of any length": (with_data_size(0xFFFFFFFF, WAV), 48_000),
    "WAV of no length": (with_data_size(0, WAV), 48_000),
    "WAV, 16 bytes too many": (with_data_size(96_016, WAV), 48_000),
    "WAV, 20 ms too many": (with_data_size(96_640, WAV), 48_000),
    "WAV, more than 20 ms too many": (with_data_size(96_642, WAV), None),
    "WAV without data": (with_data_size(0, WAV[:44], CHUNK), None),
    "WAV with another chunk": (WAV + CHUNK, 48_000),
    "FLAC of any length": (open_flac(FLAC), 48_000),
    "FLAC of any length, cut": (open_flac(FLAC)[:-100], None),
    "Ogg before zeros": (VORBIS + bytes(200_000), 48_000),
    # Recorders that write as they record mark no page as the last.
    "Ogg without a marked end": (VORBIS[: VORBIS.rfind(b"OggS")], 45_184),
    "two Ogg files in one": (encoded(speechlike(), kind="OGG", subtype="OPUS") * 2, 96_000),
    # Variable bit rate: libsndfile guesses from the first frame and drops the rest.
    "MP3 without its length": (VARYING[VARYING.index(VARYING[:2], 100) :], 145_105),
    "MP3 behind a tag": (b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256) + VARYING, 144_000),
}


@pytest.mark.parametrize("case", HEADERS)
def test_what_a_header_says_of_the_length_costs_no_row(case: str):
    """Programs that write into pipes leave it open, others count wrongly, and libsndfile believes them or guesses."""
    content, samples = HEADERS[case]
    if samples is None:
        with pytest.raises(AudioError, match=r"truncated|0 samples"):
            load_audio(content)
        return
    assert len(load_audio(content)) == pytest.approx(samples, abs=1152)
    blocks = list(audio_blocks(content, block_seconds=0.5))
    np.testing.assert_array_equal(np.concatenate(blocks), load_audio(content))


def test_channels_of_opposite_phase_are_not_silence():
    """One wire the wrong way round, and the mean of both channels is silence, of which Whisper makes "you"."""
    left, right = speechlike(), np.roll(speechlike(), 8_000)
    apart = np.stack([left * (np.arange(48_000) < 24_000), left * (np.arange(48_000) >= 24_000)], axis=1)
    for stereo, expected in (
        (np.stack([left, -left], axis=1), left),
        (np.stack([left, -0.8 * left], axis=1), left),
        (np.stack([0 * left, left, -left], axis=1), left),
        (np.stack([left, left], axis=1), left),
        (np.stack([left, right], axis=1), (left + right) / 2),
        (np.stack([left, 0 * left], axis=1), left / 2),
        (apart, left / 2),
    ):
        content = encoded(stereo, subtype="FLOAT")
        np.testing.assert_allclose(load_audio(content), expected, atol=1e-6)
        blocks = list(audio_blocks(content, block_seconds=0.3))
        np.testing.assert_array_equal(np.concatenate(blocks), load_audio(content))


@pytest.mark.parametrize(("kind", "subtype"), FORMATS + MEDIA[:5])
@pytest.mark.parametrize(
    ("rate", "block_seconds"), [(16_000, 0.0301), (44_100, 0.0301), (44_100, 0.5), (44_100, 30.0)]
)
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
    with pytest.raises(AudioError, match="row-3: 1 of 4001 samples are NaN"):
        list(audio_blocks(content, name="row-3", block_seconds=1.0))


@pytest.mark.parametrize(("kind", "subtype"), FORMATS + MEDIA)
def test_a_part_of_a_recording_is_cut_to_the_sample(kind: str, subtype: str | None, tmp_path: Path):
    """A manifest that picks minute 50 of an hour must neither get the whole hour nor decode it for each row."""
    stereo = np.stack([speechlike(), 0.5 * speechlike()[::-1]], axis=1)
    (tmp_path / "call").write_bytes(content := encoded(stereo, kind=kind, subtype=subtype))
    channels = 1 if kind == "amr" else 2
    whole = np.stack([load_audio(content, channel=channel) for channel in range(channels)], axis=1)
    forms: list[dict] = [{"path": str(tmp_path / "call")}, {"bytes": content}]
    forms += [{"array": whole, "sampling_rate": SAMPLING_RATE}]
    for offset, duration, channel in ((1.25, 0.5, 0), (None, 0.5, channels - 1), (2.5, None, None), (2.5, 0.9, 0)):
        start = round((offset or 0) * SAMPLING_RATE)
        expected = whole[start : None if duration is None else start + round(duration * SAMPLING_RATE)]
        expected = expected.mean(axis=1) if channel is None else expected[:, channel]
        for form in forms:
            part = form | {"offset": offset, "duration": duration, "channel": channel}
            samples = load_audio(part)
            # What is resampled rings at both ends of a part, and WebM tells the time to a millisecond.
            shift, edge = (0, 0) if kind.isupper() else (16, 500)
            assert len(samples) == pytest.approx(len(expected), abs=shift)
            inner = slice(edge, min(len(samples), len(expected)) - edge)
            shifted = (np.roll(expected, step)[inner] for step in range(-shift, shift + 1))
            assert min(np.abs(samples[inner] - other).max() for other in shifted) < (1e-6 if kind.isupper() else 0.02)
            np.testing.assert_array_equal(np.concatenate(list(audio_blocks(part, block_seconds=0.1))), samples)
            assert audio_duration(part) == pytest.approx(len(expected) / SAMPLING_RATE, abs=0.02)


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
    for audio in (
        {"bytes": encoded(speechlike())},
        {"bytes": encoded(speechlike(), kind="ipod", subtype="alac")},
        {"array": speechlike(), "sampling_rate": SAMPLING_RATE},
    ):
        with pytest.raises(AudioError, match=f"row-4: .*{message}"):
            load_audio(audio | part, name="row-4")
