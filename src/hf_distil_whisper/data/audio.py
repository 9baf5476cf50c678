"""Decodes and resamples audio: whatever a row holds as audio becomes float32 mono at 16 kHz, or an `AudioError`.

The only place that decodes, at once or block by block: WAV, FLAC, MP3 and Ogg by libsndfile, and what it cannot read
(M4A, MP4, WebM, 3GP, AMR, odd Ogg and FLAC) by FFmpeg, through PyAV.
"""

import io
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import av
import numpy as np
import soundfile
import soxr
from torch import Tensor

SAMPLING_RATE = 16_000
"""Samples per second of everything that `load_audio` returns: what Whisper's feature extractor expects."""

READABLE = "WAV, FLAC, MP3, Ogg, M4A, MP4, WebM or AMR"

_UNKNOWN_LENGTH = 1 << 62
"""libsndfile reports about 2⁶³ frames for a FLAC whose header leaves the length open."""

_LARGEST_OGG_PAGE = 27 + 255 + 255 * 255

_MAX_MISSING = 0.02
"""Seconds that a recording may lack of what its header promises: no word fits into a frame of Whisper's encoder."""

_MP4, _MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"

_MAX_PADDING = 4096
"""Samples that the header of an MP4 may count although they are delay and padding of AAC: 2112 and up to 1023."""

_EXACT_HEADERS = (_MP4, "flac", "wav", "aiff", "au", "nistsphere")
"""Formats whose header has the length of the sound; elsewhere FFmpeg estimates it, or gives that of the video."""

_MAX_PEAK = 128.0
"""42 dB above full scale, which no gain explains; in the scale of 16-bit integers 48 dB below it, next to silence."""

_OPPOSITE = 0.1
"""Energy of the mean of all channels over that of the channels: 0.5 for two that have nothing in common."""

_MAX_OVERSHOOT = 0.5
"""Seconds by which a part may end behind its recording: times in manifests are rounded, and Kaldi allows as much."""


class AudioError(ValueError):
    """Audio that cannot be used. The message names the file or row, what was expected and what came."""


def load_audio(audio: Any, *, name: str | None = None, channel: int | None = None) -> np.ndarray:
    """Decodes, mixes down to one channel and resamples to 16 kHz.

    Args:
        audio (`str`, `Path`, `bytes`, `dict`, `tuple` or `np.ndarray`):
            A path; an encoded file, as bytes or open for reading; a `{"bytes", "path"}` dictionary as `datasets`
            stores it (the path is read where the bytes are `None`), or the `AudioDecoder` that it makes of it; a
            `{"array", "sampling_rate"}` dictionary; a pair of array and rate; or an array or tensor at 16 kHz. Those
            of int16 and int32 are scaled to [-1, 1). In a two-dimensional array the shorter axis holds the channels.

            A dictionary picks a part of the recording by `offset` and `duration` (seconds) and by `channel`, each
            `None` or absent for all of it: `{"path": "call.flac", "offset": 61.5, "duration": 4.2, "channel": 1}`.
            Only the part is decoded. It may end up to 0.5 s behind the recording, as rounded times do.
        name (`str`, *optional*): name of this audio in messages; by default its path.
        channel (`int`, *optional*): the channel to return, counted from 0; by default that of the dictionary, else
            the mean of all channels. Of channels that cancel each other, as those of a microphone wired the wrong way
            round, one is returned.

    Returns:
        `np.ndarray` of shape `(samples,)`: float32, 16 kHz, neither normalised nor clipped.

    Raises:
        AudioError: for a missing, empty, unreadable or truncated file; for samples that are NaN, infinite or in the
            scale of integers, or none at all; and for a part or channel that the recording does not have. A file may
            lack 20 ms of what its header promises, and its header may leave the length open.

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

    An array comes as one block.

    Args:
        audio (`str`, `Path`, `bytes`, `dict`, `tuple` or `np.ndarray`): as for [`load_audio`].
        name (`str`, *optional*): name of this audio in messages; by default its path.
        block_seconds (`float`, *optional*, defaults to 30.0): audio decoded at once, to 0.1 s; None: all of it.
        channel (`int`, *optional*): as for [`load_audio`].

    Yields:
        `np.ndarray` of shape `(samples,)`: at least one sample, float32, 16 kHz.

    Raises:
        AudioError: as [`load_audio`], as early as possible: for a header, and the cut end of a WAV, Ogg or WebM file,
            before the first block; for samples that are not finite with their block; for all else with the last block.

    Example:
        ```python
        >>> sum(len(block) for block in audio_blocks("lecture.flac")) / SAMPLING_RATE
        10800.0
        ```
    """
    source, name = _source(audio, name)
    part = _part(audio, name, channel)
    mixdown = _Mixdown(part.channel, name)
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
        samples = mixdown(samples if samples.ndim == 2 else samples[:, None], rate)
        samples = np.ascontiguousarray(samples, dtype=np.float32)
        _check_values(samples, name)
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
            with _SoundFile(file) as sound:
                total, rate = sound.frames, sound.samplerate
                _check_length(file, sound.format, total)
        except (soundfile.LibsndfileError, _IncompleteError):
            total, rate = round((_header_seconds(file) or 0) * SAMPLING_RATE), SAMPLING_RATE
            if not total:
                return len(load_audio(audio, name=name)) / SAMPLING_RATE
    return part.frames(total, rate, name)[1] / rate


