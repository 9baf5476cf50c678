"""Resumes a training on another machine from a checkpoint that `hub_strategy` "checkpoint" has pushed."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_distil_whisper.hub.model_card import is_hub_id
from hf_distil_whisper.hub.push import LAST_CHECKPOINT, reason
from hf_distil_whisper.training.args import check_output_dir

_CHECKPOINT_FOLDER = re.compile(rf"{LAST_CHECKPOINT}|{PREFIX_CHECKPOINT_DIR}-\d+")


@dataclass(frozen=True)
class HubCheckpoint:
    """The checkpoint of a training step in a folder of a repository; `revision` is a commit."""

    repo_id: str
    folder: str
    revision: str
    step: int

    def __str__(self) -> str:
        return f"{self.folder} of {self.repo_id} and resume from step {self.step:,}"


def checkpoint_to_resume(args: TrainingArguments) -> str | HubCheckpoint | None:
    """Resolves `resume_from_checkpoint`: the last checkpoint in the output folder, a folder, or one on the Hub.

    None for a new run. Raises as [`find_checkpoint`] and [`check_output_dir`].
    """
    name = str(args.resume_from_checkpoint or "")
    if name.lower() in ("", "false", "true"):
        return check_output_dir(str(args.output_dir), name.lower() == "true")
    on_hub = find_checkpoint(name, args.hub_model_id, revision=args.hub_revision, token=args.hub_token)
    return on_hub or check_output_dir(str(args.output_dir), name)


def find_checkpoint(
    name: str, repo_id: str | None = None, *, revision: str | None = None, token: str | None = None
) -> HubCheckpoint | None:
    """Looks for the checkpoint of `--resume_from_checkpoint` on the Hub; downloads its `trainer_state.json` only.

    Args:
        name (`str`): `last-checkpoint` or `checkpoint-<step>` in the repository `repo_id`, or the name of a
            repository, for its newest checkpoint. A local folder of this name takes precedence.
        repo_id (`str`, *optional*): `hub_model_id`.
        revision (`str`, *optional*): branch.
        token (`str`, *optional*): by default that of the environment.

    Returns:
        [`HubCheckpoint`], *optional*: None if `name` is a local folder or neither of the above.

    Raises:
        ValueError: if the repository cannot be read or has no such checkpoint; names those that it has.
    """
    is_folder = _CHECKPOINT_FOLDER.fullmatch(name) is not None
    repo_id = repo_id if is_folder else name if is_hub_id(name) else None
    if repo_id is None or Path(name).exists():
        return None
    if is_offline_mode():
        raise ValueError(f"--resume_from_checkpoint: {name} is on the Hub, but HF_HUB_OFFLINE is set.")
    try:
        info = HfApi(token=token).model_info(repo_id, revision=revision)
        suffix = f"/{TRAINER_STATE_NAME}"
        files = [sibling.rfilename for sibling in info.siblings or []]
        folders = [file.removesuffix(suffix) for file in files if file.endswith(suffix)]
        folder = name if is_folder else _newest(folders)
        if folder is None or folder not in folders:
            wanted = folder or "to resume from"
            have = ", ".join(folders) or "none (push with --hub_strategy checkpoint)"
            raise ValueError(f"--resume_from_checkpoint: no checkpoint {wanted} in {repo_id}: it holds {have}.")
        state_file = hf_hub_download(repo_id, f"{folder}{suffix}", revision=info.sha, token=token)
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"--resume_from_checkpoint: {name} is no local folder, and {repo_id} cannot be read "
            f"({reason(error, token)})."
        ) from None
    state = json.loads(Path(state_file).read_text(encoding="utf-8"))
    return HubCheckpoint(repo_id, folder, str(info.sha), int(state["global_step"]))


def fetch_checkpoint(checkpoint: HubCheckpoint, output_dir: str | Path, token: str | None = None) -> str:
    """Downloads a checkpoint into the output folder of the run that resumes from it.

    Returns the folder `checkpoint-<step>`, for `Trainer.train(resume_from_checkpoint=...)`; an existing one is used
    as it is.
    """
    target = Path(output_dir, f"{PREFIX_CHECKPOINT_DIR}-{checkpoint.step}")
    if (target / TRAINER_STATE_NAME).is_file():
        return str(target)
    snapshot = snapshot_download(
        checkpoint.repo_id,
        revision=checkpoint.revision,
        allow_patterns=[f"{checkpoint.folder}/*"],
        ignore_patterns=[f"*/{TRAINING_ARGS_NAME}"],
        token=token,
    )
    staging = target.with_name(f"_{target.name}")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(Path(snapshot, checkpoint.folder), staging)
    # The folder of the best model is on the other machine, unless it is this very checkpoint.
    state_file = staging / TRAINER_STATE_NAME
    state = json.loads(state_file.read_text(encoding="utf-8"))
    is_best = Path(state.get("best_model_checkpoint") or "").name == target.name
    state["best_model_checkpoint"] = str(target) if is_best else None
    state_file.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    staging.rename(target)  # at once: a folder that exists is complete
    return str(target)


def _newest(folders: list[str]) -> str | None:
    if LAST_CHECKPOINT in folders:
        return LAST_CHECKPOINT
    numbered = [name for name in folders if _CHECKPOINT_FOLDER.fullmatch(name)]
    return max(numbered, key=lambda name: int(name.rpartition("-")[2]), default=None)
