"""Pushes students to the Hub, from a folder or in the background of a training: one commit with listed files only.

Imports nothing of the package but single modules, so that the trainer can import it.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from time import sleep
from typing import Any, TypeVar

from huggingface_hub import (
    CommitInfo,
    CommitOperation,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_token,
    is_offline_mode,
)
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from transformers import (
    Seq2SeqTrainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, suppress_progress_bars

from hf_distil_whisper.checkpoints import save_generation_config, save_processor

logger = logging.getLogger(__name__)

BEST_TAG = "best"
"""Tag of the commit that holds the model with the best `metric_for_best_model`."""
LAST_CHECKPOINT = "last-checkpoint"
"""Folder of the newest checkpoint in a repository, with `hub_strategy` "checkpoint"."""
CARD = "README.md"

RETRY_WAITS = (1.0, 4.0, 16.0)
"""Seconds before the second, third and fourth attempt at a push."""
_MAX_WAIT = 60.0
"""A server that asks for more patience is asked again with the next checkpoint, or by the user."""
_PERMANENT = (400, 401, 402, 403, 404, 410, 422)
_STAGING = "_push"

_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
_CARD_FILES = (
    CARD,
    "LICENSE*",
    "NOTICE*",
    "eval_results.json",
    ".eval_results/*.yaml",
    "*.png",
    "*.svg",
    "figures/*.png",
    "figures/*.svg",
)
_REQUIRED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "normalizer.json",
    "preprocessor_config.json",
)
# An allow list: whatever else a run leaves in its folder (optimizer, pickled arguments with the token) stays there.
_STUDENT_FILES = (
    *_WEIGHTS,
    *_CARD_FILES,
    *_REQUIRED,
    "merges.txt",
    "processor_config.json",
    "adapter/adapter_config.json",
    "adapter/*.safetensors",
)
_WRITTEN_ONCE = (".safetensors", ".pt", ".pth")
_TEXT_SUFFIXES = (".json", ".md", ".txt", ".yaml", ".yml", "")
_ADVICE = re.compile(r"For more information check: \S+")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}|(?<=Bearer )\S+|(?<=//)[^/\s:@]+:[^/\s@]+(?=@)")

Answer = TypeVar("Answer")


class PushError(OSError):
    """A push that did not reach the Hub; says why, and how to finish it by hand."""


@dataclass(frozen=True)
class Repository:
    """Where a push goes.

    Args:
        repo_id (`str`): `owner/name`, or a name under the account of the token.
        private (`bool`, *optional*): visibility of a repository that is created; an existing one is not changed.
        revision (`str`, *optional*): branch, created if it does not exist; by default `main`.
        token (`str`, *optional*): by default that of the environment or of `hf auth login`.
    """

    repo_id: str
    private: bool | None = None
    revision: str | None = None
    token: str | None = None

    def __repr__(self) -> str:
        return f"Repository({self.repo_id!r}, revision={self.revision!r})"


# Files of a student


def student_files(folder: str | Path, *, only_card: bool = False) -> list[str]:
    """The files of a folder that belong to a student, or only to its card with pictures and results.

    Paths are relative to the folder; no optimizer, no teacher and no pickle is among them.
    """
    folder = Path(folder)
    patterns = _CARD_FILES if only_card else _STUDENT_FILES
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def missing_files(folder: str | Path) -> list[str]:
    """The files that a folder lacks to be loaded by every runtime (transformers, faster-whisper, whisper.cpp)."""
    folder = Path(folder)
    missing = [name for name in _REQUIRED if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in (_WEIGHTS[0], _WEIGHTS[2])):
        missing.append(_WEIGHTS[0])
    return missing


def check_folder(folder: str | Path) -> None:
    """Raises a FileNotFoundError if a folder has no student; names the checkpoints that a run has left there."""
    folder = Path(folder)
    missing = {"config.json", "model.safetensors"} & set(missing_files(folder))
    if missing:
        checkpoints = sorted(str(path) for path in folder.glob("checkpoint-*") if not missing_files(path))
        hint = f" A run that was cut short has left {checkpoints[-1]}: push that." if checkpoints else ""
        raise FileNotFoundError(
            f"{folder}: expected a folder with a student, but {' and '.join(sorted(missing))} is not there.{hint}"
        )


def folder_files(folder: str | Path) -> dict[str, Path]:
    """All files of a folder, by their path relative to it."""
    folder = Path(folder)
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


# One commit


def push_files(
    to: Repository, files: Mapping[str, Path], message: str, *, best: bool = False, last_commit: str | None = None
) -> CommitInfo:
    """Commits files to a model repository, all in one commit on top of its newest one.

    Args:
        to ([`Repository`]): is created if it does not exist.
        files (`Mapping[str, Path]`): path in the repository → local file.
        message (`str`): of the commit.
        best (`bool`, *optional*, defaults to `False`): move the tag `best` to this commit.
        last_commit (`str`, *optional*): the caller's previous push; a commit on top of it by others is warned about.

    Raises:
        ValueError: if a file contains the token, or the Hub does not accept the metadata of the card.
        HfHubHTTPError: as the Hub answers, after all attempts.
    """
    _check_secrets(files, to.token)
    return with_retries(lambda: _commit(to, files, message, best, last_commit))


def _commit(
    to: Repository, files: Mapping[str, Path], message: str, best: bool, last_commit: str | None
) -> CommitInfo:
    api = HfApi(token=to.token)
    repo_id = api.create_repo(to.repo_id, private=to.private, exist_ok=True).repo_id
    try:
        info = api.model_info(repo_id, revision=to.revision)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=str(to.revision), exist_ok=True)
        info = api.model_info(repo_id, revision=to.revision)
    check_visibility(to, info.private, repo_id)
    head = str(info.sha)
    if last_commit is not None and head != last_commit:
        logger.warning(
            f"{repo_id}: somebody else has committed ({head[:8]}) since the last push. Nothing is lost, and every "
            "commit is a complete student, but the newest wins. If it was another run, give each its own "
            "--hub_model_id."
        )
    # Not `upload_folder`: with hf_xet it may make several commits of one call (huggingface_hub#4331), so that a
    # repository could be left with the files of half a push.
    operations: list[CommitOperation] = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    operations += [
        CommitOperationDelete(name)
        for name in api.list_repo_files(repo_id, revision=head)
        if name not in files and _is_stale(name, files)
    ]
    # With `parent_commit` a commit that was made meanwhile is answered with an error (huggingface_hub#916), and the
    # next attempt starts from it.
    commit = api.create_commit(repo_id, operations, commit_message=message, revision=to.revision, parent_commit=head)
    if best:
        _move_tag(api, repo_id, commit.oid)
    return commit


def check_visibility(to: Repository, is_private: bool | None, repo_id: str) -> None:
    """Raises a ValueError if a private push would go to a repository that exists and is public."""
    if to.private and is_private is False:
        raise ValueError(
            f"{repo_id} exists and is public, but a private push was asked for. Make it private in its settings, "
            "choose another name, or leave `private` out."
        )


def _is_stale(name: str, files: Mapping[str, Path]) -> bool:
    """Weights of another layout, and files of an earlier `last-checkpoint`: a loader would read a mixture."""
    path = PurePosixPath(name)
    if len(path.parts) == 1:
        return any(fnmatch(name, pattern) for pattern in _WEIGHTS)
    return path.parts[0].endswith("checkpoint") and any(file.startswith(f"{path.parts[0]}/") for file in files)


def _move_tag(api: HfApi, repo_id: str, commit: str) -> None:
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id).tags}
    if BEST_TAG in tags and tags[BEST_TAG] != commit:
        api.delete_tag(repo_id, tag=BEST_TAG)  # the Hub does not move tags
    api.create_tag(repo_id, tag=BEST_TAG, revision=commit, exist_ok=True)


def _check_secrets(files: Mapping[str, Path], token: str | None) -> None:
    # A token given as a flag ends up in logged command lines and so in cards (huggingface/diffusers#6916).
    secrets = [secret.encode() for secret in (token, get_token()) if secret]
    for name, path in files.items():
        if path.suffix in _TEXT_SUFFIXES and any(secret in path.read_bytes() for secret in secrets):
            raise ValueError(f"{name} holds your access token, so it is not uploaded. Remove it from that file.")


# Failures


def with_retries(call: Callable[[], Answer]) -> Answer:
    """Calls a function again while it fails for a reason that may pass; raises the last error.

    The client retries its uploads by itself (`http_backoff`), but neither the commit nor questions about repositories,
    branches and tags. Files that were uploaded by a failed attempt are not uploaded again.
    """
    for pause in RETRY_WAITS:
        try:
            return call()
        except Exception as error:  # httpx, the client and the server each raise their own
            answer = _response(error)
            if answer is not None:
                # Only the client's `http_backoff` reads it, and a commit goes without (huggingface_hub#2360).
                asked = answer.headers.get("Retry-After", "")
                pause = max(pause, float(asked) if re.fullmatch(r"[\d.]+", asked) else 0)  # it may also be a date
            wrong_input = answer is None and isinstance(error, ValueError | FileNotFoundError)
            refused = answer is not None and answer.status_code in _PERMANENT
            if wrong_input or refused or pause > _MAX_WAIT:
                raise
            sleep(pause)
    return call()


def _response(error: BaseException | None) -> Any:
    """The Hub's answer among an error and its causes: the client wraps those of large files in a RuntimeError."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    return None if error is None else error.response


