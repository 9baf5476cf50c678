"""`cache`: asks encoder and teacher about every training row once and keeps it for trainings to come."""

import sys
from collections.abc import Sequence

from accelerate import PartialState

from hf_distil_whisper.cli.config import (
    InputError,
    is_main_process,
    parse_arguments,
)
from hf_distil_whisper.cli.train import (
    TrainArguments,
    build_trainer,
    plan_training,
)
from hf_distil_whisper.training.args import DistillationTrainingArguments
from hf_distil_whisper.training.teacher_cache import TeacherCacheDataset


def run(argv: Sequence[str]) -> None:
    """Entry point of the command.

    Args:
        argv (`Sequence[str]`): the recipe of the training and its flags; `--teacher_cache_dir` says where.
    """
    args, training_args = parse_arguments(
        TrainArguments, DistillationTrainingArguments, argv=argv, command="hf-distil-whisper cache"
    )
    if training_args.teacher_cache == "none":
        raise InputError("--teacher_cache is missing: encoder, logits or both, as for the training that will read it")
    if training_args.teacher_cache_dir is None:
        raise InputError("--teacher_cache_dir is missing: a folder on a local disk that the training will name too")
    plan = plan_training(args, training_args, only_cache=True)
    if plan.settle(dry_run=args.dry_run):
        trainer = build_trainer(args, training_args, plan.rows)
        trainer.get_train_dataloader()
        if is_main_process():
            rows, kept = len(plan.datasets["train_dataset"]), isinstance(trainer.train_dataset, TeacherCacheDataset)
            what = training_args.teacher_cache if kept else "nothing"
            sys.stdout.write(f"{rows:,} rows: {what} kept in {training_args.teacher_cache_dir}\n")
    # A process that leaves without this may abort with its work done: github.com/pytorch/pytorch/issues/190489
    PartialState().destroy_process_group()
