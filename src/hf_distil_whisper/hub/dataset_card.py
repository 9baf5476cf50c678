"""A labelled data set to the Hub, file by file: stopped at any moment, it goes on where it was.

Knows what lies in the repository by its hashes, and the order of commits; files and cards are made elsewhere.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any, TypeVar, cast

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Features
from huggingface_hub import CommitInfo, CommitOperation, CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi
from huggingface_hub.hf_api import RepoFile
from transformers.utils import logging

from hf_distil_whisper.data.shards import (
    Shard,
    ShardStore,
)
from hf_distil_whisper.data.sources import (
    INDEX,
    ROWS,
    RowErrors,
    read_row_index,
    shard_files,
)
from hf_distil_whisper.hub.model_card import (
    cached_revision,
    card_table,
    check_card,
    find_license,
    front_matter,
    inline,
    is_hub_id,
    public_name,
    without_tokens,
)
from hf_distil_whisper.hub.push import Repository
from hf_distil_whisper.hub.push import with_retries as try_to_push

REPORT = "filter_report.json"
_ROW_GROUP = 100
"""Rows that a reader has to fetch at once: what the Hub's own viewer reads easily."""


@dataclass(frozen=True)
class LabelledSource:
    """The rows of one labelled folder, whole or as a filter chose them.

    Args:
        name (`str`): of the source; a configuration of the data set where there are several.
        files (`list[str]`): Parquet files of the shards, in order.
        rows (`list[np.ndarray]`): of each file, the numbers of the rows that are published.
        run (`dict`): what the labels were computed from: teacher and settings.
        shards (`list[Shard]`): with counts, hours and lost rows.
        report (`dict`, *optional*): of the filter.
    """

    name: str
    files: list[str]
    rows: list[np.ndarray]
    run: dict[str, Any]
    shards: list[Shard]
    report: dict[str, Any] | None = None

    @property
    def labelled(self) -> tuple[int, float]:
        """Rows and hours that have a label."""
        return sum(shard.info["rows"] for shard in self.shards), sum(shard.info["hours"] for shard in self.shards)

    @property
    def lost(self) -> int:
        """Rows of the source that could not be labelled."""
        return sum(len(shard.info["lost"]) for shard in self.shards)

    @property
    def kept(self) -> tuple[int, float]:
        """Rows and hours that are published."""
        if self.report is None:
            return self.labelled
        return self.report["kept"], self.report["hours_kept"]


def open_labelled(folder: str | Path, name: str) -> LabelledSource:
    """Looks into a folder that `pseudo-label` has filled, or that `filter` has written about one.

    Args:
        folder (`str` or `Path`): of the shards (a URL too), or of the filter's row numbers.
        name (`str`): of the source.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds something else, the labelling is not finished, or no row is left.
    """
    index, report, chosen, asked = Path(folder), None, None, folder
    if (index / INDEX).is_file():
        source, num_rows = read_row_index(index)
        chosen, folder = np.load(index / ROWS), source["name_or_path"]
        if (index / REPORT).is_file():
            report = json.loads((index / REPORT).read_text(encoding="utf-8"))
    elif "://" not in str(folder) and not index.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder. Name the --output_dir of `pseudo-label` or `filter`.")
    store = ShardStore(folder)
    run = store.identity() if "://" in str(folder) or Path(folder).is_dir() else None
    if run is None or "teacher" not in run:
        raise ValueError(
            f"{asked}: expected labels of `pseudo-label`, or the choice of `filter` among them, found neither. Name "
            "the --output_dir of one of these commands."
        )
    files = shard_files(store)
    shards = store.shards()
    counts = [shard.info["rows"] for shard in shards if shard.info["rows"]]
    if chosen is not None and num_rows != sum(counts) and source.get("max_samples") is None:
        raise ValueError(
            f"{asked} holds a choice among {num_rows} rows, {folder} has {sum(counts)} now. Filter it again."
        )
    return LabelledSource(name, files, _by_file(counts, chosen), run, shards, report)


def embedded_schema(sources: list[LabelledSource], audio: bool) -> dict[str, Features]:
    """The columns of each source, the same in all of its files.

    A column that is empty in one shard has no type there, and a reader that begins with it would refuse the others.

    Args:
        sources (`list[LabelledSource]`): whose files are looked at.
        audio (`bool`): whether there is a column `audio`.

    Returns:
        `dict[str, Features]`: by name of the source.
    """
    found = {}
    for source in sources:
        schemas = []
        for file in source.files:
            with fsspec.open(file, "rb") as opened:
                schemas.append(pq.read_schema(opened))
        names = [name for name in schemas[0].names if audio or name != "audio"]
        bare = [pa.schema([schema.field(name) for name in names if name != "audio"]) for schema in schemas]
        joined = pa.unify_schemas([schema.remove_metadata() for schema in bare], promote_options="permissive")
        told = Features.from_arrow_schema(schemas[0])  # knows more than Arrow: the labels of a class, for example
        guessed = Features.from_arrow_schema(joined)
        features: dict[str, Any] = {}
        for name in names:
            if name == "audio":
                features[name] = Audio()
            elif pa.types.is_null(joined.field(name).type):
                features[name] = Features.from_arrow_schema(pa.schema([(name, pa.string())]))[name]
            else:
                same = joined.field(name).type == schemas[0].field(name).type
                features[name] = (told if same else guessed)[name]
        found[source.name] = Features(features)
    return found