def redact(text: object, token: str | None = None) -> str:
    """A text without tokens (`token` is one that may not look like the Hub's) and passwords in addresses."""
    redacted = _TOKEN.sub("***", str(text))
    for secret in (token, get_token()):
        redacted = redacted.replace(secret, "***") if secret else redacted
    return redacted


def reason(error: BaseException, token: str | None = None) -> str:
    """Why a push failed, in one line and without the token."""
    cause: BaseException = error
    while isinstance(cause, RuntimeError) and cause.__cause__ is not None:  # "Error while uploading 'x' to the Hub."
        cause = cause.__cause__
    refused = isinstance(cause, HfHubHTTPError) and cause.response.status_code in (401, 403)
    hint = "; give a token that may write there, by `hf auth login` or the variable HF_TOKEN" if refused else ""
    text = _ADVICE.sub("", " ".join(redact(cause, token).split()))[:300].strip()
    return f"{type(cause).__name__}: {text}{hint}"


def by_hand(folder: str | Path, to: Repository) -> str:
    """The command that pushes a folder by hand."""
    flags = f"--repo_id {to.repo_id}" + " --private" * bool(to.private)
    flags += f" --revision {to.revision}" if to.revision else ""
    return f"hf-distil-whisper push {folder} {flags}"


# Pushes of a training


