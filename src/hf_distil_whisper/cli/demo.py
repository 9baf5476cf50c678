"""`demo`: a page on which a student is heard beside its teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hf_distil_whisper.checkpoints import (
    load_model,
    load_processor,
)
from hf_distil_whisper.cli.config import (
    parse_arguments,
    setting,
)
from hf_distil_whisper.cli.inputs import (
    Plan,
    best_device,
    generation_bytes,
    gigabytes,
    torch_dtype,
)
from hf_distil_whisper.evaluation.demo import (
    build_demo,
    import_gradio,
)
from hf_distil_whisper.inference.prompt import resolve_language


@dataclass
class DemoArguments:
    """Flags of `demo`.

    Args:
        model_name_or_path (`str`): student, Hub name or folder.
        teacher_model_name_or_path (`str`): its teacher, or any other Whisper to stand beside it.
        language (`str`, *optional*): of the speech, for multilingual models.
        dtype (`str`, *optional*, defaults to `"float32"`): type of the weights.
        host (`str`, *optional*, defaults to `"127.0.0.1"`): address to listen on; `0.0.0.0` lets other machines in.
        port (`int`, *optional*): by default the first free one from 7860 on.
        share (`bool`, *optional*, defaults to `False`): also a public address, through Gradio's servers.
        dry_run (`bool`, *optional*, defaults to `False`): check the inputs and print the plan only.
    """

    model_name_or_path: str | None = setting(None, "Student: Hub name or folder.")
    teacher_model_name_or_path: str | None = setting(None, "Its teacher, or any other Whisper to stand beside it.")
    language: str | None = setting(None, "Of the speech, for multilingual models; detected where left out.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the weights.")
    host: str = setting("127.0.0.1", "Address to listen on; 0.0.0.0 lets other machines in.")
    port: int | None = setting(None, "By default the first free one from 7860 on.")
    share: bool = setting(False, "Also a public address, through Gradio's servers.")
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")


def plan_demo(args: DemoArguments) -> Plan:
    """Checks models, language, port and that Gradio is there.

    Args:
        args (`DemoArguments`): what to show, and where.
    """
    plan = Plan("demo")
    plan.single_process()
    try:
        import_gradio()
    except ImportError as error:
        plan.problems.append(str(error))
    memory = 0.0
    for flag in ("model_name_or_path", "teacher_model_name_or_path"):
        place = getattr(args, flag)
        model = plan.model(place, flag)
        if model is None:
            continue
        plan.processor(place, flag)
        memory += generation_bytes(model, torch_dtype(args.dtype), sequences=1)
        try:
            resolve_language(model, args.language)
        except ValueError as error:
            plan.problems.append(f"--language: {place}: {error}")
    if args.port is not None and not 0 < args.port < 2**16:
        plan.problems.append(f"--port: expected a number from 1 to 65535, got {args.port}")
    plan.steps.append(f"load {args.model_name_or_path} and {args.teacher_model_name_or_path}, run each once")
    port = f"port {args.port}" if args.port else "the first free port from 7860 on"
    plan.steps.append(f"show both on a page at {args.host}, {port}" + (", and at a public address" * args.share))
    plan.figures["memory"] = gigabytes(memory)
    return plan


def run(argv: Sequence[str]) -> None:
    """Entry point of the command; ends with Ctrl-C.

    Args:
        argv (`Sequence[str]`): a recipe, then flags.
    """
    (args,) = parse_arguments(DemoArguments, argv=argv, command="hf-distil-whisper demo")
    if not plan_demo(args).report(dry_run=args.dry_run):
        return
    places = (args.model_name_or_path, args.teacher_model_name_or_path)
    student, teacher = (load_model(at, dtype=torch_dtype(args.dtype)).to(best_device()) for at in places)
    student_processor, processor = (load_processor(at) for at in places)
    page = build_demo(
        student, teacher, processor, student_processor=student_processor, language=args.language,
        names=(Path(places[0]).name, Path(places[1]).name),
    )  # fmt: skip
    page.launch(server_name=args.host, server_port=args.port, share=args.share, run_history=False, footer_links=[])
