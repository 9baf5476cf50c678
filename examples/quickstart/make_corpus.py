"""Renders the quickstart's corpus: synthetic English speech in the Parquet layout that `load_dataset` reads.

    python make_corpus.py --output_dir corpus

Splits: train (sessions of ten sentences of one voice), validation, test, test_unseen (voices that neither the teacher
nor the student was trained on) and longform (1 to 3 minutes each). The same seed gives the same corpus.
"""

import argparse
import random
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from datasets import Audio as AudioFeature
from datasets import Dataset, Features, Value
from sentences import sentence
from teacher_speech import encode_opus
from tqdm import tqdm
from voices import RATE, RECORDED_VOICES, TRAIN_VOICES, UNSEEN_VOICES, Voice, record, render

SESSION = 10
"""Sentences that one voice speaks in a row."""

SIZES = {"validation": 80, "test": 320, "test_unseen": 320, "train": 6300}
ALL_VOICES = 4300
"""Sentences of the training split that all voices share; the sessions behind them are spoken by flite alone."""
SHARD_ROWS = 2150
"""Rows of a Parquet file at most: files of less than 10 MB."""
LONG_FORM_SECONDS = [65, 80, 95, 110, 120, 130, 150, 170]


def _voice(split: str, index: int) -> Voice:
    voices = UNSEEN_VOICES if split == "test_unseen" else TRAIN_VOICES
    if split == "train" and index >= ALL_VOICES:
        voices = RECORDED_VOICES
    return voices[(index // SESSION if split == "train" else index) % len(voices)]


def _row(name: str, audio: np.ndarray, text: str, voice: Voice) -> dict:
    return {
        "id": name,
        "audio": {"bytes": encode_opus(audio), "path": f"{name}.ogg"},
        "text": text,
        "speaker": voice.label,
        "duration": round(len(audio) / RATE, 3),
    }


def spoken(job: tuple[str, int]) -> dict:
    """One sentence of a split."""
    split, index = job
    name = f"{split}-{index:05d}"
    rng, voice = random.Random(name), _voice(split, index)
    text = sentence(rng)
    audio = record(render(voice, text, rng), np.random.default_rng(rng.getrandbits(32)))
    return _row(name, audio, text, voice)


def long_form(index: int) -> dict:
    """One recording of many sentences with pauses, in one room, by a voice of either kind."""
    name = f"longform-{index:02d}"
    rng = random.Random(name)
    voice = (UNSEEN_VOICES if index % 4 == 3 else TRAIN_VOICES)[index % 3]
    parts, texts, length = [], [], 0
    while length < LONG_FORM_SECONDS[index] * RATE:
        texts.append(sentence(rng))
        parts += [
            render(voice, texts[-1], rng, pitch_cents=20.0),
            np.zeros(int(rng.uniform(0.3, 1.0) * RATE), np.float32),
        ]
        length += len(parts[-2]) + len(parts[-1])
    audio = record(np.concatenate(parts), np.random.default_rng(rng.getrandbits(32)))
    return _row(name, audio, " ".join(texts), voice)


def write(rows: list[dict], split: str, folder: Path) -> None:
    """Writes one split as Parquet files whose audio is compressed bytes."""
    features = Features({"id": Value("string"), "audio": AudioFeature(sampling_rate=RATE), "text": Value("string"),
                         "speaker": Value("string"), "duration": Value("float32")})  # fmt: skip
    plain = Features(features | {"audio": {"bytes": Value("binary"), "path": Value("string")}})
    dataset = Dataset.from_list(rows, features=plain)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    starts = range(0, len(rows), SHARD_ROWS)
    for index, start in enumerate(starts):
        target = folder / "data" / f"{split}-{index:05d}-of-{len(starts):05d}.parquet"
        dataset.select(range(start, min(start + SHARD_ROWS, len(rows)))).to_parquet(target)
    seconds = sum(row["duration"] for row in rows)
    print(f"{split}: {len(rows)} rows, {seconds / 3600:.2f} h, {len(starts)} files")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "corpus")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    with Pool(args.processes) as pool:
        write(list(pool.imap(long_form, range(len(LONG_FORM_SECONDS)))), "longform", args.output_dir)
        for split, size in SIZES.items():
            jobs = [(split, index) for index in range(size)]
            write(list(tqdm(pool.imap(spoken, jobs, chunksize=8), total=size, desc=split)), split, args.output_dir)


if __name__ == "__main__":
    main()
