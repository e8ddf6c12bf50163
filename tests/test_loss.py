"""loss.py against torch's own cross entropy of all logits at once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import loss
from loss import ChunkedCrossEntropy, cross_entropy

VOCABULARY, PADDING = 37, 3


def problem(n, bias, dtype=torch.float64):
    """x, weight and bias, which learn, and what cross_entropy takes besides."""
    torch.manual_seed(n)
    learned = [torch.randn(n, 8), torch.randn(VOCABULARY, 8), torch.randn(VOCABULARY) if bias else None]
    learned = [each if each is None else each.to(dtype).requires_grad_() for each in learned]
    padding = torch.zeros(VOCABULARY, dtype=dtype)
    padding[-PADDING:] = -torch.inf
    targets = torch.randint(VOCABULARY - PADDING, (n,))
    targets[::3] = -100
    return learned, padding, targets


def at_once(x, weight, bias, padding, targets, softcap):
    logits = torch.nn.functional.linear(x, weight, bias).float()
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    return torch.nn.functional.cross_entropy(logits + padding, targets, ignore_index=-100, reduction='none')


def gradients(function, learned, *others, weights=None):
    """The losses, and the gradients of their sum, or of their sum with weights."""
    losses = function(*learned, *others)
    total = 2.5 * losses.sum() if weights is None else (losses * weights).sum()
    return [losses.detach(), *torch.autograd.grad(total, [each for each in learned if each is not None])]


@given(
    st.integers(1, 40), st.integers(1, 2000), st.booleans(), st.sampled_from([0.0, 0.5, 15.0]), st.booleans()
)
def test_chunks_of_any_size_give_the_losses_and_the_gradients_of_all_at_once(
    n, chunk, bias, softcap, weighted
):
    learned, padding, targets = problem(n, bias)
    weights = torch.randn(n) if weighted else None
    expected = gradients(at_once, learned, padding, targets, softcap, weights=weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, 'CHUNK', chunk)
        found = gradients(cross_entropy, learned, padding, targets, softcap, weights=weights)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5, check_dtype=False)


def test_where_nothing_is_predicted_the_loss_and_its_gradients_are_zero():
    learned, padding, targets = problem(6, bias=True)
    assert not any(
        each.any() for each in gradients(ChunkedCrossEntropy.apply, learned, padding, targets * 0 - 100, 15.0)
    )


def test_in_bf16_it_is_as_exact_as_torch_in_bf16():
    learned, padding, targets = problem(40, bias=False)
    exact = gradients(at_once, learned, padding, targets, 15.0)
    half, padding = (
        [each if each is None else each.detach().bfloat16().requires_grad_() for each in learned],
        padding.float(),
    )
    theirs, ours = (gradients(f, half, padding, targets, 15.0) for f in (at_once, ChunkedCrossEntropy.apply))
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert (a - c).abs().mean() <= 1.1 * (b - c).abs().mean() + 1e-6


def test_logits_are_held_a_chunk_at_a_time(monkeypatch):
    """torch's largest allocation, of 4000 positions whose logits take 20 MB, stays near the chunk."""
    monkeypatch.setattr(loss, 'CHUNK', 100 * 1280)
    x, weight = torch.randn(4000, 4, requires_grad=True), torch.randn(1280, 4, requires_grad=True)
    targets = torch.randint(1280, (4000,))
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        cross_entropy(x, weight, None, torch.zeros(1280), targets).sum().backward()
    assert max(event.cpu_memory_usage for event in profile.events()) < 2_000_000
