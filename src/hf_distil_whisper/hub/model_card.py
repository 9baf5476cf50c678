"""Model card of a student: what it is, its scores, how to use it, how it was trained, and its limits."""

import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
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
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from transformers import AutoConfig, TrainingArguments, WhisperConfig, WhisperForConditionalGeneration
from transformers.utils import logging

from hf_distil_whisper.checkpoints import load_model, load_processor, save_generation_config, save_processor
from hf_distil_whisper.evaluation.results import LONG_FORMS, TEACHER
from hf_distil_whisper.hub.push import (
    CARD,
    PushError,
    Repository,
    by_hand,
    check_folder,
    missing_files,
    push_files,
    reason,
    redact,
    student_files,
)
from hf_distil_whisper.inference.prompt import is_multilingual

logger = logging.get_logger(__name__)

RESULTS = "results.json"
"""Scores in the output folder of `hf-distil-whisper evaluate`."""
RESULTS_FOLDER = ".eval_results"
LOSS_CURVES, WER_CURVES = "loss_curves.png", "wer_curves.png"

_TASK = "automatic-speech-recognition"
_TEMPLATE = Path(__file__).with_name("model_card_template.md")
_PACKAGES = ("hf-distil-whisper", "torch", "transformers", "accelerate", "datasets", "huggingface-hub")
_CARD_SECONDS = 10.0
"""Timeout for the card of a teacher or data set; after it a card is written without their licence."""
# Of the training arguments these and no others: the rest contains folders, and the token of the Hub.
_HYPER_PARAMETERS = (
    "kl_weight",
    "pl_weight",
    "mse_weight",
    "temperature",
    "freeze_encoder",
    "freeze_embed_positions",
    "freeze_embed_tokens",
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

RepoType = Literal["model", "dataset"]


# Text of cards: the data set card is made of the same parts


class Markdown(str):
    """A cell that is marked up already: [`card_table`] leaves it as it is."""


def inline(text: object) -> str:
    r"""Escapes a value for a sentence or a table cell: one line, without markup.

    Example:
        ```python
        >>> inline("a|b\n<i>")
        'a\\|b &lt;i&gt;'
        ```
    """
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([|`*\[\]\\])", r"\\\1", line)


def card_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; cells are escaped unless they are [`Markdown`], and None is an empty cell."""
    cells = [
        ["" if value is None else value if isinstance(value, Markdown) else inline(value) for value in row]
        for row in rows
    ]
    lines = ["| " + " | ".join(map(inline, columns)) + " |", "|---" * len(columns) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in cells])


def is_hub_id(name: str) -> bool:
    """Whether a name is `owner/name` and no folder of this machine, so that it may stand in the metadata."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not name.startswith(".") and not Path(name).exists()


def public_name(name_or_path: str) -> str:
    """The name of a model or data set for others: the last part of a folder, a URL without user and query."""
    if "://" in name_or_path:
        parts = urlsplit(name_or_path)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path.resolve().name
    # Also for folders of another machine, and those that are gone.
    is_path = name_or_path.startswith(("/", "~", ".")) or "\\" in name_or_path
    return re.split(r"[/\\]", name_or_path.rstrip("/\\"))[-1] if is_path else name_or_path


def public_url(url: str) -> str:
    """An http or https link without user, query and fragment; "" for anything else."""
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.netloc or re.search(r"[\s<>()\[\]]", url.strip()):
        return ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def front_matter(data: Mapping[str, object]) -> str:
    """YAML metadata block of a card, without entries that are None."""
    known = {key: value for key, value in data.items() if value is not None}
    return "---\n" + yaml.safe_dump(known, sort_keys=False, allow_unicode=True, width=1000) + "---\n"


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide what a training does."""
    numbers = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:
            continue
    return numbers


def find_license(name_or_path: str, repo_type: RepoType = "model", revision: str | None = None) -> str | None:
    """The licence ("mit") on the card of a repository or folder; None if it has none or no server answers."""
    path = Path(name_or_path).expanduser() / CARD
    if not path.is_file():
        if not is_hub_id(name_or_path):
            return None
        try:
            path = Path(
                hf_hub_download(name_or_path, CARD, repo_type=repo_type, revision=revision, etag_timeout=_CARD_SECONDS)
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            # Only the type of the error: its text may contain an address with a password.
            logger.warning(f"The licence of {name_or_path} is not known ({type(error).__name__}); give it by hand.")
            return None
    try:
        license = RepoCard.load(path, ignore_metadata_errors=True).data.get("license")
    except (ValueError, yaml.YAMLError):
        return None
    return license if isinstance(license, str) else None  # data sets may have a list of them


def cached_revision(name: str) -> str | None:
    """The commit of a model of the Hub in this machine's cache; None for a folder."""
    if not is_hub_id(name):
        return None
    file = try_to_load_from_cache(name, "config.json")
    return Path(file).parent.name if isinstance(file, str) else None


def check_card(card: RepoCard, repo_type: RepoType = "model") -> str | None:
    """Asks the Hub what is wrong with a card's metadata; None if it accepts them or no server answers."""
    try:
        card.validate(repo_type=repo_type)
    except ValueError as error:
        message = redact(str(error))
        logger.warning(f"The Hub does not take the metadata of this card: {message}")
        return message
    except Exception as error:  # no server, a refused connection, a proxy's page: of any HTTP library
        logger.warning(f"The card's metadata could not be checked, no answer from the Hub ({type(error).__name__}).")
    return None


# Facts


@dataclass(frozen=True)
class Evaluation:
    """Scores of a student, and of its teacher on the same sets.

    Args:
        results (`Mapping[str, float]`): WER by set, a fraction.
        teacher_results (`Mapping[str, float]`): the teacher's.
        groups (`Mapping[str, str]`): group of a set: "in distribution", "out of distribution", "long form", or "long
            form out of distribution".
        rtf (`tuple[float | None, float | None]`): real-time factors of student and teacher on short recordings.
        speed (`float`, *optional*): speed relative to the teacher, one recording at a time.
        non_speech (`Mapping[str, tuple[float | None, float | None]]`): words per minute that student and teacher write
            where nothing is spoken, by set.
    """

    results: Mapping[str, float] = field(default_factory=dict)
    teacher_results: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    rtf: tuple[float | None, float | None] = (None, None)
    speed: float | None = None
    non_speech: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class CardFacts:
    """Facts for the card of a student. What is not known is left out of the card.

    Args:
        name (`str`): Hub id or name of the student, as it stands in the code examples.
        teacher (`str`, *optional*): Hub id or name of the teacher. None for a model trained on labels alone.
        teacher_config ([`~transformers.WhisperConfig`], *optional*): for the number of its layers.
        teacher_parameters (`int`, *optional*): its size.
        teacher_revision (`str`, *optional*): its commit.
        base_model (`str`, *optional*): model whose weights the training started from; by default the teacher.
        base_revision (`str`, *optional*): its commit.
        datasets (`Sequence[str]`, *optional*): training data; Hub ids also go into the metadata.
        dataset_licenses (`Mapping[str, str]`, *optional*): licences of `datasets`, as far as they are known.
        language (`str`, *optional*): ISO code; `"en"` for English-only models.
        license (`str`, *optional*): identifier of the weights' licence, for example `"mit"`; see [`teacher_facts`].
        evaluation ([`Evaluation`], `str` or `Path`, *optional*): scores, or the output folder of
            `hf-distil-whisper evaluate`.
        results (`Mapping[str, float]`, *optional*): WER by test set, a fraction; wins over `evaluation`, as do the
            next two.
        teacher_results (`Mapping[str, float]`, *optional*): the teacher's on the same sets.
        groups (`Mapping[str, str]`, *optional*): group of a set, as in [`Evaluation`].
        result_sources (`Mapping[str, Mapping]`, *optional*): Hub data set of a test set: `path`, `config`, `split`,
            `revision`.
        training_args ([`~transformers.TrainingArguments`], *optional*): hyper-parameters to list.
        optimizer (`str`, *optional*): its name and learning rates, if they are not those of `training_args`.
        figures (`Mapping[str, str]`, *optional*): captions of pictures, and their files beside the card.
        step (`int`, *optional*): training step, for the card of a checkpoint.
        run_url (`str`, *optional*): page with the training's curves.
    """

    name: str
    teacher: str | None = None
    teacher_config: WhisperConfig | None = None
    teacher_parameters: int | None = None
    teacher_revision: str | None = None
    base_model: str | None = None
    base_revision: str | None = None
    datasets: Sequence[str] = ()
    dataset_licenses: Mapping[str, str] | None = None
    language: str | None = None
    license: str | None = None
    evaluation: Evaluation | str | Path | None = None
    results: Mapping[str, float] | None = None
    teacher_results: Mapping[str, float] | None = None
    groups: Mapping[str, str] | None = None
    result_sources: Mapping[str, Mapping[str, Any]] | None = None
    training_args: TrainingArguments | None = None
    optimizer: str | None = None
    figures: Mapping[str, str] | None = None
    step: int | None = None
    run_url: str | None = None

    def scores(self) -> Evaluation:
        """`evaluation`, overridden by `results`, `teacher_results` and `groups`."""
        known = self.evaluation or Evaluation()
        known = known if isinstance(known, Evaluation) else read_evaluation(known)
        return replace(
            known,
            results={**known.results, **(self.results or {})},
            teacher_results={**known.teacher_results, **(self.teacher_results or {})},
            groups={**known.groups, **(self.groups or {})},
        )


def read_evaluation(folder: str | Path, *, student: str = "model", teacher: str = TEACHER) -> Evaluation:
    """Reads the scores that `hf-distil-whisper evaluate --output_dir` wrote; a set without references has none.

    Args:
        folder (`str` or `Path`): the output folder.
        student (`str`, *optional*, defaults to `"model"`): its name there.
        teacher (`str`, *optional*, defaults to `"teacher"`): its name there. It may be missing.

    Raises:
        FileNotFoundError: if the folder has no results.
        ValueError: if no set was scored for the student.
    """
    file = Path(folder, RESULTS)
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder}: expected the output folder of `hf-distil-whisper evaluate`, but there is no {RESULTS}. Run it "
            "with --output_dir, and name that folder."
        )
    rates: dict[str, dict[str, float]] = {student: {}, teacher: {}}
    groups, seconds = {}, {student: [0.0, 0.0], teacher: [0.0, 0.0]}
    non_speech: dict[str, tuple[float | None, float | None]] = {}
    for name, by_model in json.loads(file.read_text(encoding="utf-8")).items():
        silent = [(by_model.get(model, {}).get("non_speech") or {}).get("words_per_minute") for model in rates]
        if silent[0] is not None:
            non_speech[name] = silent[0], silent[1]
        for model in rates:
            row = by_model.get(model)
            if row is None or row["wer"] is None:
                continue
            rates[model][name] = row["wer"]
            if row.get("group"):
                groups[name] = row["group"]
            if row.get("group") not in LONG_FORMS:
                seconds[model][0] += row["seconds"]
                seconds[model][1] += row["audio_seconds"]
    if not rates[student] and not non_speech:
        raise ValueError(f"{folder}: no set was scored for {student!r}. Use the name that the model has there.")
    rtf = [work / audio if audio else None for work, audio in (seconds[student], seconds[teacher])]
    return Evaluation(rates[student], rates[teacher], groups, (rtf[0], rtf[1]), non_speech=non_speech)


def teacher_facts(name: str) -> CardFacts:
    """What can be read of a teacher: revision, config, and the licence on its card, which carries over to its layers.

    Args:
        name (`str`): Hub id that was loaded on this machine, or a folder.

    Returns:
        [`CardFacts`]: without a name.
    """
    revision = cached_revision(name)
    return CardFacts(
        "",
        teacher=name,
        teacher_revision=revision,
        license=find_license(name, revision=revision),
        teacher_config=AutoConfig.from_pretrained(name),
    )


# The card


def generate_model_card(
    student: WhisperForConditionalGeneration, facts: CardFacts | None = None, **fields: Any
) -> ModelCard:
    """Generates the card of a distilled Whisper.

    Whatever is given, the card contains no folder of this machine, no token and no markup from a name.

    Args:
        student ([`~transformers.WhisperForConditionalGeneration`]): the model that the card describes.
        facts ([`CardFacts`], *optional*): about the student, its teacher, data and scores.
        fields: fields of [`CardFacts`], instead of `facts` or on top of it; at least `name`.

    Returns:
        [`~huggingface_hub.ModelCard`]: `.save("README.md")` writes it, `.data` is its metadata.

    Example:

    ```python
    >>> card = generate_model_card(student, name="me/distil", teacher="openai/whisper-tiny.en", results={"test": 0.05})
    >>> card.data.pipeline_tag
    'automatic-speech-recognition'
    ```
    """
    facts = card_facts(facts, fields)
    multilingual, scores = is_multilingual(student), facts.scores()
    facts = replace(
        facts,
        name=public_name(facts.name),
        language=facts.language or (None if multilingual else "en"),
        base_model=facts.base_model or facts.teacher,
    )
    name, language, base = facts.name, facts.language, facts.base_model
    data = ModelCardData(
        base_model=base if base and is_hub_id(base) else None,
        base_model_relation="finetune" if base and is_hub_id(base) else None,
        datasets=[dataset for dataset in facts.datasets if is_hub_id(dataset)] or None,
        language=language,
        license=facts.license,
        library_name="transformers",
        pipeline_tag=_TASK,
        metrics=["wer"],
        tags=["whisper", "distil-whisper", "knowledge-distillation", "hf-distil-whisper"],
        model_name=name if scores.results else None,
        eval_results=eval_results(scores.results, facts.result_sources or {}) or None,
    )
    generate_kwargs: dict[str, Any] = {"num_beams": 1, "max_new_tokens": 200}
    if multilingual and language:  # English-only models refuse both (transformers#27322)
        generate_kwargs |= {"language": language, "task": "transcribe"}
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=inline(name),
        name_code=json.dumps(name, ensure_ascii=False),
        summary=_summary(student, facts),
        facts=_facts_list(facts),
        results=_results(student, facts, scores),
        generate_kwargs=json.dumps(generate_kwargs, ensure_ascii=False),
        language_argument=f", language={json.dumps(language)}" if multilingual and language else "",
        faster_language=f", language={json.dumps(language)}" if language else "",
        assistant=_assistant_section(name, public_name(facts.teacher)) if facts.teacher else "",
        training=_training_text(facts),
        curves="\n\n".join(f"![{inline(caption)}]({file})" for caption, file in (facts.figures or {}).items()),
        hyper_parameters=_hyper_parameter_table(facts.training_args, facts.optimizer),
        run=f"The training's run: <{link}>" if facts.run_url and (link := public_url(facts.run_url)) else "",
        languages=_language_limit(language, multilingual),
        license_note=f"- Its weights come under the licence `{facts.license}`." if facts.license else "",
        versions=card_table(["package", "version"], list(versions().items())),
    )
    text = re.sub(r"\n{3,}", "\n\n", text)  # a part that is left out leaves its empty lines behind
    return ModelCard(redact(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def save_model_card(
    folder: str | Path,
    student: WhisperForConditionalGeneration,
    facts: CardFacts | None = None,
    *,
    log_history: Sequence[Mapping[str, Any]] = (),
    **fields: Any,
) -> ModelCard:
    """Writes the card into a folder, with its curves, and its results as `.eval_results/*.yaml`.

    Args:
        folder (`str` or `Path`): of the student's weights.
        student ([`~transformers.WhisperForConditionalGeneration`]): the model that the card describes.
        facts ([`CardFacts`], *optional*): as `fields`, see [`generate_model_card`].
        log_history (`Sequence[Mapping]`, *optional*): of the trainer's state: curves of losses and word error rates.
            Its newest scores stand on the card if the facts contain none.
        fields: fields of [`CardFacts`], instead of `facts` or on top of it.
    """
    folder, facts = Path(folder), card_facts(facts, fields)
    folder.mkdir(parents=True, exist_ok=True)
    if facts.results is None and not facts.scores().results:
        facts = replace(facts, results=latest_word_errors(log_history))
    facts = replace(facts, figures=draw_curves(log_history, folder))
    card = generate_model_card(student, facts)
    shutil.rmtree(folder / RESULTS_FOLDER, ignore_errors=True)
    for file, entries in eval_result_files(facts.scores().results, facts.result_sources or {}).items():
        (folder / RESULTS_FOLDER).mkdir(exist_ok=True)
        replace_file(folder / RESULTS_FOLDER / file, yaml.safe_dump(entries, sort_keys=False, allow_unicode=True))
    replace_file(folder / CARD, str(card))
    return card


def replace_file(path: Path, text: str) -> None:
    """Writes a file at once: a push may read the folder meanwhile."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def card_facts(facts: CardFacts | None, fields: Mapping[str, Any]) -> CardFacts:
    """`facts` with `fields` on top, or made of `fields` alone; an unknown field is a TypeError."""
    return CardFacts(**fields) if facts is None else replace(facts, **fields)


# Parts of the text


def _summary(student: WhisperForConditionalGeneration, facts: CardFacts) -> str:
    layers = student.config.decoder_layers
    what = f"{inline(facts.name)} is a Whisper with {layers} decoder layer{'' if layers == 1 else 's'}"
    if facts.teacher is None:
        return f"{what}, trained on labels alone."
    return (
        f"{what}, distilled from {inline(public_name(facts.teacher))} by the method of "
        "[Distil-Whisper](https://arxiv.org/abs/2311.00430): it learns the teacher's transcripts and, token by token, "
        "its distribution over the vocabulary."
    )


def _facts_list(facts: CardFacts) -> str:
    base_model = None if facts.base_model == facts.teacher else facts.base_model
    lines = {
        "teacher": _with_revision(facts.teacher, facts.teacher_revision),
        "base model": _with_revision(base_model, facts.base_revision),
        "language": inline(facts.language or ""),
        "licence": inline(facts.license or ""),
        "checkpoint": "" if facts.step is None else f"as of training step {facts.step}",
    }
    return "\n".join(f"- {title}: {text}" for title, text in lines.items() if text)


def _with_revision(name: str | None, revision: str | None) -> str:
    if name is None:
        return ""
    link = inline(public_name(name))
    if is_hub_id(name):
        link = f"[{link}](https://huggingface.co/{name})"
    return link + (f", revision `{revision}`" if revision else "")


def _results(student: WhisperForConditionalGeneration, facts: CardFacts, scores: Evaluation) -> str:
    """The table of student and teacher."""

    def layers(config: WhisperConfig | None) -> str:
        return "" if config is None else f"{config.encoder_layers}, {config.decoder_layers}"

    def millions(parameters: int | None) -> str:
        return f"{parameters / 1e6:.1f} M" if parameters else ""

    rows = [
        ("layers (encoder, decoder)", layers(student.config), layers(facts.teacher_config)),
        ("parameters", millions(student.num_parameters()), millions(facts.teacher_parameters)),
        *comparison_rows(scores),
    ]
    columns = ["", facts.name, "teacher" if facts.teacher is None else public_name(facts.teacher)]
    if not any(row[2] for row in rows):  # an empty column says no more than none
        columns, rows = columns[:2], [row[:2] for row in rows]  # type: ignore[misc]
    heading = "Word error rates in %, greedy decoding, on normalised text." if scores.results else "Not measured yet."
    return f"{heading}\n\n{card_table(columns, rows)}"


def comparison_rows(scores: Evaluation) -> list[tuple[str, str, str]]:
    """Rows of the table of student and teacher: label, the student's figure, the teacher's."""
    rows = []
    for name in [*scores.results, *(name for name in scores.teacher_results if name not in scores.results)]:
        group = scores.groups.get(name)
        label = f"WER %, {name}" + (f" ({group})" if group else "")
        rows.append((label, _percent(scores.results.get(name)), _percent(scores.teacher_results.get(name))))
    for name, pair in scores.non_speech.items():
        figures = ["" if rate is None else f"{rate:.1f}" for rate in pair]
        rows.append((f"words per minute where nothing is spoken, {name}", figures[0], figures[1]))
    if any(scores.rtf):
        figures = ["" if rtf is None else f"{rtf:.4f}" for rtf in scores.rtf]
        rows.append(("real-time factor, seconds of work per second of speech", figures[0], figures[1]))
    if scores.speed is not None:
        rows.append(("times as fast, one recording at a time", f"{scores.speed:.2f}", "1.00"))
    return rows


def _percent(wer: float | None) -> str:
    return "" if wer is None else f"{100 * wer:.2f}"


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


def _training_text(facts: CardFacts) -> str:
    licenses = facts.dataset_licenses or {}
    named = [
        inline(public_name(name)) + (f" ({inline(licenses[name])})" if licenses.get(name) else "")
        for name in facts.datasets
    ]
    data = f" Data: {', '.join(named)}." if named else ""
    if facts.teacher is None:
        return f"Fine-tuned on transcripts alone, without a teacher.{data}"
    copied = facts.base_model == facts.teacher
    start = "Its layers were copied from" if copied else "It began as"
    section = " (section 4.1 of the paper)" if copied else ""
    return (
        f"{start} {inline(public_name(facts.base_model or facts.teacher))}{section}. Then α_KL · KL + α_PL · PL "
        f"(eq. 6) was minimised on pseudo-labels of the teacher.{data}"
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


# Results for the Hub


def eval_results(results: Mapping[str, float], sources: Mapping[str, Mapping[str, Any]]) -> list[EvalResult]:
    """Entries of the `model-index` in the card's metadata; `sources` as `result_sources` of [`CardFacts`]."""
    entries = []
    for name, wer in results.items():
        source = _hub_source(sources.get(name))
        entries.append(
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
    return entries


def eval_result_files(
    results: Mapping[str, float], sources: Mapping[str, Mapping[str, Any]], date: str | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Contents of `.eval_results/<data set>.yaml`, by file name, for the sets on the Hub: others have no leaderboard.

    `date` is that of the evaluation, ISO 8601; by default the Hub takes that of the commit.
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
    return {file: eval_result_entries_to_yaml(of_file) for file, of_file in entries.items()}


def _hub_source(source: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(source) if source and is_hub_id(str(source.get("path", ""))) else {}


# Curves


def latest_word_errors(log_history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The newest WER of each validation set in a trainer's log: `eval_test_wer` → `{"test": ...}`; no average."""
    return {name: points[-1][1] for name, points in word_error_curves(log_history).items()}


def word_error_curves(log_history: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The WER of each validation set over the steps, as fractions: `{"test": [(step, wer), ...]}`.

    A set without a name is called "validation".
    """
    return _curves(log_history, lambda key: None if key == "eval_macro_wer" else _set_name(key, "wer"))


def loss_curves(log_history: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Loss and its parts over the steps, in training and on each validation set."""

    def name_of(key: str) -> str | None:
        if key in ("loss", "kl", "pl", "mse"):
            return f"{key}, training"
        name = _set_name(key, "loss")
        return name and f"loss, {name}"

    return _curves(log_history, name_of)


def _curves(
    log_history: Sequence[Mapping[str, Any]], name_of: Callable[[str], str | None]
) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in log_history:
        for key, value in entry.items():
            if name := name_of(key):
                curves.setdefault(name, []).append((entry.get("step", 0), value))
    return curves


def _set_name(key: str, metric: str) -> str | None:
    match = re.fullmatch(rf"eval_(?:(.+)_)?{metric}", key)
    return match and (match[1] or "validation")


def draw_curves(log_history: Sequence[Mapping[str, Any]], folder: str | Path) -> dict[str, str]:
    """Draws the curves of a log into a folder; returns captions and file names, none for a log without steps."""
    losses, rates = loss_curves(log_history), word_error_curves(log_history)
    percent = {name: [(step, 100 * wer) for step, wer in points] for name, points in rates.items()}
    figures = {}
    for curves, label, file in ((losses, "loss per token", LOSS_CURVES), (percent, "word error rate / %", WER_CURVES)):
        picture = Path(folder, file)
        picture.unlink(missing_ok=True)
        if any(step for points in curves.values() for step, _ in points):
            curves_over_steps(curves, label, picture)
            figures[f"{label.partition(' / ')[0]} over training steps".capitalize()] = file
    return figures


# Colours that all common kinds of colour blindness distinguish (Okabe and Ito, 2008).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def curves_over_steps(curves: Mapping[str, Sequence[tuple[int, float]]], label: str, path: str | Path) -> None:
    """Draws curves of (step, value) by name into a PNG or SVG; the y axis starts at 0."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for (name, points), color, marker in zip(curves.items(), cycle(_COLOURS), cycle("osD^vPX*"), strict=False):
        steps, values = zip(*points, strict=True)
        # A marker on every one of thousands of points would hide the line.
        axes.plot(steps, values, label=name, color=color, marker=marker, markevery=max(1, len(points) // 20))
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("training step")
    axes.set_ylabel(label)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    axes.grid(axis="y", color="#c9c9c9", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


# The push


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