def num_channels(audio: Any, *, name: str | None = None) -> int:
    """Number of channels of a recording, from its header; arguments and errors are those of [`audio_duration`]."""
    source, name = _source(audio, name)
    if source is None:
        samples, _ = _array(audio, name)
        return 1 if samples.ndim == 1 else samples.shape[1]
    with _open(source, name) as file:
        try:
            with _SoundFile(file) as sound:
                return int(sound.channels)
        except soundfile.LibsndfileError as reason:
            try:
                with _open_with_ffmpeg(file) as container:
                    stream = container.streams.best("audio")
                    return 1 if stream is None else int(stream.codec_context.channels)
            except av.FFmpegError as error:
                raise _unreadable(file, name, reason, error) from error


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
    if not isinstance(audio, dict):
        return _Part(channel=channel)
    offset, duration = audio.get("offset"), audio.get("duration")
    channel = audio.get("channel") if channel is None else channel
    for key, value in (("offset", offset), ("duration", duration)):
        is_number = isinstance(value, int | float | np.number) and math.isfinite(value)
        if value is not None and not (is_number and value >= 0 and (value or key == "offset")):
            raise AudioError(f"{name}: expected a number of seconds as `{key}`, got {value!r}.")
    return _Part(float(offset or 0.0), duration, channel)


class _Mixdown:
    """Makes pieces (frames, channels) to (frames,): the channel asked for, else the mean."""

    def __init__(self, channel: int | None, name: str):
        self._channel, self._name = channel, name
        self._energy: Any = 0.0  # of the mean, then of each channel, up to here

    def __call__(self, samples: np.ndarray, rate: int) -> np.ndarray:
        channels = samples.shape[1]
        if self._channel is not None:
            if not isinstance(self._channel, int | np.integer) or self._channel not in range(channels):
                counted = "1 channel" if channels == 1 else f"{channels} channels"
                raise AudioError(
                    f"{self._name}: no channel {self._channel!r}, the recording has {counted}, counted from 0."
                )
            return samples[:, self._channel]
        if channels == 1 or not len(samples):
            return samples[:, 0]
        samples = np.ascontiguousarray(samples.T)  # (channels, frames), or the mean takes ten times as long
        mean: np.ndarray = samples.mean(axis=0)
        # Channels of opposite phase leave silence, which Whisper fills with words. Judged every 0.1 s by all that
        # came before, and not by the whole: so the blocks of a recording are those of the whole.
        starts = np.arange(0, len(mean), _cell(rate))
        energies = np.stack([np.add.reduceat(x * x, starts) for x in (mean, *samples)]).astype(float)
        energies[:, 0] += self._energy
        energies = energies.cumsum(axis=1)  # (1 + channels, cells)
        self._energy = energies[:, -1]
        opposite = energies[0] < _OPPOSITE * energies[1:].mean(axis=0)
        if not opposite.any():
            return mean
        audible = (energies[1:] >= energies[1:].max(axis=0) / 2).argmax(axis=0)  # the first that is about the loudest
        cells = np.arange(len(mean)) // _cell(rate)
        return np.where(opposite[cells], samples[audible[cells], np.arange(len(mean))], mean)


