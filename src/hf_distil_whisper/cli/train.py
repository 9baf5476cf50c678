"""`train`: distils a student on labelled speech, or fine-tunes it without a teacher, and saves it with its card."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from torch.utils.data import Dataset as TorchDataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import check_compatible, load_model, load_processor
from hf_distil_whisper.cli.config import (
    DataSource,
    as_sources,
    as_training_sources,
    load_corpora,
    parse_arguments,
    setting,
    source_setting,
)
from hf_distil_whisper.cli.create_student import StudentArguments, plan_layers
from hf_distil_whisper.cli.inputs import Plan, describe_rows, gigabytes, hours_of_audio
from hf_distil_whisper.data.collator import DataCollatorSpeechSeq2SeqWithPadding
from hf_distil_whisper.data.dataset import LABEL_COLUMNS, LabelSettings, SpeechDataset, check_rows
from hf_distil_whisper.data.labels import language_in
from hf_distil_whisper.data.mixture import Mixture, join_sources, weights_by
from hf_distil_whisper.data.sources import name_columns
from hf_distil_whisper.data.streaming import SpeechStream
from hf_distil_whisper.hub.callbacks import ModelCardCallback, SamplePredictionsCallback, run_url
from hf_distil_whisper.hub.model_card import (
    CardFacts,
    find_license,
    latest_word_errors,
    save_model_card,
    teacher_facts,
)
from hf_distil_whisper.hub.push import PushError
from hf_distil_whisper.hub.resume import HubCheckpoint, checkpoint_to_resume, fetch_checkpoint
from hf_distil_whisper.inference.prompt import is_multilingual, resolve_language, scoring_language
from hf_distil_whisper.metrics import language_code
from hf_distil_whisper.pseudo_labels.filtering import filter_by_wer, filter_stream_by_wer
from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.args import CACHES_OF_LOGITS, DistillationTrainingArguments
from hf_distil_whisper.training.teacher_cache import expected_cache_bytes
from hf_distil_whisper.training.trainer import DistillationTrainer

logger = logging.getLogger(__name__)

LABELS = "whisper_transcript"
"""Column of the labels in [`TrainingData`], whatever its name in a source."""

_CACHED = {
    "encoder": "encoder outputs",
    "logits": "teacher logits",
    "both": "encoder outputs and teacher logits",
}


@dataclass
class TrainArguments(StudentArguments):
    """Models and data of `train`; everything else is in [`DistillationTrainingArguments`].

    The help text of each field says what it holds: `hf-distil-whisper train --help`.
    """

    model_name_or_path: str | None = setting(
        None, "Student to train: Hub name or folder. Without it, --decoder_layers makes one from the teacher."
    )
    train_dataset: DataSource | str | dict[str, DataSource] | None = source_setting(
        "Labelled rows to train on: a path, or several datasets as {name: {path: ..., weight: ...}}."
    )
    source_weights: Literal["rows", "hours"] = setting(
        "rows", "Weights of several datasets that give none: in the ratio of their rows or of their hours of audio."
    )
    stopping_strategy: Literal["first_exhausted", "all_exhausted", "all_exhausted_without_replacement"] = setting(
        "all_exhausted", "When an epoch over several datasets ends, as in datasets.interleave_datasets."
    )
    streaming: bool = setting(
        False, "Read the training rows file by file, without a copy before. Needs --max_steps and explicit weights."
    )
    shuffle_buffer: int = setting(1000, "Rows of a stream that are shuffled together, in each worker.")
    eval_datasets: dict[str, DataSource] | str | None = source_setting(
        "Datasets with reference text to validate on, by name: {name: path}."
    )
    max_label_length: int = setting(448, "Longest label in tokens; rows with a longer one are left out and listed.")
    attn_implementation: str | None = setting(
        None, 'Attention of student and teacher: "sdpa", "eager" or "flash_attention_2".'
    )
    license: str | None = setting(None, "Licence of the student, for its card (default: that of the teacher's card).")
    sample_predictions: int = setting(
        0, "Rows of each validation set whose transcripts are shown, errors marked, in a file and the trackers."
    )
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")

    flag_groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "model": (
            *("teacher_model_name_or_path", "model_name_or_path", "decoder_layers", "encoder_layers"),
            *("decoder_layer_ids", "encoder_layer_ids", "attn_implementation", "lora"),
        ),
        "data": (
            *("train_dataset", "eval_datasets", "source_weights", "stopping_strategy", "streaming", "shuffle_buffer"),
            *("language", "task", "timestamp_probability", "condition_on_prev_probability", "max_label_length"),
        ),
        "objective": (
            *("kl_weight", "pl_weight", "mse_weight", "temperature", "freeze_encoder"),
            *("freeze_embed_positions", "freeze_embed_tokens", "freeze_decoder", "loss_chunk_size"),
        ),
        "cache": ("teacher_cache", "teacher_cache_dir"),
        "evaluation": (
            *("predict_with_generate", "normalizer", "metric_for_best_model", "greater_is_better"),
            *("early_stopping_patience", "early_stopping_threshold", "sample_predictions"),
        ),
        "Hub": (
            *("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_revision", "hub_token"),
            *("hub_always_push", "license"),
        ),
        "run": ("output_dir", "resume_from_checkpoint", "dry_run"),
    }

    def __post_init__(self) -> None:
        sources = self.sources()
        self.train_dataset = sources.get("train_dataset", sources) or None
        self.eval_datasets = self.validation_sources()

    def sources(self) -> dict[str, DataSource]:
        """The datasets to train on, by name; a single one is called `train_dataset`."""
        return as_training_sources(self.train_dataset, "train_dataset")

    def validation_sources(self) -> dict[str, DataSource]:
        """The datasets to validate on, by name."""
        return as_sources(self.eval_datasets, "eval_datasets")


@dataclass
class TrainingData:
    """Rows of a training, checked and filtered.

    Args:
        train (`Dataset` or `dict[str, IterableDataset]`): labelled rows, those of several sources joined; with
            `--streaming`, one stream for each source by its name. Labels are in the column `whisper_transcript`.
        eval (`dict[str, Dataset]`): validation sets by name.
        mixture ([`Mixture`], *optional*): how the rows of several sources are drawn; None for one source, or streams.
        rows_dropped (`int`, *optional*, defaults to 0): labelled rows that a `wer_threshold` keeps from training.
    """

    train: Dataset | dict[str, IterableDataset]
    eval: dict[str, Dataset]
    mixture: Mixture | None = None
    rows_dropped: int = 0


@dataclass
class TrainingPlan(Plan):
    """A [`Plan`] with everything that [`build_trainer`] needs.

    Args:
        args ([`TrainArguments`]): models and data.
        training_args ([`DistillationTrainingArguments`]): everything else.
        data ([`TrainingData`], *optional*): the rows; None where the plan has problems.
        checkpoint (`str` or [`HubCheckpoint`], *optional*): folder to resume from, or what to download from the Hub.
    """

    args: TrainArguments = field(kw_only=True)
    training_args: DistillationTrainingArguments = field(kw_only=True)
    data: TrainingData | None = None
    checkpoint: str | HubCheckpoint | None = None

    def fetch_checkpoint(self) -> str | None:
        """Folder for `trainer.train(resume_from_checkpoint=...)`, downloaded first where it is on the Hub."""
        if not isinstance(self.checkpoint, HubCheckpoint):
            return self.checkpoint
        with PartialState().local_main_process_first():
            return fetch_checkpoint(self.checkpoint, str(self.training_args.output_dir), self.training_args.hub_token)


def plan_training(
    args: TrainArguments, training_args: DistillationTrainingArguments, only_cache: bool = False
) -> TrainingPlan:
    """Checks models, rows and output folder of a training and filters the rows; loads no weights.

    Args:
        args ([`TrainArguments`]): models and data.
        training_args ([`DistillationTrainingArguments`]): everything else.
        only_cache (`bool`, *optional*, defaults to `False`): plan the teacher cache alone, without the training.

    Returns:
        [`TrainingPlan`]: its `report` prints the plan and raises an error with all problems.

    Example:
        ```python
        args, training_args = parse_arguments(TrainArguments, DistillationTrainingArguments)
        plan = plan_training(args, training_args)
        if plan.report(dry_run=args.dry_run):
            trainer = build_trainer(plan)
            trainer.train(resume_from_checkpoint=plan.fetch_checkpoint())
            trainer.finish()
        ```
    """
    plan = TrainingPlan("cache" if only_cache else "train", args=args, training_args=training_args)
    if not only_cache:
        _plan_checkpoint(plan)
    student, teacher = _plan_models(plan)
    validation_sets = _plan_validation(plan)
    if args.streaming:
        _check_streaming(plan, only_cache)
    plan.data = _plan_rows(plan, student, validation_sets)
    has_cache = training_args.teacher_cache != "none" and not args.streaming
    if has_cache and plan.data is not None and student is not None:
        where = "in memory" if training_args.teacher_cache_dir is None else f"in {training_args.teacher_cache_dir}"
        cached = _CACHED[training_args.teacher_cache]
        if training_args.mse_weight > 0 and training_args.teacher_cache in CACHES_OF_LOGITS:
            cached += f", with {student.config.decoder_layers} decoder layers for MSE,"
        plan.steps.append(f"cache {cached} {where}")
        dtype = torch.bfloat16 if training_args.bf16 else torch.float16 if training_args.fp16 else torch.float32
        size = expected_cache_bytes(len(plan.data.train), student.config, dtype, training_args)
        plan.figures["teacher cache"] = gigabytes(size)
    if not only_cache:
        _plan_steps(plan)
    if student is not None:
        _plan_costs(plan, student, teacher)
    if not only_cache:
        push = ""
        if training_args.push_to_hub:
            repository = training_args.hub_model_id or "a repository of that name"
            push = f"; push them to {repository} ({training_args.hub_strategy})"
        plan.steps.append(f"save the student, its processor and its card to {training_args.output_dir}{push}")
    return plan


def _plan_checkpoint(plan: TrainingPlan) -> None:
    try:
        plan.checkpoint = checkpoint_to_resume(plan.training_args)
    except ValueError as error:
        plan.problems.append(str(error))
    if isinstance(plan.checkpoint, HubCheckpoint):
        plan.steps.append(f"fetch {plan.checkpoint}")


def _plan_models(
    plan: TrainingPlan,
) -> tuple[WhisperForConditionalGeneration | None, WhisperForConditionalGeneration | None]:
    """Student and teacher without weights; None where one is missing or not needed."""
    args, training_args = plan.args, plan.training_args
    makes_student = args.decoder_layers or args.encoder_layers or args.decoder_layer_ids or args.encoder_layer_ids
    if args.model_name_or_path is not None and makes_student:
        plan.problems.append(
            "--model_name_or_path is a finished student, --decoder_layers and its like make a new one: leave one out"
        )
    if args.model_name_or_path is None and not makes_student:
        plan.problems.append(
            "--model_name_or_path is missing: a student, or --decoder_layers 2 to make one from the teacher"
        )
        return None, None
    teacher = None
    if _needs_teacher(training_args) or args.model_name_or_path is None:
        teacher = plan.model(args.teacher_model_name_or_path, "teacher_model_name_or_path")
    if args.model_name_or_path is None:
        base, flag = args.teacher_model_name_or_path, "teacher_model_name_or_path"
        student = plan_layers(plan, teacher, args)
    else:
        base, flag = args.model_name_or_path, "model_name_or_path"
        student = plan.model(base, flag)
    if not _needs_teacher(training_args):
        teacher = None
    if student is not None:
        processor = plan.processor(base, flag)
        with plan.collect(flag):
            check_compatible(student, teacher, processor)
            resolve_language(student, training_args.language, training_args.task)
    return student, teacher


def _needs_teacher(training_args: DistillationTrainingArguments) -> bool:
    """Whether a term of the loss compares with the teacher."""
    return training_args.kl_weight > 0 or training_args.mse_weight > 0


def _plan_validation(plan: TrainingPlan) -> dict[str, Dataset]:
    validation_sets = {}
    trained_on = [(source.path, source.config, source.split) for source in plan.args.sources().values()]
    for name, source in plan.args.validation_sources().items():
        rows = plan.source(source, f"eval_datasets.{name}", ("text",))
        if rows is not None:
            if not source.is_split_given and (source.path, source.config, source.split) in trained_on:
                plan.problems.append(
                    f"--eval_datasets.{name}: {source.path} has one split, {source.split!r}, which is trained on. "
                    f"Choose another dataset, or set --eval_datasets.{name}.split if this is meant"
                )
            validation_sets[name] = rows
            plan.figures[f"audio of {name}"] = describe_rows(rows)
    if plan.args.sample_predictions and not (plan.args.eval_datasets and plan.training_args.predict_with_generate):
        plan.problems.append("--sample_predictions: needs --eval_datasets, and --predict_with_generate true")
    return validation_sets


def _flag(name: str) -> str:
    return name if name == "train_dataset" else f"train_dataset.{name}"


def _plan_rows(
    plan: TrainingPlan, student: WhisperForConditionalGeneration | None, validation_sets: dict[str, Dataset]
) -> TrainingData | None:
    """The filtered rows, or streams of them, of all sources; None where one of them has a problem."""
    sources, streaming = plan.args.sources(), plan.args.streaming
    plan.require(sources, "train_dataset", "a Hub name, folder, file or URL")
    open_rows = plan.stream if streaming else plan.source
    rows_by_source: dict[str, Any] = {}
    rows_dropped = 0
    for name, source in sources.items():
        rows = open_rows(source, _flag(name), (source.transcript_column,))
        if rows is not None and student is not None:
            _check_language(plan, name, source, student, rows)
            rows, dropped = _filter_rows(plan, name, source, student, rows)
            rows_dropped += dropped
        if rows is not None:
            rows_by_source[name] = name_columns(rows, {LABELS: source.transcript_column}, source.path)
    if not sources or len(rows_by_source) < len(sources):
        return None
    if streaming:
        return TrainingData(rows_by_source, validation_sets)
    if len(sources) > 1:
        joined = join_sources(rows_by_source, (*LABEL_COLUMNS, "audio", LABELS))
    else:
        (joined,) = rows_by_source.values()
    plan.figures["audio"] = describe_rows(joined)
    return TrainingData(joined, validation_sets, _mixture(plan, joined), rows_dropped)


def _check_language(
    plan: TrainingPlan,
    name: str,
    source: DataSource,
    student: WhisperForConditionalGeneration,
    rows: Dataset | IterableDataset,
) -> None:
    """Labels for a multilingual model start with a language: that of the row, one in the label, or `--language`."""
    first, flag = next(iter(rows), None), _flag(name)
    if first is None:
        plan.problems.append(f"--{flag}: {source.path!r} holds no row")
        return
    label = str(first[source.transcript_column])
    named = [first.get("language")]
    # Of a stream only the first row is read here: whether later rows have a language shows in the training.
    if "language" in first and isinstance(rows, Dataset):
        named = rows.unique("language")
    codes = {language_code(code) if code else language_in(label) or "" for code in named}
    is_english = not is_multilingual(student)
    asked = "en" if is_english else language_code(plan.training_args.language or "")
    if "" not in codes and asked and asked not in codes:
        cure = "take a multilingual student" if is_english else "leave it out to train in their language"
        plan.problems.append(
            f"--language: the labels of --{flag} are in {', '.join(sorted(codes))}, not in {asked!r}: {cure}, or "
            "label the recordings again"
        )
    elif "" in codes and not asked:
        plan.problems.append(
            "--language is missing: labels of a multilingual model start with it, those of "
            f"--{flag} hold none (the first one: {label[:40]!r}), and no --{flag}.language_column names it for "
            "every row"
        )


def _filter_rows(
    plan: TrainingPlan,
    name: str,
    source: DataSource,
    student: WhisperForConditionalGeneration,
    rows: Dataset | IterableDataset,
) -> tuple[Dataset | IterableDataset | None, int]:
    """The rows within `wer_threshold`, and how many were dropped: 0 of a stream, which is filtered as it is read."""
    threshold = source.wer_threshold
    if threshold is None:
        return rows, 0
    with plan.collect(f"{_flag(name)}.wer_threshold"):
        language = plan.training_args.normalizer or scoring_language(student, plan.training_args.language)
        settings: dict[str, Any] = {
            "prediction_column": source.transcript_column,
            "language": language,
            "unit": source.unit,
        }
        if isinstance(rows, IterableDataset):
            rows = filter_stream_by_wer(rows, threshold, **settings)
            plan.steps.append(f"keep the rows of {name} with WER ≤ {threshold:.1%}, as they come")
            return rows, 0
        rows, report = filter_by_wer(rows, threshold, **settings)
        of = "" if name == "train_dataset" else f" of {name}"
        plan.steps.append(f"keep {report.kept:,} of {report.kept + report.dropped:,} rows{of} (WER ≤ {threshold:.1%})")
        return rows, report.dropped
    return None, 0


def _check_streaming(plan: TrainingPlan, only_cache: bool) -> None:
    sources = plan.args.sources()
    if only_cache or plan.training_args.teacher_cache != "none":
        plan.problems.append(
            "--streaming true: a teacher cache is read again in every epoch, by row index, which a stream does not "
            "have; set --teacher_cache none"
        )
    if plan.training_args.max_steps < 1:
        plan.problems.append("--max_steps is missing: a stream has no end, so give the number of steps")
    for name, source in sources.items():
        if len(sources) > 1 and source.weight is None:
            plan.problems.append(f"--{_flag(name)}.weight is missing: the number of rows of a stream is not known")


def _mixture(plan: TrainingPlan, rows: Dataset) -> Mixture | None:
    """How the sources are mixed; `rows` are those that [`_plan_rows`] has joined, or fewer in the same order."""
    sources = plan.args.sources()
    if len(sources) < 2:
        return None
    counts = Counter(rows["source"])
    # A source may have lost all its rows to the filter, or to the check of their audio and labels.
    names = tuple(name for name in sources if counts[name])
    sizes = tuple(counts[name] for name in names)
    weights = tuple(weight for name in names if (weight := sources[name].weight) is not None)
    if not weights and plan.args.source_weights == "hours":
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        weights = tuple(
            hours_of_audio(rows.select(range(start, start + size))) for start, size in zip(starts, sizes, strict=True)
        )
    return Mixture(names, sizes, weights or weights_by(sizes), plan.args.stopping_strategy, _data_seed(plan))


def _data_seed(plan: TrainingPlan) -> int:
    """Seed of what is drawn from the data: variants of the labels, order of the sources."""
    return plan.training_args.seed if plan.training_args.data_seed is None else plan.training_args.data_seed


def _plan_steps(plan: TrainingPlan) -> None:
    """Number of steps, rows in one of them, and the loss."""
    args = plan.training_args
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    loss = f"{args.kl_weight:g} · KL + {args.pl_weight:g} · PL + {args.mse_weight:g} · MSE"
    if plan.args.streaming:
        plan.steps.append(f"train {args.max_steps:,} steps of {batch} rows: {loss}")
        return
    if plan.data is None:
        return
    length, mixture = len(plan.data.train), plan.data.mixture
    if mixture is not None:
        length = len(mixture)
        shares = [f"{name} {count / length:.0%}" for name, count in zip(mixture.names, mixture.draws, strict=True)]
        plan.steps.append(f"draw {length:,} rows an epoch: {', '.join(shares)}")
    epochs = args.num_train_epochs
    steps = -(-length // batch) * epochs  # rounded up: the last step of an epoch may be smaller
    if args.max_steps > 0:
        steps, epochs = args.max_steps, args.max_steps * batch / length
    plan.steps.append(f"train {steps:,.0f} steps of {batch} rows, {epochs:.1f} passes over the data: {loss}")


def _plan_costs(
    plan: TrainingPlan, student: WhisperForConditionalGeneration, teacher: WhisperForConditionalGeneration | None
) -> None:
    """Memory of a training process: float32 weights, gradients, AdamW's moments, activations, logits; and disk."""
    args, config = plan.training_args, student.config
    itemsize = 2 if args.bf16 or args.fp16 else 4
    frozen = student.get_encoder().num_parameters() if args.freeze_encoder else 0
    trained = student.num_parameters() - frozen
    weights = 4 * student.num_parameters() + 12 * trained
    if teacher is not None:
        weights += itemsize * (teacher.num_parameters() - frozen)
    frames, tokens, width = config.max_source_positions, config.max_target_positions, config.d_model
    # 40 numbers per token and channel in each trained layer; those of a frozen encoder are freed layer by layer.
    layer = 40 * width * itemsize
    decoder = config.decoder_layers * (tokens * layer + 2 * frames * width * itemsize)
    encoder_layers = 1 if args.freeze_encoder else config.encoder_layers
    activations = args.per_device_train_batch_size * (decoder + encoder_layers * frames * layer)
    logits = 4 * 4 * args.loss_chunk_size * config.vocab_size  # of one chunk of the loss
    plan.figures["memory expected"] = gigabytes(weights + activations + logits)
    plan.figures["disk expected"] = gigabytes(4 * student.num_parameters())
    if args.save_strategy != "no":
        checkpoint = 4 * student.num_parameters() + 8 * trained
        plan.figures["disk expected"] += f" and {gigabytes(checkpoint)} for each checkpoint"


