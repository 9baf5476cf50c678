"""The quickstart: label, filter, distil, score and use a student.

    python run.py [--output_dir runs/quickstart] [--fsdd <folder of the human digits>] [--copies 1] [--num_beams 5]

Ends with a table of the teacher and of the student before and after distillation, and with their acceptance
bounds. Needs no GPU and no network.
"""

import argparse
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import Dataset
from muon import Muon, split_parameters
from scores import digit_wer, print_bounds, score, speeds, table, timestamp_error
from transformers import WhisperForConditionalGeneration, WhisperProcessor, pipeline

from hf_distil_whisper import (
    DataCollatorSpeechSeq2SeqWithPadding,
    DistillationTrainer,
    DistillationTrainingArguments,
    SpeechDataset,
    create_student,
    filter_by_wer,
    generate_model_card,
    load_audio,
    load_model,
    load_processor,
    load_source,
    pack_utterances,
    pseudo_label_dataset,
    save_checkpoint,
)
from hf_distil_whisper.inference.encoder import EncoderCache

HERE = Path(__file__).parent
CORPUS, TEACHER = HERE / "corpus", HERE / "teacher"
RUNTIME = "ctranslate2" if find_spec("ctranslate2") else "transformers"
"""What labels: the same labels, the one sooner than the other."""
CHUNKS = {"teacher": 30.0, "student before": 15.0, "student": 15.0}
"""Seconds of a chunk of a long recording: 30 are best for Whisper, for a student those it learnt from (Table 23)."""
OPTIMIZER = "Muon (matrices, 2e-3), AdamW (others, 1e-3)"
"""As it stands on the card; [`distil`] makes it."""
SESSION = 10
"""Sentences that a voice of the corpus says in a row."""
SPEEDS = (0.88, 0.93, 1.08, 1.14)
WINDOWS: list[tuple[range, dict[str, Any]]] = [
    (range(0, 5), {"max_duration": 30.0}),
    (range(5, 15), {"max_duration": 15.0}),
    (range(15, 16), {"speaker_column": None}),
]
"""Which sessions of a cycle fill whole windows, which ones half of them, and which one has a sentence in each."""
CYCLE = sum(len(sessions) for sessions, _ in WINDOWS)


