"""Distil a student on labelled speech; the same as `hf-distil-whisper train`, to be copied and extended.

    accelerate launch examples/run_distillation.py configs/quickstart.yaml
    torchrun --nproc_per_node 2 examples/run_distillation.py configs/quickstart.yaml --use_cpu --max_steps 100

The recipe sets models, data and arguments; flags override it. `--dry_run` checks the inputs and prints the plan.
"""

import sys
from collections.abc import Sequence

from hf_distil_whisper import (
    DistillationTrainingArguments,
    TrainArguments,
    build_trainer,
    parse_arguments,
    plan_training,
    run_script,
)


def main(argv: Sequence[str]) -> None:
    args, training_args = parse_arguments(TrainArguments, DistillationTrainingArguments, argv=argv)
    plan = plan_training(args, training_args)
    if not plan.report(dry_run=args.dry_run):
        return
    # A DistillationTrainer, which is a Seq2SeqTrainer: add callbacks, or replace its datasets, before it trains.
    trainer = build_trainer(plan)
    trainer.train(resume_from_checkpoint=plan.fetch_checkpoint())
    trainer.finish()  # validates, saves student, scores and card, and pushes them with --push_to_hub


if __name__ == "__main__":
    sys.exit(run_script(main))
