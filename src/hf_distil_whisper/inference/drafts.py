"""How many tokens an assistant drafts at a time, and what came of its drafts.

Knows counts only, no models.
"""

from dataclasses import dataclass, fields

LONGEST_DRAFT = 16
"""Tokens of a draft at most: what a sure assistant gains by more is below what a single rejection costs."""

_PRIOR_ACCEPTED, _PRIOR_TESTED = 9, 10
"""Counted before the first draft: a student agrees with its teacher about nine tokens in ten."""


@dataclass(frozen=True)
class DraftCounts:
    """What came of the drafts for one recording, or for several.

    Args:
        tokens (`int`): written, `<|endoftext|>` included.
        drafted (`int`): by the assistant.
        accepted (`int`): of those drafted, by the main model.
        tested (`int`): of those drafted, up to and with the first rejected one of each draft.
        checks (`int`): passes of the main model; it would have taken `tokens` by itself.
    """

    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    tested: int = 0
    checks: int = 0

    def __add__(self, other: "DraftCounts") -> "DraftCounts":
        return DraftCounts(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))

    @property
    def acceptance_rate(self) -> float:
        """Share of the drafted tokens that the main model accepted; NaN where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else float("nan")

    @property
    def checks_saved(self) -> float:
        """Share of the main model's passes that were saved; NaN where nothing was written."""
        return 1 - self.checks / self.tokens if self.tokens else float("nan")


def tokens_per_check(acceptance: float, draft_length: int) -> float:
    """Tokens that a pass of the main model is expected to yield, (1 - α^(n+1)) / (1 - α).

    Args:
        acceptance (`float`): α, probability that the main model agrees with one more token, 0 to 1.
        draft_length (`int`): n, tokens drafted.

    Source: Leviathan et al., Fast Inference from Transformers via Speculative Decoding, equation 1.
    """
    if acceptance == 1:
        return draft_length + 1.0
    return (1 - acceptance ** (draft_length + 1)) / (1 - acceptance)


def best_draft_length(acceptance: float, cost: float, longest: int = LONGEST_DRAFT) -> int:
    """The draft length with the most tokens per unit of time.

    Args:
        acceptance (`float`): α, probability that the main model agrees with one more token.
        cost (`float`): c, time of the assistant's step in units of a pass of the main model.
        longest (`int`, *optional*, defaults to 16): tokens of a draft at most.

    Returns:
        `int`: n that maximises (1 - α^(n+1)) / ((1 - α)(n·c + 1)), from 1 to `longest`.

    Source: Leviathan et al., theorem 3.8.
    """
    return max(range(1, longest + 1), key=lambda length: tokens_per_check(acceptance, length) / (length * cost + 1))


class DraftLength:
    """Chooses the length of the next draft by how the ones before fared.

    Args:
        cost (`float`): time of the assistant's step in units of a pass of the main model.
        fixed (`int`, *optional*): always this length.

    Raises:
        ValueError: if the fixed length is no positive number.
    """

    def __init__(self, cost: float, fixed: int | None = None):
        if fixed is not None and fixed < 1:
            raise ValueError(f"`draft_length` is {fixed}, expected at least 1, or None: chosen by the acceptance.")
        self.cost, self.fixed = cost, fixed
        self.accepted, self.tested = _PRIOR_ACCEPTED, _PRIOR_TESTED

    def observe(self, accepted: int, tested: int) -> None:
        """Takes note of a draft's fate, or of those of a batch.

        Args:
            accepted (`int`): tokens that were accepted.
            tested (`int`): those, and the first one rejected.
        """
        self.accepted += accepted
        self.tested += tested

    def choose(self) -> int:
        """Tokens to draft next."""
        return self.fixed or best_draft_length(self.accepted / self.tested, self.cost)
