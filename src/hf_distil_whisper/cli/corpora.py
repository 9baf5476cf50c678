"""The paper's corpora by name: `corpus:librispeech/test.clean` as the place of a dataset.

What is known of each (Tables 2, 4 and 13, Appendix A) lies in `configs/corpora/`.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from hf_distil_whisper.cli.recipes import InputError, load_recipe, nearest, recipe_folder

PREFIX = "corpus:"
_ACCESS = ("open", "gated", "local")


@dataclass(frozen=True)
class Corpus:
    """A corpus of the paper.

    Args:
        name (`str`): as in `corpus:<name>`.
        hours (`float`): of training speech, or of the set to score on.
        domain (`str`): what is spoken about, and where.
        licence (`str`): under which its speech may be used.
        access (`str`): "open", "gated" (needs a consent on its page) or "local" (does not load from the Hub).
        source (`dict`): keys of [`DataSource`] that hold for all splits.
        splits (`dict[str, dict]`): further keys for each split.
        preparation (`str`): what is to be done, and to be known, before.
        speakers (`int`, *optional*): where known.
    """

    name: str
    hours: float
    domain: str
    licence: str
    access: Literal["open", "gated", "local"]
    source: dict[str, Any]
    splits: dict[str, dict[str, Any]]
    preparation: str
    speakers: int | None = field(default=None)

    def __post_init__(self) -> None:
        if self.access not in _ACCESS:
            raise InputError(f"corpus {self.name}: access is {self.access!r}, expected one of {', '.join(_ACCESS)}")


@lru_cache(maxsize=1)
def load_corpora() -> dict[str, Corpus]:
    """All corpora that come with the package, by name."""
    files = sorted((recipe_folder() / "corpora").glob("*.yaml"))
    return {name: Corpus(name, **facts) for file in files for name, facts in load_recipe(file).items()}


def corpus_source(place: str, flag: str) -> dict[str, Any]:
    """Turns the name of a corpus into keys of a [`DataSource`].

    Args:
        place (`str`): `"corpus:<name>"` for its first split, or `"corpus:<name>/<split>"`.
        flag (`str`): stands in error messages.

    Raises:
        InputError: for an unknown corpus or split; names those that exist.
    """
    name, _, split = place.removeprefix(PREFIX).partition("/")
    corpora = load_corpora()
    if name not in corpora:
        raise InputError(f"{flag}: no corpus {name!r}{nearest(name, list(corpora))}. Corpora: {', '.join(corpora)}")
    corpus = corpora[name]
    split = split or next(iter(corpus.splits))
    if split not in corpus.splits:
        raise InputError(f"{flag}: corpus {name} has no split {split!r}. Splits: {', '.join(corpus.splits)}")
    return {**corpus.source, **corpus.splits[split]}
