"""`create-student`: a smaller Whisper made of spaced layers of a teacher, with all files that other runtimes read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import WhisperForConditionalGeneration

from hf_distil_whisper.checkpoints import load_processor, save_checkpoint
from hf_distil_whisper.cli.config import parse_arguments, setting
from hf_distil_whisper.cli.inputs import Plan, gigabytes
from hf_distil_whisper.student import create_student, select_layers


@dataclass
class StudentArguments:
    """Teacher, and which of its layers a student is made of."""

    teacher_model_name_or_path: str | None = setting(None, "Teacher: Hub name or folder.")
    decoder_layers: int | None = setting(
        None, "Decoder layers of the student (paper: 2), spaced evenly over the teacher's, first and last among them."
    )
    encoder_layers: int | None = setting(None, "Encoder layers of the student, spaced evenly (default: all).")
    decoder_layer_ids: list[int] | None = setting(None, "Copy exactly these decoder layers; -1 is the last.")
    encoder_layer_ids: list[int] | None = setting(None, "Copy exactly these encoder layers; -1 is the last.")

    def layers(self) -> dict[str, Any]:
        """The choice of layers as keyword arguments of [`create_student`]."""
        return {
            "decoder_layers": 2 if self.decoder_layers is None else self.decoder_layers,
            "encoder_layers": self.encoder_layers,
            "decoder_layer_ids": self.decoder_layer_ids,
            "encoder_layer_ids": self.encoder_layer_ids,
        }


@dataclass
class CreateStudentArguments(StudentArguments):
    """Flags of `create-student`."""

    output_dir: str | None = setting(None, "Folder for the student and its processor, new or empty.")
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")


def plan_student(args: CreateStudentArguments) -> Plan:
    """Checks teacher, layers and output folder without loading weights."""
    plan = Plan("create-student")
    plan.single_process()
    teacher = plan.model_and_processor(args.teacher_model_name_or_path, "teacher_model_name_or_path")
    plan.output(args.output_dir)
    student = plan_layers(plan, teacher, args)
    if teacher is not None and student is not None:
        plan.steps.append(f"save the student and its processor to {args.output_dir}")
        sizes = student.num_parameters(), teacher.num_parameters()
        plan.figures["parameters"] = f"{sizes[0] / 1e6:.1f} M of the teacher's {sizes[1] / 1e6:.1f} M"
        plan.figures["memory expected"] = gigabytes(4 * sum(sizes))
        plan.figures["disk expected"] = gigabytes(4 * sizes[0])
    return plan


def plan_layers(
    plan: Plan, teacher: WhisperForConditionalGeneration | None, args: StudentArguments
) -> WhisperForConditionalGeneration | None:
    """Makes the student on the meta device, from a teacher that [`Plan.model`] gave; None for a wrong choice."""
    if teacher is None:
        return None
    layers = args.layers()
    try:
        student = create_student(teacher, **layers)
        decoder = layers["decoder_layer_ids"] or select_layers(teacher.config.decoder_layers, layers["decoder_layers"])
    except ValueError as error:
        plan.problems.append(str(error))
        return None
    plan.steps.append(f"copy decoder layers {decoder} of {teacher.config.decoder_layers} from the teacher")
    if student.config.encoder_layers < teacher.config.encoder_layers:
        plan.steps.append(f"copy {student.config.encoder_layers} of {teacher.config.encoder_layers} encoder layers")
    return student


def run(argv: Sequence[str]) -> None:
    """Entry point of the command: a recipe, then flags."""
    (args,) = parse_arguments(CreateStudentArguments, argv=argv, command="hf-distil-whisper create-student")
    if plan_student(args).report(dry_run=args.dry_run):
        student = create_student(args.teacher_model_name_or_path, **args.layers())
        save_checkpoint(student, load_processor(args.teacher_model_name_or_path), args.output_dir)
