"""`cache`: precomputes encoder outputs and teacher logits of every training row, for trainings that read them."""

import sys
from collections.abc import Sequence

from hf_distil_whisper.cli.config import InputError, is_main_process, parse_arguments
from hf_distil_whisper.cli.train import TrainArguments, build_trainer, plan_training
from hf_distil_whisper.training.args import DistillationTrainingArguments
from hf_distil_whisper.training.teacher_cache import TeacherCacheDataset


def run(argv: Sequence[str]) -> None:
    """Entry point of the command: a recipe, then flags."""
    args, training_args = parse_arguments(
        TrainArguments, DistillationTrainingArguments, argv=argv, command="hf-distil-whisper cache"
    )
    if training_args.teacher_cache == "none":
        raise InputError("--teacher_cache is missing: encoder, logits or both, as for the training that will read it")
    if training_args.teacher_cache_dir is None:
        raise InputError("--teacher_cache_dir is missing: a folder on a local disk that the training will name too")
    plan = plan_training(args, training_args, only_cache=True)
    if not plan.report(dry_run=args.dry_run):
        return
    trainer = build_trainer(plan)
    trainer.get_train_dataloader()  # fills the cache
    if is_main_process() and plan.data is not None:
        kind = training_args.teacher_cache if isinstance(trainer.train_dataset, TeacherCacheDataset) else "nothing"
        sys.stdout.write(f"{len(plan.data.train):,} rows: cached {kind} in {training_args.teacher_cache_dir}\n")
