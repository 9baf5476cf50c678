"""What a cache keeps of the teacher: a KL that is exact with the whole vocabulary, a bound from below with less."""

import pytest
import torch
from test_losses import VOCAB, example
from torch.autograd import gradcheck

from hf_distil_whisper.training.fused_loss import (
    TopKLogits,
    fused_distillation_loss,
    top_k_distillation_loss,
    top_k_logits,
)


def kept(inputs: dict[str, torch.Tensor], k: int, temperature: float = 2.0) -> TopKLogits:
    return top_k_logits(
        inputs["teacher_states"],
        inputs["teacher_head"],
        inputs["labels"],
        k=k,
        temperature=temperature,
        chunk_size=4,
    )


def student(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: inputs[name] for name in ("student_states", "student_head", "labels")}


def plain_bound(inputs: dict[str, torch.Tensor], k: int, temperature: float) -> torch.Tensor:
    """KL over k + 1 groups, from the logits of all tokens, averaged over those that count."""
    mask = inputs["labels"] != -100
    probs = [
        (states @ head.T)[mask].div(temperature).softmax(-1)
        for states, head in (
            (inputs["teacher_states"], inputs["teacher_head"]),
            (inputs["student_states"], inputs["student_head"]),
        )
    ]
    top = probs[0].topk(k).indices
    grouped = [torch.cat([p.gather(1, top), 1 - p.gather(1, top).sum(1, keepdim=True)], 1) for p in probs]
    return temperature**2 * (grouped[0] * (grouped[0].log() - grouped[1].log())).sum(-1).mean()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_with_the_whole_vocabulary_loss_and_gradients_are_the_exact_ones(temperature):
    """An empty tail is a difference of two infinities: one NaN in it would wipe out the student."""
    inputs = example()
    learned = [inputs["student_states"].requires_grad_(), inputs["student_head"].requires_grad_()]
    exact = fused_distillation_loss(**inputs, temperature=temperature)
    cached = top_k_distillation_loss(
        **student(inputs), teacher=kept(inputs, VOCAB, temperature), temperature=temperature, chunk_size=4
    )
    for name in ("loss", "kl", "pl"):
        torch.testing.assert_close(getattr(cached, name), getattr(exact, name), rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(out.loss, learned) for out in (cached, exact)]
    for gradient, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 5, VOCAB - 3])
def test_with_fewer_entries_loss_and_gradients_are_those_of_the_grouped_vocabulary(k):
    """Treating the tail as nothing, or as if it were kept, gives a gradient that looks right and is not."""
    inputs = example(torch.float64)
    learned = [inputs["student_states"].requires_grad_(), inputs["student_head"].requires_grad_()]
    expected = plain_bound(inputs, k, temperature=2.0)
    cached = top_k_distillation_loss(**student(inputs), teacher=kept(inputs, k), kl_weight=1.0, pl_weight=0.0)
    torch.testing.assert_close(cached.kl, expected.detach())
    gradients = [torch.autograd.grad(loss, learned) for loss in (cached.loss, expected)]
    for gradient, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, wanted)
    assert cached.kl < fused_distillation_loss(**inputs).kl


def test_the_cached_loss_passes_gradcheck_in_double_precision():
    """The gradients are formed by hand: autograd cannot notice a wrong sign."""
    inputs = example(torch.float64)
    teacher = kept(inputs, 4)

    def loss(states: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return top_k_distillation_loss(states, head, teacher, inputs["labels"], chunk_size=5).loss

    assert gradcheck(loss, (inputs["student_states"].requires_grad_(), inputs["student_head"].requires_grad_()))


def test_a_student_that_agrees_has_neither_divergence_nor_gradient_though_the_cache_is_rounded():
    """Half precision leaves probabilities that do not add up to 1, a pull on a student that has nothing to learn."""
    inputs = example()
    inputs["student_states"], inputs["student_head"] = inputs["teacher_states"], inputs["teacher_head"]
    teacher = kept(inputs, 6)
    teacher = teacher._replace(log_probs=teacher.log_probs.half())
    states = inputs["student_states"].requires_grad_()
    out = top_k_distillation_loss(**student(inputs), teacher=teacher, kl_weight=1.0, pl_weight=0.0)
    assert 0 <= out.kl.item() < 1e-5
    (gradient,) = torch.autograd.grad(out.loss, states)
    assert gradient.abs().max() < 1e-3


def test_a_tail_that_the_student_all_but_rules_out_gives_a_finite_gradient():
    """The teacher's tail over the student's is e^60 here: formed as a quotient it would overflow."""
    states = torch.tensor([[[1.0, 0.0]]])
    head = torch.tensor([[120.0, 0.0], [0.0, 0.0], [0.0, 1.0]], requires_grad=True)
    teacher = TopKLogits(torch.tensor([[0]]), torch.tensor([[0.5]]).log(), torch.tensor([0.5]).log())
    out = top_k_distillation_loss(states, head, teacher, torch.tensor([[0]]), kl_weight=1.0, pl_weight=0.0)
    (gradient,) = torch.autograd.grad(out.loss, head)
    assert out.kl.item() == pytest.approx(4 * 0.5 * (60 - 2 * torch.tensor(2.0).log().item()), rel=0.02)
    # Of 2 * (student - teacher), the tail of 1/2 in equal parts on the two entries that were not kept.
    torch.testing.assert_close(gradient[:, 0], torch.tensor([1.0, -0.5, -0.5]), rtol=1e-4, atol=1e-4)


def test_nothing_is_kept_of_tokens_that_do_not_count():
    """Prompts and padding would cost most of the disk."""
    inputs = example()
    teacher = kept(inputs, 3)
    assert [tuple(part.shape) for part in teacher] == [(15, 3), (15, 3), (15,)]
    assert torch.all(teacher.log_probs.exp().sum(1) + teacher.log_tail.exp() - 1 < 1e-5)
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    empty = kept(inputs, 3)
    assert [tuple(part.shape) for part in empty] == [(0, 3), (0, 3), (0,)]
    assert top_k_distillation_loss(**student(inputs), teacher=empty).loss.item() == 0.0


def test_a_cache_that_does_not_fit_is_refused():
    """Rows in another order would teach every token another one's distribution."""
    inputs = example()
    with pytest.raises(ValueError, match=f"k: expected a number of tokens from 1 to the vocabulary's {VOCAB}, got 24"):
        kept(inputs, VOCAB + 1)
    with pytest.raises(ValueError, match="got 0"):
        kept(inputs, 0)
    teacher = kept(inputs, 3)
    inputs["labels"][0, 0] = 1
    with pytest.raises(ValueError, match="cached teacher speaks of 15 tokens, but 16 labels count"):
        top_k_distillation_loss(**student(inputs), teacher=teacher)