def _cell(rate: int) -> int:
    """Frames of 0.1 s; blocks are multiples of it."""
    return max(1, rate // 10)


def _check_values(samples: np.ndarray, name: str) -> None:
    peak = max(float(samples.max()), -float(samples.min())) if len(samples) else 0.0
    if peak <= _MAX_PEAK:  # neither is NaN
        return
    # One NaN makes the whole log-mel NaN, since the loudest value of a recording scales all of it.
    invalid = int((~np.isfinite(samples)).sum())
    if invalid:
        raise AudioError(
            f"{name}: {invalid} of {len(samples)} samples are NaN or infinite; expected finite numbers. The recording "
            "or the step that made it is broken."
        )
    scale = 1 << 15 if peak <= 1 << 15 else 1 << 31
    raise AudioError(
        f"{name}: expected samples from -1 to 1, got a peak of {peak:.6g}, as of {len(f'{scale:b}')}-bit integers. "
        f"Divide by {scale}, or give them as int{len(f'{scale:b}')}."
    )


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
    if callable(getattr(audio, "read", None)):
        if audio.seekable():  # the next call reads it again
            audio.seek(0)
        audio = audio.read()
        if isinstance(audio, str):
            raise AudioError(f"{name}: the file is open as text; expected a binary one, of `open(path, 'rb')`.")
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
    kind = type(audio).__name__
    try:
        if hasattr(audio, "get_all_samples"):  # the AudioDecoder of torchcodec or datasets
            decoded = audio.get_all_samples()
            audio, rate = decoded.data.T, decoded.sample_rate
        if isinstance(audio, Tensor):
            audio = audio.detach().cpu()
            audio = audio.float() if audio.is_floating_point() else audio  # numpy has no bfloat16
        samples = np.asarray(audio)
    except (ValueError, TypeError, RuntimeError) as error:
        raise AudioError(f"{name}: expected an array of samples, got {kind}: {error}") from error
    if samples.dtype in (np.int16, np.int32):
        samples = samples.astype(np.float32) / np.float32(-np.iinfo(samples.dtype).min)
    if not np.issubdtype(samples.dtype, np.floating) or samples.ndim not in (1, 2):
        raise AudioError(
            f"{name}: expected audio as a path, bytes or an array of float, int16 or int32 in one or two dimensions, "
            f"got {kind} of {samples.dtype} with shape {samples.shape}."
        )
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T
    return samples.astype(np.float32, copy=False), int(rate)


# Decoding


def _open(source: bytes | Path, name: str) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    problem = f"the audio file is empty (0 bytes); expected {READABLE}"
    try:
        file = source.open("rb")
        if os.fstat(file.fileno()).st_size:
            return file
        file.close()
    except OSError as error:
        problem = "no such audio file" if isinstance(error, FileNotFoundError) else str(error.strerror)
    where = name if name == str(source) else f"{name}: {source}"
    raise AudioError(f"{where}: {problem}. Correct the path in the data set or leave the row out.")


class _SoundFile(soundfile.SoundFile):
    """Never seeks: soundfile does so after every read, and the decoders of MP3 and Opus do not return exactly."""

    def seekable(self) -> bool:
        return False


class _IncompleteError(Exception):
    """libsndfile does not give all: FFmpeg must give the `frames` promised, or what there is if they are None."""

    def __init__(self, message: str, frames: int | None = None):
        super().__init__(message)
        self.frames = frames


def _decode(source: bytes | Path, name: str, seconds: float | None, part: _Part) -> Iterator[tuple[np.ndarray, int]]:
    """Pieces (frames, channels) of so many seconds in float32, or the whole part, and the sampling rate."""
    with _open(source, name) as file:
        # These show a cut end in their container, before anything is decoded.
        kind, check = _CONTAINER_CHECKS.get(file.read(4), ("", None))
        if check and (fault := check(file)):
            raise _truncated(name, kind, fault)
        file.seek(0)
        num_decoded = 0
        try:
            with _SoundFile(file) as sound:
                for samples in _read(sound, file, name, seconds, part, is_checked=bool(check)):
                    num_decoded += len(samples)
                    yield samples, sound.samplerate
            return
        except (soundfile.LibsndfileError, _IncompleteError) as error:
            reason = error
        yield from _decode_with_ffmpeg(file, name, seconds, part, num_decoded, reason)


def _block_frames(seconds: float | None, rate: int) -> int:
    return sys.maxsize if seconds is None else max(1, round(seconds * rate / _cell(rate))) * _cell(rate)


def _read(
    sound: soundfile.SoundFile, file: BinaryIO, name: str, seconds: float | None, part: _Part, *, is_checked: bool
) -> Iterator[np.ndarray]:
    kind, promised, rate = sound.format, sound.frames, sound.samplerate
    position = file.tell()
    _check_length(file, kind, promised)
    if kind == "OGG" and _is_chained(file):
        raise _IncompleteError("it has several streams, of which libsndfile reads the first", promised)
    file.seek(position)
    start, end = 0, promised
    if part.offset or part.duration is not None:
        start, count = part.frames(promised, rate, name)
        end = start + count
        sound.seek(start)  # to the sample in all formats
    position, is_last = start, False
    while not is_last:
        wanted = min(_block_frames(seconds, rate), end - position)
        samples = sound.read(wanted, dtype="float32", always_2d=True)
        position += len(samples)
        is_last = len(samples) < wanted or position == end
        if is_last and not is_checked and (position < end or end == promised):
            promised = _promised_frames(file, kind, promised, rate)
            if position < promised - _MAX_MISSING * rate:
                fault = f"its header promises {promised} samples, {position} could be decoded"
                raise _IncompleteError(fault, promised)
        if len(samples):
            yield samples


def _open_with_ffmpeg(file: BinaryIO) -> Any:
    file.seek(0)
    # Without a name, or FFmpeg would believe an ending such as .g722, under which everything is sound; without
    # protocols, or a playlist that calls itself .m4a would open other files and addresses.
    reader = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell)
    return av.open(reader, metadata_errors="ignore", options={"protocol_whitelist": "none"})


