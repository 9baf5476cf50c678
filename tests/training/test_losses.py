"""The plain formulas against constants worked by hand, and with everything masked."""

import math

import pytest
import torch

from hf_distil_whisper.training.losses import hidden_state_mse_loss, kl_divergence_loss, pseudo_label_loss

VOCAB = 23


def test_kl_divergence_is_the_constant_worked_by_hand():
    """Guards the direction (teacher ‖ student), the squared temperature and the mean over tokens that count."""
    # At T = 2 the logits (2 ln 3, 0) and (0, 0) are the distributions (3/4, 1/4) and (1/2, 1/2).
    teacher = torch.tensor([[[2 * math.log(3), 0.0], [5.0, 1.0]]])
    student = torch.zeros(1, 2, 2)
    labels = torch.tensor([[0, -100]])
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert kl_divergence_loss(student, teacher, labels, temperature=2.0).item() == pytest.approx(expected, rel=1e-6)
    swapped = 4 * (0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    assert kl_divergence_loss(teacher, student, labels, temperature=2.0).item() == pytest.approx(swapped, rel=1e-6)


def test_pseudo_label_loss_is_the_constant_worked_by_hand():
    """Guards against a mean over padding: two tokens of probability 1/4 and 1/2 give (ln 4 + ln 2) / 2."""
    logits = torch.tensor([[[math.log(3), 0.0], [0.0, 0.0], [9.0, 0.0]]])
    labels = torch.tensor([[1, 0, -100]])
    expected = math.log(4) + math.log(2)
    assert pseudo_label_loss(logits, labels).item() == pytest.approx(expected / 2, rel=1e-6)
    assert pseudo_label_loss(logits, labels, reduction="sum").item() == pytest.approx(expected, rel=1e-6)


def test_mse_pairs_layers_as_equation_11_and_sums_them():
    """A wrong pairing (first layers instead of spaced ones) would train quietly towards the wrong states."""
    teacher = [torch.full((1, 2, 3), float(layer)) for layer in range(33)]
    student = [torch.zeros(1, 2, 3) for _ in range(3)]
    labels = torch.tensor([[4, -100]])
    assert hidden_state_mse_loss(student, teacher, labels).item() == 16**2 + 32**2
    assert hidden_state_mse_loss(student, teacher, labels, layer_map=[1, 2]).item() == 1 + 4
    assert hidden_state_mse_loss(student, teacher, labels, reduction="none").tolist() == [[16.0**2 + 32**2, 0.0]]


def test_everything_masked_gives_zero():
    """A batch that is all prompt must not divide by 0 tokens."""
    logits, labels = torch.randn(3, 7, VOCAB), torch.full((3, 7), -100)
    assert kl_divergence_loss(logits, logits + 1, labels).item() == 0.0
    assert pseudo_label_loss(logits, labels).item() == 0.0
    assert hidden_state_mse_loss([logits] * 2, [logits] * 2, labels).item() == 0.0


def test_inputs_that_cannot_be_compared_are_refused():
    """Broadcasting compares states of different width without a word; a GPU asserts labels without naming a line."""
    labels = torch.zeros(1, 2, dtype=torch.long)
    narrow, wide = torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)
    for message, loss, inputs, settings in (
        ("from 0 to 2.*got 3", pseudo_label_loss, (narrow, labels + 3), {}),
        ("from 0 to 2.*got -5", pseudo_label_loss, (narrow, labels - 5), {}),
        ("expected 'mean', 'sum' or 'none', got 'max'", pseudo_label_loss, (narrow, labels), {"reduction": "max"}),
        ("same decoder inputs and vocabulary", kl_divergence_loss, (narrow, wide, labels), {}),
        ("3 wide, the teacher's 4.*mse_weight to 0", hidden_state_mse_loss, ([narrow] * 2, [wide] * 2, labels), {}),
        ("layer_map: expected 1 numbers", hidden_state_mse_loss, ([narrow] * 2, [wide] * 5, labels, [5]), {}),
    ):
        with pytest.raises(ValueError, match=message):
            loss(*inputs, **settings)