@dataclass(frozen=True)
class Snapshot:
    """A student in a staging directory, which is removed once it is on the Hub; `source` is its permanent folder."""

    folder: Path
    source: Path
    to: Repository
    message: str
    best: bool = False

    def discard(self) -> None:
        """Removes the staging directory."""
        shutil.rmtree(self.folder, ignore_errors=True)


CardWriter = Callable[[TrainingArguments, TrainerState, WhisperForConditionalGeneration, Path], object]
"""Writes the card of a student into a folder."""


class StudentPushCallback(TrainerCallback):
    """Pushes a complete student with every checkpoint, in the background of the main process.

    Students are pushed one after another, and no failure raises. A newer one replaces those that still wait, unless
    one is the best so far and the newer one is not; so at most four lie on the disk: one under way, the newest, the
    best, and one that failed. [`PushCheckpointCallback`] adds a card.

    Args:
        repo_id (`str`, *optional*): by default `hub_model_id`, or the name of the output folder.
        private (`bool`, *optional*): visibility of a repository that is created; by default `hub_private_repo`.
        revision (`str`, *optional*): branch; by default `hub_revision`, or `main`.
        token (`str`, *optional*): by default `hub_token`, or that of the environment.
        strategy (`str`, *optional*): "every_save", "end", "checkpoint" (also all that is needed to resume, in
            `last-checkpoint`) or "all_checkpoints"; by default `hub_strategy`.
        push_end (`bool`, *optional*, defaults to `True`): also push the student as it is when training ends.
        write_card (`Callable`, *optional*): writes the card where no other callback has written one.
    """

    def __init__(
        self,
        repo_id: str | None = None,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        strategy: str | None = None,
        push_end: bool = True,
        write_card: CardWriter | None = None,
    ):
        self.repo_id, self.private, self.revision, self.token = repo_id, private, revision, token
        self.strategy = None if strategy is None else HubStrategy(strategy)
        self.push_end, self.write_card = push_end, write_card
        self.save_merged: Callable[[Path], None] | None = None
        self.error: str | None = None
        self.commit: CommitInfo | None = None
        self._api, self._count = HfApi(), 0
        self._queue: list[tuple[Future[None], Snapshot]] = []
        self._failed: Snapshot | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Removes what a killed run has left behind, and warns if nothing will be pushed."""
        if state.is_world_process_zero:
            shutil.rmtree(Path(str(args.output_dir), _STAGING), ignore_errors=True)
            if is_offline_mode():
                self.warn_offline(args)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Pushes the student of the checkpoint that was just written."""
        strategy = self.strategy or HubStrategy(args.hub_strategy)
        with_state = strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
        if with_state and args.distributed_state is not None:
            args.distributed_state.wait_for_everyone()  # every process writes a part of the checkpoint
        if not state.is_world_process_zero or strategy == HubStrategy.END or is_offline_mode():
            return
        checkpoint = Path(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        try:
            folder = self._stage(args, state, checkpoint, kwargs["model"], kwargs.get("processing_class"))
            if with_state:
                name = LAST_CHECKPOINT if strategy == HubStrategy.CHECKPOINT else checkpoint.name
                _stage_checkpoint(checkpoint, folder / name)
        except (OSError, ValueError) as error:  # a full disk, a card that cannot be written: it costs this push
            logger.warning(f"{checkpoint} is not pushed ({type(error).__name__}: {error}). The training goes on.")
            return
        epoch = "" if state.epoch is None else f", epoch {state.epoch:.2f}"
        message = f"Training in progress, step {state.global_step}{epoch}"
        best = state.best_global_step == state.global_step and state.global_step > 0
        snapshot = Snapshot(folder, checkpoint, self.repository(args), message, best)
        self.submit(snapshot, push_all=args.hub_always_push)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Pushes the student as it is now, unless `push_end` is off, and waits for all pushes."""
        if not state.is_world_process_zero or is_offline_mode():
            return
        if self.push_end:
            self.push_student(args, state, "End of training", None, kwargs["model"], kwargs.get("processing_class"))
        self.finish(args)

    def push_student(
        self,
        args: TrainingArguments,
        state: TrainerState,
        message: str,
        source: Path | None,
        model: WhisperForConditionalGeneration,
        processor: WhisperProcessor | None,
    ) -> None:
        """Queues the student in a folder, or the model in memory if `source` is None."""
        folder = self._stage(args, state, source, model, processor)
        best = args.load_best_model_at_end and state.best_model_checkpoint is not None
        snapshot = Snapshot(folder, Path(str(args.output_dir)), self.repository(args), message, best)
        self.submit(snapshot, push_all=args.hub_always_push)

    def submit(self, snapshot: Snapshot, *, push_all: bool = False) -> None:
        """Queues a snapshot and returns at once; with `push_all` it replaces none that waits."""
        if missing := missing_files(snapshot.folder):
            logger.warning(f"{snapshot.source} is not pushed: it lacks {', '.join(missing)}.")
            snapshot.discard()
            return
        for future, waiting in [] if push_all else self._queue:
            if (snapshot.best or not waiting.best) and future.cancel():  # a push under way cannot be cancelled
                waiting.discard()
        self._queue = [pair for pair in self._queue if not pair[0].done()]
        # One worker thread, so that commits keep the order of the steps.
        self._queue.append((self._api.run_as_future(self._push, snapshot), snapshot))

    @property
    def busy(self) -> bool:
        """Whether a push is under way or waits."""
        return not all(future.done() for future, _ in self._queue)

    def finish(self, args: TrainingArguments) -> bool:
        """Waits for all pushes, repeats the last one if it failed, and returns whether everything is on the Hub."""
        if self.busy:
            logger.info(f"Waiting for the push to {self.repository(args).repo_id} ...")
        wait([future for future, _ in self._queue])
        if self._failed is not None:
            wait([self._api.run_as_future(self._push, self._failed)])
        if (failed := self._failed) is not None:
            logger.warning(
                f"Not on the Hub: {failed.source} ({self.error}). The training itself is complete. Push it by hand: "
                f"{by_hand(failed.source, failed.to)}"
            )
            self._failed = None
        shutil.rmtree(Path(str(args.output_dir), _STAGING), ignore_errors=True)
        return self.error is None

    def repository(self, args: TrainingArguments) -> Repository:
        """Where to push, by this callback's settings and the training arguments."""
        return Repository(
            self.repo_id or args.hub_model_id or Path(str(args.output_dir)).absolute().name,
            private=args.hub_private_repo if self.private is None else self.private,
            revision=self.revision or args.hub_revision,
            token=self.token or args.hub_token,
        )

    def warn_offline(self, args: TrainingArguments) -> None:
        """Says that nothing is pushed in offline mode, and how to push later."""
        command = by_hand(str(args.output_dir), self.repository(args))
        logger.warning(f"HF_HUB_OFFLINE is set, so nothing is pushed. When online again: {command}")

    def _push(self, snapshot: Snapshot) -> None:
        """In the background thread: one push, whose failure is remembered."""
        failed, self._failed = self._failed, None
        if failed is not None and failed is not snapshot:
            failed.discard()  # this one is newer
        last, before = None if self.commit is None else self.commit.oid, self.error
        try:
            with suppress_progress_bars():
                files = folder_files(snapshot.folder)
                self.commit = push_files(snapshot.to, files, snapshot.message, best=snapshot.best, last_commit=last)
        except Exception as error:  # whatever the network does, the training goes on
            self.error, self._failed = reason(error, snapshot.to.token), snapshot
            if before is None:  # one warning for a network that is down all night
                logger.warning(
                    f"The push to {snapshot.to.repo_id} failed ({self.error}). The training goes on; it is tried "
                    "again, with the next checkpoint and at the end."
                )
            return
        self.error = None
        snapshot.discard()

    def _stage(
        self,
        args: TrainingArguments,
        state: TrainerState,
        source: Path | None,
        model: WhisperForConditionalGeneration,
        processor: WhisperProcessor | None,
    ) -> Path:
        """Copies a student to a staging directory, so that neither steps nor `save_total_limit` change it."""
        self._count += 1
        output_dir = Path(str(args.output_dir))
        folder = output_dir / _STAGING / f"{self._count:04}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if source is None and self.save_merged is None:
            model.save_pretrained(str(folder))
        source, only_card = (output_dir, True) if source is None else (source, False)
        for name in student_files(source, only_card=only_card):
            _copy(source / name, folder / name, link=source.name.startswith(PREFIX_CHECKPOINT_DIR))
        if self.save_merged is not None and not (folder / "model.safetensors").is_file():
            self.save_merged(folder)  # checkpoints of LoRA hold the adapter alone
        if missing_files(folder):
            save_generation_config(model, folder)
            if processor is not None:
                save_processor(processor, folder)
        if self.write_card is not None and not (folder / CARD).is_file():
            self.write_card(args, state, model, folder)
        return folder


def _copy(source: Path, target: Path, link: bool) -> None:
    """Copies a file. Weights of a checkpoint are never written again, so that a hard link will do."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if link and source.suffix in _WRITTEN_ONCE:
        with suppress(OSError):  # a file system without links
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def _stage_checkpoint(checkpoint: Path, folder: Path) -> None:
    """Copies all that a run needs to resume: optimizer state included, training arguments (with the token) not."""
    for name, path in folder_files(checkpoint).items():
        if name != TRAINING_ARGS_NAME:
            _copy(path, folder / name, link=True)
    state_file = folder / TRAINER_STATE_NAME
    state = json.loads(state_file.read_text(encoding="utf-8"))
    best = state.get("best_model_checkpoint")
    state["best_model_checkpoint"] = best and Path(best).name  # no folders of this machine
    state_file.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


class PushingTrainer(Seq2SeqTrainer):
    """A trainer whose `push_to_hub` and `hub_strategy` push complete students; see [`StudentPushCallback`].

    The uploads of `Trainer` lack files, come before the card of their step, block or end the run when the network
    fails, and contain `training_args.bin` with the token. Here the network is not needed before the first push, and a
    failed push ends neither training nor program.
    """

    def configure_push(self, save_merged: Callable[[Path], None] | None = None) -> None:
        """Adds the callback that pushes, as the last one, so that it sees what the others write; to be called once.

        `save_merged` writes a complete student where checkpoints hold only a part of it.
        """
        callbacks = self.callback_handler.callbacks
        pushing = [callback for callback in callbacks if isinstance(callback, StudentPushCallback)]
        if self.args.push_to_hub and not pushing:
            pushing = [StudentPushCallback(push_end=False, write_card=self._write_default_card)]
            self.add_callback(pushing[0])
        callbacks.sort(key=lambda callback: isinstance(callback, StudentPushCallback))
        self._push = pushing[-1] if pushing else StudentPushCallback()
        for callback in (*pushing, self._push):
            callback.save_merged = save_merged

    # The Trainer creates the repository before the first step, so that a run without a network would not start, and
    # uploads in `_save_checkpoint`, before callbacks have written the card of that step (huggingface_hub#1560: a push
    # that fails leaves weights without a card).
    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Only sets the name: the repository is created by the first push, in the background."""
        self.hub_model_id = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
        self.push_in_progress = None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """No-op: the push happens in `on_save`, once the checkpoint is complete and has its card."""

    def _finish_current_push(self) -> None:
        """No-op: `on_train_end` and `push_to_hub` wait for pushes."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's card, unless the output folder has one that the Trainer has not written."""
        # `finetuned_from` would be looked up on the Hub.
        card = Path(str(self.args.output_dir), CARD)
        if not card.is_file() or "generated_from_trainer" in card.read_text(encoding="utf-8"):
            super().create_model_card(*args, **{"finetuned_from": "", **kwargs})

    def _write_default_card(self, args: TrainingArguments, state: TrainerState, model: Any, folder: Path) -> None:
        self.create_model_card()
        shutil.copyfile(Path(str(args.output_dir), CARD), folder / CARD)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | None:
        """Saves the student and pushes it with its card; arguments as for the Trainer (`private`: `hub_private_repo`).

        Returns:
            `CommitInfo`, *optional*: None if it is not on the Hub (yet): a warning then says why, and how to push by
            hand.
        """
        self.save_model(_internal_call=True)  # by every process, since shards are gathered
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        if {token, revision, private} != {None}:
            self._push = StudentPushCallback(private=private, revision=revision, token=token)
        return self.push_output_dir(commit_message or "End of training", blocking=blocking)

    def push_output_dir(self, commit_message: str = "End of training", *, blocking: bool = True) -> CommitInfo | None:
        """Pushes the student in the output folder as it is, with arguments and result of [`push_to_hub`].

        For the main process only.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if is_offline_mode():
            self._push.warn_offline(self.args)
            return None
        output_dir = Path(str(self.args.output_dir))
        self._push.push_student(self.args, self.state, commit_message, output_dir, self.model, self.processing_class)
        return self._push.commit if blocking and self._push.finish(self.args) else None

    @property
    def push_error(self) -> str | None:
        """What is not on the Hub and why, and how to push it by hand; None if nothing is left."""
        if self._push.error is None:
            return None
        hint = by_hand(str(self.args.output_dir), self._push.repository(self.args))
        return f"{self.args.output_dir} is not on the Hub ({self._push.error}). Push it by hand: {hint}"
