"""What shows that the end of an audio file is missing. libsndfile itself reads most cut files without a word.

Knows the containers that libsndfile reads, and looks at a few bytes of the file only; decodes nothing.
"""

import os
from typing import BinaryIO

_LARGEST_OGG_PAGE = 27 + 255 + 255 * 255


def missing_bytes(file: BinaryIO, kind: str) -> str | None:
    """What the container itself tells before anything is decoded, or `None`.

    Args:
        file (`BinaryIO`): the encoded file; its position is moved.
        kind (`str`): libsndfile's name of the container.
    """
    if kind == "OGG":
        return _missing_ogg_end(file)
    return _missing_wav_bytes(file) if _is_riff(file, kind) else None


def missing_samples(file: BinaryIO, kind: str, claimed: int, decoded: int, position: int) -> str | None:
    """What decoding to the end tells, or `None`.

    Args:
        file (`BinaryIO`): the encoded file; its position is moved.
        kind (`str`): libsndfile's name of the container.
        claimed (`int`): frames that its header promises.
        decoded (`int`): frames that came.
        position (`int`): of the file after the last of them.
    """
    if kind == "OGG" or _is_riff(file, kind):
        return None  # `missing_bytes` has looked at these
    if kind == "MP3":
        # Without a Xing header the length is a guess from the first frame's bit rate, and decoding stops there.
        if not _has_xing_header(file):
            size = _size(file)
            unread = size - position
            if unread > max(4096, size // 10):
                return f"it has no header with its length, and {unread} of {size} bytes would stay unread"
            return None
        claimed -= 2 * 1152
    return f"its header promises {claimed} samples, {decoded} could be decoded" if decoded < claimed else None


def _is_riff(file: BinaryIO, kind: str) -> bool:
    return kind in ("WAV", "WAVEX") and _bytes_at(file, 0, 4) == b"RIFF"


def _has_xing_header(file: BinaryIO) -> bool:
    start, head = 0, _bytes_at(file, 0, 10)
    if head[:3] == b"ID3":
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    first_frame = _bytes_at(file, start, 256)
    return b"Xing" in first_frame or b"Info" in first_frame


def _missing_ogg_end(file: BinaryIO) -> str | None:
    size = _size(file)
    data = _bytes_at(file, max(0, size - 2 * _LARGEST_OGG_PAGE), size)
    if b"OggS" not in data:  # something long was appended
        data = _bytes_at(file, 0, size)
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


def _missing_wav_bytes(file: BinaryIO) -> str | None:
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
