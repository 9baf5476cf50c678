"""How far a student's word times are from its teacher's, and who wrote which words. Knows transcripts and counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import check_compatible
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.inference.alignment_heads import (
    NEAR_SECONDS,
    Reading,
    read_rows,
    teacher_heads,
)
from hf_distil_whisper.inference.output import Word
from hf_distil_whisper.inference.prompt import timestamp_begin
from hf_distil_whisper.inference.word_timestamps import (
    alignment_heads,
    join_words,
    prefix_language,
    time_tokens,
)


@dataclass(frozen=True)
class WordTimeErrors:
    """How far a student's word times are from its teacher's, over the words that both wrote; two of them add up.

    Args:
        differences (`tuple[float, ...]`): seconds, of the start and the end of each word; not of the start of a
            window's first word, which is 0 by construction.
        num_common (`int`): words that both wrote.
        within (`int`): of these, words whose start and end are at most 0.1 s away.
        num_words (`int`): that the teacher wrote.
        num_recordings (`int`): compared.
        num_without_common (`int`): recordings in which both wrote no word in common: silence, or a failure of one.
    """

    differences: tuple[float, ...] = ()
    num_common: int = 0
    within: int = 0
    num_words: int = 0
    num_recordings: int = 0
    num_without_common: int = 0

    def __add__(self, other: "WordTimeErrors") -> "WordTimeErrors":
        return WordTimeErrors(
            self.differences + other.differences,
            self.num_common + other.num_common,
            self.within + other.within,
            self.num_words + other.num_words,
            self.num_recordings + other.num_recordings,
            self.num_without_common + other.num_without_common,
        )

    def percentile(self, percent: float) -> float:
        """Seconds that so many per cent of the differences do not exceed; 50 for the median."""
        if not self.differences:
            raise ValueError(
                f"No word time to compare: teacher and student have {self.num_common} words in common in "
                f"{self.num_recordings} recordings ({self.num_words} words of the teacher). Take other recordings, or "
                "train the student first."
            )
        return float(np.percentile(self.differences, percent))

    @property
    def share_within(self) -> float:
        """Share of the common words whose start and end are at most 0.1 s from the teacher's."""
        return self.within / self.num_common if self.num_common else 0.0


def compare_word_times(
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    dataset: Dataset | Sequence[Mapping],
    errors: RowErrors,
    *,
    language: str | None = None,
    batch_size: int = 16,
) -> WordTimeErrors:
    """Measures how far the student's word times are from its teacher's, each on its own transcript.

    Words are paired by their text, case and punctuation left out, in order. Take other rows than the heads were found
    on.

    Args:
        student (`WhisperForConditionalGeneration`): in eval mode, with alignment heads.
        teacher (`WhisperForConditionalGeneration`): of the same vocabulary, in eval mode; see [`find_alignment_heads`]
            for one without heads.
        processor (`WhisperProcessor`): of both.
        dataset (`Dataset` or `Sequence[Mapping]`): rows with `audio`, up to a window each.
        errors (`RowErrors`): takes the rows that cannot be read or are longer.
        language (`str`, *optional*): of multilingual models; detected where left out.
        batch_size (`int`, *optional*, defaults to 16): recordings in one pass.

    Returns:
        [`WordTimeErrors`]

    Raises:
        ValueError: for a teacher of another vocabulary, or a student without alignment heads.
    """
    check_compatible(student, teacher, processor)
    own_heads = alignment_heads(student)
    theirs = read_rows(teacher, processor, dataset, errors, language=language, batch_size=batch_size)
    ours = read_rows(student, processor, dataset, RowErrors(), language=language, batch_size=batch_size)
    heads = teacher_heads(teacher, list(theirs.values()))
    found = WordTimeErrors()
    for row in theirs:
        expected = _words(teacher, processor, theirs[row], heads)
        found += pair_words(expected, _words(student, processor, ours[row], own_heads))
    return found


def pair_words(expected: Sequence[Word], words: Sequence[Word]) -> WordTimeErrors:
    """Times of the words that two transcripts of one recording have in common.

    Args:
        expected (`Sequence[Word]`): the teacher's.
        words (`Sequence[Word]`): the student's.
    """
    texts = [["".join(filter(str.isalnum, word.text.casefold())) for word in own] for own in (expected, words)]
    blocks = SequenceMatcher(None, texts[0], texts[1], autojunk=False).get_matching_blocks()
    pairs = [(block.a + step, block.b + step) for block in blocks for step in range(block.size)]
    differences: list[float] = []
    within = 0
    for left, right in pairs:
        start, end = abs(expected[left].start - words[right].start), abs(expected[left].end - words[right].end)
        differences += [end] if left == right == 0 else [start, end]
        within += max(start, end) <= NEAR_SECONDS + 1e-6
    return WordTimeErrors(tuple(differences), len(pairs), within, len(expected), 1, int(not pairs))


def _words(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    reading: Reading,
    heads: Sequence[tuple[int, int]],
) -> list[Word]:
    timed = time_tokens(model, reading.states, reading.prefix, reading.tokens, reading.positions, heads=heads)
    return join_words(timed, processor.tokenizer, timestamp_begin(model), prefix_language(model, reading.prefix))