class RecipeTrainer(DistillationTrainer):
    """A [`DistillationTrainer`] made by [`build_trainer`], whose `finish` ends the training of a recipe.

    Args:
        facts ([`CardFacts`]): for the card, what the trainer does not know: teacher, data, licence.
        arguments: as for [`DistillationTrainer`].
    """

    def __init__(self, *, facts: CardFacts, **arguments: Any):
        super().__init__(callbacks=[ModelCardCallback(facts)], **arguments)
        self.facts = facts

    def finish(self) -> dict[str, float]:
        """Validates the trained student, saves it with processor, scores and card, and pushes it where asked to.

        Returns:
            `dict[str, float]`: the metrics, also in `eval_results.json`; empty without validation sets.

        Raises:
            PushError: if the push failed, after everything else is done.
        """
        metrics = self.evaluate() if self.eval_dataset is not None else {}
        if metrics:
            self.save_metrics("eval", metrics, combined=False)
        self.save_state()
        # By every process, since shards are gathered; `_internal_call` leaves out the push of the Trainer.
        self.save_model(_internal_call=True)
        if self.is_world_process_zero():
            save_model_card(
                str(self.args.output_dir),
                self.model,
                self.facts,
                log_history=self.state.log_history,
                results=latest_word_errors([metrics]),
                run_url=run_url(self.args),
                training_args=self.args,
                teacher_parameters=self.teacher_model.num_parameters() if self.teacher_model is not None else None,
            )
            if self.args.push_to_hub:
                self.push_output_dir()
                if self.push_error is not None:
                    raise PushError(self.push_error)
        return metrics


