"""Text from a causal model, token by token: each costs one position, what came before is kept as keys and values.

model = ready(Transformer.from_pretrained('gpt2'), device, 'auto')
generate(model, prompts, 100, temperature=0.8, top_k=200)              # prompts (B, T)
generate(model, prompts, 100, lengths=lengths, stop=50256)            # of different lengths, filled up on the right
"""

import functools

import torch
from torch import nn
from torch.nn import functional as F

from infra import runtime


def ready(model, device, dtype, compile=False, rows=1):
    """The model on the device in the form that generates fastest there.

    dtype: of the weights, a name; 'int8': an eight-bit integer a weight, and a scale a row; 'auto': fp16 packed for single rows
    on an x86 CPU, otherwise bf16 where the hardware has it, on such a CPU packed too. compile: one step of one token a row,
    which takes a while at first, and is worth it for thousands of tokens. rows: that are continued at a time.
    """
    model.eval().to(device)
    x86 = device.type == 'cpu' and 'fbgemm' in torch.backends.quantized.supported_engines
    if dtype == 'int8':
        replace_products(model, int8_product)
    elif dtype == 'auto' and x86 and rows == 1:
        if not compile:  # the compiler knows no packed matrices, and makes more of fp32 than of bf16
            replace_products(model, packed_product)
    else:
        number = runtime.choose_dtype(dtype, device)
        model.to(number)
        if dtype == 'auto' and x86 and number == torch.bfloat16 and not compile:
            replace_products(model, functools.partial(blocked_product, rows=rows))
    if compile:
        model.static = True
        model.next_logits = torch.compile(
            model.next_logits, dynamic=False, mode='reduce-overhead' if device.type == 'cuda' else None
        )
    return model


def replace_products(model, product):
    """Give the linear layers of the blocks, and the head, another way to multiply: product(weight, bias) -> a function of x.

    For good: the blocks' own weights are let go.
    """
    model.decode = product(model.head_matrix().detach(), model.head_bias())
    for module in model.blocks.modules():
        if isinstance(module, nn.Linear):
            module.forward = product(module.weight.detach(), module.bias)
            module.weight = None


def packed_product(weight, bias):
    """By a matrix in fp16 as FBGEMM packs it for products with a single row, which F.linear's kernels are not made for.

    Activations stay in fp32; rounding the weights to fp16 changes logits by about 1e-3.
    """
    matrix = torch.ops.quantized.linear_prepack_fp16(weight, None if bias is None else bias.detach())
    return lambda x: torch.ops.quantized.linear_dynamic_fp16(x, matrix)


def blocked_product(weight, bias, rows):
    """By a matrix in bf16 as oneDNN lays it out for products with so many rows; F.linear would do that anew each time."""
    matrix = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, matrix, bias, 'none', [], '')


def int8_product(weight, bias):
    """By a matrix in int8 with a scale for each of its rows; activations in bf16. A quarter of the memory of fp32."""
    scale = weight.abs().amax(1).clamp(min=1e-12) / 127  # (rows,)
    matrix, scale = (weight / scale[:, None]).round().to(torch.int8), scale.bfloat16()

    def multiply(x):
        flat = x.flatten(0, -2).bfloat16()
        if x.is_cuda:  # compiled, the conversion is part of the product
            y = F.linear(flat, matrix.to(flat.dtype)) * scale
        else:
            y = torch.ops.aten._weight_int8pack_mm(flat, matrix, scale)
        y = y.view(*x.shape[:-1], -1).to(x.dtype)
        return y if bias is None else y + bias

    return multiply


class Cache:
    """Keys and values of B rows in one layer, with room for `length` positions of each; `seen` of them are attended to."""

    def __init__(self, model, B, length):
        c, like = model.config, model.tokens.weight
        self.seen = length
        # zeros: what is masked must be finite
        self.k, self.v = like.new_zeros(2, B, c.kv_heads, length, c.head_size).unbind()
        if model.static and like.is_cuda:  # CUDA graphs write to where it is, and need not copy it
            torch._dynamo.mark_static_address(self.k)
            torch._dynamo.mark_static_address(self.v)

    def append(self, k, v, past):
        """k and v (B, nh, T, hs) of new positions -> of all that are seen; past as in Transformer.hidden."""
        if isinstance(past, torch.Tensor):  # a place of its own in each row; the model masks what lies behind
            rows = torch.arange(len(past), device=past.device)
            self.k[rows, :, past], self.v[rows, :, past] = k[:, :, 0], v[:, :, 0]
        else:
            self.k[:, :, past : past + k.shape[2]], self.v[:, :, past : past + k.shape[2]] = k, v
            if past == 0:  # nothing came before
                return k, v
        return self.k[:, :, : self.seen], self.v[:, :, : self.seen]