def write_part(source: LabelledSource, number: int, features: Features, target: Path, errors: RowErrors) -> int:
    """Writes the published rows of one file of a source, the recordings inside: the same rows, the same bytes.

    Args:
        source (`LabelledSource`): what to publish.
        number (`int`): of the file.
        features (`Features`): from [`embedded_schema`].
        target (`Path`): the new file.
        errors (`RowErrors`): takes the rows whose recording is gone.

    Returns:
        `int`: rows written.
    """
    schema = features.arrow_schema
    written = 0
    with fsspec.open(source.files[number], "rb") as opened, pq.ParquetWriter(target, schema) as writer:
        for batch in _chosen(pq.ParquetFile(opened), source.rows[number]):
            table = _embedded(batch, schema, errors)
            if len(table):
                writer.write_table(table)
                written += len(table)
    return written


def _by_file(counts: list[int], chosen: np.ndarray | None) -> list[np.ndarray]:
    ends = np.cumsum([0, *counts])
    if chosen is None:
        return [np.arange(count) for count in counts]
    kept = np.sort(chosen)
    return [kept[(kept >= begin) & (kept < end)] - begin for begin, end in pairwise(ends)]


def _chosen(file: pq.ParquetFile, rows: np.ndarray) -> Iterator[pa.Table]:
    begin = 0
    for batch in file.iter_batches(batch_size=_ROW_GROUP):
        here = rows[(rows >= begin) & (rows < begin + len(batch))] - begin
        begin += len(batch)
        if len(here):
            yield pa.Table.from_batches([batch]).take(pa.array(here))


def _embedded(table: pa.Table, schema: pa.Schema, errors: RowErrors) -> pa.Table:
    if "audio" in schema.names:
        sounds = [_with_bytes(sound) for sound in table["audio"].to_pylist()]
        for row, sound in enumerate(sounds):
            if isinstance(sound, str):
                errors.add(table["id"][row].as_py() if "id" in table.column_names else row, sound)
        there = [row for row, sound in enumerate(sounds) if not isinstance(sound, str)]
        audio = pa.array([sounds[row] for row in there], schema.field("audio").type)
        table = table.take(pa.array(there, pa.int64()))
        table = table.set_column(table.column_names.index("audio"), "audio", audio)
    columns = [table[field.name].cast(field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _with_bytes(sound: dict[str, Any] | None) -> dict[str, Any] | str:
    """The recording itself and the name of its file without the folders of this machine, or why it is missing."""
    sound = sound or {}
    path, content = sound.get("path"), sound.get("bytes")
    if content is None:
        if path is None:
            return "there is no audio in this row"
        try:
            with fsspec.open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            return f"its recording {Path(path).name} cannot be read ({type(error).__name__})"
    return {"bytes": content, "path": None if path is None else Path(path).name}


_TEMPLATE = Path(__file__).with_name("dataset_card_template.md")

DATA = "data"
"""Folder of the files where there is one source."""

_COLUMNS = {
    "id": "name of the row in its source",
    "ids": "names of the utterances that were joined",
    "audio": "the recording",
    "text": "reference of the source; null where there is none",
    "speaker": "of the source; utterances of one speaker were joined",
    "recording": "what the utterance was cut from",
    "language": "of the row",
    "condition_on_prev": "whether the row goes on where the one before ended",
    "whisper_transcript": "the teacher's transcript: Whisper's text with timestamp tokens",
    "duration": "seconds",
    "truncated": "whether the transcript was cut off before the end",
    "mean_log_prob": "mean log-probability of the transcript's tokens",
    "no_speech_prob": "the teacher's probability that nothing is said",
    "compression_ratio": "of the transcript; high where it repeats itself",
    "previous_transcript": "plain text of the row before, to prompt with; null where there is none",
    "wer": "word error rate of the transcript against `text`, normalised; a fraction",
    "hits": "words that agree",
    "substitutions": "words that differ",
    "deletions": "words of `text` that the transcript lacks",
    "insertions": "words that only the transcript has",
}
_REASONS = {"wer": "word error rate"}
_NO_SETTINGS = ("teacher", "rows", "ids", "files", "columns", "rows_per_shard")
"""Of a run's identity: what was labelled and how it lies on the disk, not how it was labelled."""
_SIZES = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7))