def build_trainer(plan: TrainingPlan) -> RecipeTrainer:
    """Loads the models of a plan and builds the trainer with its rows.

    Args:
        plan ([`TrainingPlan`]): from [`plan_training`], without problems.

    Returns:
        [`RecipeTrainer`]: a [`DistillationTrainer`], which is a `Seq2SeqTrainer`: add callbacks or replace its
        datasets, call `train`, then `finish`.
    """
    args, training_args = plan.args, plan.training_args
    processor = load_processor(args.model_name_or_path or args.teacher_model_name_or_path or "")
    teacher = None
    # Also with weights of 0 for KL and MSE, where a teacher only gives the layers of its student.
    if _needs_teacher(training_args) or args.model_name_or_path is None:
        teacher = load_model(args.teacher_model_name_or_path or "", attn_implementation=args.attn_implementation)
    if args.model_name_or_path is not None:
        student = load_model(args.model_name_or_path, attn_implementation=args.attn_implementation)
    else:
        student = create_student(teacher or "", **args.layers())
    train_dataset, eval_datasets = _speech_datasets(plan, student, processor)
    trainer = RecipeTrainer(
        facts=_card_facts(plan),
        model=student,
        teacher_model=teacher if _needs_teacher(training_args) else None,
        args=training_args,
        data_collator=DataCollatorSpeechSeq2SeqWithPadding(processor),
        train_dataset=train_dataset,
        eval_dataset=eval_datasets or None,
        processing_class=processor,
    )
    if args.sample_predictions:
        trainer.add_callback(SamplePredictionsCallback(trainer, args.sample_predictions))
    return trainer


