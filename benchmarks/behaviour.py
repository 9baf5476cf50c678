"""Record what the library computes on fixed seeds, and compare it with what another commit computes.

    python benchmarks/behaviour.py record before.json     # at the commit to compare with
    python benchmarks/behaviour.py compare before.json    # after the change, on the same machine

A change of structure must leave all of it as it was to the last bit: pseudo-labels of 48 windows, the losses of
trainings with and without cached teacher outputs, transcripts (short, chunked, sequential, assisted, with word
timestamps), error counts, what the exported models write, and the model card. Only public names are used, so that one
script runs at both commits. About half an hour on one core, for the teacher of the quickstart.
"""

import argparse
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor, set_seed

from hf_distil_whisper import (
    DataCollatorSpeechSeq2SeqWithPadding,
    DistillationTrainer,
    DistillationTrainingArguments,
    SpeechDataset,
    TemperatureFallback,
    Transcription,
    create_assistant,
    create_student,
    evaluate_long_form,
    evaluate_model,
    export_ctranslate2,
    export_onnx,
    filter_by_wer,
    generate_model_card,
    load_audio,
    load_model,
    load_processor,
    load_source,
    pack_utterances,
    pseudo_label_dataset,
    save_checkpoint,
    transcribe,
    transcribe_chunked,
    transcribe_sequential,
)

ROOT = Path(__file__).resolve().parents[1]


def label_rows(dataset: Any) -> list[dict]:
    """Labelled rows without their audio, of which the digest stands in the first field."""
    rows = []
    for row in dataset:
        audio = hashlib.sha256(load_audio(row.pop("audio")).tobytes()).hexdigest()[:16]
        rows.append({"audio": audio, **row})
    return rows


def losses(
    teacher: WhisperForConditionalGeneration, processor: WhisperProcessor, rows: Any, steps: int, **settings: Any
) -> tuple[WhisperForConditionalGeneration, list[dict]]:
    """Trains a student; returns it with the log of each step."""
    set_seed(0)
    student = create_student(teacher, decoder_layers=3)
    with tempfile.TemporaryDirectory() as folder:
        if settings.get("teacher_cache"):
            settings["teacher_cache_dir"] = f"{folder}/cache"
        args = DistillationTrainingArguments(
            output_dir=f"{folder}/training", max_steps=steps, logging_steps=1, per_device_train_batch_size=4,
            gradient_accumulation_steps=2, learning_rate=1e-3, warmup_steps=5, save_strategy="no", use_cpu=True,
            remove_unused_columns=False, **settings,
        )  # fmt: skip
        dataset = SpeechDataset(rows, processor, seed=args.seed)
        collator = DataCollatorSpeechSeq2SeqWithPadding(processor)
        trainer = DistillationTrainer(student, teacher, args, collator, dataset, processing_class=processor)
        trainer.train()
    return student.eval(), [entry for entry in trainer.state.log_history if "loss" in entry]


def texts(transcriptions: Transcription | list[Transcription]) -> list[Any]:
    """Text, segments and words with their times, and the statistics behind them."""
    return [
        [one.text, [repr(segment) for segment in one.segments], [repr(word) for word in one.words or []]]
        for one in (transcriptions if isinstance(transcriptions, list) else [transcriptions])
    ]


def onnx_logits(folder: Path, features: np.ndarray, tokens: np.ndarray) -> dict[str, str]:
    """Digests of what the exported encoder and decoder compute."""
    import onnxruntime

    sessions = {
        name: onnxruntime.InferenceSession(
            str(next(folder.rglob(f"{name}*.onnx"))), providers=["CPUExecutionProvider"]
        )
        for name in ("encoder_model", "decoder_model")
    }
    states = sessions["encoder_model"].run(None, {"input_features": features})[0]
    logits = sessions["decoder_model"].run(None, {"input_ids": tokens, "encoder_hidden_states": states})[0]
    return {"states": digest(states), "logits": digest(logits)}


