"""A folder → one commit on the Hub: complete, tried again while the network fails, with a token in no message.

Knows files, repositories and what goes wrong on the way; nothing of training. One commit holds all files of a push, so
that a repository is never half of one state and half of another.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from time import sleep, time

from huggingface_hub import CommitInfo, CommitOperation, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

logger = logging.getLogger(__name__)

BEST_TAG = "best"
"""Tag of the commit that holds the model with the best `metric_for_best_model`."""

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between one try and the next; the client itself waits in the same way for parts of a push."""

_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
_CARD = (
    "README.md",
    "LICENSE*",
    "NOTICE*",
    "eval_results.json",
    ".eval_results/*.yaml",
    "*.png",
    "*.svg",
    "figures/*.png",
    "figures/*.svg",
)
_STUDENT = (
    *_WEIGHTS,
    *_CARD,
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "normalizer.json",
    "preprocessor_config.json",
    "processor_config.json",
    "adapter/adapter_config.json",
    "adapter/*.safetensors",
)
"""What belongs to a student. A list of what may go up: whatever else a run leaves in its folder stays there."""

_NEEDED = (
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
_LASTING = (400, 401, 402, 403, 404, 410, 422)
_TEXT_ENDINGS = (".json", ".md", ".txt", ".yaml", ".yml", "")
_LONGEST_TEXT = 20_000_000
_ADVICE = re.compile(r"For more information check: \S+")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}|(?<=Bearer )\S+|(?<=//)[^/\s:@]+:[^/\s@]+(?=@)")


class PushError(OSError):
    """A push that did not reach the Hub; says why, and how to finish it by hand."""


@dataclass(frozen=True)
class Repository:
    """Where a push goes.

    Args:
        repo_id (`str`): `owner/name`, or a name under the account of the token.
        private (`bool`, *optional*): of a repository that is made; one that exists stays as it is.
        revision (`str`, *optional*): branch, made where it does not exist; by default `main`.
        token (`str`, *optional*): by default that of the environment or of `hf auth login`.
    """

    repo_id: str
    private: bool | None = None
    revision: str | None = None
    token: str | None = None

    def __repr__(self) -> str:
        return f"Repository({self.repo_id!r}, revision={self.revision!r})"


def redact(text: object, token: str | None = None) -> str:
    """A message without tokens and passwords in addresses, whoever wrote it.

    Args:
        text (`object`): for example an exception.
        token (`str`, *optional*): one that may not look like a token of the Hub.
    """
    redacted = _TOKEN.sub("***", str(text))
    for secret in (token, get_token()):
        redacted = redacted.replace(secret, "***") if secret else redacted
    return redacted


def student_files(folder: str | Path, *, only_card: bool = False) -> list[str]:
    """Those files of a folder that belong to a student, by their path in it; no optimiser, no teacher, no pickle.

    Args:
        folder (`str` or `Path`): of the student.
        only_card (`bool`, *optional*, defaults to `False`): the card with its pictures and results alone.
    """
    folder = Path(folder)
    found = {path for pattern in (_CARD if only_card else _STUDENT) for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in found)


def missing_files(folder: str | Path) -> list[str]:
    """What a folder lacks to be loaded by every runtime."""
    folder = Path(folder)
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in (_WEIGHTS[0], _WEIGHTS[2])):
        missing.append(_WEIGHTS[0])
    return missing


def folder_files(folder: str | Path) -> dict[str, Path]:
    """All files of a folder by their path in it."""
    folder = Path(folder)
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def push_files(
    to: Repository, files: Mapping[str, Path], message: str, *, best: bool = False, last: str | None = None
) -> CommitInfo:
    """Makes one commit of some files, on top of whatever the repository holds by now. One try.

    Weights of another layout, and what an earlier push left in a folder such as `last-checkpoint`, are deleted in the
    same commit: a loader would otherwise read a mixture.

    Args:
        to ([`Repository`]): is made where it does not exist.
        files (`Mapping[str, Path]`): path in the repository → file.
        message (`str`): of the commit.
        best (`bool`, *optional*, defaults to `False`): move the tag `best` to this commit.
        last (`str`, *optional*): commit of the caller's last push; another one on top of it is warned about.

    Returns:
        `CommitInfo`: its `oid` is the commit.

    Raises:
        ValueError: if a file holds the token, or the card's metadata are not accepted.
        HfHubHTTPError: as the Hub answers.
    """
    _check_secrets(files, to.token)
    api = HfApi(token=to.token)
    with _quiet():
        repo_id = api.create_repo(to.repo_id, private=to.private, exist_ok=True).repo_id
        head = _head(api, to, repo_id)
        if last is not None and head != last:
            logger.warning(
                f"{repo_id}: somebody else has committed ({head[:8]}) since the last push. Nothing is lost, and every "
                "commit is a complete student, but the newest wins. If it was another run, give each its own "
                "--hub_model_id."
            )
        there = api.list_repo_files(repo_id, revision=head)
        operations: list[CommitOperation] = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        operations += [CommitOperationDelete(name) for name in there if name not in files and _is_stale(name, files)]
        commit = api.create_commit(
            repo_id, operations, commit_message=message, revision=to.revision, parent_commit=head
        )
        if best:
            _move_tag(api, repo_id, commit.oid)
    return commit


