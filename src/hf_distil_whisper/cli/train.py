"""`train`: distils a student on labelled speech, or fine-tunes it without a teacher, and saves it with its card."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from torch.utils.data import Dataset as TorchDataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import (
    check_compatible,
    load_model,
    load_processor,
)
from hf_distil_whisper.cli.config import (
    DataSource,
    as_sources,
    as_training_sources,
    load_corpora,
    parse_arguments,
    setting,
    source_setting,
)
from hf_distil_whisper.cli.create_student import (
    StudentArguments,
    add_student,
)
from hf_distil_whisper.cli.inputs import (
    Plan,
    describe_rows,
    gigabytes,
    hours_of_audio,
    training_bytes,
)
from hf_distil_whisper.data.collator import DataCollatorSpeechSeq2SeqWithPadding
from hf_distil_whisper.data.dataset import (
    LABEL_COLUMNS,
    SpeechDataset,
    check_rows,
)
from hf_distil_whisper.data.mixture import (
    Mixture,
    join_sources,
    weights_by,
)
from hf_distil_whisper.data.sources import name_columns
from hf_distil_whisper.data.streaming import SpeechStream
from hf_distil_whisper.hub.callbacks import (
    ModelCardCallback,
    SamplePredictionsCallback,
    latest_word_errors,
    run_url,
    save_model_card,
    teacher_facts,
)
from hf_distil_whisper.hub.model_card import find_license
from hf_distil_whisper.hub.push import PushError
from hf_distil_whisper.hub.resume import (
    HubCheckpoint,
    checkpoint_to_resume,
    fetch_checkpoint,
)
from hf_distil_whisper.inference.prompt import (
    is_multilingual,
    resolve_language,
    scoring_language,
)
from hf_distil_whisper.pseudo_labels.filtering import (
    filter_by_wer,
    filter_stream_by_wer,
)
from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.args import DistillationTrainingArguments
from hf_distil_whisper.training.teacher_cache import (
    expected_cache_bytes,
)
from hf_distil_whisper.training.trainer import DistillationTrainer

LABELS = "whisper_transcript"
"""The column of the labels, whatever its name in a source."""

_CACHED = {
    "encoder": "the encoder's states",
    "logits": "the teacher's distributions",
    "both": "the encoder's states and the teacher's distributions",
    "none": "nothing of encoder and teacher",
}


@dataclass
class TrainArguments(StudentArguments):
    """Models and data of `train`; everything else stands in [`DistillationTrainingArguments`].

    Args:
        model_name_or_path (`str`, *optional*): student to train. Where left out, it is made of the teacher's layers:
            `decoder_layers` and the others of [`StudentArguments`].
        train_dataset ([`DataSource`] or `dict[str, DataSource]`): labelled rows, of one source or of several by name;
            `wer_threshold` filters them first, `weight` says how often a source is drawn from.
        source_weights (`str`, *optional*, defaults to `"rows"`): the weights of several sources that give none: in
            the ratio of their "rows", so that each comes once an epoch, or of their "hours".
        stopping_strategy (`str`, *optional*, defaults to `"all_exhausted"`): how long an epoch of several sources is;
            see [`Mixture`].
        streaming (`bool`, *optional*, defaults to `False`): reads the training rows as they come, file by file,
            without a copy before ([`SpeechStream`]). Needs `max_steps`, and a weight for each of several sources.
        shuffle_buffer (`int`, *optional*, defaults to 1000): rows of a stream that are shuffled together.
        eval_datasets (`dict[str, DataSource]`, *optional*): rows with text to validate on, by name.
        max_label_length (`int`, *optional*, defaults to 448): tokens; a row with more is left out and listed.
        attn_implementation (`str`, *optional*): `"sdpa"`, `"eager"` or `"flash_attention_2"`, for student and teacher.
        license (`str`, *optional*): of the student's weights, for its card; by default what the teacher's card tells
            of its own, which bind it.
        sample_predictions (`int`, *optional*, defaults to 0): rows of each validation set shown, errors marked.
        dry_run (`bool`, *optional*, defaults to `False`): check the inputs and print the plan only.
    """

    model_name_or_path: str | None = setting(None, "Student: Hub name or folder. Left out: made by --decoder_layers.")
    train_dataset: DataSource | str | dict[str, DataSource] | None = source_setting(
        "Labelled rows, of one source or of several: {name: {path, weight, ...}}."
    )
    source_weights: Literal["rows", "hours"] = setting("rows", "Weights of several sources that give none.")
    stopping_strategy: Literal["first_exhausted", "all_exhausted", "all_exhausted_without_replacement"] = setting(
        "all_exhausted", "When an epoch of several sources ends."
    )
    streaming: bool = setting(False, "Read the training rows as they come, without a copy before.")
    shuffle_buffer: int = setting(1000, "Rows of a stream that are shuffled together, in each worker.")
    eval_datasets: dict[str, DataSource] | str | None = source_setting("Rows with text to validate on: {name: path}.")
    max_label_length: int = setting(448, "Tokens of a label; a row with more is left out and listed.")
    attn_implementation: str | None = setting(None, '"sdpa", "eager" or "flash_attention_2", for student and teacher.')
    license: str | None = setting(None, "Licence of the student's weights, for its card. Default: the teacher's.")
    sample_predictions: int = setting(0, "Rows of each validation set shown with errors marked: a file, --report_to.")
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")

    def __post_init__(self) -> None:
        sources = self.sources()
        self.train_dataset = sources.get("train_dataset", sources) or None
        self.eval_datasets = as_sources(self.eval_datasets, "eval_datasets")

    def sources(self) -> dict[str, DataSource]:
        """What to train on, by name; a single one is called `train_dataset`."""
        return as_training_sources(self.train_dataset, "train_dataset")


@dataclass
class TrainingPlan(Plan):
    """A [`Plan`] that also knows where to go on, and what the filter left out.

    Args:
        checkpoint (`str` or [`HubCheckpoint`], *optional*): folder to resume from, or what to fetch from the Hub.
        rows_dropped (`int`, *optional*, defaults to 0): labelled rows that a `wer_threshold` keeps from training.
    """

    checkpoint: str | HubCheckpoint | None = None
    rows_dropped: int = 0


def plan_training(
    args: TrainArguments, training_args: DistillationTrainingArguments, only_cache: bool = False
) -> TrainingPlan:
    """Checks models, vocabularies, rows, columns and the output folder, and filters the rows.

    Args:
        args (`TrainArguments`): models and data.
        training_args (`DistillationTrainingArguments`): everything else.
        only_cache (`bool`, *optional*, defaults to `False`): plan what is asked of the models before the training.
    """
    plan = TrainingPlan("cache" if only_cache else "train")
    try:
        plan.checkpoint = None if only_cache else checkpoint_to_resume(training_args)
    except ValueError as error:
        plan.problems.append(str(error))
    if isinstance(plan.checkpoint, HubCheckpoint):
        plan.steps.append(f"fetch {plan.checkpoint}")
    student, teacher = _plan_models(plan, args, training_args)
    _plan_validation(plan, args)
    if args.sample_predictions and not (args.eval_datasets and training_args.predict_with_generate):
        plan.problems.append("--sample_predictions: needs --eval_datasets, and --predict_with_generate true")
    if args.streaming:
        _plan_streams(plan, args, training_args, student, only_cache)
        if student is not None:
            _plan_costs(plan, training_args, student, teacher)
        _plan_end(plan, training_args)
        return plan
    rows = _plan_rows(plan, args, training_args, student)
    if rows is not None and student is not None:
        _plan_cache(plan, training_args, student, rows)
        if not only_cache:
            _plan_epochs(plan, training_args, rows, training_mixture(args, rows, data_seed(training_args)))
        plan.figures["audio"] = describe_rows(rows)
        _plan_costs(plan, training_args, student, teacher)
    if not only_cache:
        _plan_end(plan, training_args)
    return plan


def _plan_end(plan: Plan, args: DistillationTrainingArguments) -> None:
    plan.steps.append(f"save the student, its processor and its card to {args.output_dir}")
    if args.push_to_hub:
        plan.steps[-1] += f"; push them to {args.hub_model_id or 'a repository of that name'} ({args.hub_strategy})"


def needs_teacher(training_args: DistillationTrainingArguments) -> bool:
    """Whether the loss has a part that comes from the teacher's states.

    Args:
        training_args (`DistillationTrainingArguments`): holds the weights.
    """
    return training_args.kl_weight > 0 or training_args.mse_weight > 0


def data_seed(training_args: DistillationTrainingArguments) -> int:
    """Of what is drawn from the data.

    Args:
        training_args (`DistillationTrainingArguments`): holds the seeds.
    """
    return training_args.seed if training_args.data_seed is None else training_args.data_seed


def _plan_models(
    plan: Plan, args: TrainArguments, training_args: DistillationTrainingArguments
) -> tuple[WhisperForConditionalGeneration | None, WhisperForConditionalGeneration | None]:
    """Student and teacher without weights; None where one is missing or not needed."""
    chosen = args.decoder_layers or args.encoder_layers or args.decoder_layer_ids or args.encoder_layer_ids
    if args.model_name_or_path is not None and chosen:
        plan.problems.append(
            "--model_name_or_path is a finished student, --decoder_layers and its like make a new one: leave one out"
        )
    if args.model_name_or_path is None and not chosen:
        plan.problems.append(
            "--model_name_or_path is missing: a student, or --decoder_layers 2 to make one of the teacher"
        )
        return None, None
    teacher = None
    if needs_teacher(training_args) or args.model_name_or_path is None:
        teacher = plan.model(args.teacher_model_name_or_path, "teacher_model_name_or_path")
    if args.model_name_or_path is None:
        student = add_student(plan, teacher, args)
        base, flag = args.teacher_model_name_or_path, "teacher_model_name_or_path"
    else:
        student = plan.model(args.model_name_or_path, "model_name_or_path")
        base, flag = args.model_name_or_path, "model_name_or_path"
    if not needs_teacher(training_args):
        teacher = None
    if student is not None:
        processor = plan.processor(base or "", flag)
        try:
            check_compatible(student, teacher, processor)
            resolve_language(student, training_args.language, training_args.task)
        except ValueError as error:
            plan.problems.append(f"--{flag}: {error}")
    return student, teacher


def _plan_validation(plan: Plan, args: TrainArguments) -> None:
    for name, place in as_sources(args.eval_datasets, "eval_datasets").items():
        rows = plan.source(place, f"eval_datasets.{name}", ("text",))
        if rows is not None:
            plan.figures[f"audio of {name}"] = describe_rows(rows)


def _flag(name: str) -> str:
    return name if name == "train_dataset" else f"train_dataset.{name}"


def _plan_streams(
    plan: Plan,
    args: TrainArguments,
    training_args: DistillationTrainingArguments,
    student: WhisperForConditionalGeneration | None,
    only_cache: bool,
) -> None:
    """Labelled rows that are read as they come, filtered row by row."""
    if only_cache or training_args.teacher_cache != "none":
        plan.problems.append(
            "--streaming true: a teacher cache keeps rows to come back to, which a stream has not; set "
            "--teacher_cache none"
        )
    if training_args.max_steps < 1:
        plan.problems.append("--max_steps is missing: a stream has no end, so give the number of steps")
    if not args.sources():
        plan.source(None, "train_dataset")
    for name, source in args.sources().items():
        if len(args.sources()) > 1 and source.weight is None:
            plan.problems.append(f"--{_flag(name)}.weight is missing: a stream does not know its number of rows")
        if student is None:
            plan.stream(source, _flag(name), (source.transcript_column,))
        else:
            _plan_stream(plan, source, name, training_args, student)
    batch = training_args.train_batch_size * training_args.gradient_accumulation_steps * training_args.world_size
    plan.steps.append(f"train {training_args.max_steps:,} steps of {batch} rows: {_loss(training_args)}")


def _plan_stream(
    plan: Plan,
    source: DataSource,
    name: str,
    training_args: DistillationTrainingArguments,
    student: WhisperForConditionalGeneration,
) -> None:
    """One source as a stream of labelled rows, its first row looked at, its labels in `whisper_transcript`."""
    flag = _flag(name)
    rows = plan.stream(source, flag, (source.transcript_column,))
    if rows is None:
        return
    first = next(iter(rows), None)
    if first is None:
        plan.problems.append(f"--{flag}: {source.path!r} holds no row")
        return
    _check_language(plan, flag, source, student, training_args, first, "language" in first)
    if source.wer_threshold is not None:
        try:
            rows = filter_stream_by_wer(
                rows,
                source.wer_threshold,
                prediction_column=source.transcript_column,
                language=training_args.normalizer or scoring_language(student, training_args.language),
            )
        except ValueError as error:
            plan.problems.append(f"--{flag}.wer_threshold: {error}")
            return
        plan.steps.append(f"keep the rows of {name} with WER ≤ {source.wer_threshold:.1%}, as they come")
    plan.streams[flag] = name_columns(rows, {LABELS: source.transcript_column}, source.path)


def _loss(training_args: DistillationTrainingArguments) -> str:
    return f"{training_args.kl_weight:g} · KL + {training_args.pl_weight:g} · PL + {training_args.mse_weight:g} · MSE"


def _plan_rows(
    plan: TrainingPlan,
    args: TrainArguments,
    training_args: DistillationTrainingArguments,
    student: WhisperForConditionalGeneration | None,
) -> Dataset | None:
    """Rows to train on after the filter."""
    kept = {}
    for name, source in args.sources().items():
        flag = _flag(name)
        found = _plan_source(plan, source, flag, training_args, student)
        if found is not None:
            kept[name] = found
    if not args.sources():
        plan.source(None, "train_dataset")
    if len(kept) < max(len(args.sources()), 1):
        return None
    if len(kept) > 1:
        plan.datasets = {flag: rows for flag, rows in plan.datasets.items() if not flag.startswith("train_dataset")}
        plan.datasets["train_dataset"] = join_sources(kept, (*LABEL_COLUMNS, "audio", LABELS))
    else:
        plan.datasets["train_dataset"] = next(iter(kept.values()))
    return plan.datasets["train_dataset"]


def _plan_source(
    plan: TrainingPlan,
    source: DataSource,
    flag: str,
    training_args: DistillationTrainingArguments,
    student: WhisperForConditionalGeneration | None,
) -> Dataset | None:
    """Labelled rows of one source after the filter, their labels in the column `whisper_transcript`."""
    labelled = plan.source(source, flag, (source.transcript_column,))
    if labelled is None or student is None:
        return labelled
    told = "language" in labelled.column_names and None not in labelled.unique("language")
    _check_language(plan, flag, source, student, training_args, labelled[0], told)
    if source.wer_threshold is not None:
        try:
            labelled, report = filter_by_wer(
                labelled,
                source.wer_threshold,
                prediction_column=source.transcript_column,
                language=training_args.normalizer or scoring_language(student, training_args.language),
            )
        except ValueError as error:
            plan.problems.append(f"--{flag}.wer_threshold: {error}")
            return None
        plan.rows_dropped += report.dropped
        of = "" if flag == "train_dataset" else f" of {flag.partition('.')[2]}"
        plan.steps.append(
            f"keep {report.kept:,} of {report.kept + report.dropped:,} rows{of} (WER ≤ {source.wer_threshold:.1%})"
        )
    return name_columns(labelled, {LABELS: source.transcript_column}, source.path)


def _check_language(
    plan: Plan,
    flag: str,
    source: DataSource,
    student: WhisperForConditionalGeneration,
    training_args: DistillationTrainingArguments,
    first: Mapping[str, Any],
    told: bool,
) -> None:
    """Whether labels for a multilingual model say their language: in general, by row, or in the labels themselves."""
    label = str(first[source.transcript_column])
    if not is_multilingual(student) or training_args.language is not None or told:
        return
    if "<|startoftranscript|>" not in label:
        plan.problems.append(
            "--language is missing: labels of a multilingual model begin with it, those of "
            f"--{flag} hold none (the first one: {label[:40]!r}), and no --{flag}.language_column names it for "
            "every row"
        )


def training_mixture(args: TrainArguments, rows: Dataset, seed: int) -> Mixture | None:
    """How the sources of a training are mixed; None for a single one.

    Args:
        args (`TrainArguments`): names the sources and their weights.
        rows (`Dataset`): as [`plan_training`] has joined them, or a part of them in that order.
        seed (`int`): of the order.
    """
    sources = args.sources()
    if len(sources) < 2:
        return None
    counts = Counter(rows["source"])
    names = tuple(name for name in sources if counts[name])
    sizes = tuple(counts[name] for name in names)
    weights = tuple(weight for name in names if (weight := sources[name].weight) is not None)
    if not weights and args.source_weights == "hours":
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        weights = tuple(
            hours_of_audio(rows.select(range(start, start + size))) for start, size in zip(starts, sizes, strict=True)
        )
    return Mixture(names, sizes, weights or weights_by(sizes), args.stopping_strategy, seed)


def _plan_cache(
    plan: Plan,
    training_args: DistillationTrainingArguments,
    student: WhisperForConditionalGeneration,
    rows: Dataset,
) -> None:
    """What is asked of encoder and teacher once, and the room that it takes."""
    if training_args.teacher_cache == "none":
        return
    place = "in memory" if training_args.teacher_cache_dir is None else f"in {training_args.teacher_cache_dir}"
    about = (len(rows), student.config, _cache_dtype(training_args), training_args)
    plan.steps.append(f"keep {_CACHED[training_args.teacher_cache]} {place}")
    plan.figures["teacher cache"] = gigabytes(expected_cache_bytes(*about))


def _plan_epochs(
    plan: Plan, training_args: DistillationTrainingArguments, rows: Dataset, mixture: Mixture | None
) -> None:
    length = len(rows) if mixture is None else len(mixture)
    if mixture is not None:
        shares = [f"{name} {count / length:.0%}" for name, count in zip(mixture.names, mixture.draws, strict=True)]
        plan.steps.append(f"draw {length:,} rows an epoch: {', '.join(shares)}")
    batch = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps
    batch *= training_args.world_size
    passes = training_args.num_train_epochs
    steps = -(-length // batch) * passes
    if training_args.max_steps > 0:
        steps, passes = training_args.max_steps, training_args.max_steps * batch / length
    plan.steps.append(
        f"train {steps:,.0f} steps of {batch} rows, {passes:.1f} passes over the data: {_loss(training_args)}"
    )


def _plan_costs(
    plan: Plan,
    training_args: DistillationTrainingArguments,
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration | None,
) -> None:
    memory = training_bytes(
        student,
        teacher,
        rows=training_args.per_device_train_batch_size,
        freeze_encoder=training_args.freeze_encoder,
        half_precision=training_args.bf16 or training_args.fp16,
        chunk_size=training_args.loss_chunk_size,
    )
    plan.figures["memory expected"] = gigabytes(memory)
    encoder = student.get_encoder().num_parameters()
    trained = student.num_parameters() - (encoder if training_args.freeze_encoder else 0)
    checkpoint = 4 * student.num_parameters() + 8 * trained
    kept = "" if training_args.save_strategy == "no" else f" and {gigabytes(checkpoint)} for each checkpoint kept"
    plan.figures["disk expected"] = f"{gigabytes(4 * student.num_parameters())}{kept}"


def _cache_dtype(training_args: DistillationTrainingArguments) -> torch.dtype:
    return torch.bfloat16 if training_args.bf16 else torch.float16 if training_args.fp16 else torch.float32


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
