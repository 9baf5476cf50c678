"""The card of a labelled data set: who labelled it and how, what was kept of each source, what the columns are.

Knows labelled folders by what they say of themselves; uploading is `push_dataset`'s business.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from datasets import Features
from huggingface_hub import DatasetCard

from hf_distil_whisper.hub.card_text import (
    card_table,
    front_matter,
    inline,
    is_hub_id,
    public_name,
    without_tokens,
)
from hf_distil_whisper.hub.labelled_source import LabelledSource

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
