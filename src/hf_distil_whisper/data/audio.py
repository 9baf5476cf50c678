"""Decodes and resamples audio: whatever a row holds as audio becomes float32 mono at 16 kHz, or an `AudioError`.

The only place that decodes: WAV, FLAC, MP3, Ogg and all else that libsndfile reads, at once or block by block.
"""

import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

SAMPLING_RATE = 16_000
"""Samples per second of everything that `load_audio` returns: what Whisper's feature extractor expects."""

READABLE = "WAV, FLAC, MP3 or Ogg"

_UNKNOWN_LENGTH = 1 << 62
"""libsndfile reports about 2⁶³ frames for a FLAC whose header leaves the length open."""

_LARGEST_OGG_PAGE = 27 + 255 + 255 * 255

_MAX_OVERSHOOT = 0.5
"""Seconds by which a part may end behind its recording: times in manifests are rounded, and Kaldi allows as much."""


class AudioError(ValueError):
    """Audio that cannot be used. The message names the file or row, what was expected and what came."""


def load_audio(audio: Any, *, name: str | None = None, channel: int | None = None) -> np.ndarray:
    """Decodes, mixes down to one channel and resamples to 16 kHz.

    Args:
        audio (`str`, `Path`, `bytes`, `dict`, `tuple` or `np.ndarray`):
            A path; an encoded file; a `{"bytes", "path"}` dictionary as `datasets` stores it (the path is read where
            the bytes are `None`); a `{"array", "sampling_rate"}` dictionary; a pair of array and rate; or an array at
            16 kHz. Arrays of int16 and int32 are scaled to [-1, 1). In a two-dimensional array the shorter axis holds
            the channels.

            A dictionary picks a part of the recording by `offset` and `duration` (seconds) and by `channel`, each
            `None` or absent for all of it: `{"path": "call.flac", "offset": 61.5, "duration": 4.2, "channel": 1}`.
            Only the part is decoded. It may end up to 0.5 s behind the recording, as rounded times do.
        name (`str`, *optional*): name of this audio in messages; by default its path.
        channel (`int`, *optional*): the channel to return, counted from 0; by default that of the dictionary, else
            the mean of all channels.

    Returns:
        `np.ndarray` of shape `(samples,)`: float32, 16 kHz, neither normalised nor clipped.

    Raises:
        AudioError: for a missing, empty, unreadable or truncated file, for NaN or infinite samples, or none at all,
            and for a part or channel that the recording does not have.

    Example:
        ```python
        >>> load_audio((np.zeros(8_000, dtype=np.float32), 8_000)).shape
        (16000,)
        ```
    """
    (samples,) = audio_blocks(audio, name=name, block_seconds=None, channel=channel)
    return samples


def audio_blocks(
    audio: Any, *, name: str | None = None, block_seconds: float | None = 30.0, channel: int | None = None
) -> Iterator[np.ndarray]:
    """The samples of [`load_audio`], to the last bit, block by block: hours of audio in the memory of a minute.

    A file that only torchcodec reads (M4A, WebM) is decoded at once, and an array comes as one block.

    Args:
        audio (`str`, `Path`, `bytes`, `dict`, `tuple` or `np.ndarray`): as for [`load_audio`].
        name (`str`, *optional*): name of this audio in messages; by default its path.
        block_seconds (`float`, *optional*, defaults to 30.0): audio decoded at once; None: all of it.
        channel (`int`, *optional*): as for [`load_audio`].

    Yields:
        `np.ndarray` of shape `(samples,)`: at least one sample, float32, 16 kHz.

    Raises:
        AudioError: as [`load_audio`], as early as possible: for a header, and the cut end of a WAV or Ogg file, before
            the first block; for samples that are not finite with their block; for all else with the last block.

    Example:
        ```python
        >>> sum(len(block) for block in audio_blocks("lecture.flac")) / SAMPLING_RATE
        10800.0
        ```
    """
    source, name = _source(audio, name)
    part = _part(audio, name, channel)
    if source is None:
        array, array_rate = _array(audio, name)
        start, count = part.frames(len(array), array_rate, name)
        pieces = iter([(array[start : start + count], array_rate)] if array.size else [])
    else:
        pieces = _decode(source, name, block_seconds, part)
    resampler, num_decoded, num_resampled = None, 0, 0
    piece = next(pieces, None)
    while piece is not None:
        samples, rate = piece
        piece = next(pieces, None)  # one ahead: the resampler must know its last piece
        samples = _one_channel(samples if samples.ndim == 2 else samples[:, None], part.channel, name)
        # One NaN makes the whole log-mel NaN, since the loudest value of a recording scales all of it.
        finite = np.isfinite(samples)
        if not finite.all():
            raise AudioError(
                f"{name}: {int((~finite).sum())} of {len(samples)} samples are NaN or infinite; expected finite "
                "numbers. The recording or the step that made it is broken."
            )
        samples = np.ascontiguousarray(samples, dtype=np.float32)
        num_decoded += len(samples)
        if rate != SAMPLING_RATE:
            # One resampler for all pieces: started anew at every border, it would click there.
            resampler = resampler or soxr.ResampleStream(rate, SAMPLING_RATE, 1, dtype="float32")
            samples = resampler.resample_chunk(samples, last=piece is None)
        num_resampled += len(samples)
        if len(samples):
            yield samples
    if not num_decoded:
        raise AudioError(f"{name}: expected audio, got 0 samples. Record it again or leave it out.")
    if not num_resampled:
        raise AudioError(f"{name}: too short, nothing is left of it at {SAMPLING_RATE} Hz (source rate {rate} Hz).")


