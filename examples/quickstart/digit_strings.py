"""Joins the single digits of the Free Spoken Digit Dataset into strings of three to eight digits of one speaker.

    python digit_strings.py <folder of fsdd> --output_dir runs/digits --count 1200

The folder holds one recording a digit and a `metadata.jsonl` with file_name, text, speaker and split. Writes `train`
and `test` in the layout that `load_dataset` reads; `configs/fsdd-digits.yaml` trains on it.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset

from hf_distil_whisper.data.audio import SAMPLING_RATE, encode_flac, load_audio
from hf_distil_whisper.data.sources import load_source

PAUSE = 0.1
"""Seconds of silence between two digits."""


def digit_strings(folder: Path, split: str, count: int, seed: int = 0) -> Iterator[dict]:
    """Rows (id, audio, text, speaker, duration) of `count` strings drawn from the recordings of one split."""
    rng = random.Random(seed)
    digits = load_source(str(folder), split=split, id_column="file_name", speaker_column="speaker")
    by_speaker: dict[str, list[int]] = {}
    for index, speaker in enumerate(digits["speaker"]):
        by_speaker.setdefault(speaker, []).append(index)
    pause = np.zeros(int(PAUSE * SAMPLING_RATE), dtype=np.float32)
    for number in range(count):
        speaker = rng.choice(sorted(by_speaker))
        rows = [digits[index] for index in rng.choices(by_speaker[speaker], k=rng.randint(3, 8))]
        audio = np.concatenate([part for row in rows for part in (load_audio(row["audio"], name=row["id"]), pause)])
        yield {
            "id": f"{split}-{number:04d}",
            "audio": {"bytes": encode_flac(audio), "path": None},
            "text": " ".join(row["text"] for row in rows),
            "speaker": speaker,
            "duration": len(audio) / SAMPLING_RATE,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1200, help="strings to train on; a quarter as many to test on")
    args = parser.parse_args()
    (args.output_dir / "data").mkdir(parents=True, exist_ok=True)
    for split, count in (("train", args.count), ("test", args.count // 4)):
        rows = Dataset.from_list(list(digit_strings(args.folder, split, count)))
        rows.to_parquet(args.output_dir / "data" / f"{split}-00000-of-00001.parquet")
        print(f"{split}: {len(rows)} digit strings, {sum(rows['duration']) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
