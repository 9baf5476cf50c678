"""Go on with a training on another machine: fetch the checkpoint that `hub_strategy` "checkpoint" has pushed."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_distil_whisper.hub.push import LAST_CHECKPOINT, reason
from hf_distil_whisper.training.args import check_output_dir

_IN_REPOSITORY = re.compile(rf"{LAST_CHECKPOINT}|{PREFIX_CHECKPOINT_DIR}-\d+")


@dataclass(frozen=True)
class HubCheckpoint:
    """A checkpoint in a repository.

    Args:
        repo_id (`str`): of the student.
        folder (`str`): in it, `last-checkpoint` or `checkpoint-<step>`.
        revision (`str`): commit.
        step (`int`): of the training.
    """

    repo_id: str
    folder: str
    revision: str
    step: int

    def __str__(self) -> str:
        return f"{self.folder} of {self.repo_id} and go on from step {self.step:,}"


def checkpoint_to_resume(args: TrainingArguments) -> str | HubCheckpoint | None:
    """What `resume_from_checkpoint` means: the last checkpoint in the output folder, a folder, or one on the Hub.

    Args:
        args (`TrainingArguments`): also holds output folder, repository, branch and token.

    Returns:
        `str` or [`HubCheckpoint`], *optional*: None for a new run.

    Raises:
        ValueError: as [`find_checkpoint`] and [`check_output_dir`].
    """
    given = str(args.resume_from_checkpoint or "")
    if given.lower() in ("", "false", "true"):
        return check_output_dir(str(args.output_dir), given.lower() == "true")
    found = find_checkpoint(given, args.hub_model_id, revision=args.hub_revision, token=args.hub_token)
    return found or check_output_dir(str(args.output_dir), given)


def find_checkpoint(
    name: str, repo_id: str | None = None, *, revision: str | None = None, token: str | None = None
) -> HubCheckpoint | None:
    """Looks for a checkpoint on the Hub by what `--resume_from_checkpoint` gives; downloads its state only.

    Args:
        name (`str`): `last-checkpoint` or `checkpoint-<step>` in the repository `repo_id`, or the name of a
            repository, whose newest checkpoint is meant. A folder of this machine goes first: nothing is looked for
            then.
        repo_id (`str`, *optional*): `hub_model_id`.
        revision (`str`, *optional*): branch.
        token (`str`, *optional*): by default that of the environment.

    Returns:
        [`HubCheckpoint`], *optional*: None where `name` is a folder or means none on the Hub.

    Raises:
        ValueError: if the repository or the checkpoint is not there; says what is.
    """
    inside = _IN_REPOSITORY.fullmatch(name) is not None
    repo = repo_id if inside else name if _is_repo_id(name) else None
    if repo is None or Path(name).exists():
        return None
    if is_offline_mode():
        raise ValueError(f"--resume_from_checkpoint: {name} is on the Hub, but HF_HUB_OFFLINE is set.")
    try:
        info = HfApi(token=token).model_info(repo, revision=revision)
        suffix = f"/{TRAINER_STATE_NAME}"
        names = [item.rfilename for item in info.siblings or []]
        there = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
        found = name if inside else _newest(there)
        if found not in there:
            have = f"it holds {', '.join(there)}" if there else "it holds none (push with --hub_strategy checkpoint)"
            raise ValueError(f"--resume_from_checkpoint: no checkpoint {found or 'to go on with'} in {repo}: {have}.")
        file = hf_hub_download(repo, f"{found}{suffix}", revision=info.sha, token=token)
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"--resume_from_checkpoint: {name} is no folder here, and {repo} cannot be read ({reason(error, token)})."
        ) from None
    state = json.loads(Path(file).read_text(encoding="utf-8"))
    return HubCheckpoint(repo, str(found), str(info.sha), int(state["global_step"]))


def fetch_checkpoint(checkpoint: HubCheckpoint, output_dir: str | Path, token: str | None = None) -> str:
    """Downloads a checkpoint into the output folder of the run that goes on with it.

    Args:
        checkpoint ([`HubCheckpoint`]): see [`find_checkpoint`].
        output_dir (`str` or `Path`): gets the folder `checkpoint-<step>`; one that is there already is taken.
        token (`str`, *optional*): by default that of the environment.

    Returns:
        `str`: the folder, for `Trainer.train(resume_from_checkpoint=...)`.
    """
    target = Path(output_dir, f"{PREFIX_CHECKPOINT_DIR}-{checkpoint.step}")
    if (target / TRAINER_STATE_NAME).is_file():
        return str(target)
    found = snapshot_download(
        checkpoint.repo_id,
        revision=checkpoint.revision,
        allow_patterns=[f"{checkpoint.folder}/*"],
        ignore_patterns=[f"*/{TRAINING_ARGS_NAME}"],
        token=token,
    )
    room = target.with_name(f"_{target.name}")
    shutil.rmtree(room, ignore_errors=True)
    shutil.copytree(Path(found, checkpoint.folder), room)
    _settle_best(room / TRAINER_STATE_NAME, target)
    room.rename(target)  # whoever finds the folder finds all of it
    return str(target)


def _settle_best(file: Path, target: Path) -> None:
    """The best model's folder is on the other machine, unless it is this very checkpoint."""
    state = json.loads(file.read_text(encoding="utf-8"))
    best = state.get("best_model_checkpoint")
    state["best_model_checkpoint"] = str(target) if best and Path(best).name == target.name else None
    file.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def _newest(names: list[str]) -> str | None:
    if LAST_CHECKPOINT in names:
        return LAST_CHECKPOINT
    numbered = [name for name in names if _IN_REPOSITORY.fullmatch(name)]
    return max(numbered, key=lambda name: int(name.rpartition("-")[2]), default=None)


def _is_repo_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not name.startswith(".")
