"""Joins the single digits of the Free Spoken Digit Dataset into strings of three to eight digits of one speaker.

    python digit_strings.py <folder of fsdd> --output_dir runs/fsdd-digits/strings --count 1200

Writes `train` and `test`, a quarter as many, in the layout that `load_dataset` reads; `configs/fsdd-digits.yaml`
trains on it. The quickstart scores its teacher on 300 such strings.
"""

import argparse
import io
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile as sf
from datasets import Dataset

from hf_distil_whisper import (
    load_audio,
    load_source,
)

RATE = 16_000
PAUSE = 0.1
"""Seconds of silence behind each digit."""


def digit_strings(folder: Path, split: str, count: int, seed: int = 0) -> Iterator[dict]:
    """Draws strings of three to eight digits of one speaker.

    Args:
        folder (`Path`): one recording a digit and a `metadata.jsonl` with file_name, text, speaker and split.
        split (`str`): whose recordings to join.
        count (`int`): how many strings.
        seed (`int`, *optional*, defaults to 0): the same seed gives the same strings.

    Yields:
        `dict`: `id`, `audio` (FLAC bytes), `text` (one word a digit), `speaker`.
    """
    rng = random.Random(seed)
    digits = load_source(folder, split=split, speaker_column="speaker")
    by_speaker: dict[str, list[int]] = {}
    for index, speaker in enumerate(digits["speaker"]):
        by_speaker.setdefault(speaker, []).append(index)
    pause = np.zeros(int(PAUSE * RATE), dtype=np.float32)
    for number in range(count):
        speaker = rng.choice(sorted(by_speaker))
        rows = [digits[index] for index in rng.choices(by_speaker[speaker], k=rng.randint(3, 8))]
        parts = [part for row in rows for part in (load_audio(row["audio"], name=row["id"]), pause)]
        recording = io.BytesIO()
        sf.write(recording, np.concatenate(parts), RATE, format="FLAC")
        yield {
            "id": f"{split}-{number:04d}",
            "audio": {"bytes": recording.getvalue(), "path": None},
            "text": " ".join(row["text"] for row in rows),
            "speaker": speaker,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1200, help="strings to train on")
    args = parser.parse_args()
    (args.output_dir / "data").mkdir(parents=True, exist_ok=True)
    for split, count in (("train", args.count), ("test", args.count // 4)):
        rows = Dataset.from_list(list(digit_strings(args.folder, split, count)))
        rows.to_parquet(args.output_dir / "data" / f"{split}-00000-of-00001.parquet")
        print(f"{split}: {len(rows)} strings of digits")


if __name__ == "__main__":
    main()
