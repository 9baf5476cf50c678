"""The fused losses against the plain formulas, in value and every gradient."""

import pytest
import torch

from hf_distil_whisper.training.fused_loss import distillation_token_losses, fused_distillation_loss
from hf_distil_whisper.training.losses import kl_divergence_loss, pseudo_label_loss

VOCAB, WIDTH, TEACHER_WIDTH = 23, 6, 10
Inputs = dict[str, torch.Tensor]


def example(dtype: torch.dtype = torch.float32) -> Inputs:
    """Three rows of seven tokens, six of them masked; the teacher is wider than the student."""
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


def require_gradients(inputs: Inputs, *models: str) -> list[torch.Tensor]:
    return [inputs[f"{model}_{part}"].requires_grad_() for model in models for part in ("states", "head")]


def logits(inputs: Inputs) -> list[torch.Tensor]:
    """Of student and teacher, (3, 7, vocab)."""
    return [inputs[f"{model}_states"] @ inputs[f"{model}_head"].T for model in ("student", "teacher")]


def plain(inputs: Inputs, kl_weight: float = 0.8, pl_weight: float = 1.0, temperature: float = 2.0) -> torch.Tensor:
    student, teacher = logits(inputs)
    kl = kl_divergence_loss(student, teacher, inputs["labels"], temperature=temperature)
    return kl_weight * kl + pl_weight * pseudo_label_loss(student, inputs["labels"])


def assert_close(values, expected, tolerance: float = 1e-5) -> None:
    for value, other in zip(values, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("chunk_size", [1, 4, 14, 1000])
@pytest.mark.parametrize("settings", [(0.8, 1.0, 2.0), (1.0, 0.0, 1.0), (0.0, 1.0, 2.0)], ids=str)
def test_fused_loss_equals_the_plain_formula_in_value_and_every_gradient(chunk_size, settings):
    """Gradients formed by hand can be wrong while the value is right; the teacher must get none."""
    inputs, names = example(), ("kl_weight", "pl_weight", "temperature")
    weights = dict(zip(names, settings, strict=True))
    learned = require_gradients(inputs, "student", "teacher")
    expected = plain(inputs, **weights)
    out = fused_distillation_loss(**inputs, **weights, chunk_size=chunk_size)
    gradients, others = (torch.autograd.grad(3.0 * one, learned, allow_unused=True) for one in (out.loss, expected))
    assert gradients[2:] == others[2:] == (None, None)
    total = settings[0] * out.kl + settings[1] * out.pl
    assert_close([out.loss, total, *gradients[:2]], [expected, expected, *others[:2]])
    # The trainer divides sums by the tokens of all micro-batches; a hidden mean would weight short batches more.
    sums = fused_distillation_loss(**inputs, **weights, chunk_size=chunk_size, reduction="sum")
    assert sums.num_tokens == out.num_tokens == 15
    assert_close(sums[:3], [15 * value for value in out[:3]])


@pytest.mark.parametrize("learned", ["student_states", "student_head"])
def test_fused_loss_gives_the_same_gradient_where_only_one_input_is_trained(learned):
    """A frozen decoder trains the head alone, a frozen head the states alone."""
    inputs = example()
    inputs[learned].requires_grad_()
    losses = (fused_distillation_loss(**inputs).loss, plain(inputs))
    assert_close(*(torch.autograd.grad(loss, inputs[learned]) for loss in losses))


def test_everything_masked_gives_zero_loss_and_zero_gradients():
    """A batch that is all prompt must not turn the weights into NaN, nor leave a process without gradients."""
    inputs = example()
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    learned = require_gradients(inputs, "student")
    out = fused_distillation_loss(**inputs)
    assert (out.loss.item(), out.kl.item(), out.pl.item(), out.num_tokens) == (0.0, 0.0, 0.0, 0)
    assert all(not gradient.any() for gradient in torch.autograd.grad(out.loss, learned))
    assert not distillation_token_losses(**inputs)[1].any()


def test_token_losses_equal_the_plain_ones_without_reduction():
    """Evaluation adds up rows over processes; a token in the wrong row would count for another recording."""
    inputs = example()
    kl, pl = distillation_token_losses(**inputs, chunk_size=4)
    student, teacher = logits(inputs)
    expected = kl_divergence_loss(student, teacher, inputs["labels"], temperature=1.0, reduction="none")
    assert_close([kl, pl], [expected, pseudo_label_loss(student, inputs["labels"], "none")])


def test_mixed_precision_stays_close_and_returns_gradients_of_the_weights_precision():
    """Under autocast the products are in bfloat16; sums over the vocabulary and the head's gradient must not be."""
    inputs = example()
    learned = require_gradients(inputs, "student")
    expected = fused_distillation_loss(**inputs)
    exact = torch.autograd.grad(expected.loss, learned)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = fused_distillation_loss(**inputs, chunk_size=4)
    gradients = torch.autograd.grad(out.loss, learned)
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=0.02)
    for gradient, other in zip(gradients, exact, strict=True):
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
    saved = [tensor for tensor in loss.grad_fn.next_functions[0][0].saved_tensors if tensor is not None]
    assert max(sizes) == 4
    assert all(tensor.shape[-1] != VOCAB for tensor in saved)


def test_labels_alone_need_no_teacher():
    """The baseline of Table 21: pseudo-labels without KL."""
    inputs = example() | {"teacher_states": None, "teacher_head": None}
    out = fused_distillation_loss(**inputs, kl_weight=0.0)
    expected = pseudo_label_loss(inputs["student_states"] @ inputs["student_head"].T, inputs["labels"])
    assert_close([out.loss], [expected])
    assert out.kl.item() == 0.0


def test_settings_without_meaning_are_refused():
    """Each would be an endless loop, a silent 0, or an assertion of the GPU."""
    inputs = example()
    labels = inputs["labels"]
    for message, changes in (
        ("chunk_size: expected at least 1 token, got 0", {"chunk_size": 0}),
        ("temperature: expected a number above 0", {"temperature": 0.0}),
        ("expected 'mean' or 'sum', got 'none'", {"reduction": "none"}),
        (r"kl_weight is 0\.8, but there is no teacher", {"teacher_states": None, "teacher_head": None}),
        ("need the same vocabulary", {"teacher_head": torch.zeros(VOCAB + 1, TEACHER_WIDTH)}),
        (f"from 0 to {VOCAB - 1}.*got {VOCAB}", {"labels": labels.index_fill(1, torch.tensor(1), VOCAB)}),
    ):
        with pytest.raises(ValueError, match=message):
            fused_distillation_loss(**(inputs | changes))
