"""The model card of a student: what it is, how to use it, what it scored, how it was trained, what it cannot do.

Knows the card's metadata and text. Nothing is measured here: results are given, unknown facts are left out.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from hf_distil_whisper.inference.generation import is_multilingual

_TEMPLATE = Path(__file__).with_name("model_card_template.md")

_HYPER_PARAMETERS = (
    "kl_weight",
    "pl_weight",
    "mse_weight",
    "temperature",
    "freeze_encoder",
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
) -> ModelCard:
    """Writes the card of a distilled Whisper.

    Args:
        student ([`~transformers.WhisperForConditionalGeneration`]): the model that the card describes.
        name (`str`): Hub id or name of the student, as it stands in the code examples.
        teacher (`str`, *optional*): Hub id or name of the teacher. None for a model trained on labels alone.
        teacher_config ([`~transformers.WhisperConfig`], *optional*): for the table of sizes.
        teacher_parameters (`int`, *optional*): for the table of sizes.
        datasets (`Sequence[str]`, *optional*): what it was trained on; Hub ids also go into the metadata.
        language (`str`, *optional*): ISO code; `"en"` where the model is English only.
        license (`str`, *optional*): identifier of the weights' licence, for example `"mit"`.
        results (`Mapping[str, float]`, *optional*): WER by test set, as a fraction.
        teacher_results (`Mapping[str, float]`, *optional*): the teacher's on the same sets.
        training_args ([`~transformers.TrainingArguments`], *optional*): hyper-parameters to list.

    Returns:
        [`~huggingface_hub.ModelCard`]: `.save("README.md")` writes it, `.data` is its metadata.

    Example:

    ```python
    >>> card = generate_model_card(student, name="me/distil", teacher="openai/whisper-tiny.en", results={"test": 0.05})
    >>> card.data.pipeline_tag
    'automatic-speech-recognition'
    ```
    """
    multilingual = is_multilingual(student)
    language = language or (None if multilingual else "en")
    teacher_label = _label(teacher) if teacher else None
    data = ModelCardData(
        base_model=teacher if teacher and _is_hub_id(teacher) else None,
        base_model_relation="finetune" if teacher and _is_hub_id(teacher) else None,
        datasets=[name for name in datasets if _is_hub_id(name)] or None,
        language=language,
        license=license,
        library_name="transformers",
        pipeline_tag="automatic-speech-recognition",
        metrics=["wer"],
        tags=["whisper", "distil-whisper", "knowledge-distillation", "hf-distil-whisper"],
        model_name=name if results else None,
        eval_results=_eval_results(results or {}) or None,
    )
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=name,
        summary=_summary(student, name, teacher_label),
        sizes=_sizes(student, name, teacher_label, teacher_config, teacher_parameters),
        assistant=_assistant_section(name, teacher_label) if teacher_label else "",
        generate_kwargs=_generate_kwargs(language if multilingual else None),
        results=_results_table(results or {}, teacher_results),
        training=_training_text(teacher_label, datasets),
        hyper_parameters=_hyper_parameter_table(training_args),
        languages=_language_limit(language, multilingual),
        license_note=f"- Its weights come under the licence `{license}`." if license else "",
    )
    text = re.sub(r"\n{3,}", "\n\n", text)  # a part that is left out leaves its empty lines behind
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


class ModelCardCallback(TrainerCallback):
    """Writes the card beside every checkpoint and, when training ends, into the output folder.

    Scores are those of the newest evaluation in the log, by validation set.

    Args:
        details (`dict`, *optional*): facts about the model that the trainer does not know: `name`, `teacher`,
            `datasets`, `language`, `license` and others of [`generate_model_card`]. `name` defaults to the folder's.

    Example:

    ```python
    >>> callbacks = [ModelCardCallback(teacher="openai/whisper-tiny.en", license="mit")]
    >>> trainer = DistillationTrainer(..., callbacks=callbacks)
    ```
    """

    def __init__(self, **details: Any) -> None:
        self.details = details

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The card of one checkpoint."""
        self._write(args, state, kwargs["model"], Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The card of the finished student."""
        self._write(args, state, kwargs["model"], Path(args.output_dir))

    def _write(
        self, args: TrainingArguments, state: TrainerState, model: WhisperForConditionalGeneration, folder: Path
    ) -> None:
        if not state.is_world_process_zero:
            return
        self.write(args, state, model, folder)

    def write(
        self, args: TrainingArguments, state: TrainerState, model: WhisperForConditionalGeneration, folder: Path
    ) -> None:
        """Writes the card as of now into a folder, by whatever process calls it."""
        details = {"name": Path(args.output_dir).name, "results": latest_word_errors(state.log_history)} | self.details
        folder.mkdir(parents=True, exist_ok=True)
        generate_model_card(model, training_args=args, **details).save(folder / "README.md")


def latest_word_errors(log_history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The newest WER of each validation set in a trainer's log: `eval_test_wer` → `{"test": ...}`; no average."""
    found: dict[str, float] = {}
    for entry in log_history:
        for key, value in entry.items():
            if key.startswith("eval_") and key.endswith("_wer") and key != "eval_macro_wer":
                found[key.removeprefix("eval_").removesuffix("_wer")] = value
    return found


def _is_hub_id(name: str) -> bool:
    """Whether a name may stand in the metadata: `owner/name`, and no folder of this machine."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not name.startswith(".") and not Path(name).exists()


def _label(name_or_path: str) -> str:
    """A folder of this machine is called by its last part: a card is read elsewhere."""
    return Path(name_or_path).resolve().name if Path(name_or_path).exists() else name_or_path


def _eval_results(results: Mapping[str, float]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="automatic-speech-recognition",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type="wer",
            metric_name="WER",
            metric_value=round(100 * wer, 2),
        )
        for dataset, wer in results.items()
    ]


def _summary(student: WhisperForConditionalGeneration, name: str, teacher: str | None) -> str:
    if teacher is None:
        return f"{name} is a Whisper with {student.config.decoder_layers} decoder layers, trained on labels alone."
    return (
        f"{name} is a Whisper with {student.config.decoder_layers} decoder layers, distilled from {teacher} by the "
        "method of [Distil-Whisper](https://arxiv.org/abs/2311.00430): it learns the teacher's transcripts and, token "
        "by token, its distribution over the vocabulary."
    )


def _sizes(
    student: WhisperForConditionalGeneration,
    name: str,
    teacher: str | None,
    teacher_config: WhisperConfig | None,
    teacher_parameters: int | None,
) -> str:
    def row(label: str, config: WhisperConfig, parameters: int | None) -> str:
        count = f"{parameters / 1e6:.1f} M" if parameters else ""
        return f"| {label} | {config.encoder_layers}, {config.decoder_layers} | {count} |"

    rows = [row(name, student.config, student.num_parameters())]
    if teacher and teacher_config is not None:
        rows.append(row(teacher, teacher_config, teacher_parameters))
    return "\n".join(rows)


def _assistant_section(name: str, teacher: str) -> str:
    return f"""As assistant of its teacher (speculative decoding, section 6 of the paper), at batch size 1: the text is
the teacher's own greedy output.

```python
from hf_distil_whisper import create_assistant, load_model, load_processor, transcribe

student, teacher = load_model("{name}"), load_model("{teacher}")
assistant = create_assistant(student, teacher)
print(transcribe(teacher, load_processor("{teacher}"), "speech.flac", assistant=assistant)[0].text)
```
"""


def _generate_kwargs(language: str | None) -> str:
    settings: dict[str, Any] = {"num_beams": 1, "max_new_tokens": 200}
    if language:
        settings |= {"language": language, "task": "transcribe"}
    return "{" + ", ".join(f'"{key}": {_quoted(value)}' for key, value in settings.items()) + "}"


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _results_table(results: Mapping[str, float], teacher_results: Mapping[str, float] | None) -> str:
    if not results:
        return "Not measured yet."
    lines = ["Word error rate in %, greedy decoding, on normalised text.", ""]
    columns = ["set", "student", "teacher"] if teacher_results else ["set", "student"]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for dataset, wer in results.items():
        teacher_wer = (teacher_results or {}).get(dataset)
        ending = "" if not teacher_results else f" {100 * teacher_wer:.2f} |" if teacher_wer is not None else " |"
        lines.append(f"| {dataset} | {100 * wer:.2f} |{ending}")
    return "\n".join(lines)


def _training_text(teacher: str | None, datasets: Sequence[str]) -> str:
    data = ", ".join(_label(name) for name in datasets)
    source = f" Data: {data}." if data else ""
    if teacher is None:
        return f"Fine-tuned on transcripts alone, without a teacher.{source}"
    return (
        f"Its layers were copied from {teacher} (section 4.1 of the paper). Then α_KL · KL + α_PL · PL (eq. 6) was "
        f"minimised on pseudo-labels of the teacher.{source}"
    )


def _hyper_parameter_table(args: TrainingArguments | None) -> str:
    if args is None:
        return ""
    values = args.to_dict()
    unused = "num_train_epochs" if args.max_steps > 0 else "max_steps"
    fields = [field for field in _HYPER_PARAMETERS if field in values and field != unused]
    rows = [f"| {field} | {values[field]} |" for field in fields]
    batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    rows.append(f"| batch size over all devices | {batch_size} |")
    return "\n".join(["| hyper-parameter | value |", "|---|---|", *rows])


def _language_limit(language: str | None, multilingual: bool) -> str:
    if not multilingual:
        return "It understands English only."
    if language is None:
        return "Languages that its training data did not hold are untested."
    return f"It was distilled for the language `{language}`; others are untested."
