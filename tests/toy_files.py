"""Toy models and recordings as files, for commands and scripts that take paths."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import soundfile

from hf_distil_whisper.checkpoints import save_checkpoint
from hf_distil_whisper.data.audio import encode_flac
from toy_models import SENTENCES, toy_audio, toy_processor, toy_whisper


def write_toy_model(folder: Path, seed: int = 0, **changes: object) -> str:
    """Saves `toy_whisper(seed, **changes)` with the toy processor; returns the path.

    Its transcripts end after 40 tokens, where random weights would go on to the end of the decoder.
    """
    model = toy_whisper(seed, **changes)
    model.generation_config.max_length = 40
    save_checkpoint(model, toy_processor(), folder)
    return str(folder)


def write_toy_corpus(folder: Path, train: int = 6, test: int = 2, seconds: float = 1.0) -> str:
    """Writes WAV files of two speakers with a metadata.jsonl that names text, speaker and split; returns the path."""
    folder.mkdir(parents=True)
    rows = []
    for index in range(train + test):
        name = f"{index:02d}.wav"
        soundfile.write(folder / name, toy_audio(seconds, seed=index), 16_000)
        split = "train" if index < train else "test"
        text, speaker = SENTENCES[index % len(SENTENCES)], f"speaker-{index % 2}"
        rows.append({"file_name": name, "text": text, "speaker": speaker, "split": split})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(folder)


def spoil(corpus: str, row: int) -> None:
    """Cuts one recording of a toy corpus short and fills another with NaN, both of the train split."""
    first, second = sorted(Path(corpus).glob("*.wav"))[row : row + 2]
    first.write_bytes(first.read_bytes()[:1000])
    soundfile.write(second, np.full(16_000, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")


def write_tar(path: Path, files: dict[str, bytes]) -> str:
    """Writes an archive; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def tar_sample(key: str, text: str | None = "hello", fields: dict[str, object] | None = None) -> dict[str, bytes]:
    """The files of one sample: 0.1 s of audio, a text and fields."""
    audio = encode_flac(np.full(1_600, 0.25, dtype=np.float32))
    files = {f"{key}.flac": audio}
    if text is not None:
        files[f"{key}.txt"] = f" {text}\n".encode()
    return files | ({f"{key}.json": json.dumps(fields).encode()} if fields else {})
