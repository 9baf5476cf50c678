"""`train`: distils a student on labelled speech, or fine-tunes it without a teacher, and saves it with its card."""

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset, IterableDataset
from torch.utils.data import Dataset as TorchDataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import load_model, load_processor
from hf_distil_whisper.cli.arguments import as_sources, parse_arguments
from hf_distil_whisper.cli.corpora import load_corpora
from hf_distil_whisper.cli.training_plan import (
    LABELS,
    TrainArguments,
    data_seed,
    needs_teacher,
    plan_training,
    training_mixture,
)
from hf_distil_whisper.data.collator import DataCollatorSpeechSeq2SeqWithPadding
from hf_distil_whisper.data.speech_dataset import SpeechDataset, check_rows
from hf_distil_whisper.data.speech_stream import SpeechStream
from hf_distil_whisper.hub.card_files import ModelCardCallback, latest_word_errors, save_model_card, teacher_facts
from hf_distil_whisper.hub.card_text import find_license
from hf_distil_whisper.hub.resume import HubCheckpoint, fetch_checkpoint
from hf_distil_whisper.hub.sample_predictions import SamplePredictionsCallback
from hf_distil_whisper.hub.trackers import run_url
from hf_distil_whisper.inference.generation import is_multilingual, resolve_language
from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.trainer import DistillationTrainer
from hf_distil_whisper.training.training_args import DistillationTrainingArguments
from hf_distil_whisper.uploads import PushError

logger = logging.getLogger(__name__)


def build_trainer(
    args: TrainArguments,
    training_args: DistillationTrainingArguments,
    datasets: Mapping[str, Dataset | IterableDataset],
) -> DistillationTrainer:
    """Loads the models of a plan and puts its rows before the trainer.

    Args:
        args (`TrainArguments`): as checked by [`plan_training`].
        training_args (`DistillationTrainingArguments`): the same.
        datasets (`Mapping[str, Dataset | IterableDataset]`): `plan.rows`.

    Returns:
        [`DistillationTrainer`]: call its `train`.
    """
    base = args.model_name_or_path or args.teacher_model_name_or_path or ""
    processor = load_processor(base)
    teacher = None
    if needs_teacher(training_args) or args.model_name_or_path is None:
        teacher = load_model(args.teacher_model_name_or_path or "", attn_implementation=args.attn_implementation)
    if args.model_name_or_path is not None:
        student = load_model(args.model_name_or_path, attn_implementation=args.attn_implementation)
    else:
        student = create_student(teacher or "", **args.layers())
    train_dataset, eval_datasets = speech_datasets(args, training_args, datasets, student, processor)
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher if needs_teacher(training_args) else None,
        args=training_args,
        data_collator=DataCollatorSpeechSeq2SeqWithPadding(processor),
        train_dataset=train_dataset,
        eval_dataset=eval_datasets or None,
        processing_class=processor,
        callbacks=[ModelCardCallback(**card_details(args, training_args))],
    )
    if args.sample_predictions:
        trainer.add_callback(SamplePredictionsCallback(trainer, args.sample_predictions))
    return trainer


def speech_datasets(
    args: TrainArguments,
    training_args: DistillationTrainingArguments,
    datasets: Mapping[str, Dataset | IterableDataset],
    student: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
) -> tuple[TorchDataset, dict[str, TorchDataset]]:
    """Rows as features and labels: those to train on, and those to validate on by name. Unusable ones are listed.

    Args:
        args (`TrainArguments`): names the columns.
        training_args (`DistillationTrainingArguments`): language, probabilities and seed.
        datasets (`Mapping[str, Dataset | IterableDataset]`): `plan.rows`.
        student (`WhisperForConditionalGeneration`): decides whether labels begin with a language.
        processor (`WhisperProcessor`): features and tokens.
    """
    labels: dict[str, Any] = {
        "language": resolve_language(student, training_args.language, training_args.task),
        "task": training_args.task,
        "max_label_length": args.max_label_length,
    }
    draws: dict[str, Any] = {
        "timestamp_probability": training_args.timestamp_probability,
        "condition_on_prev_probability": training_args.condition_on_prev_probability,
        "seed": data_seed(training_args),
    }
    found: dict[str, TorchDataset] = {}
    streams = [rows for rows in datasets.values() if isinstance(rows, IterableDataset)]
    if streams:
        found["train_dataset"] = SpeechStream(
            dict(zip(args.sources(), streams, strict=True)),
            processor,
            weights={name: source.weight or 1.0 for name, source in args.sources().items()},
            stopping_strategy=args.stopping_strategy,
            shuffle_buffer=args.shuffle_buffer,
            transcript_column=LABELS,
            language_column="language" if is_multilingual(student) else None,
            **draws,
            **labels,
        )
    for flag, rows in datasets.items():
        if isinstance(rows, IterableDataset):
            continue
        train = flag == "train_dataset"
        column = LABELS if train else "text"
        told = "language" in rows.column_names and is_multilingual(student)
        labels["language_column"] = "language" if told else None
        rows, errors = check_rows(rows, processor, transcript_column=column, **labels)
        if errors:
            logger.warning(f"--{flag}: {errors.summary()}")
        found[flag] = SpeechDataset(
            rows,
            processor,
            transcript_column=column,
            train=train,
            mixture=training_mixture(args, rows, data_seed(training_args)) if train else None,
            **draws,
            **labels,
        )
    train_dataset = found.pop("train_dataset")
    return train_dataset, {flag.removeprefix("eval_datasets."): dataset for flag, dataset in found.items()}


