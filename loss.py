"""Loss: the cross entropy of a large vocabulary, without ever holding the logits of all positions.

With GPT-2's vocabulary the logits of a batch take more memory than the model that makes them. So they are computed for a
few positions at a time, together with their gradient, and discarded.
"""

import torch
from torch import nn
from torch.nn import functional as F

CHUNK = 1 << 26  # logits held at a time


def cross_entropy(x, weight, bias, pad_logit_bias, targets, softcap=0.0):
    """Cross entropy of softmax(cap(x W^T + bias) + pad_logit_bias) and the target of each position -> (N,), in nats.

    x (N, C); weight (V, C); bias (V,) or None; pad_logit_bias (V,): -inf at rows that are no token, else 0, or None; targets
    (N,): -100 where nothing is predicted, and the loss is 0. softcap: logits are held below it by tanh; 0: they are not.
    Products are in the type of x.
    """
    if len(x) * len(weight) > CHUNK:
        return ChunkedCrossEntropy.apply(x, weight, bias, pad_logit_bias, targets, softcap)
    logits = F.linear(x, weight.to(x.dtype)).float()  # few enough: a compiler makes more of torch's own
    logits = logits if bias is None else logits + bias
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    logits = logits if pad_logit_bias is None else logits + pad_logit_bias
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction='none')


class SummedCrossEntropy(nn.Module):
    """The sum of `cross_entropy` over the positions. A module, so that tensor parallelism can split its positions by hooks."""

    def forward(self, *inputs):
        return cross_entropy(*inputs).sum()


class ChunkedCrossEntropy(torch.autograd.Function):
    """`cross_entropy`, CHUNK logits at a time.

    The forward pass computes the gradients too, as if the losses were summed up. Where the gradients from above differ by
    position (weighted losses), the backward pass computes the logits again.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, pad_logit_bias, targets, softcap):
        inputs = (x, weight, bias, pad_logit_bias, targets)
        losses, gradients = in_chunks(*inputs, softcap, any(ctx.needs_input_grad))
        ctx.softcap = softcap
        ctx.save_for_backward(*inputs, *gradients)
        return losses

    @staticmethod
    def backward(ctx, scale):  # (N,)
        *inputs, to_x, to_weight, to_bias = ctx.saved_tensors
        if scale.stride() == (0,):  # one number, expanded: the backward pass of a sum
            gradients = [None if each is None else each * scale[0] for each in (to_x, to_weight, to_bias)]
        else:
            _, gradients = in_chunks(*inputs, ctx.softcap, True, scale)
        return *gradients, None, None, None


@torch.no_grad()
def in_chunks(x, weight, bias, pad_logit_bias, targets, softcap, learns, scale=None):
    """The losses (N,) and the gradients of their sum, each times its scale (N,), by x, weight and bias."""
    matrix, losses = weight.to(x.dtype), torch.zeros(len(x), device=x.device)
    to_x = torch.empty_like(x) if learns else None
    to_weight = torch.zeros_like(weight) if learns else None
    to_bias = torch.zeros_like(bias) if learns and bias is not None else None
    step = max(1, CHUNK // len(weight))
    for first in range(0, len(x), step):
        chunk = slice(first, first + step)
        rows, wanted = x[chunk], targets[chunk, None]  # (n, C), (n, 1)
        logits = (rows @ matrix.T).float()  # (n, V)
        if bias is not None:
            logits += bias
        if softcap:
            capped = torch.tanh(logits / softcap)
            logits = softcap * capped
        if pad_logit_bias is not None:
            logits += pad_logit_bias
        predicted = wanted >= 0
        wanted = wanted.clamp(min=0)
        normalizer = logits.logsumexp(1, keepdim=True)  # (n, 1)
        losses[chunk] = ((normalizer - logits.gather(1, wanted)) * predicted)[:, 0]
        if learns:
            weights = predicted if scale is None else predicted * scale[chunk, None]  # (n, 1)
            back = (logits - normalizer).exp_() * weights  # (n, V): the softmax, less 1 at the target
            back.scatter_add_(1, wanted, -weights.to(back.dtype))
            if softcap:
                back *= 1 - capped.square()
            if bias is not None:
                to_bias += back.sum(0)
            back = back.to(x.dtype)
            to_x[chunk] = back @ matrix
            to_weight += back.T @ rows
    return losses, (to_x, to_weight, to_bias)
