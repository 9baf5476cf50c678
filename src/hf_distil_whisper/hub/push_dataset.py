"""A labelled data set to the Hub, file by file: stopped at any moment, it goes on where it was.

Knows what lies in the repository by its hashes, and the order of commits; files and cards are made elsewhere.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from datasets import Features
from huggingface_hub import CommitInfo, CommitOperation, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile
from transformers.utils import logging

from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.hub.card_text import cached_revision, check_card, find_license, public_name
from hf_distil_whisper.hub.dataset_card import generate_dataset_card, part_path, unfinished_card
from hf_distil_whisper.hub.labelled_source import LabelledSource, embedded_schema, open_labelled, write_part
from hf_distil_whisper.uploads import Repository, try_to_push

Answer = TypeVar("Answer")

logger = logging.get_logger(__name__)

FILES_PER_COMMIT = 8
"""What is redone at most after a crash, and what lies on this machine's disk at once."""

_CARD = "README.md"


@dataclass(frozen=True)
class PushedDataset:
    """What a push did.

    Args:
        repo_id (`str`): where it lies, with its owner.
        rows (`int`): published.
        uploaded (`int`): files that went up now.
        there (`int`): files that lay there already, byte by byte the same.
        commit (`str`): that completed it.
    """

    repo_id: str
    rows: int
    uploaded: int
    there: int
    commit: str


@dataclass(frozen=True)
class _Part:
    """A file to be published."""

    path: str
    source: LabelledSource
    number: int


def push_dataset(
    labelled: str | Path | Mapping[str, str | Path],
    repo_id: str,
    *,
    teacher: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    language: str | None = None,
    licenses: Mapping[str, str] | str | None = None,
    origins: Mapping[str, str] | str | None = None,
    embed_audio: bool = True,
    files_per_commit: int = FILES_PER_COMMIT,
    errors: RowErrors | None = None,
) -> PushedDataset:
    """Publishes labelled rows, recordings included, with a card that says how they were made.

    The first commit puts up a card which says that the upload is not finished, and which leads `load_dataset` to
    nothing; then files come in groups; the last commit brings the card of the whole and takes away files of an earlier
    push. So no half is ever taken for the whole. Files that lie there already, by their hash, are not sent again. A
    network that fails is tried again, with growing pauses.

    Args:
        labelled (`str`, `Path` or `Mapping`): output folder of `pseudo-label`, or of `filter`, whose choice is then
            published; several by name become configurations of one data set.
        repo_id (`str`): `owner/name`, or a name under the account of the token.
        teacher (`str`, *optional*): that labelled, for the card.
        private (`bool`, *optional*): make a private repository; by default the account's or organisation's custom.
        token (`str`, *optional*): by default that of the environment or of `hf auth login`.
        language (`str`, *optional*): ISO code, for the card.
        licenses (`Mapping[str, str]` or `str`, *optional*): of the sources, by name; by default what the cards of
            `origins` tell.
        origins (`Mapping[str, str]` or `str`, *optional*): what each source is, a Hub id for example.
        embed_audio (`bool`, *optional*, defaults to `True`): put the recordings into the files. Without them the rows
            hold no audio at all: whoever has the source joins it by `id`.
        files_per_commit (`int`, *optional*, defaults to 8): files of one group.
        errors (`RowErrors`, *optional*): takes the rows whose recording is gone.

    Returns:
        [`PushedDataset`]: what went up and what was there.

    Raises:
        ValueError: if a folder holds no finished labels, a public repository exists where a private one is wanted, or
            the Hub does not take the card.
        HfHubHTTPError: where the Hub refuses for good.

    Example:
        ```python
        >>> push_dataset("filtered", "me/my-labels", teacher="openai/whisper-large-v3", private=True)
        ```
    """
    if files_per_commit < 1:
        raise ValueError(f"files_per_commit: expected at least 1, got {files_per_commit}.")
    sources = _opened(labelled)
    features = embedded_schema(sources, embed_audio)
    parts = list(_parts(sources))
    lost = RowErrors() if errors is None else errors
    origins = _by_name(origins, sources, "origins")
    facts: dict[str, Any] = {
        "teacher": teacher,
        "teacher_revision": cached_revision(teacher) if teacher else None,
        "language": language,
        "licenses": _licenses(_by_name(licenses, sources, "licenses"), origins),
        "origins": origins,
    }
    columns = features[sources[0].name]
    draft = generate_dataset_card(sources, repo_id=repo_id, features=columns, **facts)
    if problem := check_card(draft, "dataset"):
        raise ValueError(f"The Hub would not take the card of {repo_id}: {problem} Correct --licenses or --language.")
    up = _Upload(HfApi(token=token), Repository(repo_id, private, None, token), len(parts))
    before, rows = len(lost), 0
    for begin in range(0, len(parts), files_per_commit):
        rows += up.group(parts[begin : begin + files_per_commit], features, lost)
    card = generate_dataset_card(sources, repo_id=up.repo_id, features=columns, left_out=len(lost) - before, **facts)
    commit = up.finish(str(card), {part.path for part in parts})
    if len(lost) > before:
        logger.warning(lost.summary())
    return PushedDataset(up.repo_id, rows, up.sent, up.there, commit)


