"""Push a student that lies in a folder: what a run could not push, or one that was saved at any other time."""

import logging
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import CommitInfo, is_offline_mode

from hf_distil_whisper.checkpoints import (
    load_model,
    load_processor,
    save_generation_config,
    save_processor,
)
from hf_distil_whisper.hub.model_card import generate_model_card
from hf_distil_whisper.uploads import (
    PushError,
    Repository,
    by_hand,
    folder_files,
    missing_files,
    push_files,
    reason,
    student_files,
    try_to_push,
)

logger = logging.getLogger(__name__)

_CARD = "README.md"


def push_student(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload student",
) -> CommitInfo:
    """Pushes the student in a folder as one commit: complete, with a card, and with nothing that is not its own.

    Files of the processor that other runtimes read are added where they are missing, and so is a card. The folder
    itself stays as it is. Tries again while the network fails.

    Args:
        folder (`str` or `Path`): output folder of a run, one of its checkpoints, or any saved Whisper with its
            processor.
        repo_id (`str`): `owner/name`, or a name under the account of the token.
        private (`bool`, *optional*): make a private repository; one that exists and is public is refused.
        revision (`str`, *optional*): branch, made where it does not exist; by default `main`.
        token (`str`, *optional*): by default that of the environment or of `hf auth login`.
        message (`str`, *optional*, defaults to `"Upload student"`): of the commit.

    Returns:
        `CommitInfo`: with the address of the commit.

    Raises:
        FileNotFoundError: if there is no model or processor in the folder.
        PushError: if it did not reach the Hub; says why.

    Example:
        ```python
        push_student("student", "me/distil-small", private=True)
        ```
    """
    to = Repository(repo_id, private=private, revision=revision, token=token)
    check_folder(folder)
    if is_offline_mode():
        raise PushError(f"{folder}: HF_HUB_OFFLINE is set. When online again: {by_hand(folder, to)}")
    with tempfile.TemporaryDirectory(prefix="hf-distil-whisper-") as room:
        files = folder_files(_complete(Path(folder), Path(room), repo_id))
        try:
            return try_to_push(lambda: push_files(to, files, message))
        except Exception as error:  # the network, the client and the server each have their own
            hint = f"The folder is as it was; try again: {by_hand(folder, to)}"
            raise PushError(f"{folder} is not on the Hub ({reason(error, token)}). {hint}") from None


def check_folder(folder: str | Path) -> None:
    """Makes sure that there is a student to push.

    Args:
        folder (`str` or `Path`): what is to be pushed.

    Raises:
        FileNotFoundError: if there is none; names the checkpoints that a run has left there.
    """
    folder = Path(folder)
    lacking = {"config.json", "model.safetensors"} & set(missing_files(folder))
    if lacking:
        checkpoints = sorted(str(path) for path in folder.glob("checkpoint-*") if not missing_files(path))
        hint = f" A run that was cut short has left {checkpoints[-1]}: push that." if checkpoints else ""
        raise FileNotFoundError(
            f"{folder}: expected a folder with a student, but {' and '.join(sorted(lacking))} is not there.{hint}"
        )


def _complete(folder: Path, room: Path, repo_id: str) -> Path:
    """A copy of the student with the files that the folder lacks."""
    for name in student_files(folder):
        (room / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, room / name)
    lacking = missing_files(folder)
    if lacking or not (room / _CARD).is_file():
        model = load_model(folder)
        if lacking:
            logger.info(f"{folder}: adding {', '.join(lacking)}")
            save_generation_config(model, room)
            save_processor(load_processor(folder), room)
        if not (room / _CARD).is_file():
            generate_model_card(model, name=repo_id).save(room / _CARD)
    return room