@torch.inference_mode()
def stream(model, prompts, max_new_tokens, lengths=None, temperature=1.0, top_k=0, top_p=1.0, stop=-1):
    """Yield the next token of each row, (B,) ids at a time, up to max_new_tokens or until every row had `stop`.

    prompts (B, T >= 1), of which row i has lengths[i] >= 1 tokens, T unless given, and anything behind them. temperature 0
    takes the likeliest token. top_k > 0 keeps the k likeliest, top_p < 1 the fewest whose probabilities reach p (Holtzman et
    al. 2020). A row is filled with `stop` after it. Past block_size the model sees the last block_size tokens, read anew at
    each step: positions are absolute.
    """
    B, T = prompts.shape
    block_size = model.config.block_size
    # rows that differ, or one compiled step, need shapes that do not change: a place for each row, a mask
    ragged = lengths is not None or model.static
    lengths = prompts.new_full((B,), T) if lengths is None else lengths
    stopped = torch.zeros(B, dtype=torch.bool, device=prompts.device)
    made = []
    for longest in range(T, T + max_new_tokens):
        if not made or longest > block_size:  # or positions have moved
            caches = [Cache(model, B, min(T + max_new_tokens, block_size)) for _ in model.blocks]
            last, logits = read(model, joined(prompts, lengths, made), lengths + len(made), caches)
        else:
            if not model.static:
                for cache in caches:
                    cache.seen = longest
            past = lengths + len(made) - 1 if ragged else longest - 1
            last, logits = made[-1], model.next_logits(made[-1], caches, past, last)
        token = torch.where(stopped, stop, sample(logits, temperature, top_k, top_p))
        yield token
        made.append(token)
        stopped |= token == stop
        if stop >= 0 and stopped.all():
            return


def read(model, tokens, ends, caches):
    """Fill the caches with each row's tokens (B, T), up to its end and the model's block size -> (last tokens (B,), logits)."""
    window = min(tokens.shape[1], model.config.block_size)
    starts = (ends - window).clamp(min=0)  # (B,)
    inputs = tokens.gather(1, starts[:, None] + torch.arange(window, device=tokens.device))
    before = tokens.gather(1, (starts - 1).clamp(min=0)[:, None]).where(starts[:, None] > 0, -1)
    at = (ends - starts - 1)[:, None]  # of the last token in its window
    x = model.hidden(inputs, caches=caches, before=before)
    x = x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))[:, 0]  # (B, C)
    return inputs.gather(1, at)[:, 0], model.logits(x).float()


def joined(prompts, lengths, made):
    """Prompts with the tokens made, a list of (B,), put behind each: (B, T + len(made))."""
    if not made:
        return prompts
    places = lengths[:, None] + torch.arange(len(made), device=lengths.device)
    return F.pad(prompts, (0, len(made))).scatter(1, places, torch.stack(made, dim=1))


def generate(model, prompts, max_new_tokens, lengths=None, **sampling):
    """Prompts (B, T), each with the tokens that `stream` yields behind its last one."""
    made = list(stream(model, prompts, max_new_tokens, lengths, **sampling))
    lengths = prompts.new_full((len(prompts),), prompts.shape[1]) if lengths is None else lengths
    return joined(prompts, lengths, made)


def sample(logits, temperature, top_k, top_p):
    """logits (B, V) -> (B,) ids; see `stream`."""
    if temperature < 1e-6:  # by which no logits can be divided
        return logits.argmax(-1)
    logits = logits / temperature
    ids = None
    if top_k > 0 or top_p < 1:
        logits, ids = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1]))  # (B, k), likeliest first
    probs = logits.softmax(-1)
    if top_p < 1:
        probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p, 0.0)  # those before it reach p
    # torch.multinomial's own way (the first of exponential clocks that run at these rates), less its checks
    choice = (probs / torch.empty_like(probs).exponential_()).argmax(-1, keepdim=True)  # (B, 1)
    return (choice if ids is None else ids.gather(1, choice))[:, 0]
