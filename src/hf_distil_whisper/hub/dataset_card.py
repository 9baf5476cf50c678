"""Publishes labelled data sets on the Hub: `Dataset.push_to_hub` and a card that says how the labels were made."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from string import Template
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Audio, Dataset, Features
from huggingface_hub import CommitInfo, CommitOperation, CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi
from transformers.utils import logging

from hf_distil_whisper.data.audio import encode_flac, load_audio
from hf_distil_whisper.data.shards import Shard, ShardStore
from hf_distil_whisper.data.sources import (
    INDEX,
    PLAIN_AUDIO,
    ROWS,
    RowErrors,
    load_shards,
    read_row_index,
    select_rows,
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
)
from hf_distil_whisper.hub.push import CARD, PushError, Repository, check_visibility, reason, redact, with_retries

logger = logging.get_logger(__name__)

REPORT = "filter_report.json"
DATA = "data"
"""Folder of the files in the repository if there is one source; several have a folder and configuration each."""
_PART = re.compile(r"([^/]+)/train-\d+-of-\d+\.parquet")
_TEMPLATE = Path(__file__).with_name("dataset_card_template.md")


# Labelled folders


@dataclass(frozen=True)
class LabelledSource:
    """The rows of one labelled folder, all of them or those that a filter selected.

    Args:
        name (`str`): of the source; a configuration of the data set if there are several.
        store ([`ShardStore`]): the shards.
        indices (`np.ndarray`, *optional*): int64 row indices that are published; None for all.
        run (`dict`): what the labels were computed from: teacher and settings.
        shards (`list[Shard]`): with counts, hours and lost rows.
        report (`dict`, *optional*): of the filter.
        origin (`str`, *optional*): the Hub data set, or any name, that the source comes from.
        license (`str`, *optional*): of the source; it carries over.
    """

    name: str
    store: ShardStore
    indices: np.ndarray | None
    run: dict[str, Any]
    shards: list[Shard]
    report: dict[str, Any] | None = None
    origin: str | None = None
    license: str | None = None

    @property
    def labelled(self) -> tuple[int, float]:
        """Rows and hours that have a label."""
        return sum(shard.info["rows"] for shard in self.shards), sum(shard.info["hours"] for shard in self.shards)

    @property
    def lost(self) -> int:
        """Number of rows of the source that could not be labelled."""
        return sum(len(shard.info["lost"]) for shard in self.shards)

    @property
    def published(self) -> tuple[int, float]:
        """Rows and hours that are published."""
        if self.report is None:
            return self.labelled
        return self.report["kept"], self.report["hours_kept"]

    def load(self, embed_audio: bool, errors: RowErrors) -> Dataset:
        """The rows that are published, with an `Audio` column or none; unreadable recordings are added to `errors`."""
        dataset = load_shards(self.store, _common_features(shard_files(self.store)))
        if self.indices is not None:
            dataset = select_rows(dataset, self.indices)
        if not embed_audio:
            return dataset.remove_columns([name for name in dataset.column_names if name == "audio"])
        dataset = _without_unreadable(dataset, errors)
        if isinstance(dataset.features["audio"], dict) and dataset.features["audio"].keys() > PLAIN_AUDIO.keys():
            features = Features({**dataset.features, "audio": PLAIN_AUDIO})
            dataset = dataset.map(lambda row: {"audio": _picked_audio(row["audio"])}, features=features)
        return dataset.cast_column("audio", Audio())


def _common_features(files: Sequence[str]) -> Features | None:
    """Column types for shards that differ; None if they do not."""
    # A column that is empty in one shard has no type there (one that is empty in all becomes text). `datasets` goes by
    # the first file, and fails on a text where that one has only nulls (huggingface/datasets#4491).
    schemas = []
    for file in files:
        with fsspec.open(file, "rb") as opened:
            schemas.append(pq.read_schema(opened))
    plain = [schema.remove_metadata() for schema in schemas]
    if all(schema.equals(plain[0]) for schema in plain) and not any(map(pa.types.is_null, plain[0].types)):
        return None
    features = Features.from_arrow_schema(schemas[0])  # knows more than Arrow: the names of a class, for example
    for field in pa.unify_schemas(plain, promote_options="permissive"):
        if pa.types.is_null(field.type):
            field = field.with_type(pa.string())
        if field.name not in features or field.type != schemas[0].field(field.name).type:
            features[field.name] = Features.from_arrow_schema(pa.schema([field]))[field.name]
    return features


def _without_unreadable(dataset: Dataset, errors: RowErrors) -> Dataset:
    """The rows whose recording can be read; `push_to_hub` would stop at the first other one, after hours maybe."""
    indices, start = [], 0
    for batch in dataset.with_format("arrow").iter(batch_size=1000):
        audio = batch["audio"].combine_chunks()
        has_bytes = pc.is_valid(pc.struct_field(audio, "bytes")).to_pylist()
        for row, path in enumerate(pc.struct_field(audio, "path").to_pylist()):
            message = None if has_bytes[row] else _why_unreadable(path)
            if message is None:
                indices.append(start + row)
            else:
                errors.add(batch["id"][row].as_py() if "id" in batch.column_names else start + row, message)
        start += len(batch)
    return dataset if len(indices) == start else dataset.select(indices)


def _picked_audio(audio: dict[str, Any]) -> dict[str, Any]:
    """The part of a recording that a row picks as a file of its own: the whole recording would go up for each row."""
    if all(audio[key] is None for key in audio.keys() - PLAIN_AUDIO.keys()):
        return {key: audio[key] for key in PLAIN_AUDIO}
    return {"bytes": encode_flac(load_audio(audio)), "path": None}


def _why_unreadable(path: str | None) -> str | None:
    if path is None:
        return "there is no audio in this row"
    try:
        with fsspec.open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        return f"its recording {Path(path).name} cannot be read ({type(error).__name__})"
    return None


def open_labelled(folder: str | Path, name: str) -> LabelledSource:
    """Opens a folder that `pseudo-label` (a URL too) or `filter` has written, as the source `name`.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds something else, or the labelling is not complete.
    """
    index, report, indices, requested = Path(folder), None, None, folder
    if (index / INDEX).is_file():
        source, num_rows = read_row_index(index)
        indices, folder = np.load(index / ROWS), source["name_or_path"]
        if (index / REPORT).is_file():
            report = json.loads((index / REPORT).read_text(encoding="utf-8"))
    elif "://" not in str(folder) and not index.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder. Name the --output_dir of `pseudo-label` or `filter`.")
    store = ShardStore(folder)
    run = store.identity() if "://" in str(folder) or Path(folder).is_dir() else None
    if run is None or "teacher" not in run:
        raise ValueError(
            f"{requested}: expected labels of `pseudo-label`, or the selection of `filter` among them, but this is "
            "neither. Name the --output_dir of one of these commands."
        )
    shard_files(store)  # raises if the labelling is not complete
    shards = store.shards()
    count = sum(shard.info["rows"] for shard in shards)
    if indices is not None and num_rows != count and source.get("max_samples") is None:
        raise ValueError(f"{requested} selects among {num_rows} rows, {folder} has {count} now. Filter it again.")
    return LabelledSource(name, store, indices, run, shards, report)


def _open_sources(
    labelled: str | Path | Mapping[str, str | Path],
    origins: Mapping[str, str] | str | None,
    licenses: Mapping[str, str] | str | None,
) -> list[LabelledSource]:
    folders = labelled if isinstance(labelled, Mapping) else {public_name(str(labelled)): labelled}
    by_name: list[dict[str, str]] = []
    for argument, given in (("origins", origins), ("licenses", licenses)):
        by_name.append(dict.fromkeys(folders, given) if isinstance(given, str) else dict(given or {}))
        if unknown := sorted(by_name[-1].keys() - folders.keys()):
            raise ValueError(f"{argument}: no source is called {unknown[0]!r}; there are {', '.join(folders)}.")
    sources = []
    for name, folder in folders.items():
        if len(folders) > 1 and not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(
                f"labelled: {name!r} becomes a folder and a configuration: expected letters, digits, - and _."
            )
        origin, license = (given.get(name) for given in by_name)
        license = license or (find_license(origin, "dataset") if origin else None)
        source = replace(open_labelled(folder, name), origin=origin, license=license)
        if not source.published[0] or (source.indices is not None and not len(source.indices)):
            raise ValueError(f"{name}: no row to publish.")
        sources.append(source)
    return sources


# The card


_COLUMNS = {
    "id": "name of the row in its source",
    "ids": "names of the utterances that were joined",
    "audio": "the recording",
    "text": "reference of the source; null where there is none",
    "speaker": "of the source; utterances of one speaker were joined",
    "recording": "what the utterance was cut from",
    "language": "code that the row was transcribed in",
    "language_prob": "the teacher's probability of that language, where it detected it",
    "condition_on_prev": "whether the row goes on where the one before ended",
    "whisper_transcript": "the teacher's transcript: Whisper's text with timestamp tokens",
    "duration": "seconds",
    "truncated": "whether the transcript stops before the speech does",
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
"""Entries of a run's identity that say what was labelled and how it is stored, not how it was labelled."""
_SIZES = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7))