def audio_duration(audio: Any, *, name: str | None = None) -> float:
    """Duration of audio in seconds, from the header alone where it has one.

    Args:
        audio (`str`, `Path`, `bytes`, `dict`, `tuple` or `np.ndarray`): as for [`load_audio`].
        name (`str`, *optional*): name of this audio in messages; by default its path.

    Returns:
        `float`: seconds. The header of a truncated file may promise more than decoding gives.

    Raises:
        AudioError: for a missing or empty file, and for one that cannot be read.
    """
    source, name = _source(audio, name)
    part = _part(audio, name)
    if source is None:
        samples, rate = _array(audio, name)
        return part.frames(len(samples), rate, name)[1] / rate
    with _open(source, name) as file:
        try:
            header = soundfile.info(file)
        except soundfile.LibsndfileError:
            return len(load_audio(audio, name=name)) / SAMPLING_RATE
    if header.frames >= _UNKNOWN_LENGTH:
        load_audio(source, name=name)  # raises with the reason
    return part.frames(header.frames, header.samplerate, name)[1] / header.samplerate


def encode_flac(array: np.ndarray) -> bytes:
    """Encodes samples as FLAC (mono, 16 kHz, 16 bit); `load_audio` returns them to within half a step of 2⁻¹⁵.

    Args:
        array (`np.ndarray` of shape `(samples,)`): float, 16 kHz. Values outside [-1, 1) are clipped.

    Returns:
        `bytes`: the file. Samples that came from 16 bit are preserved exactly.
    """
    # soundfile scales floats by 32767 on writing and by 1/32768 on reading: each copy would be a little quieter.
    steps = np.clip(np.rint(np.asarray(array, dtype=np.float32) * 32768), -32768, 32767).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, steps, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


# Kinds of audio


@dataclass(frozen=True)
class _Part:
    """What is asked of a recording: seconds from its start, seconds, a channel."""

    offset: float = 0.0
    duration: float | None = None
    channel: int | None = None

    def frames(self, total: int, rate: int, name: str) -> tuple[int, int]:
        """First frame and number of frames in a recording of `total` frames."""
        start = round(self.offset * rate)
        count = total - start if self.duration is None else max(1, round(self.duration * rate))
        if (self.offset and start >= total) or start + count > total + _MAX_OVERSHOOT * rate:
            raise AudioError(
                f"{name}: the part from {self.offset:.2f} s to {(start + count) / rate:.2f} s is not there, the "
                f"recording ends at {total / rate:.2f} s. Correct `offset` and `duration`, or leave it out."
            )
        return start, min(count, total - start)


def _part(audio: Any, name: str, channel: int | None = None) -> _Part:
    fields = audio if isinstance(audio, dict) else {}
    offset, duration = fields.get("offset"), fields.get("duration")
    channel = fields.get("channel") if channel is None else channel
    for key, value in (("offset", offset), ("duration", duration)):
        is_number = isinstance(value, int | float | np.number) and math.isfinite(value)
        if value is not None and not (is_number and value >= 0 and (value or key == "offset")):
            raise AudioError(f"{name}: expected a number of seconds as `{key}`, got {value!r}.")
    return _Part(float(offset or 0.0), duration, channel)


