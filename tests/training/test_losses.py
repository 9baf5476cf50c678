"""Each fast path against the plain formula, against a constant worked by hand, and with everything masked."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from hf_distil_whisper.training.fused_loss import (
    distillation_token_losses,
    fused_distillation_loss,
)
from hf_distil_whisper.training.losses import (
    hidden_state_mse_loss,
    kl_divergence_loss,
    pseudo_label_loss,
)

VOCAB, WIDTH, TEACHER_WIDTH = 23, 6, 10


def example(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Three rows of seven tokens, a third of them masked; the teacher is wider than the student."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, VOCAB, (3, 7), generator=generator)
    labels[0, :4] = -100
    labels[2, 5:] = -100
    shapes = {
        "student_states": (3, 7, WIDTH),
        "student_head": (VOCAB, WIDTH),
        "teacher_states": (3, 7, TEACHER_WIDTH),
        "teacher_head": (VOCAB, TEACHER_WIDTH),
    }
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return tensors | {"labels": labels}


def plain(inputs: dict[str, torch.Tensor], **settings: float) -> torch.Tensor:
    student = inputs["student_states"] @ inputs["student_head"].T
    teacher = inputs["teacher_states"] @ inputs["teacher_head"].T
    kl = kl_divergence_loss(student, teacher, inputs["labels"], temperature=settings["temperature"])
    pl = pseudo_label_loss(student, inputs["labels"])
    return settings["kl_weight"] * kl + settings["pl_weight"] * pl


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
    assert pseudo_label_loss(logits, labels).item() == pytest.approx((math.log(4) + math.log(2)) / 2, rel=1e-6)


def test_mse_pairs_layers_as_equation_11_and_sums_them():
    """A wrong pairing (first layers instead of spaced ones) would train quietly towards the wrong states."""
    teacher = [torch.full((1, 2, 3), float(layer)) for layer in range(33)]
    student = [torch.zeros(1, 2, 3) for _ in range(3)]
    labels = torch.tensor([[4, -100]])
    assert hidden_state_mse_loss(student, teacher, labels).item() == 16**2 + 32**2
    assert hidden_state_mse_loss(student, teacher, labels, layer_map=[1, 2]).item() == 1 + 4
    assert hidden_state_mse_loss(student, teacher, labels, reduction="none").tolist() == [[16.0**2 + 32**2, 0.0]]


def test_identical_logits_have_no_divergence():
    """A teacher that gets other inputs than the student would show up here first."""
    logits = torch.randn(2, 5, VOCAB)
    labels = torch.randint(0, VOCAB, (2, 5))
    assert kl_divergence_loss(logits, logits, labels).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 4, 14, 1000])
@pytest.mark.parametrize(
    ("kl_weight", "pl_weight", "temperature"), [(0.8, 1.0, 2.0), (1.0, 0.0, 1.0), (0.0, 1.0, 2.0)]
)
def test_fused_loss_equals_the_plain_formula_in_value_and_every_gradient(
    chunk_size, kl_weight, pl_weight, temperature
):
    """Gradients formed by hand in the forward pass can be wrong while the value is right."""
    settings = {"kl_weight": kl_weight, "pl_weight": pl_weight, "temperature": temperature}
    inputs = example()
    learned = [inputs["student_states"].requires_grad_(), inputs["student_head"].requires_grad_()]
    expected = plain(inputs, **settings)
    expected_gradients = torch.autograd.grad(3.0 * expected, learned)
    out = fused_distillation_loss(**inputs, **settings, chunk_size=chunk_size)
    gradients = torch.autograd.grad(3.0 * out.loss, learned)
    assert out.num_tokens == 15
    torch.testing.assert_close(out.loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kl_weight * out.kl + pl_weight * out.pl, out.loss, rtol=1e-5, atol=1e-5)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5)


def test_fused_loss_passes_gradcheck_in_double_precision():
    """Float32 hides gradients that are off by a small factor."""
    inputs = example(torch.float64)

    def loss(states: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return fused_distillation_loss(
            **(inputs | {"student_states": states, "student_head": head}), chunk_size=4
        ).loss

    assert gradcheck(loss, (inputs["student_states"].requires_grad_(), inputs["student_head"].requires_grad_()))


@pytest.mark.parametrize("learned", ["student_states", "student_head"])
def test_fused_loss_gives_the_same_gradient_where_only_one_input_is_trained(learned):
    """A frozen decoder trains the head alone, a frozen head the states alone."""
    inputs = example()
    inputs[learned].requires_grad_()
    (expected,) = torch.autograd.grad(plain(inputs, kl_weight=0.8, pl_weight=1.0, temperature=2.0), inputs[learned])
    (gradient,) = torch.autograd.grad(fused_distillation_loss(**inputs).loss, inputs[learned])
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_the_teacher_gets_no_gradient():
    """Else a teacher whose weights were not frozen would be trained along."""
    inputs = example()
    for tensor in inputs.values():
        tensor.requires_grad_(tensor.is_floating_point())
    fused_distillation_loss(**inputs).loss.backward()
    plain(inputs, kl_weight=1.0, pl_weight=1.0, temperature=2.0).backward()
    assert inputs["teacher_states"].grad is None
    assert inputs["teacher_head"].grad is None


def test_everything_masked_gives_zero_loss_and_zero_gradients():
    """A batch that is all prompt must not turn the weights into NaN, nor leave a process without gradients."""
    inputs = example()
    labels = torch.full_like(inputs["labels"], -100)
    inputs["labels"] = labels
    learned = [inputs["student_states"].requires_grad_(), inputs["student_head"].requires_grad_()]
    out = fused_distillation_loss(**inputs)
    assert (out.loss.item(), out.kl.item(), out.pl.item(), out.num_tokens) == (0.0, 0.0, 0.0, 0)
    assert all(not gradient.any() for gradient in torch.autograd.grad(out.loss, learned))
    logits = torch.randn(3, 7, VOCAB)
    assert kl_divergence_loss(logits, logits + 1, labels).item() == 0.0
    assert pseudo_label_loss(logits, labels).item() == 0.0
    assert hidden_state_mse_loss([logits] * 2, [logits] * 2, labels).item() == 0.0
    assert not distillation_token_losses(**inputs)[1].any()


def test_sums_are_means_times_tokens():
    """The trainer divides sums by the tokens of all micro-batches; a hidden mean would weight short batches more."""
    inputs = example()
    mean, total = fused_distillation_loss(**inputs), fused_distillation_loss(**inputs, reduction="sum")
    for name in ("loss", "kl", "pl"):
        torch.testing.assert_close(getattr(total, name), 15 * getattr(mean, name))
    logits = torch.randn(3, 7, VOCAB)
    torch.testing.assert_close(
        pseudo_label_loss(logits, inputs["labels"], reduction="sum"),
        15 * pseudo_label_loss(logits, inputs["labels"]),
    )


def test_token_losses_equal_the_plain_ones_without_reduction():
    """Evaluation adds up rows over processes; a token in the wrong row would count for another recording."""
    inputs = example()
    kl, pl = distillation_token_losses(**inputs, chunk_size=4)
    student = inputs["student_states"] @ inputs["student_head"].T
    teacher = inputs["teacher_states"] @ inputs["teacher_head"].T
    expected = kl_divergence_loss(student, teacher, inputs["labels"], temperature=1.0, reduction="none")
    torch.testing.assert_close(kl, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pl, pseudo_label_loss(student, inputs["labels"], "none"), rtol=1e-5, atol=1e-5)


def test_mixed_precision_stays_close_and_returns_gradients_of_the_weights_precision():
    """Under autocast the products are in bfloat16; sums over the vocabulary and the head's gradient must not be."""
    inputs = example()
    learned = [inputs["student_states"].requires_grad_(), inputs["student_head"].requires_grad_()]
    expected = fused_distillation_loss(**inputs)
    exact = torch.autograd.grad(expected.loss, learned)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = fused_distillation_loss(**inputs, chunk_size=4)
    gradients = torch.autograd.grad(out.loss, learned)
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=0.02)
    for gradient, other in zip(gradients, exact, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, other, rtol=0.1, atol=0.02)


