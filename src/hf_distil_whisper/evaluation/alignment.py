"""Which word became which: reference and hypothesis of an utterance side by side, errors marked, worst ones first.

Knows texts and jiwer's alignment, the one that the counts come from. The layout is that of NIST's sclite.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jiwer

from hf_distil_whisper.evaluation.scoring import EvaluationResult

Operation = Literal["hit", "substitution", "deletion", "insertion"]

_OPERATIONS: dict[str, Operation] = {
    "equal": "hit",
    "substitute": "substitution",
    "delete": "deletion",
    "insert": "insertion",
}
_MARKS = {"hit": "", "substitution": "S", "deletion": "D", "insertion": "I"}
_MISSING = "***"


class AlignedWord(NamedTuple):
    """A word of the reference and what was recognised in its place.

    Args:
        operation (`str`): "hit", "substitution", "deletion" or "insertion".
        reference (`str`, *optional*): None for an insertion.
        hypothesis (`str`, *optional*): None for a deletion.
    """

    operation: Operation
    reference: str | None
    hypothesis: str | None


@dataclass(frozen=True)
class AlignedUtterance:
    """A row of a data set with its words aligned.

    Args:
        id (`str`): of the row.
        wer (`float`): its rate, a fraction.
        words (`list[AlignedWord]`): in order; characters for languages without spaces.
    """

    id: str
    wer: float
    words: list[AlignedWord]

    @property
    def num_errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return sum(word.operation != "hit" for word in self.words)

    def text(self, width: int = 110) -> str:
        """The id with its rate, then the lines of [`alignment_text`].

        Args:
            width (`int`, *optional*, defaults to 110): characters of a line at most.
        """
        errors = f"{self.num_errors} error{'' if self.num_errors == 1 else 's'}"
        return f"{self.id}: {errors}, WER {self.wer:.1%}\n{alignment_text(self.words, width)}"


def align_words(reference: str, hypothesis: str, *, characters: bool = False) -> list[AlignedWord]:
    """Aligns the words of two texts with as few errors as possible.

    Args:
        reference (`str`): what was spoken; normalise both texts first if case and punctuation shall not count.
        hypothesis (`str`): what was recognised.
        characters (`bool`, *optional*, defaults to `False`): align characters, white space left out.

    Returns:
        `list[AlignedWord]`: in order, as many of each operation as [`word_errors`] counts.

    Example:
        ```python
        >>> align_words("the cat sat", "a cat")
        [('substitution', 'the', 'a'), ('hit', 'cat', 'cat'), ('deletion', 'sat', None)]
        ```
    """
    if characters:
        reference, hypothesis = "".join(reference.split()), "".join(hypothesis.split())
    found = (jiwer.process_characters if characters else jiwer.process_words)(reference, hypothesis)
    spoken, recognised = found.references[0], found.hypotheses[0]
    words = []
    for part in found.alignments[0]:
        ours = spoken[part.ref_start_idx : part.ref_end_idx]
        theirs = recognised[part.hyp_start_idx : part.hyp_end_idx]
        for place in range(max(len(ours), len(theirs))):
            pair = (ours[place] if ours else None, theirs[place] if theirs else None)
            words.append(AlignedWord(_OPERATIONS[part.type], *pair))
    return words


def alignment_text(words: Sequence[AlignedWord], width: int = 110) -> str:
    """Aligned words as text: lines REF and HYP with errors in capitals and `***` for a missing word, and their kinds.

    Args:
        words (`Sequence[AlignedWord]`): from [`align_words`].
        width (`int`, *optional*, defaults to 110): characters of a line at most; longer texts go on in further blocks.

    Example:
        ```python
        >>> print(alignment_text(align_words("the cat sat", "a cat")))
        REF: THE cat SAT
        HYP: A   cat ***
             S       D
        ```
    """
    blocks: list[list[str]] = [["REF:", "HYP:", "    "]]
    for word in words:
        cells = [_shown(word, word.reference), _shown(word, word.hypothesis), _MARKS[word.operation]]
        size = max(map(_columns, cells))
        if _columns(blocks[-1][0]) + 1 + size > width and len(blocks[-1][0]) > 4:
            blocks.append(["REF:", "HYP:", "    "])
        for line, cell in enumerate(cells):
            blocks[-1][line] += " " + cell + " " * (size - _columns(cell))
    return "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks)


def worst_utterances(result: EvaluationResult, k: int = 10) -> list[AlignedUtterance]:
    """The rows that cost the most errors, their normalised texts aligned.

    By the number of errors, where a rate would put each one-word utterance with one error first; of as many errors,
    the higher rate comes first. Rows without an error or a reference are none of them.

    Args:
        result (`EvaluationResult`): of [`evaluate_model`] or [`evaluate_long_form`].
        k (`int`, *optional*, defaults to 10): rows at most.

    Returns:
        `list[AlignedUtterance]`: worst first.

    Raises:
        ValueError: if `k` is not positive.
    """
    if k < 1:
        raise ValueError(f"worst_utterances: expected k >= 1, got {k}.")
    wrong = [row for row in result.rows if row["wer"]]
    worst = sorted(wrong, key=lambda row: (-_num_errors(row), -row["wer"]))[:k]
    characters = result.unit == "character"
    return [
        AlignedUtterance(
            row["id"],
            row["wer"],
            align_words(row["normalized_reference"], row["normalized_prediction"], characters=characters),
        )
        for row in worst
    ]


def _num_errors(row: dict) -> int:
    return row["substitutions"] + row["deletions"] + row["insertions"]


def _shown(word: AlignedWord, text: str | None) -> str:
    if text is None:
        return _MISSING
    return text if word.operation == "hit" else text.upper()


def _columns(text: str) -> int:
    """Places in a terminal: East Asian characters take two, combining marks none."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )
