"""kernels.py: attention against scores written out, in every form it takes; products with rounded weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import kernels
from kernels import (
    BlockedLinear,
    PackedLinear,
    attention,
    plain_attention,
    single_query_attention,
    visible_keys,
)
from quantize import Int8Linear


def slowly(q, k, v, seen, bias=None):
    """Attention by its definition, a query at a time. seen (B, T, S) bool."""
    B, H, T, hs = q.shape
    y = torch.zeros_like(q)
    for b in range(B):
        for h in range(H):
            group = h // (H // k.shape[1])
            for i in range(T):
                scores = k[b, group] @ q[b, h, i] / math.sqrt(hs)
                if bias is not None:
                    scores = scores + bias.expand(B, H, T, -1)[b, h, i]
                weights = scores.masked_fill(~seen[b, i], -math.inf).softmax(0)
                y[b, h, i] = weights @ v[b, group]
    return y


def random_inputs(B=2, heads=4, kv_heads=4, T=9, S=9, hs=8):
    torch.manual_seed(T)
    shapes = [(B, heads, T, hs), (B, kv_heads, S, hs), (B, kv_heads, S, hs)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def seen_by(visible, B, T, S):
    if visible is None:
        return torch.ones(B, T, S, dtype=torch.bool)
    if visible == 'causal':
        return torch.ones(B, T, S, dtype=torch.bool).tril()
    return visible.expand(B, 1, T, S)[:, 0]


DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, -1], [0, 1, 1, 1, 1, 1, 3, 3, 3]])
POSITIONS = torch.arange(9)[None]
VISIBLE = {
    'everything': None,
    'causal': 'causal',
    'documents': visible_keys(POSITIONS, POSITIONS, DOCUMENTS, DOCUMENTS),
    'a prefix': visible_keys((POSITIONS - 4).clamp(min=0), (POSITIONS - 4).clamp(min=0)),
    'a permutation': visible_keys(*[torch.stack([torch.randperm(9), torch.randperm(9)])] * 2),
}


@pytest.mark.parametrize('kv_heads', [4, 2, 1])
@pytest.mark.parametrize('visible', VISIBLE)
@pytest.mark.parametrize('biased', [False, True])
def test_attention_is_its_definition_and_has_its_gradients(visible, kv_heads, biased):
    visible, bias = VISIBLE[visible], torch.randn(4, 9, 9) if biased else None
    inputs = random_inputs(kv_heads=kv_heads)
    expected = slowly(*inputs, seen_by(visible, 2, 9, 9), bias)
    expected_grads = torch.autograd.grad(expected.square().sum(), inputs)
    for attend in (attention, plain):
        y = attend(*inputs, visible, bias)
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-4)
        grads = torch.autograd.grad(y.square().sum(), inputs)
        torch.testing.assert_close(grads, expected_grads, atol=1e-4, rtol=1e-4)


def plain(q, k, v, visible, bias):
    """plain_attention with the mask that `attention` would make for it."""
    seen = None if visible is None else seen_by(visible, *q.shape[:1], q.shape[2], k.shape[2])[:, None]
    if bias is not None:
        seen = bias if seen is None else bias.masked_fill(~seen, -math.inf)
    return plain_attention(q, k, v, seen)


@pytest.mark.parametrize('kv_heads', [4, 2])
def test_one_query_over_a_cache_sees_what_the_mask_says(kv_heads):
    q, k, v = random_inputs(kv_heads=kv_heads, T=1, S=7)
    seen = torch.arange(7)[None, None, None] < torch.tensor([7, 3])[:, None, None, None]  # (B, 1, 1, S)
    expected = slowly(q, k, v, seen[:, 0])
    for y in (attention(q, k, v, seen), single_query_attention(q, k, v, seen)):
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-4)


def test_training_in_bf16_on_a_cpu_takes_the_plain_kernel_and_evaluation_torchs(monkeypatch):
    calls = []
    monkeypatch.setattr(kernels, 'plain_attention', lambda *a: calls.append(a) or a[0])
    inputs = [t.bfloat16() for t in random_inputs()]
    attention(*inputs, 'causal')
    assert not calls
    attention(*inputs, 'causal', training=True)
    assert len(calls) == 1 and calls[0][3].dtype == torch.bool


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=20))
def test_the_compiled_gelu_is_torchs(numbers):
    x = torch.tensor(numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, 'is_compiling', lambda: True)
        ours = kernels.gelu_tanh(x)
    torch.testing.assert_close(ours, nn.functional.gelu(x, approximate='tanh'), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(
    'make, dtype, error',
    [(PackedLinear, torch.float32, 2e-3), (Int8Linear, torch.float32, 2e-2)]
    + [(lambda linear: BlockedLinear(linear, 6), torch.bfloat16, 2e-2)],
    ids=['packed', 'int8', 'blocked'],
)
def test_a_replaced_linear_layer_rounds_its_weights_only(make, dtype, error, bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48, bias=bias), nn.Sequential(nn.Linear(48, 16, bias=bias)))
    x = torch.randn(2, 3, 32)
    with torch.no_grad():
        expected = model(x)
        made = kernels.replace_linears(model.to(dtype), make)(x.to(dtype))
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    assert (made - expected).abs().max() < error * expected.abs().max() and made.dtype == dtype
