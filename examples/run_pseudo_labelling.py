r"""Transcribes a dataset with the teacher; the same as `hf-distil-whisper pseudo-label`.

    accelerate launch examples/run_pseudo_labelling.py --teacher_model_name_or_path openai/whisper-small.en \
        --dataset.path corpus --dataset.speaker_column speaker --output_dir runs/labelled

Every process labels its share, and a run that was stopped goes on where it was when it is started again.
The table at the end shows what each threshold of the filter would leave; `wer_threshold` in the training's recipe, or
`hf-distil-whisper filter`, then drops the bad rows. `--dry_run` checks the inputs and prints the plan.
"""

import sys
from collections.abc import Sequence

from hf_distil_whisper import (
    EmptyFilterError,
    PseudoLabelArguments,
    filter_by_wer,
    is_main_process,
    parse_arguments,
    plan_labels,
    run_labelling,
    run_script,
)


def main(argv: Sequence[str]) -> None:
    (args,) = parse_arguments(PseudoLabelArguments, argv=argv)
    plan = plan_labels(args)
    if not plan.settle(dry_run=args.dry_run):
        return
    labelled = run_labelling(args, plan.rows["dataset"])
    if not is_main_process():
        return
    print(f"{len(labelled)} rows labelled, {sum(labelled['truncated'])} of them cut off")
    if "text" in labelled.column_names:
        try:
            _, report = filter_by_wer(labelled, language=args.language or "en")
            print(report.table())
        except EmptyFilterError as error:
            print(error)


if __name__ == "__main__":
    sys.exit(run_script(main))