def generate_dataset_card(
    sources: Sequence[LabelledSource],
    *,
    repo_id: str,
    features: Features,
    teacher: str | None = None,
    language: str | None = None,
    left_out: int = 0,
) -> DatasetCard:
    """Generates the card of a labelled data set from its folders' manifests and filter reports.

    Args:
        sources (`Sequence[LabelledSource]`): from [`open_labelled`].
        repo_id (`str`): of the data set.
        features (`Features`): its columns.
        teacher (`str`, *optional*): Hub id or name of the model that labelled; the folders only know its weights.
        language (`str`, *optional*): ISO code; by default that of the labelling.
        left_out (`int`, *optional*, defaults to 0): number of rows whose recording could not be read.
    """
    labelled_as = sorted({str(source.run["language"]) for source in sources if source.run.get("language")})
    languages = [language] if language else labelled_as
    several = len(sources) > 1
    codes = sorted({source.license.lower() for source in sources if source.license})
    rows = sum(source.published[0] for source in sources) - left_out
    data = {
        "language": [code for code in languages if re.fullmatch(r"[a-z]{2,3}", code)] or None,
        "license": (codes[0] if len(codes) == 1 else codes) or None,
        "task_categories": ["automatic-speech-recognition"],
        "size_categories": [next((name for name, end in _SIZES if rows < end), "10M<n<100M")],
        "source_datasets": [source.origin for source in sources if is_hub_id(source.origin or "")] or None,
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
        facts=_facts(sources, teacher, languages),
        sources=_sources_table(sources),
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
        license_limit=_license_limit(sources),
    )
    if "audio" not in features:
        text = text.replace("from datasets import Audio, load_dataset", "from datasets import load_dataset")
    text = re.sub(r"\n{3,}", "\n\n", text)
    return DatasetCard(redact(front_matter(data) + "\n" + text), ignore_metadata_errors=False)