class _Upload:
    """The repository while it is filled.

    Args:
        api (`HfApi`): with the token.
        to (`Repository`): where to.
        parts (`int`): files to come.
    """

    def __init__(self, api: HfApi, to: Repository, parts: int):
        self.api, self.parts = api, parts
        self.sent = self.there = 0
        made = _tried(lambda: api.create_repo(to.repo_id, repo_type="dataset", private=to.private, exist_ok=True))
        self.repo_id = made.repo_id
        info = _tried(lambda: api.dataset_info(self.repo_id))
        if to.private and not info.private:
            raise ValueError(
                f"{self.repo_id} exists and is public, but a private push was asked for. Make it private in its "
                "settings, choose another name, or leave `private` out."
            )
        self.files = {file.path: file for file in self._listed()}

    def _listed(self) -> list[RepoFile]:
        def look() -> list[RepoFile]:
            found = self.api.list_repo_tree(self.repo_id, repo_type="dataset", recursive=True)
            return [file for file in found if isinstance(file, RepoFile)]

        return _tried(look)

    def group(self, parts: Sequence[_Part], features: Mapping[str, Features], lost: RowErrors) -> int:
        """Writes some files here, and sends those that are not there yet, in one commit. Returns the rows."""
        rows = 0
        with tempfile.TemporaryDirectory() as folder:
            new = {}
            for place, part in enumerate(parts):
                file = Path(folder, f"{place}.parquet")
                rows += write_part(part.source, part.number, features[part.source.name], file, lost)
                if self._is_there(part.path, file):
                    self.there += 1
                else:
                    new[part.path] = file
            if new:
                files: dict[str, Path | bytes] = dict(new)
                if self.sent == 0:
                    files[_CARD] = str(unfinished_card(self.repo_id, self.parts)).encode()
                self._commit(files, [], f"{self.there + self.sent + len(new)} of {self.parts} files")
                self.sent += len(new)
        return rows

    def finish(self, card: str, paths: set[str]) -> str:
        """Puts up the card of the whole, and takes away the files of another push. Returns the commit."""
        stale = [path for path in self.files if path not in paths and _is_part(path)]
        files: dict[str, Path | bytes] = {_CARD: card.encode()}
        return self._commit(files, stale, "All files are there").oid

    def _commit(self, files: Mapping[str, Path | bytes], stale: Sequence[str], message: str) -> CommitInfo:
        def commit() -> CommitInfo:
            operations: list[CommitOperation] = [
                CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
                for path, content in files.items()
            ]
            operations += [CommitOperationDelete(path) for path in stale]
            return self.api.create_commit(self.repo_id, operations, commit_message=message, repo_type="dataset")

        return try_to_push(commit)

    def _is_there(self, path: str, file: Path) -> bool:
        known = self.files.get(path)
        if known is None or known.size != file.stat().st_size:
            return False
        if known.lfs is not None:
            with file.open("rb") as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest() == known.lfs.sha256
        content = file.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == known.blob_id


def _tried(call: Callable[[], Answer]) -> Answer:
    """The same patience for questions as for commits."""
    return cast("Callable[[Callable[[], Answer]], Answer]", try_to_push)(call)


def _opened(labelled: str | Path | Mapping[str, str | Path]) -> list[LabelledSource]:
    named = labelled if isinstance(labelled, Mapping) else {public_name(str(labelled)): labelled}
    if not named:
        raise ValueError("labelled: expected at least one labelled folder, got none.")
    sources = [open_labelled(folder, name) for name, folder in named.items()]
    for source in sources:
        if not any(len(rows) for rows in source.rows):
            raise ValueError(f"{source.name}: no row to publish.")
        if len(sources) > 1 and not source.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(
                f"labelled: {source.name!r} becomes a folder and a configuration: expected letters, digits, - and _."
            )
    return sources


def _parts(sources: Sequence[LabelledSource]) -> Iterator[_Part]:
    for source in sources:
        numbers = [number for number, rows in enumerate(source.rows) if len(rows)]
        name = source.name if len(sources) > 1 else None
        for place, number in enumerate(numbers):
            yield _Part(part_path(name, place, len(numbers)), source, number)


def _by_name(
    given: Mapping[str, str] | str | None, sources: Sequence[LabelledSource], argument: str
) -> dict[str, str]:
    names = [source.name for source in sources]
    found = dict.fromkeys(names, given) if isinstance(given, str) else dict(given or {})
    if unknown := sorted(set(found) - set(names)):
        raise ValueError(f"{argument}: no source is called {unknown[0]!r}; there are {', '.join(names)}.")
    return found


def _licenses(given: Mapping[str, str], origins: Mapping[str, str]) -> dict[str, str]:
    told = {name: known for name, place in origins.items() if (known := find_license(place, "dataset"))}
    return {**told, **given}


def _is_part(path: str) -> bool:
    return path.endswith(".parquet") and "/train-" in path and "-of-" in path
