"""Makes a student out of a teacher's layers; the same as `hf-distil-whisper create-student`.

    python examples/create_student.py --teacher_model_name_or_path openai/whisper-small.en --output_dir runs/student

`--help` lists the flags, `--dry_run` checks the inputs and prints the plan.
"""

import sys
from collections.abc import Sequence

from hf_distil_whisper import (
    CreateStudentArguments,
    create_student,
    load_processor,
    parse_arguments,
    plan_student,
    run_script,
    save_checkpoint,
)


def main(argv: Sequence[str]) -> None:
    (args,) = parse_arguments(CreateStudentArguments, argv=argv)
    if not plan_student(args).settle(dry_run=args.dry_run):
        return
    student = create_student(args.teacher_model_name_or_path, **args.layers())
    save_checkpoint(student, load_processor(args.teacher_model_name_or_path), args.output_dir)


if __name__ == "__main__":
    sys.exit(run_script(main))
