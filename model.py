"""One Transformer. Flags make it exactly GPT-2 (Radford et al. 2019), exactly BERT (Devlin et al. 2018), or a modern one.

model = Transformer(Config(**ARCHITECTURES['gpt2']))         # random weights
model = Transformer.from_pretrained('gpt2-medium')           # OpenAI's, from the Hugging Face hub
model = Transformer.from_pretrained('out/step-00001000')     # a directory saved by transformers or by us
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import pretrained
from loss import cross_entropy

MODERN = dict(
    norm='plain', embedding_norm=True, rope_theta=10000.0, qk_norm=True, mlp='relu2', tied=False, softcap=15.0
)

# What sets one architecture apart from another. A new one is a line here and its flag below.
ARCHITECTURES = {
    'gpt2': dict(causal=True, prenorm=True, mlp='gelu_tanh', norm_eps=1e-5),
    'bert': dict(causal=False, prenorm=False, mlp='gelu', norm_eps=1e-12, token_types=2),
    # BERT with the norms before each layer, which trains without a long warm-up (Xiong et al. 2020)
    'bert_prenorm': dict(causal=False, prenorm=True, mlp='gelu', norm_eps=1e-12, token_types=2),
    'llama': dict(norm='rms', rope_theta=10000.0, mlp='swiglu'),  # Touvron et al. 2023
    # what paid in docs/experiments.md
    'modern': MODERN,
    'modern_bert': MODERN | dict(causal=False),
}

PAD_ROWS_TO = 64  # the embedding gets rows up to a multiple of this: matrix products are faster


@dataclass
class Config:
    """The shape of a model. The defaults are GPT-2 124M; raises ValueError where the numbers do not fit."""

    vocab_size: int = 50257
    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True  # in linear layers and norms; the original GPT-2 and BERT have it
    causal: bool = True  # each position sees those before it (GPT), or all (BERT)
    prenorm: bool = True  # norms before attention and MLP (GPT-2), or after the residual sum (BERT)
    mlp: str = 'gelu_tanh'  # the approximation of GELU (GPT-2), 'gelu' itself (BERT), 'relu2' (So et al. 2021), 'swiglu'
    norm: str = 'layer'  # LayerNorm; 'plain': without learned scales, as OLMo; 'rms' (Zhang & Sennrich 2019)
    norm_eps: float = 1e-5
    token_types: int = 0  # segment embeddings; a model that has them also has BERT's embedding norm and head
    n_kv_head: int = 0  # heads of keys and values, shared by queries' (Ainslie et al. 2023); 0: as n_head
    rope_theta: float = 0.0  # base of rotary positions (Su et al. 2021); 0: learned ones
    qk_norm: bool = False  # a plain norm of queries and keys (Dehghani et al. 2023)
    tied: bool = True  # the head's matrix is the token embedding
    softcap: float = 0.0  # logits are held below this by tanh (Gemma 2, section 2); 0: not
    embedding_norm: bool = False  # a norm after the embedding
    bigrams: int = 0  # rows of an embedding of hashed pairs, each token and the one before it; 0: none

    def __post_init__(self):
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ValueError(f'{field.name} = {value!r} should be {kind.__name__}')
        for name in ('vocab_size', 'block_size', 'n_layer', 'n_head', 'n_embd'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} = {getattr(self, name)} should be at least 1')
        for name in ('n_kv_head', 'bigrams'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name} = {getattr(self, name)} should not be negative')
        if self.n_embd % self.n_head:
            raise ValueError(f'n_embd = {self.n_embd} is not divisible by n_head = {self.n_head}')
        if self.n_head % self.kv_heads:
            raise ValueError(f'n_head = {self.n_head} is not divisible by n_kv_head = {self.n_kv_head}')
        if self.rope_theta and self.head_size % 2:
            raise ValueError(f'n_embd / n_head = {self.head_size} should be even for rotary positions')
        if not 0 <= self.dropout < 1:
            raise ValueError(f'dropout = {self.dropout} should be at least 0 and less than 1')

    @property
    def padded_vocab_size(self):
        return math.ceil(self.vocab_size / PAD_ROWS_TO) * PAD_ROWS_TO

    @property
    def head_size(self):
        return self.n_embd // self.n_head

    @property
    def kv_heads(self):
        return self.n_kv_head or self.n_head

    def make_norm(self):
        if self.norm == 'rms':
            return RMSNorm(self.n_embd, eps=self.norm_eps)
        affine = self.norm == 'layer'
        return nn.LayerNorm(self.n_embd, eps=self.norm_eps, elementwise_affine=affine, bias=self.bias)


class RMSNorm(nn.RMSNorm):
    def forward(self, x):  # the scales stay in fp32, what comes out is as what came in
        return (F.rms_norm(x, self.normalized_shape, None, self.eps) * self.weight).to(x.dtype)


def is_small_on_cpu(q):
    """Whether `small_attention` beats torch's fused kernel: on a CPU its bf16 backward pass is slower than its fp32 one."""
    return q.device.type == 'cpu' and q.dtype == torch.bfloat16 and q.shape[2] <= 512