def _one_channel(samples: np.ndarray, channel: int | None, name: str) -> np.ndarray:
    """(frames, channels) -> (frames,): the channel asked for, else the mean."""
    channels = samples.shape[1]
    if channel is None:
        return samples[:, 0] if channels == 1 else samples.mean(axis=1)
    if not isinstance(channel, int | np.integer) or channel not in range(channels):
        counted = "1 channel" if channels == 1 else f"{channels} channels"
        raise AudioError(f"{name}: no channel {channel!r}, the recording has {counted}, counted from 0.")
    return samples[:, channel]


def _source(audio: Any, name: str | None) -> tuple[bytes | Path | None, str]:
    """The encoded file, `None` if `audio` is an array; and the name for messages."""
    if isinstance(audio, dict):
        if audio.get("array") is not None:
            return None, name or str(audio.get("path") or "audio array")
        name = name or (str(audio["path"]) if audio.get("path") else None)
        content = audio.get("bytes")
        audio = content if content is not None else audio.get("path")
    if isinstance(audio, str | os.PathLike):
        return Path(audio), name or str(audio)
    name = name or "audio"
    if audio is None:
        raise AudioError(f"{name}: expected audio (bytes, a path or an array), got nothing.")
    if not isinstance(audio, bytes | bytearray | memoryview):
        return None, name
    if not len(audio):
        raise AudioError(f"{name}: the audio file is empty (0 bytes); expected {READABLE}.")
    return bytes(audio), name


def _array(audio: Any, name: str) -> tuple[np.ndarray, int]:
    """Samples (frames,) or (frames, channels) in float32, and their rate."""
    rate: Any = SAMPLING_RATE
    if isinstance(audio, dict):
        audio, rate = audio["array"], audio.get("sampling_rate")
    elif isinstance(audio, tuple) and len(audio) == 2 and np.ndim(audio[1]) == 0:
        audio, rate = audio
    if not isinstance(rate, int | float | np.number) or not rate > 0:
        raise AudioError(f"{name}: expected a sampling rate in Hz beside the array, got {rate!r}.")
    try:
        samples = np.asarray(audio)
    except ValueError as error:
        raise AudioError(f"{name}: expected an array of samples, got {type(audio).__name__}: {error}") from error
    if samples.dtype in (np.int16, np.int32):
        samples = samples.astype(np.float32) / np.float32(-np.iinfo(samples.dtype).min)
    if not np.issubdtype(samples.dtype, np.floating) or samples.ndim not in (1, 2):
        raise AudioError(
            f"{name}: expected audio as a path, bytes or an array of float, int16 or int32 in one or two dimensions, "
            f"got {type(audio).__name__} of {samples.dtype} with shape {samples.shape}."
        )
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T
    return samples.astype(np.float32, copy=False), int(rate)


# Decoding


def _open(source: bytes | Path, name: str) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    where = name if name == str(source) else f"{name}: {source}"
    try:
        file = source.open("rb")
    except OSError as error:
        reason = "no such audio file" if isinstance(error, FileNotFoundError) else error.strerror
        raise AudioError(f"{where}: {reason}. Correct the path in the data set or leave the row out.") from error
    if not source.stat().st_size:
        file.close()
        raise AudioError(f"{where}: the audio file is empty (0 bytes); expected {READABLE}.")
    return file


class _SoundFile(soundfile.SoundFile):
    """Never seeks: soundfile does so after every read, and the decoders of MP3 and Opus do not return exactly."""

    def seekable(self) -> bool:
        return False


def _decode(source: bytes | Path, name: str, seconds: float | None, part: _Part) -> Iterator[tuple[np.ndarray, int]]:
    """Pieces (frames, channels) of so many seconds in float32, or the whole part, and the sampling rate."""
    with _open(source, name) as file:
        num_decoded = 0
        try:
            with _SoundFile(file) as sound:
                for samples in _read(sound, file, name, seconds, part):
                    num_decoded += len(samples)
                    yield samples, sound.samplerate
        except soundfile.LibsndfileError as error:
            file.seek(0)
            data = file.read()
            if num_decoded:  # another decoder would start from the beginning
                raise _unreadable(data, name, error) from error
            samples, rate = _decode_with_torchcodec(data, name, error)
            start, count = part.frames(len(samples), rate, name)
            yield samples[start : start + count], rate


