"""Characters for the encoder's CTC head, and the times of words by CTC's best path through known characters."""

import re

import torch

CHARACTERS = " abcdefghijklmnopqrstuvwxyz'"
BLANK = len(CHARACTERS)


def spell(text: str) -> list[int]:
    """Ids of the characters of a text as the CTC head writes it: lower case, letters, apostrophes, single spaces."""
    return [CHARACTERS.index(letter) for letter in clean(text)]


def clean(text: str) -> str:
    """Lower case, hyphens as spaces, no punctuation."""
    return " ".join(re.sub(r"[^a-z' ]", "", text.lower().replace("-", " ")).split())


def greedy(log_probs: torch.Tensor) -> str:
    """Best character a frame, repeats and blanks dropped. `log_probs`: (frames, characters + 1)."""
    best = torch.unique_consecutive(log_probs.argmax(-1)).tolist()
    return "".join(CHARACTERS[index] for index in best if index != BLANK)


def best_path(log_probs: torch.Tensor, ids: list[int]) -> list[tuple[int, int]]:
    """First and last frame of each character on the best CTC path.

    Args:
        log_probs (`torch.Tensor`): (frames, characters + 1).
        ids (`list[int]`): the characters that were spoken; twice as many frames as characters suffice.
    """
    states = torch.full((2 * len(ids) + 1,), BLANK)
    states[1::2] = torch.tensor(ids)
    emission = log_probs[:, states]
    skip = torch.zeros(len(states), dtype=torch.bool)
    skip[3::2] = states[3::2] != states[1:-2:2]
    score = torch.full((len(states),), -1e9)
    score[:2] = emission[0, :2]
    steps = torch.zeros(emission.shape, dtype=torch.int8)
    far = torch.full((1,), -1e9)
    for frame in range(1, len(emission)):
        one = torch.cat([far, score[:-1]])
        two = torch.where(skip, torch.cat([far, far, score[:-2]]), far)
        score, steps[frame] = torch.stack([score, one, two]).max(dim=0)
        score = score + emission[frame]
    state = len(states) - 1 if score[-1] >= score[-2] else len(states) - 2
    spans: list[list[int]] = [[-1, -1] for _ in ids]
    for frame in range(len(emission) - 1, -1, -1):
        if state % 2 == 1:
            span = spans[state // 2]
            span[0], span[1] = frame, frame if span[1] < 0 else span[1]
        state -= int(steps[frame, state])
    return [(start, end) for start, end in spans]


def word_times(log_probs: torch.Tensor, text: str, frames_per_step: int = 2) -> list[tuple[int, int]]:
    """Start and end of each word of `text` (split at white space), in frames of 10 ms.

    A CTC head fires in the middle of a character, so that a word is taken to begin half-way from the last letter of
    the word before it, at most 60 ms early, and to end likewise.
    """
    spans = best_path(log_probs, spell(text))
    position, words = 0, []
    for word in text.split():
        letters = len(clean(word))
        words.append((spans[position][0], spans[position + letters - 1][1]))
        position += letters + 1
    times = []
    for index, (start, end) in enumerate(words):
        before = words[index - 1][1] if index else 0
        after = words[index + 1][0] if index + 1 < len(words) else len(log_probs) - 1
        times.append((max(start - 3, (before + start) // 2), min(end + 3, (end + after + 1) // 2)))
    return [(frames_per_step * start, frames_per_step * (end + 1)) for start, end in times]