def small_attention(q, k, v, attn_mask, dropout_p, is_causal):
    """F.scaled_dot_product_attention as plain matrix products; holds all scores, (B, nh, T, T), in memory."""
    T = q.shape[2]
    if is_causal:
        attn_mask = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
    scores = (q / math.sqrt(q.shape[3])) @ k.transpose(2, 3).contiguous()  # (B, nh, T, T)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return F.dropout(scores.softmax(-1, dtype=torch.float32).to(q.dtype), dropout_p) @ v.contiguous()


def single_attention(q, k, v, attn_mask, dropout_p, is_causal):
    """F.scaled_dot_product_attention of one query, as sums of which a compiler makes one loop."""
    scores = (q.float() * k).sum(-1) / math.sqrt(q.shape[3])  # (B, nh, positions)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask[:, :, 0], -torch.inf)
    return (scores.softmax(-1)[..., None] * v).sum(2, keepdim=True).to(v.dtype)


def rotary_angles(config):
    """cos and sin of the angle of each position and pair of channels, (2, block_size, hs / 2)."""
    pairs = torch.arange(0, config.head_size, 2) / config.head_size
    angles = torch.outer(torch.arange(config.block_size).float(), config.rope_theta**-pairs)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x, angles):
    """Turn each pair of channels (i, i + hs / 2) of x (B, nh, T, hs) by its position's angle. angles (2, 1 or B, 1, T, hs / 2)."""
    cos, sin = angles.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.heads = (config.n_head, config.kv_heads, config.kv_heads)  # mesh.py may leave a process fewer
        parts = [heads * config.head_size for heads in self.heads]
        self.qkv = nn.Linear(config.n_embd, sum(parts), bias=config.bias)
        self.qkv.parts = parts  # rows of each of the matrices stacked in it
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x, mask, angles, cache, past):
        B, T, C = x.shape
        c, (n_head, kv_heads, _) = self.config, self.heads
        heads = self.qkv(x).view(B, T, sum(self.heads), c.head_size).transpose(1, 2)  # (B, nh of all, T, hs)
        qk, v = heads.split((n_head + kv_heads, kv_heads), dim=1)
        if c.qk_norm:
            qk = F.layer_norm(qk, (c.head_size,))
        if angles is not None:
            qk = rotate(qk, angles)
        q, k = qk.split((n_head, kv_heads), dim=1)
        if cache is not None:
            k, v = cache.append(k, v, past)  # (B, nh, all that are seen, hs)
        if kv_heads < n_head:
            k, v = (each.repeat_interleave(n_head // kv_heads, dim=1) for each in (k, v))
        dropout = c.dropout if self.training else 0.0
        causal = c.causal and T > 1  # a single new position sees all of the past
        attend = F.scaled_dot_product_attention
        if self.training and is_small_on_cpu(q):
            attend = small_attention
        elif T == 1 and q.device.type == 'cpu' and torch.compiler.is_compiling():
            attend = single_attention
        y = attend(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        return self.proj(y.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.kind = config.mlp
        # a gate makes a third matrix: two thirds of the width keep the size (Shazeer 2020)
        self.gates = 2 if self.kind == 'swiglu' else 1
        self.width = 4 * config.n_embd if self.gates == 1 else config.n_embd * 8 // 3 // 8 * 8
        self.fc = nn.Linear(config.n_embd, self.gates * self.width, bias=config.bias)
        self.fc.parts = self.gates * [self.width]  # rows of each of the matrices stacked in it
        self.proj = nn.Linear(self.width, config.n_embd, bias=config.bias)

    def forward(self, x):
        x = self.fc(x)
        if self.kind == 'swiglu':
            gate, x = x.chunk(2, dim=-1)
            x = F.silu(gate) * x
        elif self.kind == 'relu2':
            x = F.relu(x).square()
        elif self.kind == 'gelu_tanh' and torch.compiler.is_compiling():
            # the same by an exponential, of which the compiler makes faster code than of a tanh
            x = x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x))
        else:
            x = F.gelu(x, approximate='tanh' if self.kind == 'gelu_tanh' else 'none')
        return self.proj(x)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.prenorm, self.dropout = config.prenorm, nn.Dropout(config.dropout)
        self.norm1, self.attn = config.make_norm(), Attention(config)
        self.norm2, self.mlp = config.make_norm(), MLP(config)

    def forward(self, x, *context):  # x (B, T, C) -> (B, T, C)
        if self.prenorm:
            x = x + self.dropout(self.attn(self.norm1(x), *context))
            return x + self.dropout(self.mlp(self.norm2(x)))
        x = self.norm1(x + self.dropout(self.attn(x, *context)))
        return self.norm2(x + self.dropout(self.mlp(x)))


class MaskedHead(nn.Module):
    """What BERT does to a position before the tied decoder: dense, GELU, norm; and the decoder's bias."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.n_embd, config.n_embd)
        self.norm = config.make_norm()
        self.bias = nn.Parameter(torch.zeros(config.padded_vocab_size))

    def forward(self, x):
        return self.norm(F.gelu(self.dense(x)))


class Transformer(nn.Module):
    loss = staticmethod(cross_entropy)  # mesh.py may deal out its positions

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.positions = None if config.rope_theta else nn.Embedding(config.block_size, config.n_embd)
        self.register_buffer('angles', rotary_angles(config) if config.rope_theta else None, persistent=False)
        self.types = nn.Embedding(config.token_types, config.n_embd) if config.token_types else None
        self.bigrams = nn.Embedding(config.bigrams, config.n_embd) if config.bigrams else None
        self.norm_in = config.make_norm() if config.token_types or config.embedding_norm else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm_out = config.make_norm() if config.prenorm else None
        self.head = MaskedHead(config) if config.token_types else None
        self.output = None if config.tied else nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        # A bias of -inf shuts the padding rows of the vocabulary out of every softmax: they are neither learned nor
        # sampled, and the loss is that of the unpadded vocabulary.
        padding = torch.zeros(config.padded_vocab_size)
        padding[config.vocab_size :] = -torch.inf
        self.register_buffer('padding', padding, persistent=False)
        self.decode = None  # what generate.pack makes of the head's matrix
        self.static = False  # generate.ready compiled the step of one token: shapes must not change
        self.recompute = (
            False  # activation checkpointing: keep the inputs of blocks only, compute the rest again
        )
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Standard deviations, as GPT-2 and BERT have them; norms start as the identity.

        every embedding              0.02
        every linear layer           0.02, biases 0
        proj, with prenorm           0.02 / sqrt(2 n_layer): 2 n_layer of them add up in the residual stream
        """
        for name, p in self.named_parameters():
            if p.dim() > 1:
                residual = self.config.prenorm and name.endswith('proj.weight')
                p.normal_(std=0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02)
            elif name.endswith('bias'):
                p.zero_()

    def hidden(self, inputs, types=None, attention_mask=None, caches=None, past=0, before=None):
        """inputs (B, T) ids -> (B, T, C), the last layer's output. See `forward` for types and attention_mask.

        caches: a generate.Cache of each layer, to go on after what they hold. past: the positions before the inputs; or
        of each row, (B,), where T is 1. before: the id before each row's first, (B, 1), -1 where there is none; None: nowhere.
        """
        B, T = inputs.shape
        ragged = isinstance(past, torch.Tensor)
        if not ragged and past + T > self.config.block_size:
            raise ValueError(f'{past + T} positions are more than block_size = {self.config.block_size}')
        if attention_mask is not None and self.config.causal:
            raise ValueError('a causal model takes no attention_mask')
        at = past[:, None] if ragged else slice(past, past + T)
        x = self.tokens(inputs)  # (B, T, C)
        if self.bigrams is not None:
            before = inputs.new_full((B, 1), -1) if before is None else before
            first = torch.cat((before, inputs[:, :-1]), dim=1)  # (B, T)
            x = x + self.bigrams((first * 1_000_003 + inputs) % self.config.bigrams)
        if self.positions is not None:
            x = x + self.positions.weight[at]
        if self.types is not None:
            x = x + (self.types.weight[0] if types is None else self.types(types))
        if self.norm_in is not None:
            x = self.norm_in(x)
        x = self.dropout(x)
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16:
            x = x.bfloat16()  # the residual stream as well: docs/experiments.md has what that costs and gives
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]  # (B, 1, 1, T)
        if ragged:
            mask = (
                torch.arange(caches[0].seen, device=x.device) <= past[:, None, None, None]
            )  # (B, 1, 1, seen)
        angles = (
            None if self.angles is None else self.angles[:, at].unsqueeze(-3)
        )  # (2, 1 or B, 1, T, hs / 2)
        for i, block in enumerate(self.blocks):
            context = (mask, angles, caches[i] if caches else None, past)
            if self.recompute and self.training:
                x = checkpoint(block, x, *context, use_reentrant=False)
            else:
                x = block(x, *context)
        return x if self.norm_out is None else self.norm_out(x)

    def next_logits(self, token, caches, past, before):
        """Logits (B, padded_vocab_size) in fp32 after one more token, (B,); before (B,): those before it. See `hidden`."""
        x = self.hidden(token[:, None], caches=caches, past=past, before=before[:, None])
        return self.logits(x[:, -1]).float()

    def logits(self, x):
        """x (..., C) -> (..., padded_vocab_size), -inf in the padding rows."""
        x = x if self.head is None else self.head(x)
        logits = self.decode(x) if self.decode else F.linear(x, self.head_matrix(), self.head_bias())
        if self.config.softcap:
            logits = self.config.softcap * torch.tanh(logits / self.config.softcap) + self.padding.to(x.dtype)
        return logits

    def head_matrix(self):  # (padded_vocab_size, C)
        return self.tokens.weight if self.output is None else self.output.weight

    def head_bias(self):  # (padded_vocab_size,), None where it would be all zeros
        if self.head is not None:
            return self.head.bias + self.padding
        padded = self.config.padded_vocab_size > self.config.vocab_size
        return self.padding if padded and not self.config.softcap else None

    def forward(self, inputs, targets=None, where=None, types=None, attention_mask=None):
        """Logits, or the loss when there are targets.

        inputs (B, T): token ids. targets (B, T): ids to predict, -100 where nothing is.
        where (B, K): the positions of a row that are predicted; logits are computed there only, targets elsewhere
        must be -100. None: everywhere. types (B, T): segments, 0 unless given. attention_mask (B, T): 0 at padding.
        Returns logits (B, T or K, padded_vocab_size), or the *sum* of the cross entropy over the predicted tokens, in
        nats: who calls knows how many there are in the whole batch. Raises ValueError if T exceeds block_size.
        """
        x = self.hidden(inputs, types, attention_mask)
        if where is not None:
            x = x.gather(1, where[..., None].expand(-1, -1, x.shape[-1]))  # (B, K, C)
        if targets is None:
            return self.logits(x)
        if where is not None:
            targets = targets.gather(1, where)  # (B, K)
        x = x if self.head is None else self.head(x)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        bias = None if self.head is None else self.head.bias
        padding = self.padding if self.config.padded_vocab_size > self.config.vocab_size else None
        x, targets = x.flatten(0, 1), targets.flatten()
        return self.loss(x, self.head_matrix(), bias, padding, targets, self.config.softcap)

    def num_params(self):
        """Parameters, the padding rows of the vocabulary left out: 124,439,808 for GPT-2."""
        padding = self.config.padded_vocab_size - self.config.vocab_size
        per_row = self.config.n_embd * (1 if self.output is None else 2) + (self.head is not None)
        return sum(p.numel() for p in self.parameters()) - padding * per_row

    def flops_per_token(self, T, predicted=1.0):
        """FLOPs of training on one token in rows of T: forward and backward, as PaLM counts them (appendix B).

        6 per weight of a matrix product (embeddings are look-ups; the head counts for the `predicted` fraction of
        positions) plus 12 n_layer n_embd T for attention, of which a causal mask needs half.
        """
        c = self.config
        matrices = sum(p.numel() for name, p in self.named_parameters() if p.dim() > 1 and 'blocks' in name)
        head = c.padded_vocab_size * c.n_embd + (c.n_embd**2 if self.head is not None else 0)
        return 6 * (matrices + predicted * head) + 12 * c.n_layer * c.n_embd * T

    def save(self, directory, weights=None):
        """Write model.safetensors (fp32 as trained) and config.json. weights: name -> weight, if this process has not all."""
        from safetensors.torch import save_file

        weights = {name: w.detach().cpu().contiguous() for name, w in (weights or self.state_dict()).items()}
        save_file(weights, Path(directory, 'model.safetensors'))
        Path(directory, 'config.json').write_text(json.dumps(asdict(self.config), indent=2) + '\n')

    @classmethod
    def from_pretrained(cls, source, block_size=0, dropout=0.0):
        """A model with the weights of `source`: a name on the hub, or a directory that transformers or `save` wrote.

        block_size > 0 keeps only that many positions. Raises ValueError for what is no model of ours, OSError when
        it cannot be read or downloaded.
        """
        settings, weights = pretrained.read(source)
        flags = ARCHITECTURES[settings.pop('arch')] if 'arch' in settings else {}
        try:
            config = Config(**(flags | settings | dict(dropout=dropout)))
        except TypeError as e:
            raise ValueError(f'the config.json of {source} does not describe a model: {e}') from None
        if block_size > config.block_size:
            raise ValueError(
                f'block_size = {block_size} is longer than the {config.block_size} positions of {source}'
            )
        if block_size:
            config.block_size = block_size
            if not config.rope_theta:
                weights['positions.weight'] = weights['positions.weight'][:block_size]
        for name in ('tokens.weight', 'head.bias'):  # foreign vocabularies come without padding rows
            if name in weights:
                rows, missing = len(weights[name]), config.padded_vocab_size - len(weights[name])
                if rows not in (config.vocab_size, config.padded_vocab_size):
                    raise ValueError(
                        f'{source}: {name} has {rows} rows for a vocabulary of {config.vocab_size}'
                    )
                weights[name] = torch.cat(
                    (weights[name], weights[name].new_zeros(missing, *weights[name].shape[1:]))
                )
        if len({name.split('.')[1] for name in weights if name.startswith('blocks.')}) != config.n_layer:
            raise ValueError(
                f'the weights of {source} do not have the {config.n_layer} layers of its config.json'
            )
        model = cls(config)
        try:
            model.load_state_dict(weights)
        except RuntimeError as e:
            raise ValueError(f'the weights of {source} do not fit its config.json: {e}') from None
        return model
