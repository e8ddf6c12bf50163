"""The cross entropy of a large vocabulary, without ever holding the logits of all positions.

At GPT-2's vocabulary the logits of a batch take more memory than the model that makes them. Their gradient is known as
soon as they are: so a few positions at a time give their loss and what of it goes back, and are forgotten.
"""

import torch
from torch.nn import functional as F

CHUNK = 1 << 26  # logits held at a time


def cross_entropy(x, weight, bias, padding, targets, softcap=0.0):
    """Sum over positions of the cross entropy between softmax(cap(x W^T + bias) + padding) and the targets, in nats.

    x (N, C); weight (V, C); bias (V,) or None; padding (V,): -inf at rows that are no token, else 0, or None; targets (N,), -100
    where nothing is predicted; softcap: logits are held below it by tanh, 0: not. Products are in the type of x.
    """
    if len(x) * len(weight) > CHUNK:
        return ChunkedCrossEntropy.apply(x, weight, bias, padding, targets, softcap)
    logits = F.linear(x, weight.to(x.dtype)).float()  # few enough: the compiler makes more of torch's own
    logits = logits if bias is None else logits + bias
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    logits = logits if padding is None else logits + padding
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction='sum')


class ChunkedCrossEntropy(torch.autograd.Function):
    """`cross_entropy`, CHUNK logits at a time."""

    @staticmethod
    def forward(ctx, x, weight, bias, padding, targets, softcap):
        matrix, total = weight.to(x.dtype), torch.zeros((), device=x.device)
        learns = any(ctx.needs_input_grad)
        to_x = torch.empty_like(x) if learns else None
        to_weight = torch.zeros_like(weight) if learns else None
        to_bias = torch.zeros_like(bias) if learns and bias is not None else None
        step = max(1, CHUNK // len(weight))
        for first in range(0, len(x), step):
            rows, wanted = x[first : first + step], targets[first : first + step, None]  # (n, C), (n, 1)
            logits = (rows @ matrix.T).float()  # (n, V)
            if bias is not None:
                logits += bias
            if softcap:
                capped = torch.tanh(logits / softcap)
                logits = softcap * capped
            if padding is not None:
                logits += padding
            predicted = wanted >= 0
            wanted = wanted.clamp(min=0)
            normalizer = logits.logsumexp(1, keepdim=True)  # (n, 1)
            total += ((normalizer - logits.gather(1, wanted)) * predicted).sum()
            if learns:
                back = (logits - normalizer).exp_() * predicted  # (n, V): the softmax, less 1 at the target
                back.scatter_add_(1, wanted, -predicted.to(back.dtype))
                if softcap:
                    back *= 1 - capped.square()
                if bias is not None:
                    to_bias += back.sum(0)
                back = back.to(x.dtype)
                to_x[first : first + step] = back @ matrix
                to_weight += back.T @ rows
        ctx.save_for_backward(to_x, to_weight, to_bias)
        return total

    @staticmethod
    def backward(ctx, scale):
        return *(None if each is None else each * scale for each in ctx.saved_tensors), None, None, None
