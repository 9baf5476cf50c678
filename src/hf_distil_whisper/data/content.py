"""Under which key what a model makes of a recording is kept: equal audio and equal features, equal key.

Knows rows and extractors, nothing of what is kept.
"""

import json
from pathlib import Path
from typing import Any

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
