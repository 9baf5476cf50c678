"""`demo`: starts the page of examples/space, which shows a student beside its teacher."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from hf_distil_whisper.checkpoints import load_model, load_processor
from hf_distil_whisper.cli.config import parse_arguments, setting
from hf_distil_whisper.cli.inputs import DTYPES, Plan, best_device, generation_bytes, gigabytes
from hf_distil_whisper.inference.prompt import resolve_language


@dataclass
class DemoArguments:
    """Flags of `demo`."""

    model_name_or_path: str | None = setting(None, "Student: Hub name or folder.")
    teacher_model_name_or_path: str | None = setting(None, "Its teacher, or any other Whisper to compare it with.")
    language: str | None = setting(None, "Language of the speech, for multilingual models (default: detected).")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the weights.")
    host: str = setting("127.0.0.1", "Address to listen on; 0.0.0.0 admits other machines.")
    port: int | None = setting(None, "Port to listen on (default: the first free one from 7860).")
    share: bool = setting(False, "Also a public address, through Gradio's servers.")
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")


def load_app() -> ModuleType:
    """The page's module: in a wheel a copy, else `examples/space/app.py` of the repository.

    Raises:
        ImportError: without the extra `demo`.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ImportError("The page needs a package that is not installed: pip install 'hf-distil-whisper[demo]'.")
    packaged = Path(__file__).parents[1] / "space"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[3] / "examples" / "space"
    spec = importlib.util.spec_from_file_location("hf_distil_whisper_space", folder / "app.py")
    assert spec is not None
    assert spec.loader is not None
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    return app


def plan_demo(args: DemoArguments) -> Plan:
    """Checks models, language, port and that Gradio is installed."""
    plan = Plan("demo")
    plan.single_process()
    try:
        load_app()
    except ImportError as error:
        plan.problems.append(str(error))
    memory = 0.0
    for flag in ("model_name_or_path", "teacher_model_name_or_path"):
        name = getattr(args, flag)
        model = plan.model_and_processor(name, flag)
        if model is not None:
            memory += generation_bytes(model, DTYPES[args.dtype], sequences=1)
            with plan.collect(f"language: {name}"):
                resolve_language(model, args.language)
    if args.port is not None and not 0 < args.port < 2**16:
        plan.problems.append(f"--port: expected a number from 1 to 65535, got {args.port}")
    plan.steps.append(f"load {args.model_name_or_path} and {args.teacher_model_name_or_path}, run each once")
    port = f"port {args.port}" if args.port else "the first free port from 7860"
    plan.steps.append(f"show both on a page at {args.host}, {port}" + (", and at a public address" * args.share))
    plan.figures["memory"] = gigabytes(memory)
    return plan


def run(argv: Sequence[str]) -> None:
    """Entry point of the command: a recipe, then flags; ends with Ctrl-C."""
    (args,) = parse_arguments(DemoArguments, argv=argv, command="hf-distil-whisper demo")
    if not plan_demo(args).report(dry_run=args.dry_run):
        return
    names = (args.model_name_or_path, args.teacher_model_name_or_path)
    student, teacher = (load_model(name, dtype=DTYPES[args.dtype]).to(best_device()) for name in names)
    student_processor, processor = (load_processor(name) for name in names)
    page = load_app().build_demo(
        student, teacher, processor, student_processor=student_processor, language=args.language,
        names=(Path(names[0]).name, Path(names[1]).name),
    )  # fmt: skip
    page.launch(server_name=args.host, server_port=args.port, share=args.share, run_history=False, footer_links=[])
