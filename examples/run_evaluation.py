r"""Scores a model, or a student beside its teacher, on test sets; the same as `hf-distil-whisper evaluate`.

    python examples/run_evaluation.py --model_name_or_path runs/student \
        --teacher_model_name_or_path openai/whisper-small.en --eval_datasets.test.path corpus \
        --long_form_datasets.talks.path talks --output_dir runs/scores

`--help` lists the flags, `--dry_run` checks the inputs and prints the plan.
"""

import sys
from collections.abc import Sequence

from hf_distil_whisper import (
    EvaluateArguments,
    is_main_process,
    parse_arguments,
    plan_evaluation,
    results_table,
    run_evaluation,
    run_script,
    save_results,
)


def main(argv: Sequence[str]) -> None:
    (args,) = parse_arguments(EvaluateArguments, argv=argv)
    plan = plan_evaluation(args)
    if not plan.settle(dry_run=args.dry_run):
        return
    results = run_evaluation(args, plan.datasets)  # the processes that torchrun started share the rows
    if not is_main_process():
        return
    if args.output_dir is not None:
        save_results(results, args.output_dir, args.groups(), args.reference)
    print(results_table(results, args.groups(), args.reference))


if __name__ == "__main__":
    sys.exit(run_script(main))
