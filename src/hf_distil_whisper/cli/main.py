"""`hf-distil-whisper <command>`: lists the commands, hands over to one of them, turns errors into messages.

Imports nothing heavy: the list of commands appears at once, each command loads what it needs.
"""

import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence

from hf_distil_whisper.cli.config import (
    is_main_process,
    nearest,
    recipe_names,
)

COMMANDS = {
    "create-student": ("copy spaced layers of a teacher into a smaller Whisper", "create_student"),
    "pseudo-label": ("transcribe a dataset with the teacher", "pseudo_label"),
    "filter": ("keep the rows whose transcript agrees with the reference text", "filter"),
    "audit": ("hold kept and dropped pseudo-labels against the ground truth", "audit"),
    "cache": ("precompute encoder outputs and teacher logits for a training", "cache"),
    "train": ("distil a student on labelled speech, or fine-tune it without a teacher", "train"),
    "evaluate": ("score one model, or a student beside its teacher, on test sets", "evaluate"),
    "align-heads": ("find the heads of a student that tell when each word is said", "align_heads"),
    "export": ("write a model for CTranslate2, whisper.cpp or ONNX and compare the texts", "export"),
    "transcribe": ("write down what is said in audio files of any length", "transcribe"),
    "push": ("put a student that lies in a folder on the Hub, complete and with its card", "push"),
    "push-dataset": ("put labelled rows on the Hub, with a card that says how they were made", "push_dataset"),
    "demo": ("try a student beside its teacher, on a page in the browser", "demo"),
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
    """Runs a command or a script and turns what the user can mend into one message on stderr.

    Args:
        main (`Callable`): takes the arguments after the program's name.
        argv (`Sequence[str]`, *optional*): these arguments; by default those of the process.
        name (`str`, *optional*): stands before the message; by default the name of the script.

    Returns:
        `int`: the exit code, 0, or 2 where an input is wrong or no row is left.
    """
    arguments = sys.argv[1:] if argv is None else argv
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hf_distil_whisper").setLevel(logging.INFO if is_main_process() else logging.ERROR)
    if not is_main_process():
        from transformers.utils.logging import disable_progress_bar  # only here: it takes seconds

        disable_progress_bar()
    try:
        main(arguments)
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("TRANSFORMERS_VERBOSITY") == "debug":
            raise
        sys.stderr.write(f"{name or os.path.basename(sys.argv[0])}: error: {error}\n")
        return _EXIT_INPUT
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `hf-distil-whisper`; returns the exit code.

    Args:
        argv (`Sequence[str]`, *optional*): arguments after the program's name, by default those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview() + "\n")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        hint = nearest(command, list(COMMANDS))
        sys.stderr.write(f"hf-distil-whisper: error: no command {command!r}{hint}\n\n{overview()}\n")
        return _EXIT_INPUT
    module = importlib.import_module(f"hf_distil_whisper.cli.{COMMANDS[command][1]}")
    return run_script(module.run, rest, f"hf-distil-whisper {command}")


if __name__ == "__main__":
    sys.exit(main())
