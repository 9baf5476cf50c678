"""What both cards are written with: names that are safe to publish, cells that break no table, licences, versions.

Knows strings and the front matter of other cards; what a card says is known by `model_card` and `dataset_card`.
"""

import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

import yaml
from huggingface_hub import RepoCard, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers.utils import logging

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