def card_details(args: TrainArguments, training_args: DistillationTrainingArguments) -> dict[str, Any]:
    """What the model card says of teacher and data.

    Args:
        args (`TrainArguments`): models and data.
        training_args (`DistillationTrainingArguments`): for the language and the name on the Hub.
    """
    teacher, base = args.teacher_model_name_or_path, args.model_name_or_path
    facts = _facts_of(teacher or base or "")
    places = [source.path for source in args.sources().values()]
    evaluated = as_sources(args.eval_datasets, "eval_datasets")
    return {
        **(facts if teacher else {}),
        "name": training_args.hub_model_id or Path(str(training_args.output_dir)).name,
        "teacher": teacher,
        "base_model": base,
        "base_revision": _facts_of(base)["teacher_revision"] if base else None,
        "datasets": places,
        "dataset_licenses": {place: known for place in places if (known := _dataset_license(place))},
        "result_sources": {
            name: {"path": source.path, "config": source.config, "split": source.split, "revision": source.revision}
            for name, source in evaluated.items()
        },
        "language": training_args.language,
        "license": args.license or facts["license"],
    }


@lru_cache
def _facts_of(model: str) -> dict[str, Any]:
    return teacher_facts(model)


@lru_cache
def _dataset_license(place: str) -> str | None:
    known = {corpus.source["path"]: corpus.licence for corpus in load_corpora().values()}
    return known.get(place) or find_license(place, "dataset")


def finish_training(trainer: DistillationTrainer, args: TrainArguments) -> dict[str, float]:
    """Validates the trained student, then saves it with its processor, its scores and its card; pushes where asked to.

    Args:
        trainer (`DistillationTrainer`): after `train`.
        args (`TrainArguments`): for the card.

    Returns:
        `dict[str, float]`: the metrics, also in `eval_results.json`; empty without sets to validate on.

    Raises:
        PushError: if a push was asked for and is not on the Hub, after everything else is done.
    """
    metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
    if metrics:
        trainer.save_metrics("eval", metrics, combined=False)
    trainer.save_state()
    trainer.save_model(_internal_call=True)  # by every process, since shards are gathered; without the Trainer's push
    if trainer.is_world_process_zero():
        folder = str(trainer.args.output_dir)
        save_model_card(
            folder,
            trainer.model,
            log_history=trainer.state.log_history,
            results=latest_word_errors([metrics]),
            run_url=run_url(trainer.args),
            training_args=trainer.args,
            teacher_parameters=trainer.teacher_model.num_parameters() if trainer.teacher_model is not None else None,
            **card_details(args, trainer.args),
        )
        if trainer.args.push_to_hub:
            trainer.push_output_dir()
            if trainer.push_error is not None:
                raise PushError(trainer.push_error)
    return metrics


def run(argv: Sequence[str]) -> None:
    """Entry point of the command.

    Args:
        argv (`Sequence[str]`): a recipe, then flags.
    """
    args, training_args = parse_arguments(
        TrainArguments, DistillationTrainingArguments, argv=argv, command="hf-distil-whisper train"
    )
    plan = plan_training(args, training_args)
    if plan.settle(dry_run=args.dry_run):
        checkpoint = plan.checkpoint
        if isinstance(checkpoint, HubCheckpoint):
            with PartialState().local_main_process_first():
                checkpoint = fetch_checkpoint(checkpoint, str(training_args.output_dir), training_args.hub_token)
        trainer = build_trainer(args, training_args, plan.rows)
        trainer.train(resume_from_checkpoint=checkpoint)
        finish_training(trainer, args)
    # A process that leaves without this may abort with its work done: github.com/pytorch/pytorch/issues/190489
    PartialState().destroy_process_group()