def _speech_datasets(
    plan: TrainingPlan, student: WhisperForConditionalGeneration, processor: WhisperProcessor
) -> tuple[TorchDataset, dict[str, TorchDataset]]:
    """Rows as features and labels: those to train on, and the validation sets by name. Unusable rows are listed."""
    args, training_args, data = plan.args, plan.training_args, plan.data
    if data is None:
        raise ValueError("the plan has no rows: its `report` says what is missing.")
    settings = LabelSettings(
        LABELS,
        training_args.timestamp_probability,
        training_args.condition_on_prev_probability,
        language=resolve_language(student, training_args.language, training_args.task),
        language_column="language" if is_multilingual(student) else None,
        task=training_args.task,
        max_label_length=args.max_label_length,
    )
    seed = _data_seed(plan)

    def checked(rows: Dataset, flag: str, column: str) -> tuple[Dataset, LabelSettings]:
        language_column = settings.language_column if "language" in rows.column_names else None
        of_rows = replace(settings, transcript_column=column, language_column=language_column)
        rows, errors = check_rows(rows, processor, of_rows)
        if errors:
            logger.warning(f"--{flag}: {errors.summary()}")
        return rows, of_rows

    train: TorchDataset
    if isinstance(data.train, dict):
        train = SpeechStream(
            data.train,
            processor,
            settings,
            weights={name: source.weight or 1.0 for name, source in args.sources().items()},
            stopping_strategy=args.stopping_strategy,
            shuffle_buffer=args.shuffle_buffer,
            seed=seed,
        )
    else:
        rows, of_rows = checked(data.train, "train_dataset", LABELS)
        # The mixture of the plan counts the rows that were left out just now.
        train = SpeechDataset(rows, processor, of_rows, seed=seed, mixture=_mixture(plan, rows))
    eval_datasets: dict[str, TorchDataset] = {}
    for name, rows in data.eval.items():
        rows, of_rows = checked(rows, f"eval_datasets.{name}", "text")
        eval_datasets[name] = SpeechDataset(rows, processor, of_rows, seed=seed, train=False)
    return train, eval_datasets


