"""The one place that decodes and resamples: what a row calls audio becomes float32 mono at 16 kHz, or an `AudioError`.

Knows containers (WAV, FLAC, MP3, Ogg and all else that libsndfile reads) and how each of them looks when its end is
missing. Knows nothing of data sets, text or features.
"""

import io
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

SAMPLING_RATE = 16_000
"""Samples per second of everything that `load_audio` returns: what Whisper's feature extractor expects."""

READABLE = "WAV, FLAC, MP3 or Ogg"


class AudioError(ValueError):
    """Audio that cannot be used. The message names the file or row, what was expected and what came."""


def load_audio(audio: Any, *, name: str | None = None) -> np.ndarray:
    """Decodes, mixes down to one channel and resamples to 16 kHz.

    Args:
        audio (`str`, `Path`, `bytes`, `dict`, `tuple` or `np.ndarray`):
            A path; an encoded file; a `{"bytes", "path"}` dictionary as `datasets` stores it (the path is read where
            the bytes are `None`); a `{"array", "sampling_rate"}` dictionary; a pair of array and rate; or an array at
            16 kHz. Arrays of int16 and int32 are scaled to [-1, 1). In a two-dimensional array the shorter axis holds
            the channels.
        name (`str`, *optional*): what messages call this audio; by default its path.

    Returns:
        `np.ndarray`: shape (samples,), float32, 16 kHz, in the loudness of the recording: nothing is normalised or
        clipped.

    Raises:
        AudioError: for a missing, empty, unreadable or truncated file, for samples that are not finite and for none at
            all.

    Example:
        ```python
        >>> load_audio((np.zeros(8_000, dtype=np.float32), 8_000)).shape
        (16000,)
        ```
    """
    samples, rate, name = _samples(audio, name)
    if not samples.size:
        raise AudioError(f"{name}: expected audio, got 0 samples. Record it again or leave it out.")
    if samples.ndim == 2:
        samples = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    finite = np.isfinite(samples)
    if not finite.all():
        raise AudioError(
            f"{name}: {int((~finite).sum())} of {len(samples)} samples are NaN or infinite; expected finite numbers. "
            "The recording or the step that made it is broken."
        )
    if rate != SAMPLING_RATE:
        samples = soxr.resample(samples, rate, SAMPLING_RATE)
        if not len(samples):
            raise AudioError(
                f"{name}: too short, nothing is left of it at {SAMPLING_RATE} Hz (source rate {rate} Hz)."
            )
    return np.ascontiguousarray(samples, dtype=np.float32)


def audio_duration(audio: Any, *, name: str | None = None) -> float:
    """Seconds of audio, from the header alone where there is one that says so.

    Args:
        audio (`str`, `Path`, `bytes`, `dict`, `tuple` or `np.ndarray`): as for [`load_audio`].
        name (`str`, *optional*): what messages call this audio; by default its path.

    Returns:
        `float`: seconds. A truncated file may claim more or less than it holds: only decoding it tells.

    Raises:
        AudioError: for a missing or empty file, and for one that cannot be read.
    """
    source, name = _source(audio, name)
    if source is None:
        samples, rate, _ = _samples(audio, name)
        return len(samples) / rate
    if isinstance(source, Path):
        with _opened(source, name) as file:
            return _header_duration(file, source, name)
    return _header_duration(io.BytesIO(source), source, name)


def encode_flac(array: np.ndarray) -> bytes:
    """A FLAC file (mono, 16 kHz, 16 bit) of the samples; `load_audio` gives them back to within half a step of 2⁻¹⁵.

    Args:
        array (`np.ndarray`): shape (samples,), float, 16 kHz. What lies outside [-1, 1) is clipped.

    Returns:
        `bytes`: the file. Samples that came from 16 bit survive exactly.
    """
    # soundfile would scale floats by 32767 on writing and by 1/32768 on reading: each rewriting would be a little
    # quieter.
    steps = np.clip(np.rint(np.asarray(array, dtype=np.float32) * 32768), -32768, 32767).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, steps, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


_UNKNOWN_LENGTH = 1 << 62
"""libsndfile reports about 2⁶³ frames for a FLAC whose header leaves the length open."""


def _samples(audio: Any, name: str | None) -> tuple[np.ndarray, int, str]:
    """Samples (frames,) or (frames, channels), their rate, and the name for messages."""
    source, name = _source(audio, name)
    if isinstance(source, Path):
        with _opened(source, name) as file:
            source = file.read()
    if source is not None:
        return *_decode(source, name), name
    rate: Any = SAMPLING_RATE
    if isinstance(audio, dict):
        audio, rate = audio["array"], audio.get("sampling_rate")
    elif isinstance(audio, tuple) and len(audio) == 2 and np.ndim(audio[1]) == 0:
        audio, rate = audio
    if not isinstance(rate, int | float | np.number) or not rate > 0:
        raise AudioError(f"{name}: expected a sampling rate in Hz beside the array, got {rate!r}.")
    return _as_float(audio, name), int(rate), name