def training_windows(copies: int) -> Dataset:
    """The training split, packed to windows, with pauses between the recordings.

    A student learns much faster from short windows, where the alignment is easier, than from full ones; but a long
    recording consists of full ones. From windows with one sentence it learns to stop after it, which it cannot learn
    from windows in which another one follows.

    Args:
        copies (`int`): copies of all speech at another speed, which sound like other voices.
    """
    rows = load_source(CORPUS, split="train")
    windows: list[dict] = []
    for copy in range(copies + 1):
        for sessions, joined in WINDOWS:
            chosen = [number for number in range(len(rows)) if (number // SESSION + 5 * copy) % CYCLE in sessions]
            windows += pack_utterances(spoken(rows, chosen, copy), gap=0.3, **joined)
    return Dataset.from_list(windows)


def spoken(rows: Dataset, chosen: list[int], copy: int) -> Iterator[dict]:
    """Chosen rows as they are, or in a copy each session at another speed."""
    for number in chosen:
        row = rows[number]
        if copy:
            speed = SPEEDS[(number // SESSION + copy) % len(SPEEDS)]
            # Played at another rate than it was recorded at: tempo and pitch change together.
            row |= {"audio": (load_audio(row["audio"]), round(16_000 * speed)), "id": f"{row['id']} copy {copy}"}
        yield row


def distil(
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    labelled: Dataset,
    folder: Path,
    trainer_class: type[DistillationTrainer] = DistillationTrainer,
    **changes: Any,
) -> DistillationTrainer:
    """Trains the student in place; returns the trainer behind its last step.

    Args:
        student (`WhisperForConditionalGeneration`): shares the teacher's encoder.
        teacher (`WhisperForConditionalGeneration`): wrote the labels.
        processor (`WhisperProcessor`): of both.
        labelled (`Dataset`): rows that pass the filter.
        folder (`Path`): of the run, with the teacher cache.
        trainer_class (`type`, *optional*): takes the steps.
        changes: to the settings below.
    """
    settings = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "warmup_steps": 60,
        "teacher_cache": "both",
        "teacher_cache_dir": folder / "cache",
        "save_strategy": "no",
        "logging_steps": 100,
        "remove_unused_columns": False,
    }
    args = DistillationTrainingArguments(output_dir=folder / "training", **settings | changes)
    dataset = SpeechDataset(labelled, processor, seed=args.seed)
    collator = DataCollatorSpeechSeq2SeqWithPadding(processor)
    matrices, others = split_parameters(student.model.decoder.named_parameters())
    optimizer = Muon([{"params": matrices}, {"params": others, "lr": 1e-3, "matrices": False}], lr=2e-3)
    trainer = trainer_class(
        student, teacher, args, collator, dataset, processing_class=processor, optimizers=(optimizer, None)
    )
    trainer.train()
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument(
        "--fsdd",
        type=Path,
        default=HERE.parents[2] / "shared/speech/fsdd",
        help="folder of the Free Spoken Digit Dataset; skipped if missing",
    )
    parser.add_argument("--copies", type=int, default=0, help="copies of the training speech at other speeds")
    parser.add_argument("--num_beams", type=int, default=1, help="beams of the labelling")
    parser.add_argument("--seed", type=int, default=42, help="seed of the training")
    args = parser.parse_args()
    start = time.perf_counter()

    def step(name: str) -> None:
        print(f"\n[{(time.perf_counter() - start) / 60:4.1f} min] {name}", flush=True)

    step("1. the teacher labels the training speech")
    teacher, processor = load_model(TEACHER), load_processor(TEACHER)
    labelled = pseudo_label_dataset(
        training_windows(args.copies), teacher, processor, output_dir=args.output_dir / "labelled", backend=RUNTIME,
        teacher_cache_dir=args.output_dir / "cache", num_beams=args.num_beams,
    )  # fmt: skip
    step("2. labels that differ from the reference by more than 10 % are dropped")
    filtered, report = filter_by_wer(labelled, 0.10, language="en")
    print(report.table())
    step("3. a student with 2 of the 8 decoder layers learns from teacher and labels")
    student = create_student(teacher, decoder_layers=2)
    training = distil(student, teacher, processor, filtered, args.output_dir, seed=args.seed).args
    save_checkpoint(student, processor, args.output_dir / "student")
    step("4. both are scored, beside the student as it was before")
    models = {"teacher": teacher, "student before": create_student(teacher, decoder_layers=2), "student": student}
    states = EncoderCache(teacher.model.encoder, teacher.dtype)
    scores = {
        name: score(model, processor, CORPUS, CHUNKS[name], states, brief=name == "student before")
        for name, model in models.items()
    }
    times = speeds(models, processor, CORPUS)
    step("5. saved with its card, and used")
    card = generate_model_card(
        student, name="quickstart-student", teacher="quickstart-teacher", training_args=training,
        teacher_config=teacher.config, teacher_parameters=teacher.num_parameters(), optimizer=OPTIMIZER,
        groups={"test": "in distribution", "unseen voices": "out of distribution", "long form": "long form"},
        results={name: errors.wer for name, errors in scores["student"].errors.items()},
        teacher_results={name: errors.wer for name, errors in scores["teacher"].errors.items()},
    )  # fmt: skip
    card.save(args.output_dir / "student" / "README.md")
    recognise = pipeline("automatic-speech-recognition", model=str(args.output_dir / "student"))
    row = load_source(CORPUS, split="test")[0]
    recognised = recognise({"raw": load_audio(row["audio"]), "sampling_rate": 16_000})
    print(f"reference:  {row['text']}\ntranscript: {recognised['text'].strip()}\n")
    print(table(scores, times))
    minutes = (time.perf_counter() - start) / 60
    human = digit_wer(teacher, processor, args.fsdd) if args.fsdd.exists() else None
    seconds = timestamp_error(teacher, processor, CORPUS)
    print_bounds(scores, times.ratios, human, seconds, minutes)


if __name__ == "__main__":
    main()
