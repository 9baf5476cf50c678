"""What stands for a recording or for rows: equal content, equal key, on every machine.

Knows rows and extractors, nothing of what is kept under a key.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import WhisperProcessor

from hf_distil_whisper.cache_store import content_key


def recording_key(audio: Any, settings: bytes, name: str) -> bytes:
    """The key of a row's recording, which is read as it is stored and not decoded.

    Args:
        audio (`dict`, `str` or `Path`): as [`load_source`] gives it.
        settings (`bytes`): from [`extractor_settings`].
        name (`str`): of the row; stands for a recording that cannot be read, which is found out when it is decoded.
    """
    if isinstance(audio, dict) and audio.get("bytes") is not None:
        return content_key(audio["bytes"], settings)
    try:
        return content_key(Path(audio["path"] if isinstance(audio, dict) else audio).read_bytes(), settings)
    except (OSError, TypeError, KeyError):
        return content_key(f"{name}: {audio!r}"[:1000].encode(), settings)


def extractor_settings(processor: WhisperProcessor) -> bytes:
    """What a processor does to audio.

    Args:
        processor (`WhisperProcessor`): of the model that listens.
    """
    return json.dumps(processor.feature_extractor.to_dict(), sort_keys=True, default=str).encode()


def rows_fingerprint(rows: Dataset) -> str:
    """What a data set says beside its audio, which is not read: ids, texts, labels and all else of every row.

    That of `datasets` depends on paths and times of files in a cache, and so on the machine.

    Args:
        rows (`Dataset`): any.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    told = rows.select_columns(sorted({*rows.column_names} - {"audio"}))
    for part in told.with_format("arrow").iter(batch_size=10_000):
        for row in part.to_pylist():
            digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()[:16]