def _source(audio: Any, name: str | None) -> tuple[bytes | Path | None, str]:
    """Where the encoded audio is, `None` if `audio` is made of samples; and the name for messages."""
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


def _opened(path: Path, name: str) -> BinaryIO:
    where = name if name == str(path) else f"{name}: {path}"
    try:
        file = path.open("rb")
    except OSError as error:
        reason = "no such audio file" if isinstance(error, FileNotFoundError) else error.strerror
        raise AudioError(f"{where}: {reason}. Correct the path in the data set or leave the row out.") from error
    if not path.stat().st_size:
        file.close()
        raise AudioError(f"{where}: the audio file is empty (0 bytes); expected {READABLE}.")
    return file


def _header_duration(file: BinaryIO, source: bytes | Path, name: str) -> float:
    try:
        header = soundfile.info(file)
    except soundfile.LibsndfileError:
        return len(load_audio(source, name=name)) / SAMPLING_RATE
    if header.frames >= _UNKNOWN_LENGTH:
        load_audio(source, name=name)  # says what is wrong with it
    return header.frames / header.samplerate


def _as_float(audio: Any, name: str) -> np.ndarray:
    """An array of samples as floats, (frames,) or (frames, channels)."""
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
    return samples.astype(np.float32, copy=False)


def _decode(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """Samples (frames, channels) in float32 and their rate."""
    source = io.BytesIO(data)
    try:
        with soundfile.SoundFile(source) as file:
            kind, claimed, rate = file.format, file.frames, file.samplerate
            if claimed >= _UNKNOWN_LENGTH:
                raise AudioError(
                    f"{name}: the header of this {kind} file leaves its length open, as those written into pipes do, "
                    "and libsndfile cannot read on from there. Encode it again, into a file."
                )
            samples = file.read(dtype="float32", always_2d=True)
            position = source.tell()
    except soundfile.LibsndfileError as error:
        return _decode_with_torchcodec(data, name, error)
    missing = _missing(data, kind, claimed, len(samples), position)
    if missing:
        raise AudioError(f"{name}: truncated {kind} file: {missing}. Fetch or encode it again, or leave it out.")
    return samples, rate


def _missing(data: bytes, kind: str, claimed: int, decoded: int, position: int) -> str | None:
    """What shows that audio is missing, or `None`. libsndfile itself reads most cut files without a word."""
    if kind == "MP3":
        # Without a Xing header the length is a guess from the first frame's bit rate, and decoding stops there.
        if not _has_xing_header(data):
            unread = len(data) - position
            if unread > max(4096, len(data) // 10):
                return f"it has no header with its length, and {unread} of {len(data)} bytes would stay unread"
            return None
        claimed -= 2 * 1152
    elif kind == "OGG":
        return _missing_ogg_end(data)
    elif kind in ("WAV", "WAVEX") and data[:4] == b"RIFF":
        return _missing_wav_bytes(data)
    if decoded < claimed:
        return f"its header promises {claimed} samples, {decoded} could be decoded"
    return None


def _has_xing_header(data: bytes) -> bool:
    start = 0
    if data[:3] == b"ID3":
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
    first_frame = data[start : start + 256]
    return b"Xing" in first_frame or b"Info" in first_frame


def _missing_ogg_end(data: bytes) -> str | None:
    page = data.rfind(b"OggS")
    header, last_of_stream = data[page : page + 27], 4
    if len(header) == 27:
        lengths = data[page + 27 : page + 27 + header[26]]
        if (
            len(lengths) == header[26]
            and page + 27 + header[26] + sum(lengths) <= len(data)
            and header[5] & last_of_stream
        ):
            return None
    return "its last page is not marked as the end of the stream"


def _missing_wav_bytes(data: bytes) -> str | None:
    start = 12
    while start + 8 <= len(data):
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        if data[start : start + 4] == b"data":
            left = len(data) - start - 8
            # Programs that write into a pipe cannot know the size and put a value near 2³¹ or 2³² there.
            return f"its header promises {size} bytes, {left} are there" if left < size < 0x7FFF0000 else None
        start += 8 + size + size % 2
    return None


def _decode_with_torchcodec(data: bytes, name: str, reason: Exception) -> tuple[np.ndarray, int]:
    """What libsndfile cannot read (M4A, WebM), if torchcodec is there and loads."""
    try:
        from torchcodec.decoders import AudioDecoder
    except (ImportError, OSError, RuntimeError):  # OSError: a CUDA build beside a CPU torch
        raise AudioError(
            f"{name}: cannot be read as audio; expected {READABLE}, got {len(data)} bytes of something else, or of a "
            f"file that is cut short or damaged ({reason}). Convert it, or install a torchcodec that fits your torch."
        ) from reason
    try:
        decoded = AudioDecoder(data).get_all_samples()
    except (RuntimeError, ValueError) as error:
        raise AudioError(f"{name}: neither libsndfile ({reason}) nor torchcodec ({error}) can read it.") from error
    return decoded.data.numpy().T.astype(np.float32), int(decoded.sample_rate)
