"""`hf-distil-whisper <command>`: lists the commands, runs one of them, turns errors of the user into messages."""

import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence

# Nothing here imports torch or transformers, so that the list of commands appears at once.
import hf_distil_whisper
from hf_distil_whisper.cli.config import is_main_process, nearest, recipe_names

COMMANDS = {
    "create-student": ("copy evenly spaced layers of a teacher into a student", "create_student"),
    "pseudo-label": ("transcribe a dataset with the teacher", "pseudo_label"),
    "filter": ("keep the rows whose transcript agrees with the reference text", "filter"),
    "audit": ("compare kept and dropped pseudo-labels with the ground truth", "audit"),
    "cache": ("precompute encoder outputs and teacher logits", "cache"),
    "train": ("distil a student on labelled speech, or fine-tune it without a teacher", "train"),
    "evaluate": ("score one model, or a student beside its teacher, on test sets", "evaluate"),
    "transcribe": ("transcribe audio files of any length", "transcribe"),
    "export": ("convert a model for CTranslate2, whisper.cpp or ONNX and compare the transcripts", "export"),
    "push": ("upload a student to the Hub, complete and with its card", "push"),
    "push-dataset": ("upload labelled rows to the Hub, with a card", "push_dataset"),
    "demo": ("compare a student with its teacher in the browser", "demo"),
}
"""Name → what it does, module of this package that holds its `run(argv)`."""

_EXIT_INPUT = 2


def overview() -> str:
    """Text of `hf-distil-whisper --help`."""
    lines = ["usage: hf-distil-whisper <command> [recipe or file.yaml] [--flag value ...]", "", "commands:"]
    lines += [f"  {name:16}{summary}" for name, (summary, _) in COMMANDS.items()]
    lines += ["", f"recipes: {', '.join(recipe_names())}", "", "hf-distil-whisper <command> --help lists its flags."]
    return "\n".join(lines)


def run_script(
    main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None, name: str | None = None
) -> int:
    """Runs a command or a script; errors that the user can correct become one message on stderr.

    Args:
        main (`Callable`): takes the arguments after the program's name.
        argv (`Sequence[str]`, *optional*): these arguments; by default those of the process.
        name (`str`, *optional*): stands before the message; by default the name of the script.

    Returns:
        `int`: the exit code, 0, or 2 where an input is wrong or no row is left.

    Example:
        ```python
        if __name__ == "__main__":
            sys.exit(run_script(main))
        ```
    """
    arguments = sys.argv[1:] if argv is None else argv
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hf_distil_whisper").setLevel(logging.INFO if is_main_process() else logging.ERROR)
    if not is_main_process():
        from transformers.utils.logging import disable_progress_bar  # not above: takes seconds

        disable_progress_bar()
    try:
        main(arguments)
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("TRANSFORMERS_VERBOSITY") == "debug":
            raise
        sys.stderr.write(f"{name or os.path.basename(sys.argv[0])}: error: {error}\n")
        return _EXIT_INPUT
    _destroy_process_group()
    return 0


def _destroy_process_group() -> None:
    """A process that exits without this may abort with its work done: github.com/pytorch/pytorch/issues/190489."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        from accelerate import PartialState

        PartialState().destroy_process_group()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `hf-distil-whisper`; returns the exit code.

    Args:
        argv (`Sequence[str]`, *optional*): arguments after the program's name, by default those of the process.
    """
    command, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help", "help"):
        sys.stdout.write(overview() + "\n")
        return 0
    if command in ("-V", "--version"):
        sys.stdout.write(f"hf-distil-whisper {hf_distil_whisper.__version__}\n")
        return 0
    if command not in COMMANDS:
        hint = nearest(command, list(COMMANDS))
        sys.stderr.write(f"hf-distil-whisper: error: no command {command!r}{hint}\n\n{overview()}\n")
        return _EXIT_INPUT
    module = importlib.import_module(f"hf_distil_whisper.cli.{COMMANDS[command][1]}")
    return run_script(module.run, rest, f"hf-distil-whisper {command}")


if __name__ == "__main__":
    sys.exit(main())