def _header_seconds(file: BinaryIO) -> float | None:
    """Duration of the sound according to the header, in formats where it stands there."""
    try:
        with _open_with_ffmpeg(file) as container:
            return _stream_seconds(container)
    except av.FFmpegError:
        return None


def _stream_seconds(container: Any) -> float | None:
    stream = container.streams.best("audio")
    is_known = stream is not None and stream.duration and container.format.name in _EXACT_HEADERS
    return float(stream.duration * stream.time_base) if is_known else None


def _decode_with_ffmpeg(
    file: BinaryIO, name: str, seconds: float | None, part: _Part, num_decoded: int, reason: Exception
) -> Iterator[tuple[np.ndarray, int]]:
    """The pieces of [`_decode`] behind the `num_decoded` frames that libsndfile gave before it failed."""
    position, rate, end = 0, SAMPLING_RATE, sys.maxsize
    waiting: list[np.ndarray] = []
    num_waiting = 0
    try:
        with _open_with_ffmpeg(file) as container:
            for position, rate, samples in _ffmpeg_frames(container, part.offset, reason):
                start = round(part.offset * rate) + num_decoded
                if part.duration is not None:
                    end = round(part.offset * rate) + max(1, round(part.duration * rate))
                waiting.append(samples[max(0, start - position) : max(0, end - position)])
                num_waiting += len(waiting[-1])
                position += len(samples)
                block = _block_frames(seconds, rate)
                while num_waiting >= block:
                    joined = np.concatenate(waiting)
                    yield joined[:block], rate
                    waiting, num_waiting = [joined[block:]], num_waiting - block
                if position >= end:
                    break
            else:
                _check_end(container, position, rate, reason)
                part.frames(position, rate, name)  # the part may end behind the recording
    except (av.FFmpegError, _IncompleteError) as error:
        if isinstance(reason, _IncompleteError) and reason.frames is not None:
            raise _truncated(name, "audio", str(reason)) from error
        if fault := _mp4_fault(file):
            raise _truncated(name, "MP4", fault) from error
        if position > 0:
            raise _truncated(name, "audio", _says(error)) from error
        raise _unreadable(file, name, reason, error) from error
    if num_waiting:
        yield np.concatenate(waiting), rate