def _card_facts(plan: TrainingPlan) -> CardFacts:
    """Facts about teacher and data."""
    args, training_args = plan.args, plan.training_args
    teacher, base = args.teacher_model_name_or_path, args.model_name_or_path
    known = _teacher_facts(teacher or base or "")
    paths = [source.path for source in args.sources().values()]
    return replace(
        known if teacher else CardFacts(""),
        name=training_args.hub_model_id or Path(str(training_args.output_dir)).name,
        base_model=base,
        base_revision=_teacher_facts(base).teacher_revision if base else None,
        datasets=paths,
        dataset_licenses={path: licence for path in paths if (licence := _dataset_license(path))},
        language=training_args.language,
        license=args.license or known.license,
        result_sources={
            name: {"path": source.path, "config": source.config, "split": source.split, "revision": source.revision}
            for name, source in args.validation_sources().items()
        },
    )


_teacher_facts = lru_cache(teacher_facts)


@lru_cache
def _dataset_license(path: str) -> str | None:
    licences = {corpus.source["path"]: corpus.licence for corpus in load_corpora().values()}
    return licences.get(path) or find_license(path, "dataset")


def run(argv: Sequence[str]) -> None:
    """Entry point of the command: a recipe, then flags."""
    args, training_args = parse_arguments(
        TrainArguments, DistillationTrainingArguments, argv=argv, command="hf-distil-whisper train"
    )
    plan = plan_training(args, training_args)
    if plan.report(dry_run=args.dry_run):
        trainer = build_trainer(plan)
        trainer.train(resume_from_checkpoint=plan.fetch_checkpoint())
        trainer.finish()
