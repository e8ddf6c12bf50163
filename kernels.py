"""Kernels: attention, GELU and matrix products, each in the form that is fastest for the device.

`attention` is the one entry for every model: it takes queries, keys, values and what is visible, and picks the kernel. The
rest exists for CPUs, where torch's own choice is not always the fastest (docs/experiments.md has the figures).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


def visible_keys(q_rank, k_rank, q_document=None, k_document=None):
    """The rule of attention: key j is visible to query i if k_rank[j] <= q_rank[i] and both are of one document.

    The rank is the position for causal attention and 0 for full attention; a prefix has rank 0, a permutation its own order.
    q_rank and q_document (B or 1, T); k_rank and k_document (B or 1, S). Returns a mask (B or 1, 1, T, S), True where visible.
    """
    mask = k_rank[:, None, None, :] <= q_rank[:, None, :, None]
    if q_document is not None:
        mask = mask & (k_document[:, None, None, :] == q_document[:, None, :, None])
    return mask


def attention(q, k, v, visible=None, bias=None, dropout=0.0, training=False):
    """softmax(q k^T / sqrt(hs) + bias) v, over the visible keys of each query -> (B, nh, T, hs).

    q (B, nh, T, hs); k and v (B, nkv, S, hs), nkv dividing nh: grouped-query attention.
    visible: None (every key), 'causal' (the keys up to the query, T = S) or a mask as of `visible_keys`.
    bias: added to the scores, broadcast to (B, nh, T, S): ALiBi, relative positions, or None.
    """
    T, on_cpu = q.shape[2], q.device.type == 'cpu'
    # in bf16 the backward pass of torch's fused kernel is slower on a CPU than its fp32 one
    plain = training and on_cpu and q.dtype == torch.bfloat16 and T <= 512
    causal = isinstance(visible, str) and bias is None and not plain  # of which SDPA needs no mask
    mask = None if causal else visible
    if isinstance(mask, str):
        mask = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
    if bias is not None:
        mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
    if plain:
        return plain_attention(q, k, v, mask, dropout)
    if T == 1 and on_cpu and torch.compiler.is_compiling():
        return single_query_attention(q, k, v, mask)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, enable_gqa=grouped)


def add_mask(scores, mask):
    """Scores with a mask (True: visible) or a bias applied."""
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


def repeat_heads(q, *kv):
    """Keys and values (B, nkv, S, hs) -> (B, nh, S, hs): each shared by nh / nkv heads of queries."""
    repeats = q.shape[1] // kv[0].shape[1]
    return [each.repeat_interleave(repeats, dim=1) for each in kv] if repeats > 1 else kv


def plain_attention(q, k, v, mask, dropout=0.0):
    """Attention as two matrix products. Holds all scores, (B, nh, T, S), in memory."""
    k, v = repeat_heads(q, k, v)
    scores = (q / math.sqrt(q.shape[3])) @ k.transpose(2, 3).contiguous()  # (B, nh, T, S)
    scores = add_mask(scores, mask)
    return F.dropout(scores.softmax(-1, dtype=torch.float32).to(q.dtype), dropout) @ v.contiguous()


def single_query_attention(q, k, v, mask):
    """Attention of one query, T = 1, as sums that a compiler turns into one loop."""
    k, v = repeat_heads(q, k, v)
    scores = (q.float() * k).sum(-1)[:, :, None] / math.sqrt(q.shape[3])  # (B, nh, 1, S)
    weights = add_mask(scores, mask).softmax(-1)
    return (weights.transpose(2, 3) * v).sum(2, keepdim=True).to(v.dtype)


def gelu_tanh(x):
    """The tanh approximation of GELU (Hendrycks & Gimpel 2016)."""
    # x sigmoid(2 y) = x (1 + tanh y) / 2: the compiler vectorizes exp, not tanh
    if torch.compiler.is_compiling():
        return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x))
    return F.gelu(x, approximate='tanh')


# --- linear layers for inference -----------------------------------------------


@torch.no_grad()
def fused_linear(*linears):
    """One linear layer with the outputs of several, one after the other."""
    weight = torch.cat([each.weight for each in linears])
    fused = nn.Linear(*weight.shape[::-1], bias=linears[0].bias is not None, device='meta')
    fused.weight = nn.Parameter(weight)
    if fused.bias is not None:
        fused.bias = nn.Parameter(torch.cat([each.bias for each in linears]))
    return fused


def replace_linears(model, make):
    """Replace every nn.Linear of a model by make(linear), a module. The old weights are freed."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, make(child))
    return model


class PackedLinear(nn.Module):
    """A linear layer in fp16 for single rows on x86 CPUs, packed by FBGEMM; F.linear's kernels are made for many rows.

    Activations stay in fp32. Rounding the weights to fp16 changes logits by about 1e-3.
    """

    def __init__(self, linear):
        super().__init__()
        bias = None if linear.bias is None else linear.bias.detach()
        self.packed = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach(), bias)

    def forward(self, x):
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


class BlockedLinear(nn.Module):
    """A linear layer in bf16 in the layout that oneDNN uses for `rows` rows; F.linear would reorder it at every call."""

    def __init__(self, linear, rows):
        super().__init__()
        self.matrix = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x, self.matrix, self.bias, 'none', [], '')