def try_to_push(
    push: Callable[[], CommitInfo], pause: Callable[[float, BaseException], bool] | None = None
) -> CommitInfo:
    """Runs a push until it succeeds, the Hub refuses it for good, or all tries are used up.

    Args:
        push (`Callable`): one try.
        pause (`Callable`, *optional*): is given the seconds to wait and the error, waits, and says whether to try
            again; by default it does.

    Raises:
        Exception: the last one.
    """
    for wait in (*WAITS, None):
        try:
            return push()
        except Exception as error:  # the network, the client and the server each have their own
            if wait is None or not _may_pass(error):
                raise
            seconds = max(wait, _retry_after(error))
            if pause is None:
                sleep(seconds)
            elif not pause(seconds, error):
                raise
    raise AssertionError("unreachable")


def reason(error: BaseException, token: str | None = None) -> str:
    """Why a push failed, in a line, without the token."""
    cause: BaseException = error
    while isinstance(cause, RuntimeError) and cause.__cause__ is not None:  # "Error while uploading 'x' to the Hub."
        cause = cause.__cause__
    lines = [line.strip() for line in redact(cause, token).splitlines() if line.strip()]
    hint = ""
    response = cause.response if isinstance(cause, HfHubHTTPError) else None
    if response is not None and response.status_code in (401, 403):
        hint = "; give a token that may write there, by `hf auth login` or the variable HF_TOKEN"
    text = _ADVICE.sub("", " ".join(lines))[:300].strip()
    return f"{type(cause).__name__}: {text}{hint}"


def by_hand(folder: str | Path, to: Repository) -> str:
    """How to finish a push by hand."""
    flags = f"--repo_id {to.repo_id}" + " --private" * bool(to.private)
    flags += f" --revision {to.revision}" if to.revision else ""
    return f"hf-distil-whisper push {folder} {flags}"


def _head(api: HfApi, to: Repository, repo_id: str) -> str:
    """Newest commit of the branch, which is made where it does not exist; warns about a public repository."""
    try:
        info = api.model_info(repo_id, revision=to.revision)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=str(to.revision), exist_ok=True)
        info = api.model_info(repo_id, revision=to.revision)
    if to.private and info.private is False:
        raise ValueError(
            f"{repo_id} exists and is public, but a private push was asked for. Make it private in its settings, "
            "choose another name, or leave `private` out."
        )
    return str(info.sha)


def _is_stale(name: str, files: Mapping[str, Path]) -> bool:
    path = PurePosixPath(name)
    if len(path.parts) == 1:
        return any(fnmatch(name, pattern) for pattern in _WEIGHTS)
    return path.parts[0].endswith("checkpoint") and any(file.startswith(f"{path.parts[0]}/") for file in files)


def _move_tag(api: HfApi, repo_id: str, commit: str) -> None:
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id).tags}
    if tags.get(BEST_TAG) == commit:
        return
    if BEST_TAG in tags:
        api.delete_tag(repo_id, tag=BEST_TAG)
    api.create_tag(repo_id, tag=BEST_TAG, revision=commit, exist_ok=True)


def _check_secrets(files: Mapping[str, Path], token: str | None) -> None:
    secrets = [secret.encode() for secret in (token, get_token()) if secret]
    for name, path in files.items():
        if path.suffix in _TEXT_ENDINGS and path.stat().st_size < _LONGEST_TEXT:
            content = path.read_bytes()
            if any(secret in content for secret in secrets):
                raise ValueError(f"{name} holds your access token, so it is not uploaded. Remove it from that file.")


def _causes(error: BaseException | None) -> list[BaseException]:
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__
    return causes


def _may_pass(error: BaseException) -> bool:
    """Whether the next try may succeed: refusals of the Hub last, everything of the network passes."""
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            return cause.response.status_code not in _LASTING
    return not isinstance(error, ValueError | FileNotFoundError)


def _retry_after(error: BaseException) -> float:
    """Seconds that the server asks for."""
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError) and (asked := cause.response.headers.get("Retry-After")):
            try:
                return float(asked)
            except ValueError:
                return max(parsedate_to_datetime(asked).timestamp() - time(), 0.0)
    return 0.0


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of the client between the lines of a training."""
    if are_progress_bars_disabled() or os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
