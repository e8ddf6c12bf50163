"""Generation: text from a causal model, token by token, with a cache of keys and values: each token costs one position.

model = prepare_model(Transformer.from_pretrained('gpt2'), device, 'auto')
generate(model, prompts, 100, temperature=0.8, top_k=200)              # prompts (B, T)
generate(model, prompts, 100, lengths=lengths, stop=50256)            # of different lengths, filled up on the right
"""

import functools

import torch
from torch.nn import functional as F

import kernels
from infra import runtime
from quantize import Int8Linear


def prepare_model(model, device, dtype, compile=False, rows=1):
    """The model on the device in the form that generates fastest there.

    dtype: of the weights, a name; 'int8': 8-bit integers with a scale for each row of a matrix; 'auto': packed fp16 for single
    rows on an x86 CPU, otherwise bf16 where the hardware has it, on such a CPU in oneDNN's layout. compile: whether
    `stream` will compile its step. rows: that are continued at a time.
    """
    model.eval().to(device)
    for block in model.blocks:
        block.attn.fuse()
        block.mlp.fuse()
    x86 = device.type == 'cpu' and 'fbgemm' in torch.backends.quantized.supported_engines
    if dtype == 'int8':
        return kernels.replace_linears(model, Int8Linear)
    if dtype == 'auto' and x86 and rows == 1:
        # the compiler knows no packed matrices, and makes more of fp32 than of bf16
        return model if compile else kernels.replace_linears(model, kernels.PackedLinear)
    number = runtime.choose_dtype(dtype, device)
    model.to(number)
    if dtype == 'auto' and x86 and number == torch.bfloat16 and not compile:
        kernels.replace_linears(model, functools.partial(kernels.BlockedLinear, rows=rows))
    return model


class Cache:
    """Keys and values of B rows in one layer, with room for `length` positions of each; `seen` of them are attended to."""

    def __init__(self, model, B, length, fixed=False):
        c, like = model.config, model.token_embedding.weight
        self.seen = length
        # zeros: what is masked must be finite
        self.k, self.v = like.new_zeros(2, B, c.kv_heads, length, c.head_width).unbind()
        if fixed and like.is_cuda:  # CUDA graphs write to where it is, and need not copy it
            torch._dynamo.mark_static_address(self.k)
            torch._dynamo.mark_static_address(self.v)

    def append(self, k, v, start_pos):
        """k and v (B, nkv, T, hs) of new positions -> of all that are seen; start_pos as in Transformer.hidden."""
        # each row at a position of its own; the model masks what lies behind
        if isinstance(start_pos, torch.Tensor):
            rows = torch.arange(len(start_pos), device=start_pos.device)
            self.k[rows, :, start_pos], self.v[rows, :, start_pos] = k[:, :, 0], v[:, :, 0]
        else:
            new = slice(start_pos, start_pos + k.shape[2])
            self.k[:, :, new], self.v[:, :, new] = k, v
            if start_pos == 0:  # nothing came before
                return k, v
        return self.k[:, :, : self.seen], self.v[:, :, : self.seen]

    def copy_row(self, source, target):
        """Make row `target` what row `source` is: another answer to the same prompt begins there."""
        self.k[target], self.v[target] = self.k[source], self.v[source]


def decode_one_token(model, token, caches, start_pos, prev_token):
    """Logits (B, padded_vocab_size) in fp32 after one more token, (B,); prev_token (B,): those before it."""
    x = model.hidden(token[:, None], caches=caches, start_pos=start_pos, prev_token=prev_token[:, None])
    return model.logits(x[:, -1]).float()


@functools.cache
def compiled_decode(device_type):
    mode = 'reduce-overhead' if device_type == 'cuda' else None
    return torch.compile(decode_one_token, dynamic=False, mode=mode)


@torch.inference_mode()
def stream(model, prompts, max_new_tokens, lengths=None, compile=False, stop=-1, **sampling):
    """Yield the next token of each row, (B,) ids at a time, up to max_new_tokens or until every row had `stop`.

    prompts (B, T >= 1), of which row i has lengths[i] >= 1 tokens, T unless given, and anything behind them. A row is filled with
    `stop` after it. sampling: as of `sample`. compile: the step of one token, which takes a while at first and pays for
    thousands. Past block_size the model sees the last block_size tokens, prefilled anew at each step: positions are absolute.
    """
    B, T = prompts.shape
    block_size = model.config.block_size
    # rows that differ, or one compiled step, need shapes that do not change: a position for each row, a mask
    ragged = lengths is not None or compile
    decode = compiled_decode(prompts.device.type) if compile else decode_one_token
    lengths = prompts.new_full((B,), T) if lengths is None else lengths
    stopped = torch.zeros(B, dtype=torch.bool, device=prompts.device)
    made = []
    for longest in range(T, T + max_new_tokens):
        if not made or longest > block_size:  # or positions have moved
            caches = [Cache(model, B, min(T + max_new_tokens, block_size), compile) for _ in model.blocks]
            last, logits = prefill(model, joined(prompts, lengths, made), lengths + len(made), caches)
        else:
            if not compile:
                for cache in caches:
                    cache.seen = longest
            start_pos = lengths + len(made) - 1 if ragged else longest - 1
            last, logits = made[-1], decode(model, made[-1], caches, start_pos, last)
        token = torch.where(stopped, stop, sample(logits, **sampling))
        yield token
        made.append(token)
        stopped |= token == stop
        if stop >= 0 and stopped.all():
            return


def prefill(model, tokens, ends, caches):
    """Fill the caches with each row's tokens (B, T), up to its end and the model's block size -> (last tokens (B,), logits)."""
    window = min(tokens.shape[1], model.config.block_size)
    starts = (ends - window).clamp(min=0)  # (B,)
    inputs = tokens.gather(1, starts[:, None] + torch.arange(window, device=tokens.device))
    prev_token = tokens.gather(1, (starts - 1).clamp(min=0)[:, None]).where(starts[:, None] > 0, -1)
    at = (ends - starts - 1)[:, None]  # of the last token in its window
    x = model.hidden(inputs, caches=caches, prev_token=prev_token)
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


def sample(logits, temperature=1.0, top_k=0, top_p=1.0):
    """logits (B, V) -> (B,) ids. temperature 0 takes the likeliest token. top_k > 0 keeps the k likeliest, top_p < 1 the fewest
    whose probabilities reach p (Holtzman et al. 2020).
    """
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