def _ffmpeg_frames(container: Any, offset: float, reason: Exception) -> Iterator[tuple[int, int, np.ndarray]]:
    """Position, sampling rate and samples (frames, channels) of what is decoded from `offset` seconds or earlier."""
    stream = container.streams.best("audio")
    if stream is None or stream.codec_context is None:
        raise _IncompleteError("there is no sound track in it")
    position, origin = 0, 0.0
    if offset > 1 and container.format.name in (_MP4, _MATROSKA):
        position = -1
        # Where the first sound stands: the delay of a codec lies before 0, an edit may lie behind.
        origin = next((frame.time for frame in container.decode(stream)), 0.0)
        # Half a second earlier: AAC and Opus decode each packet with the help of the one before it.
        container.seek(int((origin + offset - 0.5) / stream.time_base), stream=stream)
    is_open = isinstance(reason, _IncompleteError) and reason.frames is None  # the last packet may be a short one
    resampler: Any = av.AudioResampler(format="fltp")
    formats = set()
    for packet in container.demux(stream):
        if packet.is_corrupt and not is_open:
            raise _IncompleteError("its last packet is cut")
        for decoded in packet.decode():
            formats.add((decoded.sample_rate, decoded.layout.name, decoded.format.name))
            if len(formats) > 1:
                raise _IncompleteError(f"it changes on the way: {', then '.join(map(str, formats))}")
            (frame,) = resampler.resample(decoded)
            if position < 0:
                position = round((frame.time - origin) * frame.sample_rate)
            yield position, frame.sample_rate, frame.to_ndarray().T
            position += frame.samples
    if position < 0:  # the file ends earlier: where?
        container.seek(0)
        yield from _ffmpeg_frames(container, 0.0, reason)


def _truncated(name: str, kind: str, fault: str) -> AudioError:
    return AudioError(f"{name}: truncated {kind} file: {fault}. Fetch or encode it again, or leave it out.")


def _unreadable(file: BinaryIO, name: str, *reasons: Exception) -> AudioError:
    return AudioError(
        f"{name}: cannot be read as audio; expected {READABLE}, got {_size(file)} bytes of something else, or of a "
        f"file that is cut short or damaged. It starts with {_bytes_at(file, 0, 24)!r}; libsndfile and FFmpeg say: "
        f"{'; '.join(map(_says, reasons))}. Fetch or convert it again, or leave it out."
    )


def _says(error: Exception) -> str:
    """The message without the name of the object that was read."""
    return str(getattr(error, "error_string", None) or getattr(error, "strerror", None) or error).rstrip(".")


# What headers promise: libsndfile decodes cut WAV, MP3 and Ogg files without an error


def _check_length(file: BinaryIO, kind: str, frames: int) -> None:
    """Raises if the length is not known: libsndfile would read nothing, or as much as it guesses."""
    if (
        frames >= _UNKNOWN_LENGTH
        or (not frames and _has_open_length(file))
        # Without a Xing header it guesses from the bit rate of the first frame.
        or (kind == "MP3" and not _has_xing_header(file))
    ):
        raise _IncompleteError("its header does not tell its length")


def _promised_frames(file: BinaryIO, kind: str, frames: int, rate: int) -> int:
    if kind == "MP3":
        return frames - 2 * 1152  # padding of the encoder: two frames
    # Of a cut AIFF, AU, RF64 or SPHERE file libsndfile promises only what is left.
    return frames if kind == "FLAC" else max(frames, round((_header_seconds(file) or 0) * rate))


