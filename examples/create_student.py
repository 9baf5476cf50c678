"""Create a student from evenly spaced layers of a teacher.

    python examples/create_student.py --teacher_model_name_or_path openai/whisper-small.en --output_dir runs/student

`hf-distil-whisper create-student` does the same and prints a plan first.
"""

import argparse
import sys
from collections.abc import Sequence

from hf_distil_whisper import create_student, load_model, load_processor, run_script, save_checkpoint


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher_model_name_or_path", required=True, help="Hub name or folder of a Whisper")
    parser.add_argument("--output_dir", required=True, help="folder for the student and its processor")
    parser.add_argument("--decoder_layers", type=int, default=2, help="decoder layers of the student (default: 2)")
    parser.add_argument("--encoder_layers", type=int, help="encoder layers of the student (default: all)")
    args = parser.parse_args(argv)

    teacher = load_model(args.teacher_model_name_or_path)
    student = create_student(teacher, decoder_layers=args.decoder_layers, encoder_layers=args.encoder_layers)
    # Also writes the processor and the generation config, so that other runtimes can read the folder.
    save_checkpoint(student, load_processor(args.teacher_model_name_or_path), args.output_dir)
    print(f"{student.num_parameters() / 1e6:.1f} M of the teacher's {teacher.num_parameters() / 1e6:.1f} M parameters")


if __name__ == "__main__":
    sys.exit(run_script(main))
