"""The teacher's additional training speech, stored as log-mel frames.

    python teacher_speech.py --output_dir /somewhere/speech --hours 12 [--fsdd ../../../shared/speech/fsdd]

The training split of the corpus comes first. Every other utterance is rendered, coded with Opus as the corpus is, and
stored as log10 mel power before Whisper's clamp, so that windows can be assembled, mixed with noise and re-levelled
frame by frame while training. Human digits (fsdd, train split) are stored as one word per utterance.
"""

import argparse
import io
import itertools
import json
import random
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
import torch
from sentences import sentence
from tqdm import tqdm
from transformers import WhisperFeatureExtractor
from voices import DISGUISED_VOICES, EXTRA_VOICES, RATE, RECORDED_VOICES, TRAIN_VOICES, record, render

from hf_distil_whisper import (
    load_audio,
    load_source,
)

OPUS_COMPRESSION = 0.985
"""libsndfile's compression level that gives about 12 kbit/s."""

_EXTRACTOR = WhisperFeatureExtractor()


def encode_opus(audio: np.ndarray) -> bytes:
    """Float audio at 16 kHz → Opus in Ogg at about 12 kbit/s."""
    buffer = io.BytesIO()
    sf.write(buffer, audio, RATE, format="OGG", subtype="OPUS", compression_level=OPUS_COMPRESSION)
    return buffer.getvalue()


def log_mel(audio: np.ndarray) -> np.ndarray:
    """log10 mel power, (frames, 80) float16, 10 ms a frame, neither clamped to the maximum nor scaled."""
    window = torch.hann_window(400)
    spectrum = torch.stft(torch.from_numpy(audio), 400, 160, window=window, return_complex=True)[:, :-1].abs() ** 2
    mel = torch.from_numpy(_EXTRACTOR.mel_filters).float().T @ spectrum
    return mel.clamp(min=1e-10).log10().T.numpy().astype(np.float16)


def utterance(seed: int) -> tuple[np.ndarray, dict]:
    """Renders one random sentence: its log-mel frames and its row of the index."""
    torch.set_num_threads(1)
    rng, noise_rng = random.Random(seed), np.random.default_rng(seed)
    groups = [TRAIN_VOICES, RECORDED_VOICES, EXTRA_VOICES, DISGUISED_VOICES]
    voices = rng.choices(groups, [0.1, 0.45, 0.1, 0.35])[0]
    voice = rng.choice(voices)
    text = sentence(rng)
    audio = render(voice, text, rng, pitch_cents=250.0 if voices is EXTRA_VOICES else 150.0)
    audio = record(audio, noise_rng)
    decoded, _ = sf.read(io.BytesIO(encode_opus(audio)), dtype="float32")
    return log_mel(decoded), {"text": text, "speaker": voice.label}


def human_digits(folder: Path) -> list[tuple[np.ndarray, dict]]:
    """The recordings of fsdd's train split, resampled to 16 kHz."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    found = []
    for row in rows:
        if row["split"] == "train":
            audio, rate = sf.read(folder / row["file_name"], dtype="float32")
            found.append(
                (log_mel(soxr.resample(audio, rate, RATE)), {"text": row["text"], "speaker": f"fsdd-{row['speaker']}"})
            )
    return found


def corpus_speech() -> Iterator[tuple[np.ndarray, dict]]:
    """The training split of the corpus."""
    for row in load_source(Path(__file__).parent / "corpus", split="train"):
        yield log_mel(load_audio(row["audio"])), {"text": row["text"], "speaker": row["speaker"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=12.0)
    parser.add_argument("--fsdd", type=Path, default=None, help="folder of the Free Spoken Digit Dataset (none)")
    parser.add_argument("--seed", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    frames, wanted = 0, int(args.hours * 360_000)
    with open(args.output_dir / "mel.f16", "wb") as mel, open(args.output_dir / "index.jsonl", "w") as index:

        def keep(features: np.ndarray, row: dict) -> int:
            mel.write(features.tobytes())
            index.write(json.dumps({"start": frames, "frames": len(features)} | row) + "\n")
            return len(features)

        for features, row in itertools.chain(human_digits(args.fsdd) if args.fsdd else [], corpus_speech()):
            frames += keep(features, row)
        with Pool(args.processes) as pool, tqdm(total=wanted, unit="frame", mininterval=5) as bar:
            for features, row in pool.imap(utterance, range(args.seed, args.seed + wanted // 50), chunksize=8):
                frames += keep(features, row)
                bar.update(len(features))
                if frames >= wanted:
                    pool.terminate()
                    break


if __name__ == "__main__":
    main()