def generate_dataset_card(
    sources: Sequence[LabelledSource],
    *,
    repo_id: str,
    features: Features,
    teacher: str | None = None,
    teacher_revision: str | None = None,
    language: str | None = None,
    licenses: Mapping[str, str] | None = None,
    origins: Mapping[str, str] | None = None,
    left_out: int = 0,
) -> DatasetCard:
    """Writes the card of a labelled data set from what its folders say.

    Args:
        sources (`Sequence[LabelledSource]`): from [`open_labelled`].
        repo_id (`str`): where it lies.
        features (`Features`): its columns.
        teacher (`str`, *optional*): Hub id or name of the model that labelled; the folders only know its weights.
        teacher_revision (`str`, *optional*): its commit.
        language (`str`, *optional*): ISO code; by default that of the labelling.
        licenses (`Mapping[str, str]`, *optional*): of each source, by name: they carry over.
        origins (`Mapping[str, str]`, *optional*): the Hub data set, or any name, that each source comes from.
        left_out (`int`, *optional*, defaults to 0): rows whose recording was gone when it was published.

    Returns:
        [`~huggingface_hub.DatasetCard`]: with the metadata that make `load_dataset` find the files.
    """
    licenses, origins = dict(licenses or {}), dict(origins or {})
    told = sorted({str(source.run["language"]) for source in sources if source.run.get("language")})
    languages = [language] if language else told
    several = len(sources) > 1
    codes = sorted({code.lower() for code in licenses.values()})
    rows = sum(source.kept[0] for source in sources) - left_out
    data = {
        "language": [code for code in languages if re.fullmatch(r"[a-z]{2,3}", code)] or None,
        "license": (codes[0] if len(codes) == 1 else codes) or None,
        "task_categories": ["automatic-speech-recognition"],
        "size_categories": [next((name for name, end in _SIZES if rows < end), "10M<n<100M")],
        "source_datasets": [place for place in origins.values() if is_hub_id(place)] or None,
        "tags": ["whisper", "pseudo-labels", "distil-whisper", "hf-distil-whisper"],
        "configs": [_config(source.name if several else None) for source in sources],
    }
    reports = [source.report for source in sources]
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=inline(repo_id),
        name_code=json.dumps(repo_id),
        config_argument=f", {json.dumps(sources[0].name)}" if several else "",
        config_flag=f" --train_dataset.config {sources[0].name}" if several else "",
        summary=_summary(sources, teacher, rows),
        facts=_facts(sources, teacher, teacher_revision, languages),
        sources=_sources_table(sources, licenses, origins),
        dropped=_dropped(sources, left_out),
        columns=card_table(["column", "what"], [(name, _COLUMNS.get(name, "of the source")) for name in features]),
        labelling=_settings_table(sources),
        filtering="\n\n".join(_filter_text(source, several) for source in sources),
        decode='rows = rows.cast_column("audio", Audio(decode=False))  # or let `datasets` decode, with torchcodec\n'
        if "audio" in features
        else "# no audio: join with the source by `id`\n",
        show='print(next(iter(rows))["whisper_transcript"])',
        wer_flag="" if all(reports) else "--train_dataset.wer_threshold 0.1 ",
        teacher_code=_shell_word(public_name(teacher)) if teacher else "<teacher>",
        license_limit=_license_limit(sources, licenses),
    )
    if "audio" not in features:
        text = text.replace("from datasets import Audio, load_dataset", "from datasets import load_dataset")
    text = re.sub(r"\n{3,}", "\n\n", text)
    return DatasetCard(without_tokens(front_matter(data) + "\n" + text), ignore_metadata_errors=False)


def unfinished_card(repo_id: str, parts: int) -> DatasetCard:
    """What stands in the repository while it is filled: it says so, and names no file that there is to load.

    `load_dataset` therefore refuses what would otherwise look like a smaller, complete data set.

    Args:
        repo_id (`str`): where it will lie.
        parts (`int`): files that it will have.
    """
    data = {"configs": [{"config_name": "default", "data_files": "upload-not-finished/*.parquet"}]}
    return DatasetCard(
        f"{front_matter(data)}\n# {inline(repo_id)}\n\n**The upload of this data set is not finished.** It will have "
        f"{parts} file{'' if parts == 1 else 's'}; until this card is replaced, some are missing. Start the same "
        "`hf-distil-whisper push-dataset` again: it goes on where it was.\n"
    )


def part_path(source: str | None, number: int, count: int) -> str:
    """Where a file of a source lies in the repository.

    Args:
        source (`str`, *optional*): its name; None for the only one.
        number (`int`): of the file.
        count (`int`): of files.
    """
    return f"{source or DATA}/train-{number:05d}-of-{count:05d}.parquet"