def _config(source: str | None) -> dict[str, Any]:
    files = [{"split": "train", "path": f"{source or DATA}/train-*.parquet"}]
    return {"config_name": source or "default", "data_files": files}


def _summary(sources: Sequence[LabelledSource], teacher: str | None, rows: int) -> str:
    hours = sum(source.published[1] for source in sources)
    by = f"by {inline(public_name(teacher))}" if teacher else "by a Whisper"
    return (
        f"{rows:,} rows, {hours:,.2f} hours of speech, transcribed {by}: pseudo-labels to distil a smaller Whisper "
        "from, as in [Distil-Whisper](https://arxiv.org/abs/2311.00430), section 4.2."
    )


def _facts(sources: Sequence[LabelledSource], teacher: str | None, languages: Sequence[str]) -> str:
    revision = cached_revision(teacher) if teacher else None
    weights = ", ".join(f"`{name}`" for name in sorted({str(source.run["teacher"]) for source in sources}))
    named = "" if teacher is None else f"{inline(public_name(teacher))}, "
    named += f"revision `{revision}`, " if revision else ""
    facts = {
        "teacher": f"{named}fingerprint of its weights {weights}",
        "languages": ", ".join(map(inline, languages)) or "as detected, or as each row says",
    }
    return "\n".join(f"- {title}: {fact}" for title, fact in facts.items())


def _sources_table(sources: Sequence[LabelledSource]) -> str:
    rows = []
    for source in sources:
        (labelled, hours), (published, hours_published) = source.labelled, source.published
        name = public_name(source.origin) if source.origin else source.name
        figures = [f"{labelled:,}", f"{hours:,.3f}", f"{published:,}", f"{hours_published:,.3f}"]
        figures += [f"{labelled - published:,}", f"{hours - hours_published:,.3f}"]
        rows.append((name, *figures, source.license or "unknown"))
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


def _license_limit(sources: Sequence[LabelledSource]) -> str:
    unknown = [inline(source.name) for source in sources if not source.license]
    if unknown:
        return f"The licence of {', '.join(unknown)} is unknown: find it out before you use the recordings."
    return "The recordings keep the licences of their sources, and the transcripts are bound by them too."


