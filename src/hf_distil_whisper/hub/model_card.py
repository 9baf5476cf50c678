"""The model card of a student: what it is, what it scored, how to use it, how it was trained, what it cannot do.

Knows the card's metadata and text. Nothing is measured here: results are given, unknown facts are left out. Writing it
beside the weights, with its pictures, is `card_files`' business.
"""

import json
import platform
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from string import Template
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import yaml
from huggingface_hub import (
    CommitInfo,
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    RepoCard,
    eval_result_entries_to_yaml,
    hf_hub_download,
    is_offline_mode,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import TrainingArguments, WhisperConfig, WhisperForConditionalGeneration
from transformers.utils import logging

from hf_distil_whisper.checkpoints import load_model, load_processor, save_generation_config, save_processor
from hf_distil_whisper.evaluation.results import (
    LONG_FORM,
    LONG_FORMS,
    TEACHER,
    score_from_json,
)
from hf_distil_whisper.hub.push import (
    CARD,
    PushError,
    Repository,
    by_hand,
    check_folder,
    missing_files,
    push_files,
    reason,
    student_files,
)
from hf_distil_whisper.inference.prompt import is_multilingual

logger = logging.get_logger(__name__)

_PACKAGES = ("hf-distil-whisper", "torch", "transformers", "accelerate", "datasets", "huggingface-hub")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")
_CARD_SECONDS = 10.0
"""How long a server may take to answer before a card is written without what it would have said."""

RepoType = Literal["model", "dataset"]


class Markdown(str):
    """A cell that is marked up already: [`card_table`] leaves it as it is."""


def inline(text: object) -> str:
    r"""A value within a sentence or a table's cell: one line, and no markup of its own.

    Args:
        text (`object`): a name, number or setting.

    Example:
        ```python
        >>> inline("a|b\n<i>")
        'a\\|b &lt;i&gt;'
        ```
    """
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([|`*\[\]\\])", r"\\\1", line)


def card_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table whose cells may hold anything.

    Args:
        columns (`Sequence[str]`): headings.
        rows (`Sequence[Sequence[object]]`): as long as the headings; None and "" are empty cells, [`Markdown`] ones
            stay as they are.
    """
    cells = [
        ["" if value is None else value if isinstance(value, Markdown) else inline(value) for value in row]
        for row in rows
    ]
    lines = ["| " + " | ".join(map(inline, columns)) + " |", "|---" * len(columns) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in cells])


def is_hub_id(name: str) -> bool:
    """Whether a name may stand in the metadata: `owner/name`, and no folder of this machine."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not name.startswith(".") and not Path(name).exists()


def public_name(name_or_path: str) -> str:
    """What a model or data set is called elsewhere: a folder by its last part, a URL without user and query.

    Args:
        name_or_path (`str`): Hub id, folder, file or URL.
    """
    if "://" in name_or_path:
        parts = urlsplit(name_or_path)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path.resolve().name
    # A folder of another machine, or one that is gone, is no more public for that.
    foreign = name_or_path.startswith(("/", "~", ".")) or "\\" in name_or_path
    return re.split(r"[/\\]", name_or_path.rstrip("/\\"))[-1] if foreign else name_or_path


def public_url(url: str) -> str:
    """A link as it may stand on a card: http or https, without user, query and fragment; "" for anything else.

    Args:
        url (`str`): of a run, for example.
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.netloc or re.search(r"[\s<>()\[\]]", url.strip()):
        return ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def without_tokens(text: str) -> str:
    """The same without anything that looks like a token of the Hub: the last line of defence, for every card."""
    return _TOKEN.sub("hf_…", text)


def front_matter(data: Mapping[str, object]) -> str:
    """Metadata between their two lines, entries without a value left out."""
    kept = {key: value for key, value in data.items() if value is not None}
    return "---\n" + yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=1000) + "---\n"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a training does, as far as they are installed."""
    found = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def find_license(name_or_path: str, repo_type: RepoType = "model", revision: str | None = None) -> str | None:
    """The licence that a model or data set says of itself, in its card's metadata.

    Args:
        name_or_path (`str`): Hub id, or a folder with a README.md.
        repo_type (`str`, *optional*, defaults to `"model"`): or `"dataset"`.
        revision (`str`, *optional*): of the Hub repository.

    Returns:
        `str`, *optional*: an identifier such as "mit". None where none is told or no server answers: a card leaves it
            out then, it never guesses.
    """
    path = Path(name_or_path).expanduser() / "README.md"
    if not path.is_file():
        if not is_hub_id(name_or_path):
            return None
        try:
            path = Path(
                hf_hub_download(
                    name_or_path, "README.md", repo_type=repo_type, revision=revision, etag_timeout=_CARD_SECONDS
                )
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            # Only the kind of the error: its text may hold the address with all its parts.
            logger.warning(f"The licence of {name_or_path} is not known ({type(error).__name__}); give it by hand.")
            return None
    try:
        told = RepoCard.load(path, ignore_metadata_errors=True).data.get("license")
    except (ValueError, OSError, yaml.YAMLError):
        return None
    return told if isinstance(told, str) else None


def cached_revision(name: str) -> str | None:
    """The commit of a model of the Hub that this machine loaded, from its cache; None for a folder.

    Args:
        name (`str`): Hub id.
    """
    if not is_hub_id(name):
        return None
    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent.name if isinstance(found, str) else None


def check_card(card: RepoCard, repo_type: RepoType = "model") -> str | None:
    """Asks the Hub whether it takes a card's metadata, before anything is uploaded with it.

    Never raises: what is wrong, or that no server answered, is logged as a warning.

    Args:
        card ([`~huggingface_hub.RepoCard`]): to be checked.
        repo_type (`str`, *optional*, defaults to `"model"`): or `"dataset"`.

    Returns:
        `str`, *optional*: what the server has against the card; None where it takes it or did not answer.
    """
    try:
        card.validate(repo_type=repo_type)
    except ValueError as error:
        message = without_tokens(str(error))
        logger.warning(f"The Hub does not take the metadata of this card: {message}")
        return message
    except Exception as error:  # no server, a refused connection, a proxy's page: of any HTTP library's own kinds
        logger.warning(f"The card's metadata could not be checked, no answer from the Hub ({type(error).__name__}).")
    return None


RESULTS, MEASURED = "results.json", "measured"
"""What an evaluation and a report leave in their folder."""

_TASK = "automatic-speech-recognition"


@dataclass(frozen=True)
class Evaluation:
    """A student's scores, and its teacher's on the same sets.

    Args:
        results (`Mapping[str, float]`): WER by set, a fraction.
        teacher_results (`Mapping[str, float]`): the teacher's.
        groups (`Mapping[str, str]`): what a set is: "in distribution", "out of distribution", "long form", or "long
            form out of distribution".
        rtf (`tuple[float | None, float | None]`): seconds of work per second of short recordings: student, teacher.
        speed (`float`, *optional*): times as fast as the teacher, one recording at a time.
    """

    results: Mapping[str, float] = field(default_factory=dict)
    teacher_results: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    rtf: tuple[float | None, float | None] = (None, None)
    speed: float | None = None

    def merged(
        self,
        results: Mapping[str, float] | None,
        teacher_results: Mapping[str, float] | None,
        groups: Mapping[str, str] | None,
    ) -> "Evaluation":
        """The same with what is known besides; what is given wins."""
        return replace(
            self,
            results={**self.results, **(results or {})},
            teacher_results={**self.teacher_results, **(teacher_results or {})},
            groups={**self.groups, **(groups or {})},
        )


def read_evaluation(folder: str | Path, *, student: str | None = None, teacher: str = TEACHER) -> Evaluation:
    """Reads the scores that `hf-distil-whisper evaluate --output_dir` or `report` wrote.

    Args:
        folder (`str` or `Path`): the output folder of one of them.
        student (`str`, *optional*): its name there; by default `"model"` in an evaluation, `"student"` in a report.
        teacher (`str`, *optional*, defaults to `"teacher"`): its name there. It may be missing.

    Returns:
        [`Evaluation`]: sets without a reference, which have no rate, are left out. A report does not tell which of
            its short sets are out of distribution.

    Raises:
        FileNotFoundError: if the folder holds neither.
        ValueError: if no set was scored for the student.
    """
    folder = Path(folder)
    if (folder / RESULTS).is_file():
        found = _of_evaluation(json.loads((folder / RESULTS).read_text(encoding="utf-8")), student or "model", teacher)
    elif (folder / MEASURED).is_dir():
        found = _of_report(folder / MEASURED, student or "student", teacher)
    else:
        raise FileNotFoundError(
            f"{folder}: expected the output folder of `hf-distil-whisper evaluate` ({RESULTS}) or `report` "
            f"({MEASURED}/), found neither. Run one of them with --output_dir, and name that folder."
        )
    if not found.results:
        raise ValueError(
            f"{folder}: no set was scored for {student or 'the student'!r}. Name it as it is there, or run `report` "
            "again if an earlier version made that folder."
        )
    return found


def comparison_rows(scores: Evaluation) -> list[tuple[str, str, str]]:
    """Rows of the table of student and teacher: what, the student's figure, the teacher's.

    Args:
        scores ([`Evaluation`]): may be empty.
    """
    rows = []
    for name in [*scores.results, *(name for name in scores.teacher_results if name not in scores.results)]:
        group = scores.groups.get(name)
        label = f"WER %, {name}" + (f" ({group})" if group else "")
        rows.append((label, _percent(scores.results.get(name)), _percent(scores.teacher_results.get(name))))
    if any(scores.rtf):
        figures = ["" if rtf is None else f"{rtf:.4f}" for rtf in scores.rtf]
        rows.append(("real-time factor, seconds of work per second of speech", figures[0], figures[1]))
    if scores.speed is not None:
        rows.append(("times as fast, one recording at a time", f"{scores.speed:.2f}", "1.00"))
    return rows


def eval_results(results: Mapping[str, float], sources: Mapping[str, Mapping[str, Any]]) -> list[EvalResult]:
    """Entries of the `model-index` in the card's metadata.

    Args:
        results (`Mapping[str, float]`): WER by set.
        sources (`Mapping[str, Mapping]`): by set, its Hub data set as `path`, with `config`, `split` and `revision`
            where there are some. A set without one is named by its name alone.
    """
    found = []
    for name, wer in results.items():
        source = _hub_source(sources.get(name))
        found.append(
            EvalResult(
                task_type=_TASK,
                dataset_type=source.get("path") or inline(name),
                dataset_name=inline(name),
                dataset_config=source.get("config"),
                dataset_split=source.get("split"),
                dataset_revision=source.get("revision"),
                metric_type="wer",
                metric_name="WER",
                metric_value=round(100 * wer, 2),
            )
        )
    return found


def eval_result_files(
    results: Mapping[str, float], sources: Mapping[str, Mapping[str, Any]], date: str | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Contents of `.eval_results/<file>.yaml`, for the sets that lie on the Hub: the others have no leaderboard.

    Args:
        results (`Mapping[str, float]`): WER by set.
        sources (`Mapping[str, Mapping]`): as in [`eval_results`].
        date (`str`, *optional*): of the evaluation, ISO 8601; by default the Hub takes that of the commit.

    Returns:
        `dict[str, list[dict]]`: by file name, one file a data set.
    """
    entries: dict[str, list[EvalResultEntry]] = {}
    for name, wer in results.items():
        source = _hub_source(sources.get(name))
        if source:
            entry = EvalResultEntry(
                dataset_id=source["path"],
                task_id=source.get("config") or "default",
                value=round(100 * wer, 2),
                dataset_revision=source.get("revision"),
                date=date,
                notes=f"word error rate in %, split {source.get('split') or 'test'}, greedy, normalised text",
            )
            entries.setdefault(source["path"].replace("/", "--") + ".yaml", []).append(entry)
    return {file: eval_result_entries_to_yaml(found) for file, found in entries.items()}


def _of_evaluation(summary: Mapping[str, Mapping[str, dict]], student: str, teacher: str) -> Evaluation:
    rates: dict[str, dict[str, float]] = {student: {}, teacher: {}}
    groups, work = {}, {student: [0.0, 0.0], teacher: [0.0, 0.0]}
    for name, by_model in summary.items():
        for model in rates:
            row = by_model.get(model)
            if row is None or row["wer"] is None:
                continue
            rates[model][name] = row["wer"]
            if row.get("group"):
                groups[name] = row["group"]
            if row.get("group") not in LONG_FORMS:
                work[model][0] += row["seconds"]
                work[model][1] += row["audio_seconds"]
    rtf = [seconds / audio if audio else None for seconds, audio in (work[student], work[teacher])]
    return Evaluation(rates[student], rates[teacher], groups, (rtf[0], rtf[1]))


def _of_report(folder: Path, student: str, teacher: str) -> Evaluation:
    rates: dict[str, dict[str, float]] = {student: {}, teacher: {}}
    groups: dict[str, str] = {}
    figures = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    for model, found in rates.items():
        for kind in ("short form", LONG_FORM):
            # By the name in the file: that of the file itself cannot tell `student` from the begin of `student-large`.
            prefix = f"{kind}, {model}, "
            for figure in figures:
                if not figure.get("name", "").startswith(prefix):
                    continue
                score = score_from_json(figure["measured"])
                if score.errors.num_words:
                    name = figure["name"].removeprefix(prefix)
                    found[name] = score.errors.wer
                    groups |= {name: LONG_FORM} if kind == LONG_FORM else {}
    speed = None
    if (folder / "latency.json").is_file():
        rows = json.loads((folder / "latency.json").read_text(encoding="utf-8"))["measured"]
        alone = [row for row in rows if row["model"] == student and row["batch_size"] == 1]
        speed = alone[0]["relative_latency"] if alone and rows[0]["model"] == teacher else None
    return Evaluation(rates[student], rates[teacher], groups, speed=speed)


def _hub_source(source: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(source) if source and is_hub_id(str(source.get("path", ""))) else {}


def _percent(wer: float | None) -> str:
    return "" if wer is None else f"{100 * wer:.2f}"


_TEMPLATE = Path(__file__).with_name("model_card_template.md")

_HYPER_PARAMETERS = (
    "kl_weight",
    "pl_weight",
    "mse_weight",
    "temperature",
    "freeze_encoder",
    "freeze_embed_positions",
    "freeze_decoder",
    "lora",
    "timestamp_probability",
    "condition_on_prev_probability",
    "optim",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "max_steps",
    "num_train_epochs",
    "max_grad_norm",
    "weight_decay",
    "bf16",
    "fp16",
    "seed",
)
"""Of the training arguments, these and no others: the rest holds folders, and the token of the Hub."""


def generate_model_card(
    student: WhisperForConditionalGeneration,
    *,
    name: str,
    teacher: str | None = None,
    teacher_config: WhisperConfig | None = None,
    teacher_parameters: int | None = None,
    datasets: Sequence[str] = (),
    language: str | None = None,
    license: str | None = None,
    results: Mapping[str, float] | None = None,
    teacher_results: Mapping[str, float] | None = None,
    training_args: TrainingArguments | None = None,
    optimizer: str | None = None,
    teacher_revision: str | None = None,
    base_model: str | None = None,
    base_revision: str | None = None,
    dataset_licenses: Mapping[str, str] | None = None,
    evaluation: Evaluation | str | Path | None = None,
    groups: Mapping[str, str] | None = None,
    result_sources: Mapping[str, Mapping[str, Any]] | None = None,
    figures: Mapping[str, str] | None = None,
    step: int | None = None,
    run_url: str | None = None,
) -> ModelCard:
    """Writes the card of a distilled Whisper.

    Whatever is given, the card holds no folder of this machine, no token and no markup that a name brought with it.

    Args:
        student ([`~transformers.WhisperForConditionalGeneration`]): the model that the card describes.
        name (`str`): Hub id or name of the student, as it stands in the code examples.
        teacher (`str`, *optional*): Hub id or name of the teacher. None for a model trained on labels alone.
        teacher_config ([`~transformers.WhisperConfig`], *optional*): for the number of its layers.
        teacher_parameters (`int`, *optional*): its size.
        datasets (`Sequence[str]`, *optional*): what it was trained on; Hub ids also go into the metadata.
        language (`str`, *optional*): ISO code; `"en"` where the model is English only.
        license (`str`, *optional*): identifier of the weights' licence, for example `"mit"`; see [`teacher_facts`].
        results (`Mapping[str, float]`, *optional*): WER by test set, as a fraction.
        teacher_results (`Mapping[str, float]`, *optional*): the teacher's on the same sets.
        training_args ([`~transformers.TrainingArguments`], *optional*): hyper-parameters to list.
        optimizer (`str`, *optional*): its name and learning rates, where they are not those of `training_args`.
        teacher_revision (`str`, *optional*): commit of the teacher.
        base_model (`str`, *optional*): whose weights the training began with; by default the teacher.
        base_revision (`str`, *optional*): its commit.
        dataset_licenses (`Mapping[str, str]`, *optional*): licences of `datasets`, as far as they are known.
        evaluation ([`Evaluation`], `str` or `Path`, *optional*): scores, or the output folder of
            `hf-distil-whisper evaluate` or `report`; `results` and `teacher_results` win over it.
        groups (`Mapping[str, str]`, *optional*): what a set is: "in distribution", "long form", ...
        result_sources (`Mapping[str, Mapping]`, *optional*): where a set lies on the Hub: `path`, `config`, `split`,
            `revision`.
        figures (`Mapping[str, str]`, *optional*): captions of pictures, and their files beside the card.
        step (`int`, *optional*): of the training, where the card is that of a checkpoint.
        run_url (`str`, *optional*): where the training's curves can be looked at.

    Returns:
        [`~huggingface_hub.ModelCard`]: `.save("README.md")` writes it, `.data` is its metadata.

    Example:

    ```python
    >>> card = generate_model_card(student, name="me/distil", teacher="openai/whisper-tiny.en", results={"test": 0.05})
    >>> card.data.pipeline_tag
    'automatic-speech-recognition'
    ```
    """
    name, multilingual = public_name(name), is_multilingual(student)
    language = language or (None if multilingual else "en")
    base = base_model or teacher
    known = read_evaluation(evaluation) if isinstance(evaluation, str | Path) else evaluation or Evaluation()
    scores = known.merged(results, teacher_results, groups)
    data = ModelCardData(
        base_model=base if base and is_hub_id(base) else None,
        base_model_relation="finetune" if base and is_hub_id(base) else None,
        datasets=[dataset for dataset in datasets if is_hub_id(dataset)] or None,
        language=language,
        license=license,
        library_name="transformers",
        pipeline_tag="automatic-speech-recognition",
        metrics=["wer"],
        tags=["whisper", "distil-whisper", "knowledge-distillation", "hf-distil-whisper"],
        model_name=name if scores.results else None,
        eval_results=eval_results(scores.results, result_sources or {}) or None,
    )
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=inline(name),
        name_code=json.dumps(name, ensure_ascii=False),
        summary=_summary(student, name, teacher),
        facts=_facts(teacher, teacher_revision, base, base_revision, language, license, step),
        results=_results(student, name, teacher, teacher_config, teacher_parameters, scores),
        generate_kwargs=_generate_kwargs(language if multilingual else None),
        language_argument=f", language={json.dumps(language)}" if multilingual and language else "",
        faster_language=f", language={json.dumps(language)}" if language else "",
        assistant=_assistant_section(name, public_name(teacher)) if teacher else "",
        training=_training_text(teacher, base, datasets, dataset_licenses or {}),
        curves="\n\n".join(f"![{inline(caption)}]({file})" for caption, file in (figures or {}).items()),
        hyper_parameters=_hyper_parameter_table(training_args, optimizer),
        run=f"The training's run: <{link}>" if run_url and (link := public_url(run_url)) else "",
        languages=_language_limit(language, multilingual),
        license_note=f"- Its weights come under the licence `{license}`." if license else "",
        versions=card_table(["package", "version"], list(versions().items())),
    )
    text = re.sub(r"\n{3,}", "\n\n", text)  # a part that is left out leaves its empty lines behind
    return ModelCard(without_tokens(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def _summary(student: WhisperForConditionalGeneration, name: str, teacher: str | None) -> str:
    layers = student.config.decoder_layers
    what = f"{inline(name)} is a Whisper with {layers} decoder layer{'' if layers == 1 else 's'}"
    if teacher is None:
        return f"{what}, trained on labels alone."
    return (
        f"{what}, distilled from {inline(public_name(teacher))} by the method of "
        "[Distil-Whisper](https://arxiv.org/abs/2311.00430): it learns the teacher's transcripts and, token by token, "
        "its distribution over the vocabulary."
    )


def _facts(
    teacher: str | None,
    teacher_revision: str | None,
    base: str | None,
    base_revision: str | None,
    language: str | None,
    license: str | None,
    step: int | None,
) -> str:
    facts = {
        "teacher": _with_revision(teacher, teacher_revision),
        "base model": _with_revision(base, base_revision) if base != teacher else "",
        "language": inline(language or ""),
        "licence": inline(license or ""),
        "checkpoint": "" if step is None else f"as of training step {step}",
    }
    return "\n".join(f"- {title}: {fact}" for title, fact in facts.items() if fact)


def _with_revision(name: str | None, revision: str | None) -> str:
    if name is None:
        return ""
    place = inline(public_name(name))
    if is_hub_id(name):
        place = f"[{place}](https://huggingface.co/{name})"
    return place + (f", revision `{revision}`" if revision else "")


def _results(
    student: WhisperForConditionalGeneration,
    name: str,
    teacher: str | None,
    teacher_config: WhisperConfig | None,
    teacher_parameters: int | None,
    scores: Evaluation,
) -> str:
    """The table of student and teacher."""

    def layers(config: WhisperConfig | None) -> str:
        return "" if config is None else f"{config.encoder_layers}, {config.decoder_layers}"

    def millions(parameters: int | None) -> str:
        return f"{parameters / 1e6:.1f} M" if parameters else ""

    rows = [
        ("layers (encoder, decoder)", layers(student.config), layers(teacher_config)),
        ("parameters", millions(student.num_parameters()), millions(teacher_parameters)),
        *comparison_rows(scores),
    ]
    columns = ["", name, "teacher" if teacher is None else public_name(teacher)]
    if not any(row[2] for row in rows):  # an empty column says no more than none
        columns, rows = columns[:2], [row[:2] for row in rows]  # type: ignore[misc]
    said = "Word error rates in %, greedy decoding, on normalised text." if scores.results else "Not measured yet."
    return f"{said}\n\n{card_table(columns, rows)}"


def _assistant_section(name: str, teacher: str) -> str:
    student, main = json.dumps(name, ensure_ascii=False), json.dumps(teacher, ensure_ascii=False)
    return f"""As assistant of its teacher (speculative decoding, section 6 of the paper), in batches too: the text is
the teacher's own greedy output.

```python
from hf_distil_whisper import create_assistant, load_model, load_processor, transcribe

student, teacher = load_model({student}), load_model({main})
assistant = create_assistant(student, teacher)
print(transcribe(teacher, load_processor({main}), "speech.flac", assistant=assistant)[0].text)
```
"""


def _generate_kwargs(language: str | None) -> str:
    settings: dict[str, Any] = {"num_beams": 1, "max_new_tokens": 200}
    if language:
        settings |= {"language": language, "task": "transcribe"}
    return json.dumps(settings, ensure_ascii=False)


def _training_text(teacher: str | None, base: str | None, datasets: Sequence[str], licenses: Mapping[str, str]) -> str:
    named = [
        inline(public_name(name)) + (f" ({inline(licenses[name])})" if licenses.get(name) else "") for name in datasets
    ]
    source = f" Data: {', '.join(named)}." if named else ""
    if teacher is None:
        return f"Fine-tuned on transcripts alone, without a teacher.{source}"
    begin = "Its layers were copied from" if base == teacher else "It began as"
    section = " (section 4.1 of the paper)" if base == teacher else ""
    return (
        f"{begin} {inline(public_name(base or teacher))}{section}. Then α_KL · KL + α_PL · PL (eq. 6) was "
        f"minimised on pseudo-labels of the teacher.{source}"
    )


def _hyper_parameter_table(args: TrainingArguments | None, optimizer: str | None) -> str:
    if args is None:
        return ""
    values = args.to_dict()
    if optimizer is not None:
        values |= {"optim": optimizer, "learning_rate": None, "weight_decay": None}
    unused = "num_train_epochs" if args.max_steps > 0 else "max_steps"
    fields = [field for field in _HYPER_PARAMETERS if values.get(field) is not None and field != unused]
    batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    rows = [*((field, values[field]) for field in fields), ("batch size over all devices", batch_size)]
    return card_table(["hyper-parameter", "value"], rows)


def _language_limit(language: str | None, multilingual: bool) -> str:
    if not multilingual:
        return "It understands English only."
    if language is None:
        return "Languages that its training data did not hold are untested."
    return f"It was distilled for the language `{language}`; others are untested."


def push_student(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload student",
) -> CommitInfo:
    """Pushes the student in a folder as one commit: complete, with a card, and without any other file of the folder.

    Files of the processor that other runtimes read are added where they are missing, and so is a card. The folder
    itself is not changed. Tries again while the network fails.

    Args:
        folder (`str` or `Path`): output folder of a run, one of its checkpoints, or any saved Whisper with its
            processor.
        repo_id (`str`): `owner/name`, or a name under the account of the token.
        private (`bool`, *optional*): create a private repository; one that exists and is public is refused.
        revision (`str`, *optional*): branch, created if it does not exist; by default `main`.
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
    with tempfile.TemporaryDirectory(prefix="hf-distil-whisper-") as added:
        _write_missing(Path(folder), Path(added), repo_id)
        files = {name: Path(root, name) for root in (folder, added) for name in student_files(root)}
        try:
            return push_files(to, files, message)
        except Exception as error:  # httpx, the client and the server each raise their own
            hint = f"The folder is unchanged; try again: {by_hand(folder, to)}"
            raise PushError(f"{folder} is not on the Hub ({reason(error, token)}). {hint}") from None


def _write_missing(folder: Path, target: Path, repo_id: str) -> None:
    """Writes the files that a folder lacks into another one."""
    missing = missing_files(folder)
    if not missing and (folder / CARD).is_file():
        return
    model = load_model(folder)
    if missing:
        logger.info(f"{folder}: adding {', '.join(missing)}")
        save_generation_config(model, target)
        save_processor(load_processor(folder), target)
    if not (folder / CARD).is_file():
        generate_model_card(model, name=repo_id).save(target / CARD)
