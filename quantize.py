"""Quantization: linear layers with fewer bits a weight.

kernels.replace_linears(model, Int8Linear)
"""

import torch
from torch import nn
from torch.nn import functional as F


class Int8Linear(nn.Module):
    """A linear layer with weights in int8 and a scale for each output; activations in bf16. A quarter of the memory of fp32."""

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach()  # (out, in)
        scale = weight.abs().amax(1).clamp(min=1e-12) / 127  # (out,)
        self.register_buffer('weight', (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer('scale', scale.bfloat16())
        self.register_buffer('bias', None if linear.bias is None else linear.bias.detach())

    def forward(self, x):
        flat = x.flatten(0, -2).bfloat16()
        if x.is_cuda:  # compiled, the conversion becomes part of the product
            y = F.linear(flat, self.weight.to(flat.dtype)) * self.scale
        else:
            y = torch.ops.aten._weight_int8pack_mm(flat, self.weight, self.scale)
        y = y.view(*x.shape[:-1], -1).to(x.dtype)
        return y if self.bias is None else y + self.bias