def _shell_word(name: str) -> str:
    return name if re.fullmatch(r"[\w./-]+", name) else json.dumps(name)


# The push


def push_dataset(
    labelled: str | Path | Mapping[str, str | Path],
    repo_id: str,
    *,
    teacher: str | None = None,
    private: bool | None = None,
    language: str | None = None,
    licenses: Mapping[str, str] | str | None = None,
    origins: Mapping[str, str] | str | None = None,
    embed_audio: bool = True,
) -> CommitInfo:
    """Publishes labelled rows, recordings included, with a card that says how they were made.

    Files are uploaded one by one, and one commit for each source makes them visible, so that no half is ever taken for
    the whole; a last commit brings the card. A push that was interrupted can be started again: files that were
    uploaded are not sent a second time. Needs a token, from `hf auth login` or the variable `HF_TOKEN`.

    Args:
        labelled (`str`, `Path` or `Mapping`): output folder of `pseudo-label`, or of `filter`, whose selection is then
            published; several by name become configurations of one data set.
        repo_id (`str`): `owner/name`, or a name under the account of the token.
        teacher (`str`, *optional*): model that labelled, for the card.
        private (`bool`, *optional*): create a private repository; by default as the account or organisation does.
        language (`str`, *optional*): ISO code, for the card.
        licenses (`Mapping[str, str]` or `str`, *optional*): of the sources, by name; by default those in the cards of
            `origins`.
        origins (`Mapping[str, str]` or `str`, *optional*): what each source is, a Hub id for example.
        embed_audio (`bool`, *optional*, defaults to `True`): put the recordings into the files. Without them the rows
            hold no audio at all: whoever has the source joins it by `id`.

    Returns:
        `CommitInfo`: of the last commit. Rows whose recording cannot be read are left out, logged and counted on the
            card.

    Raises:
        ValueError: if a folder holds no complete labels, a public repository exists where a private one is wanted, or
            the Hub does not accept the card.
        PushError: if the data set is not complete on the Hub; says why.

    Example:
        ```python
        >>> push_dataset("filtered", "me/my-labels", teacher="openai/whisper-large-v3", private=True)
        ```
    """
    sources = _open_sources(labelled, origins, licenses)
    facts: dict[str, Any] = {"teacher": teacher, "language": language}
    draft = generate_dataset_card(sources, repo_id=repo_id, features=Features(), **facts)
    if problem := check_card(draft, "dataset"):
        raise ValueError(f"The Hub would not take the card of {repo_id}: {problem} Correct --licenses or --language.")
    to, errors, features = Repository(repo_id, private), RowErrors(), Features()
    try:
        repo_id = with_retries(lambda: _create_repository(to))
        for source in sources:
            rows = source.load(embed_audio, errors)
            features = features or rows.features
            # Commits once, at its end; what a killed push has uploaded is recognised by its hash (datasets#6392).
            push = partial(rows.push_to_hub, repo_id, source.name if len(sources) > 1 else "default", split="train")
            with_retries(push)
        if errors:
            logger.warning(errors.summary())
        card = generate_dataset_card(sources, repo_id=repo_id, features=features, left_out=len(errors), **facts)
        folders = {source.name for source in sources} if len(sources) > 1 else {DATA}
        return with_retries(lambda: _commit_card(repo_id, card, folders))
    except ValueError:
        raise  # says what to correct
    except Exception as error:  # httpx, the client and the server each raise their own
        hint = "Files that were uploaded are not sent again: start the same command again."
        raise PushError(f"{repo_id} is not complete on the Hub ({reason(error)}). {hint}") from None


def _create_repository(to: Repository) -> str:
    api = HfApi()
    repo_id = api.create_repo(to.repo_id, repo_type="dataset", private=to.private, exist_ok=True).repo_id
    check_visibility(to, api.dataset_info(repo_id).private, repo_id)
    return repo_id


def _commit_card(repo_id: str, card: DatasetCard, folders: set[str]) -> CommitInfo:
    """Replaces the card that `push_to_hub` wrote, and deletes the folders of sources of an earlier push."""
    api = HfApi()
    operations: list[CommitOperation] = [CommitOperationAdd(CARD, str(card).encode())]
    for path in api.list_repo_files(repo_id, repo_type="dataset"):
        part = _PART.fullmatch(path)
        if part and part[1] not in folders:
            operations.append(CommitOperationDelete(path))
    return api.create_commit(repo_id, operations, commit_message="Card of the data set", repo_type="dataset")