def _read(
    sound: soundfile.SoundFile, file: BinaryIO, name: str, seconds: float | None, part: _Part
) -> Iterator[np.ndarray]:
    kind, promised, rate = sound.format, sound.frames, sound.samplerate
    if promised >= _UNKNOWN_LENGTH:
        raise AudioError(
            f"{name}: the header of this {kind} file leaves its length open, as those written into pipes do, "
            "and libsndfile cannot read on from there. Encode it again, into a file."
        )
    position = file.tell()
    # WAV and Ogg show a cut end in their container, before anything is decoded.
    is_riff = kind in ("WAV", "WAVEX") and _bytes_at(file, 0, 4) == b"RIFF"
    fault = _ogg_fault(file) if kind == "OGG" else _wav_fault(file) if is_riff else None
    file.seek(position)
    start, end = 0, promised
    if part.offset or part.duration is not None:
        start, count = part.frames(promised, rate, name)
        end = start + count
        sound.seek(start)  # to the sample in all formats
    frames = promised if seconds is None else max(1, round(seconds * rate))
    position, is_last = start, False
    while not fault and not is_last:
        wanted = min(frames, end - position)
        samples = sound.read(wanted, dtype="float32", always_2d=True)
        position += len(samples)
        is_last = len(samples) < wanted or position == end
        if is_last and kind != "OGG" and not is_riff and (position < end or end == promised):
            fault = _decoding_fault(file, kind, promised, position)
        if len(samples) and not fault:
            yield samples
    if fault:
        raise AudioError(f"{name}: truncated {kind} file: {fault}. Fetch or encode it again, or leave it out.")


def _decode_with_torchcodec(data: bytes, name: str, reason: Exception) -> tuple[np.ndarray, int]:
    """Decodes what libsndfile cannot read (M4A, WebM), if torchcodec is installed and loads."""
    try:
        from torchcodec.decoders import AudioDecoder
    except (ImportError, OSError, RuntimeError):  # OSError: a CUDA build beside a CPU torch
        raise _unreadable(data, name, reason) from reason
    try:
        decoded = AudioDecoder(data).get_all_samples()
    except (RuntimeError, ValueError) as error:
        raise AudioError(f"{name}: neither libsndfile ({reason}) nor torchcodec ({error}) can read it.") from error
    return decoded.data.numpy().T.astype(np.float32), int(decoded.sample_rate)


def _unreadable(data: bytes, name: str, reason: Exception) -> AudioError:
    return AudioError(
        f"{name}: cannot be read as audio; expected {READABLE}, got {len(data)} bytes of something else, or of a file "
        f"that is cut short or damaged ({reason}). Convert it, or install a torchcodec that fits your torch."
    )


# Truncated files: libsndfile decodes cut WAV, MP3 and Ogg files without an error


def _decoding_fault(file: BinaryIO, kind: str, promised: int, num_decoded: int) -> str | None:
    """Truncation that shows when `num_decoded` of the `promised` samples have been read."""
    if kind == "MP3":
        # Without a Xing header libsndfile guesses the length from the first frame's bit rate, and stops there.
        position = file.tell()
        if not _has_xing_header(file):
            size = _size(file)
            unread = size - position
            if unread > max(4096, size // 10):
                return f"it has no header with its length, and {unread} of {size} bytes would stay unread"
            return None
        promised -= 2 * 1152  # padding of the encoder: two frames
    if num_decoded >= promised:
        return None
    return f"its header promises {promised} samples, {num_decoded} could be decoded"


def _has_xing_header(file: BinaryIO) -> bool:
    start, head = 0, _bytes_at(file, 0, 10)
    if head[:3] == b"ID3":  # 4 x 7 bits of length
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    first_frame = _bytes_at(file, start, 256)
    return b"Xing" in first_frame or b"Info" in first_frame


def _ogg_fault(file: BinaryIO) -> str | None:
    size = _size(file)
    data = _bytes_at(file, max(0, size - 2 * _LARGEST_OGG_PAGE), size)
    if b"OggS" not in data:  # something long was appended
        data = _bytes_at(file, 0, size)
    start = data.rfind(b"OggS")
    page = data[start:]
    # Header of 27 bytes (5: flags, 4 of which is "end of stream"; 26: number of segments), their lengths, and they.
    if len(page) >= 27 and page[5] & 4:
        lengths = page[27 : 27 + page[26]]
        if len(lengths) == page[26] and 27 + page[26] + sum(lengths) <= len(page):
            return None
    return "its last page is not marked as the end of the stream"


def _wav_fault(file: BinaryIO) -> str | None:
    start, end = 12, _size(file)
    while start + 8 <= end:
        head = _bytes_at(file, start, 8)
        size = int.from_bytes(head[4:], "little")
        if head[:4] == b"data":
            left = end - start - 8
            # Programs that write into a pipe cannot know the size and put a value near 2³¹ or 2³² there.
            return f"its header promises {size} bytes, {left} are there" if left < size < 0x7FFF0000 else None
        start += 8 + size + size % 2
    return None


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _bytes_at(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)
