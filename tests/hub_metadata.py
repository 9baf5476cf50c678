"""What the Hub refuses in a card's metadata and in names, for the server on loopback."""

import re
from typing import Any

import yaml

_LICENCES = (
    "apache-2.0 mit openrail bsd bsd-2-clause bsd-3-clause cc cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-3.0 "
    "cc-by-nc-sa-4.0 cc-by-nd-4.0 gpl gpl-2.0 gpl-3.0 lgpl lgpl-3.0 agpl-3.0 mpl-2.0 llama2 llama3 gemma pddl odbl "
    "odc-by unlicense wtfpl zlib isc ms-pl artistic-2.0 bsl-1.0 eupl-1.1 unknown other"
).split()
_RELATIONS = ("adapter", "finetune", "merge", "quantized")
_TASKS = (
    "automatic-speech-recognition text-to-speech audio-classification text-classification text-generation "
    "translation summarization question-answering token-classification image-classification feature-extraction"
).split()
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1T", "unknown")
_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_]([\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)


def name_error(name: str) -> str | None:
    """Why a repository may not be called so; None if it may."""
    if not _NAME.fullmatch(name) or name.endswith(".git"):
        return f"Invalid repo name: {name} - letters, digits, '-', '_' and '.', no '--' or '..', not first or last"
    return None


def path_error(path: str) -> str | None:
    """Why a file may not be called so; None if it may."""
    parts = path.split("/")
    if any(part in ("", ".", "..", ".git") for part in parts) or "\\" in path or len(path) > 1000:
        return f"Invalid file path: {path!r}"
    return None


def front_matter(content: str) -> dict[str, Any] | None:
    """The metadata of a card; None where there are none. Raises `yaml.YAMLError`."""
    found = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", content, re.DOTALL)
    return yaml.safe_load(found[1]) if found else None


def metadata_errors(content: str, repo_type: str) -> list[str]:
    """What is wrong with the metadata of a card; nothing for a card without."""
    try:
        data = front_matter(content)
    except yaml.YAMLError as error:
        return [f"YAML: {error}".splitlines()[0]]
    if data is None:
        return []
    if not isinstance(data, dict):
        return ["YAML metadata is not a mapping"]
    errors = _common_errors(data)
    return errors + (_model_errors(data) if repo_type == "model" else _dataset_errors(data))


def _strings(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _one_of(data: dict[str, Any], key: str, allowed: tuple[str, ...] | list[str]) -> list[str]:
    wrong = [value for value in _strings(data[key]) if value not in allowed] if key in data else []
    return [f'"{key}" must be one of [{", ".join(allowed)}], got {wrong[0]!r}'] if wrong else []


def _common_errors(data: dict[str, Any]) -> list[str]:
    errors = _one_of(data, "license", _LICENCES)
    for language in _strings(data.get("language", [])):
        if not isinstance(language, str) or not re.fullmatch(r"[a-z]{2,3}(-[\w-]+)?|multilingual|code", language):
            errors.append(f'"language" must only contain lowercase ISO codes, got {language!r}')
    for tag in _strings(data.get("tags", [])):
        if not isinstance(tag, str) or not tag:
            errors.append(f'"tags" must be an array of strings, got {tag!r}')
    return errors


def _model_errors(data: dict[str, Any]) -> list[str]:
    errors = _one_of(data, "base_model_relation", _RELATIONS) + _one_of(data, "pipeline_tag", _TASKS)
    for key in ("base_model", "datasets"):
        for name in _strings(data.get(key, [])):
            parts = name.split("/") if isinstance(name, str) else []
            if not 1 <= len(parts) <= 2 or any(name_error(part) for part in parts):
                errors.append(f'"{key}" with value {name!r} is not valid. Use a model id from https://hf.co/models.')
    for key in ("library_name",):
        if key in data and not isinstance(data[key], str):
            errors.append(f'"{key}" must be a string')
    if "model-index" in data:
        errors += _index_errors(data["model-index"])
    return errors


def _index_errors(index: Any) -> list[str]:
    errors = []
    if not isinstance(index, list) or not index:
        return ['"model-index" must be an array']
    for number, model in enumerate(index):
        place = f"model-index[{number}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            errors.append(f'"{place}.name" is required')
            continue
        for which, result in enumerate(model.get("results", [None])):
            at = f"{place}.results[{which}]"
            result = result if isinstance(result, dict) else {}
            if not isinstance(result.get("task"), dict) or not result["task"].get("type"):
                errors.append(f'"{at}.task.type" is required')
            dataset = result.get("dataset")
            for key in ("type", "name"):
                if not isinstance(dataset, dict) or not isinstance(dataset.get(key), str):
                    errors.append(f'"{at}.dataset.{key}" is required')
            metrics = result.get("metrics")
            if not isinstance(metrics, list) or any("type" not in one or "value" not in one for one in metrics):
                errors.append(f'"{at}.metrics" is required, each with type and value')
    return errors


def _dataset_errors(data: dict[str, Any]) -> list[str]:
    errors = _one_of(data, "task_categories", _TASKS) + _one_of(data, "size_categories", _SIZES)
    for config in _strings(data.get("configs", [])):
        if not isinstance(config, dict) or "config_name" not in config:
            errors.append('"configs[].config_name" is required')
    return errors
