"""`create-student`: a smaller Whisper out of spaced layers of a teacher, with all files that other runtimes read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import WhisperForConditionalGeneration

from hf_distil_whisper.checkpoints import (
    load_processor,
    save_checkpoint,
)
from hf_distil_whisper.cli.config import (
    parse_arguments,
    setting,
)
from hf_distil_whisper.cli.inputs import (
    Plan,
    gigabytes,
)
from hf_distil_whisper.student import (
    create_student,
    select_layers,
)


@dataclass
class StudentArguments:
    """Which layers of the teacher a student is made of.

    Args:
        teacher_model_name_or_path (`str`): Whisper to copy from, Hub name or folder.
        decoder_layers (`int`, *optional*, defaults to 2): spaced evenly, first and last kept (section 4.1).
        encoder_layers (`int`, *optional*): all where left out.
        decoder_layer_ids (`list[int]`, *optional*): exactly these layers; negative ones count from the end.
        encoder_layer_ids (`list[int]`, *optional*): the same for the encoder.
    """

    teacher_model_name_or_path: str | None = setting(None, "Whisper to copy from: Hub name or folder.")
    decoder_layers: int | None = setting(None, "Decoder layers of the student, spaced evenly, first and last kept.")
    encoder_layers: int | None = setting(None, "Encoder layers of the student; all where left out.")
    decoder_layer_ids: list[int] | None = setting(None, "Exactly these decoder layers; -1 is the last.")
    encoder_layer_ids: list[int] | None = setting(None, "Exactly these encoder layers; -1 is the last.")

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
    """Flags of `create-student`.

    Args:
        output_dir (`str`): folder for the student.
        dry_run (`bool`, *optional*, defaults to `False`): check the inputs and print the plan only.
    """

    output_dir: str | None = setting(None, "Folder for the student.")
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")


def plan_student(args: CreateStudentArguments) -> Plan:
    """Checks the teacher and the layers without loading weights.

    Args:
        args (`CreateStudentArguments`): where from, where to and which layers.
    """
    plan = Plan("create-student")
    plan.single_process()
    teacher = plan.model(args.teacher_model_name_or_path, "teacher_model_name_or_path")
    plan.output(args.output_dir)
    student = add_student(plan, teacher, args)
    if teacher is not None and student is not None:
        plan.processor(args.teacher_model_name_or_path or "", "teacher_model_name_or_path")
        plan.steps.append(f"save the student and its processor to {args.output_dir}")
        sizes = student.num_parameters(), teacher.num_parameters()
        plan.figures["parameters"] = f"{sizes[0] / 1e6:.1f} M of the teacher's {sizes[1] / 1e6:.1f} M"
        plan.figures["memory expected"] = gigabytes(4 * sum(sizes))
        plan.figures["disk expected"] = gigabytes(4 * sizes[0])
    return plan


def add_student(
    plan: Plan, teacher: WhisperForConditionalGeneration | None, args: StudentArguments
) -> WhisperForConditionalGeneration | None:
    """Makes the student without weights from a teacher without weights; notes a wrong choice of layers in the plan.

    Args:
        plan (`Plan`): gets the steps and the problems.
        teacher (`WhisperForConditionalGeneration`, *optional*): from [`Plan.model`].
        args (`StudentArguments`): which layers.
    """
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
    """Entry point of the command.

    Args:
        argv (`Sequence[str]`): a recipe, then flags.
    """
    (args,) = parse_arguments(CreateStudentArguments, argv=argv, command="hf-distil-whisper create-student")
    if not plan_student(args).settle(dry_run=args.dry_run):
        return
    student = create_student(args.teacher_model_name_or_path, **args.layers())
    save_checkpoint(student, load_processor(args.teacher_model_name_or_path), args.output_dir)