def _check_end(container: Any, num_decoded: int, rate: int, reason: Exception) -> None:
    """Raises if FFmpeg came to the end of a file before that of the recording."""
    promised = reason.frames if isinstance(reason, _IncompleteError) else None
    promised = promised or round((_stream_seconds(container) or 0) * rate)
    padding = _MAX_PADDING if container.format.name == _MP4 else _MAX_MISSING * rate
    if not num_decoded or num_decoded < promised - padding:
        raise _IncompleteError(f"its header promises {promised} samples, {num_decoded} could be decoded")


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
    page = data[data.rfind(b"OggS") :]
    # Header of 27 bytes, the last of which is the number of segments, their lengths, and they. The flag "end of
    # stream" is no sign: programs that write as they record do not set it.
    if len(page) >= 27:
        lengths = page[27 : 27 + page[26]]
        if len(lengths) == page[26] and 27 + page[26] + sum(lengths) <= len(page):
            return None
    return "its last page is cut"


def _is_chained(file: BinaryIO) -> bool:
    """Whether a second stream starts anywhere, in a page of version 0 with flag 2."""
    file.seek(4)
    end = b""
    while chunk := file.read(1 << 20):
        if b"OggS\0\2" in end + chunk:
            return True
        end = chunk[-5:]
    return False


def _wav_data(file: BinaryIO) -> tuple[int, int, int]:
    """Start and promised size of the data of a WAV file, and its bytes per second."""
    start, bytes_per_second = 12, 0
    while len(head := _bytes_at(file, start, 20)) >= 8:
        size = int.from_bytes(head[4:8], "little")
        if head[:4] == b"data":
            return start + 8, size, bytes_per_second
        if head[:4] == b"fmt ":
            bytes_per_second = int.from_bytes(head[16:], "little")
        start += 8 + size + size % 2
    return start, 0, 0


def _wav_fault(file: BinaryIO) -> str | None:
    start, size, bytes_per_second = _wav_data(file)
    left = _size(file) - start
    # Programs that write into a pipe cannot know the size and put a value near 2³¹ or 2³² there.
    if not size or size >= 0x7FFF0000 or size - left <= _MAX_MISSING * bytes_per_second:
        return None
    return f"its header promises {size} bytes, {left} are there"


def _has_open_length(file: BinaryIO) -> bool:
    """Whether a WAV file has data in spite of a size of 0, and not only other chunks behind them."""
    if _bytes_at(file, 0, 4) != b"RIFF":
        return False
    (start, size, _), end = _wav_data(file), _size(file)
    if size:
        return False
    while len(head := _bytes_at(file, start, 8)) == 8 and head[:4].isascii() and head[:4].decode().isprintable():
        size = int.from_bytes(head[4:], "little")
        start += 8 + size + size % 2
    return start < end


def _matroska_fault(file: BinaryIO) -> str | None:
    position, end = 0, _size(file)
    while position < end and (head := _bytes_at(file, position, 12))[0]:  # else zeros follow
        # The leading zeros of an id, and those of the size behind it, tell how many bytes follow.
        id_bytes = 9 - head[0].bit_length()
        size_bytes = 9 - head[id_bytes].bit_length() if len(head) > id_bytes else 9
        ones = (1 << 7 * size_bytes) - 1
        size = int.from_bytes(head[id_bytes : id_bytes + size_bytes], "big") & ones
        position += id_bytes + size_bytes
        if size != ones:  # else its end is open, and what follows lies in it
            position += size
    return f"an element ends {position - end} bytes behind the file" if position > end else None


def _mp4_fault(file: BinaryIO) -> str | None:
    position, end = 0, _size(file)
    while position < end and _bytes_at(file, 4, 4) == b"ftyp":
        head = _bytes_at(file, position, 16)
        size = int.from_bytes(head[:4], "big")
        size = int.from_bytes(head[8:], "big") if size == 1 else size or end - position
        if position + size > end:
            return f"its box {head[4:8]!r} promises {size} bytes, {end - position} are there"
        position += max(size, 8)
    return None


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _bytes_at(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)


_CONTAINER_CHECKS = {
    b"RIFF": ("WAV", _wav_fault),
    b"OggS": ("Ogg", _ogg_fault),
    b"\x1a\x45\xdf\xa3": ("Matroska", _matroska_fault),
}
"""By the first four bytes of a file."""
