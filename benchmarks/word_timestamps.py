"""Compare a student's word timestamps with its teacher's, each on its own transcript.

    python benchmarks/word_timestamps.py runs/quickstart/student runs/quickstart/teacher \
        examples/quickstart/corpus --split test_kathleen --heads config last-layer "[[1, 0]]"

prints a Markdown table with a row for each choice of the student's alignment heads: those of its generation config,
all heads of its last decoder layer, or [layer, head] pairs. Words are paired by their text, in order, without case and
punctuation; the start of a recording's first word is not compared, since it is always 0.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

import numpy as np

from hf_distil_whisper import load_model, load_processor, load_source, transcribe
from hf_distil_whisper.inference.output import Word
from hf_distil_whisper.inference.word_timestamps import set_alignment_heads

TOLERANCE = 0.1
"""Seconds within which a start or end counts as equal."""


@dataclass
class WordTimeErrors:
    """Differences of word times, over the words that both transcripts have."""

    differences: list[float] = field(default_factory=list)  # seconds between starts and between ends
    num_common: int = 0  # words that both transcripts have
    num_within: int = 0  # of these, words whose start and end differ by at most 0.1 s
    num_words: int = 0  # words of the teacher

    def add(self, expected: Sequence[Word], words: Sequence[Word]) -> None:
        """Adds one recording: the teacher's words and the student's."""
        texts = [["".join(filter(str.isalnum, word.text.casefold())) for word in side] for side in (expected, words)]
        blocks = SequenceMatcher(None, *texts, autojunk=False).get_matching_blocks()
        for left, right in [(block.a + step, block.b + step) for block in blocks for step in range(block.size)]:
            start = abs(expected[left].start - words[right].start)
            end = abs(expected[left].end - words[right].end)
            self.differences += [end] if left == right == 0 else [start, end]
            self.num_within += max(start, end) <= TOLERANCE + 1e-6
            self.num_common += 1
        self.num_words += len(expected)

    def row(self, name: str) -> str:
        """A row of the table."""
        if not self.num_common:
            return f"| {name} | - | - | - | 0 of {self.num_words} |"
        median, ninety = np.percentile(self.differences, (50, 90))
        share = self.num_within / self.num_common
        return f"| {name} | {median:.2f} s | {ninety:.2f} s | {share:.1%} | {self.num_common} of {self.num_words} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="name or folder")
    parser.add_argument("teacher", help="name or folder; its generation config has alignment heads")
    parser.add_argument("corpus", help="recordings of up to 30 s; no text needed")
    parser.add_argument("--split", default="test", help="of the corpus (default: test)")
    parser.add_argument("--max_samples", type=int, help="recordings at most")
    parser.add_argument("--language", help="of the speech, for multilingual models")
    parser.add_argument("--batch_size", type=int, default=16, help="recordings per pass (default: 16)")
    parser.add_argument("--heads", nargs="+", default=["config", "last-layer"], help="default: config last-layer")
    args = parser.parse_args(argv)
    student, teacher, processor = load_model(args.student), load_model(args.teacher), load_processor(args.student)
    rows = load_source(args.corpus, split=args.split, max_samples=args.max_samples)
    audio = [row["audio"] for row in rows]
    options = {"return_timestamps": "word", "language": args.language, "batch_size": args.batch_size}
    expected = transcribe(teacher, processor, audio, **options)
    print("| heads | median | 90 % within | start and end within 0.1 s | common words |\n|---|---:|---:|---:|---:|")
    for name in args.heads:
        if name == "last-layer":
            last, width = student.config.decoder_layers - 1, student.config.decoder_attention_heads
            set_alignment_heads(student, [[last, head] for head in range(width)])
        elif name != "config":
            set_alignment_heads(student, json.loads(name))
        errors = WordTimeErrors()
        for ours, theirs in zip(transcribe(student, processor, audio, **options), expected, strict=True):
            errors.add(theirs.words, ours.words)
        print(errors.row(name))


if __name__ == "__main__":
    main()