def test_fused_loss_never_holds_the_logits_of_all_tokens(monkeypatch):
    """The reason for its existence: memory must not grow with the number of tokens times the vocabulary."""
    inputs = example()
    inputs["student_states"].requires_grad_()
    sizes = []
    log_softmax = torch.nn.functional.log_softmax
    monkeypatch.setattr(
        "torch.nn.functional.log_softmax", lambda values, dim: sizes.append(len(values)) or log_softmax(values, dim)
    )
    loss = fused_distillation_loss(**inputs, chunk_size=4).loss
    kept = [tensor for tensor in loss.grad_fn.next_functions[0][0].saved_tensors if tensor is not None]
    assert max(sizes) == 4
    assert all(tensor.shape[-1] != VOCAB for tensor in kept)


@pytest.mark.parametrize("bad", [VOCAB, -5])
def test_labels_outside_the_vocabulary_are_named(bad):
    """On a GPU they are an assertion without a line, or a wrong token's gradient."""
    inputs = example()
    inputs["labels"][1, 1] = bad
    with pytest.raises(ValueError, match=f"from 0 to {VOCAB - 1}.*got {bad}"):
        fused_distillation_loss(**inputs)
    with pytest.raises(ValueError, match=f"got {bad}"):
        pseudo_label_loss(torch.zeros(3, 7, VOCAB), inputs["labels"])