def _config(source: str | None) -> dict[str, Any]:
    files = [{"split": "train", "path": f"{source or DATA}/train-*.parquet"}]
    return {"config_name": source or "default", "data_files": files}


def _summary(sources: Sequence[LabelledSource], teacher: str | None, rows: int) -> str:
    hours = sum(source.kept[1] for source in sources)
    by = f"by {inline(public_name(teacher))}" if teacher else "by a Whisper"
    return (
        f"{rows:,} rows, {hours:,.2f} hours of speech, transcribed {by}: pseudo-labels to distil a smaller Whisper "
        "from, as in [Distil-Whisper](https://arxiv.org/abs/2311.00430), section 4.2."
    )


def _facts(
    sources: Sequence[LabelledSource], teacher: str | None, revision: str | None, languages: Sequence[str]
) -> str:
    weights = ", ".join(f"`{name}`" for name in sorted({str(source.run["teacher"]) for source in sources}))
    named = "" if teacher is None else f"{inline(public_name(teacher))}, "
    named += f"revision `{revision}`, " if revision else ""
    facts = {
        "teacher": f"{named}fingerprint of its weights {weights}",
        "languages": ", ".join(map(inline, languages)) or "as detected, or as each row says",
    }
    return "\n".join(f"- {title}: {fact}" for title, fact in facts.items())


def _sources_table(sources: Sequence[LabelledSource], licenses: Mapping[str, str], origins: Mapping[str, str]) -> str:
    rows = []
    for source in sources:
        (labelled, hours), (kept, hours_kept) = source.labelled, source.kept
        origin = origins.get(source.name)
        name = public_name(origin) if origin else source.name
        figures = [f"{labelled:,}", f"{hours:,.3f}", f"{kept:,}", f"{hours_kept:,.3f}"]
        figures += [f"{labelled - kept:,}", f"{hours - hours_kept:,.3f}"]
        rows.append((name, *figures, licenses.get(source.name, "not told")))
    head = ["source", "labelled", "hours", "kept", "hours kept", "dropped", "hours dropped", "licence"]
    return card_table(head, rows)


def _dropped(sources: Sequence[LabelledSource], left_out: int) -> str:
    parts = []
    if lost := sum(source.lost for source in sources):
        parts.append(f"{lost:,} rows of the sources could not be labelled (unreadable, or longer than the window).")
    if left_out:
        parts.append(f"{left_out:,} of the kept rows are missing here: their recordings were gone.")
    return " ".join(parts)


def _settings_table(sources: Sequence[LabelledSource]) -> str:
    names = dict.fromkeys(name for source in sources for name in source.run if name not in _NO_SETTINGS)
    rows = []
    for name in sorted(names):
        values = [source.run.get(name) for source in sources]
        shown = values[:1] if all(value == values[0] for value in values) else values
        rows.append((name, ", ".join("default" if value is None else str(value) for value in shown)))
    return card_table(["setting", "value"], rows)


def _filter_text(source: LabelledSource, several: bool) -> str:
    head = f"{inline(source.name)}: " if several else ""
    if source.report is None:
        return (
            f"{head}Not filtered: all labelled rows are here. The column `wer` says how far each is from its "
            "reference; the paper keeps those of at most 10 % (`--train_dataset.wer_threshold 0.1`)."
        )
    report = source.report
    total = report["kept"] + report["dropped"]
    reasons = ", ".join(
        f"{count:,} by {_REASONS.get(name, name)}" for name, count in report["by_reason"].items() if count
    )
    unjudged = f" {report['unjudged']:,} rows without a reference were kept unjudged." if report["unjudged"] else ""
    rows = [
        (f"{100 * float(value):g} %", f"{share:.1%}", f"{hours:,.3f}")
        for value, (share, hours) in sorted(report["by_threshold"].items(), key=lambda pair: -float(pair[0]))
    ]
    return (
        f"{head}λ = {100 * report['threshold']:g} %: {report['kept']:,} of {total:,} rows differ from their reference "
        f"by at most that word error rate, after normalising both (eq. 7). Dropped: {reasons or 'none'}.{unjudged} "
        f"Other thresholds would leave:\n\n{card_table(['λ', 'dropped', 'hours kept'], rows)}"
    )


def _license_limit(sources: Sequence[LabelledSource], licenses: Mapping[str, str]) -> str:
    untold = [inline(source.name) for source in sources if source.name not in licenses]
    if untold:
        return f"The licence of {', '.join(untold)} was not told: find it out before you use the recordings."
    return "The recordings keep the licences of their sources, and the transcripts are bound by them too."


def _shell_word(name: str) -> str:
    return name if re.fullmatch(r"[\w./-]+", name) else json.dumps(name)


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