def digest(array: np.ndarray) -> str:
    """Of the array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def measure(teacher_folder: Path, corpus: Path, windows: int, steps: int) -> dict[str, Any]:
    """Everything that is compared, by name."""
    results: dict[str, Any] = {}

    def record(name: str, compute: Callable[[], Any]) -> Any:
        set_seed(0)
        print(f"  {name}", file=sys.stderr, flush=True)
        results[name] = compute()
        return results[name]

    teacher, processor = load_model(teacher_folder).eval(), load_processor(teacher_folder)
    packed = list(islice(pack_utterances(load_source(corpus, split="train")), windows))
    test = load_source(corpus, split="test_kathleen", max_samples=24)
    long = load_source(corpus, split="longform", max_samples=1)
    short_audio = [row["audio"] for row in test.select(range(16))]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        from datasets import Dataset

        labelled = pseudo_label_dataset(
            Dataset.from_list(packed), teacher, processor, output_dir=folder / "labelled", language="en", batch_size=8
        )
        record("labels", lambda: label_rows(labelled))
        record(
            "labels of CTranslate2",
            lambda: label_rows(
                pseudo_label_dataset(
                    Dataset.from_list(packed[:16]), teacher, processor, output_dir=folder / "ct2 labels",
                    language="en", batch_size=8, backend="ctranslate2",
                )
            ),
        )  # fmt: skip
        record(
            "labels of split recordings",
            lambda: label_rows(
                pseudo_label_dataset(
                    test.select(range(24)), teacher, processor, output_dir=folder / "split", max_duration=6.0,
                    rows_per_shard=8, num_beams=2, max_new_tokens=40,
                )
            ),
        )  # fmt: skip
        kept, report = filter_by_wer(labelled, 0.10, language="en")
        record("filter", lambda: [kept["id"], report.table()])
        student, log = losses(teacher, processor, kept, steps)
        record("losses", lambda: log)
        record("losses, cached", lambda: losses(teacher, processor, kept, steps // 3, teacher_cache="both")[1])
        record("losses, cached states", lambda: losses(teacher, processor, kept, 5, teacher_cache="encoder")[1])
        record(
            "losses with MSE, trained encoder",
            lambda: losses(teacher, processor, kept, 5, mse_weight=1.0, freeze_encoder=False)[1],
        )
        record("student", lambda: {name: digest(w.numpy()) for name, w in student.state_dict().items()})
        assistant = create_assistant(student, teacher)
        for name, model in (("teacher", teacher), ("student", student)):
            record(f"{name}, short", lambda m=model: texts(transcribe(m, processor, short_audio, batch_size=4)))
            record(
                f"{name}, short, timestamps, 3 beams",
                lambda m=model: texts(transcribe(m, processor, short_audio[:4], return_timestamps=True, num_beams=3)),
            )
            record(
                f"{name}, chunked",
                lambda m=model: [texts(transcribe_chunked(m, processor, row["audio"], batch_size=4)) for row in long],
            )
            record(
                f"{name}, sequential",
                lambda m=model: [texts(transcribe_sequential(m, processor, row["audio"])) for row in long],
            )
            errors = evaluate_model(model, test, processor, language="en", batch_size=8)
            record(f"{name}, errors", lambda e=errors: [repr(e.errors), [row["prediction"] for row in e.rows]])
            result = evaluate_long_form(model, long, processor, language="en")
            record(f"{name}, errors in long form", lambda r=result: repr(r.errors))
        record(
            "sequential with fallback",
            lambda: texts(
                transcribe_sequential(
                    teacher, processor, long[0]["audio"], temperature_fallback=TemperatureFallback(),
                    condition_on_prev_tokens=True,
                )
            ),
        )  # fmt: skip
        record(
            "assisted",
            lambda: texts(transcribe(teacher, processor, short_audio, assistant=assistant, batch_size=4)),
        )
        record(
            "assisted, long",
            lambda: [
                texts(transcribe_chunked(teacher, processor, long[0]["audio"], assistant=assistant, batch_size=4)),
                texts(transcribe_sequential(teacher, processor, long[0]["audio"], assistant=assistant)),
            ],
        )
        record(
            "word timestamps",
            lambda: texts(transcribe(teacher, processor, short_audio[:6], return_timestamps="word")),
        )
        save_checkpoint(student, processor, folder / "student")
        record("checkpoint", lambda: sorted(path.name for path in (folder / "student").iterdir()))
        record("generation config", lambda: json.loads((folder / "student" / "generation_config.json").read_text()))
        export_ctranslate2(student, processor, folder / "ct2")
        record("CTranslate2", lambda: digest(np.fromfile(folder / "ct2" / "model.bin", dtype=np.uint8)))
        export_onnx(student, processor, folder / "onnx")
        features = processor(
            load_audio(short_audio[0]), sampling_rate=16_000, return_tensors="np"
        ).input_features.astype(np.float32)
        frames = 2 * student.config.max_source_positions
        tokens = np.array([[student.generation_config.decoder_start_token_id, 5, 6, 7]])
        record("ONNX", lambda: onnx_logits(folder / "onnx", features[:, :, :frames], tokens))
        card = generate_model_card(
            student, name="me/student", teacher="me/teacher", teacher_config=teacher.config, language="en",
            teacher_parameters=teacher.num_parameters(), datasets=["me/speech"], license="mit",
            results={"test": 0.05}, teacher_results={"test": 0.04}, groups={"test": "in distribution"},
        )  # fmt: skip
        record("card", lambda: str(card))
    return results


IGNORED = ("data_wait", "kl_gap")
"""Entries of a training log that are not compared: a share of the time, and a diagnostic that was removed."""


def without_ignored(value: Any) -> Any:
    """The value without the entries of `IGNORED`, at any depth."""
    if isinstance(value, dict):
        return {name: without_ignored(entry) for name, entry in value.items() if name not in IGNORED}
    return [without_ignored(entry) for entry in value] if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """As it reads back from JSON: floats keep all their digits, dates of the day are left out."""
    return json.loads(re.sub(r"\d{4}-\d{2}-\d{2}", "<date>", json.dumps(value, ensure_ascii=False, default=str)))


def main() -> None:
    """Records or compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--teacher", type=Path, default=ROOT / "runs/quickstart/teacher")
    parser.add_argument("--corpus", type=Path, default=ROOT / "examples/quickstart/corpus")
    parser.add_argument("--windows", type=int, default=48, help="number of windows to label (default: 48)")
    parser.add_argument("--steps", type=int, default=12, help="number of training steps (default: 12)")
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order, and no slower on a busy machine
    results = plain(measure(args.teacher, args.corpus, args.windows, args.steps))
    if args.action == "record":
        args.file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    before, results = without_ignored(json.loads(args.file.read_text(encoding="utf-8"))), without_ignored(results)
    differing = [name for name in before if results.get(name) != before[name]]
    for name in before:
        print(f"{'DIFFERS' if name in differing else 'same   '} {name}")
    if differing:
        after = args.file.with_suffix(".after.json")
        after.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        sys.exit(f"{len(differing)} of {len(before)} differ: compare {args.file} with {after}.")


if __name__ == "__main__":
    main()