def test_settings_without_meaning_are_refused():
    """Each would otherwise end in a loop without end, a division by zero or a silent 0."""
    inputs = example()
    with pytest.raises(ValueError, match="chunk_size: expected at least 1 token, got 0"):
        fused_distillation_loss(**inputs, chunk_size=0)
    with pytest.raises(ValueError, match="temperature: expected a number above 0"):
        fused_distillation_loss(**inputs, temperature=0.0)
    with pytest.raises(ValueError, match="expected 'mean' or 'sum', got 'none'"):
        fused_distillation_loss(**inputs, reduction="none")
    with pytest.raises(ValueError, match=r"kl_weight is 0\.8, but there is no teacher"):
        fused_distillation_loss(**(inputs | {"teacher_states": None, "teacher_head": None}))
    with pytest.raises(ValueError, match="need the same vocabulary"):
        fused_distillation_loss(**(inputs | {"teacher_head": torch.zeros(VOCAB + 1, TEACHER_WIDTH)}))
    with pytest.raises(ValueError, match="same decoder inputs and vocabulary"):
        kl_divergence_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="expected 'mean', 'sum' or 'none', got 'max'"):
        pseudo_label_loss(torch.zeros(3, 7, VOCAB), inputs["labels"], reduction="max")


def test_states_that_cannot_be_compared_are_refused():
    """Broadcasting could otherwise compare states of different width without a word."""
    labels = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"3 wide, the teacher's 4.*mse_weight to 0"):
        hidden_state_mse_loss([torch.zeros(1, 2, 3)] * 2, [torch.zeros(1, 2, 4)] * 2, labels)
    with pytest.raises(ValueError, match="layer_map: expected 1 numbers from 0 to 4"):
        hidden_state_mse_loss([torch.zeros(1, 2, 3)] * 2, [torch.zeros(1, 2, 3)] * 5, labels, layer_map=[5])


def test_labels_alone_need_no_teacher():
    """The baseline of Table 21: pseudo-labels without KL."""
    inputs = example() | {"teacher_states": None, "teacher_head": None}
    out = fused_distillation_loss(**inputs, kl_weight=0.0)
    expected = pseudo_label_loss(inputs["student_states"] @ inputs["student_head"].T, inputs["labels"])
    torch.testing.assert_close(out.loss, expected, rtol=1e-5, atol=1e-5)
    assert out.kl.item() == 0.0
