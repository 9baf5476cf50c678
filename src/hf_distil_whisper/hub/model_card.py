"""The model card of a student: what it is, what it scored, how to use it, how it was trained, what it cannot do.

Knows the card's metadata and text. Nothing is measured here: results are given, unknown facts are left out. Writing it
beside the weights, with its pictures, is `card_files`' business.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import TrainingArguments, WhisperConfig, WhisperForConditionalGeneration

from hf_distil_whisper.hub.card_results import Evaluation, comparison_rows, eval_results, read_evaluation
from hf_distil_whisper.hub.card_text import (
    card_table,
    inline,
    is_hub_id,
    public_name,
    public_url,
    versions,
    without_tokens,
)
from hf_distil_whisper.inference.generation import is_multilingual

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
