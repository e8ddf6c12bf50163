"""One Transformer. Flags make it exactly GPT-2 (Radford et al. 2019), exactly BERT (Devlin et al. 2018), or a modern one.

model = Transformer(Config.of_arch('gpt2', n_layer=6))       # random weights
model = Transformer.from_pretrained('gpt2-medium')           # OpenAI's, from the Hugging Face hub
model = Transformer.from_pretrained('out/step-00001000')     # a directory saved by transformers or by us
"""

import json
import math
from collections import OrderedDict
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn as nn
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import kernels
import pretrained
from configurator import check_ranges
from loss import SummedCrossEntropy

# what paid in docs/experiments.md
MODERN = dict(norm='plain', qk_norm='plain', embedding_norm=True, rope_theta=10000.0, mlp='relu2', tied=False)
MODERN |= dict(softcap=15.0)

# What sets one architecture apart from another: values of Config. A new one is a line here.
ARCHITECTURES = {
    'gpt2': dict(causal=True, prenorm=True, mlp='gelu_tanh', norm_eps=1e-5),
    'bert': dict(causal=False, prenorm=False, mlp='gelu', norm_eps=1e-12, token_types=2),
    # BERT with the norms before each layer, which trains without a long warm-up (Xiong et al. 2020)
    'bert_prenorm': dict(causal=False, prenorm=True, mlp='gelu', norm_eps=1e-12, token_types=2),
    'llama': dict(norm='rms', rope_theta=10000.0, mlp='swiglu'),  # Touvron et al. 2023
    'modern': MODERN,
    'modern_bert': MODERN | dict(causal=False),
}

CHOICES = dict(norm=('layer', 'rms', 'plain'), qk_norm=('', 'rms', 'plain'))
CHOICES |= dict(mlp=('gelu_tanh', 'gelu', 'relu2', 'swiglu'))


@dataclass
class Config:
    """The shape of a model: every setting of it, stated once. train.py's command line, what cannot change on resuming and what
    a checkpoint stores are derived from these lines. Raises ValueError where the values do not fit.
    """

    # -----------------------------------------------------------------------------
    block_size: int = 1024  # tokens in a row: the most positions the model sees [1, inf)
    n_layer: int = 12  # blocks [1, inf)
    n_head: int = 12  # attention heads [1, inf)
    n_embd: int = 768  # width of the residual stream [1, inf)
    n_kv_head: int = 0  # heads of keys and values (grouped-query attention); 0: n_head [0, inf)
    head_size: int = 0  # width of a head; 0: n_embd / n_head [0, inf)
    mlp_width: int = 0  # 0: 4 n_embd; of 'swiglu', which has three matrices, 8/3 n_embd [0, inf)
    dropout: float = 0.0  # 0 is good for pretraining, try 0.1 and more for fine-tuning [0, 1)
    bias: bool = False  # in linear layers and norms, as GPT-2 and BERT; without is slightly better
    qkv_bias: bool = False  # in those of queries, keys and values alone, as Qwen2
    causal: bool = True  # each position sees those before it (GPT), or all (BERT)
    prenorm: bool = True  # norms before attention and MLP (GPT-2), or after the residual sum (BERT)
    mlp: str = 'gelu_tanh'  # of GPT-2; 'gelu' (BERT), 'relu2' (So et al. 2021), 'swiglu' (Shazeer 2020)
    norm: str = 'layer'  # LayerNorm; 'rms' (Zhang & Sennrich 2019); 'plain': LayerNorm without weights
    norm_eps: float = 1e-5  # added to the variance (0, 1)
    qk_norm: str = ''  # of each head's queries and keys (Dehghani et al. 2023): 'plain', or 'rms' as Qwen3
    rope_theta: float = 0.0  # base of rotary positions (Su et al. 2021); 0: learned positions [0, inf)
    token_types: int = 0  # segment embeddings; with them come BERT's embedding norm and head [0, inf)
    tied: bool = True  # the head's matrix is the token embedding
    softcap: float = 0.0  # logits are held below this by tanh (Gemma 2); 0: they are not [0, inf)
    embedding_norm: bool = False  # a norm after the embedding
    bigrams: int = 0  # rows of an embedding of hashed pairs of tokens, to learn faster; 0: none [0, inf)
    # -----------------------------------------------------------------------------
    vocab_size: int = 50257  # the data's

    def __post_init__(self):
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ValueError(f'{field.name} = {value!r} should be {kind.__name__}')
        check_ranges(asdict(self), __file__)
        if not 1 <= self.vocab_size < 2**31:
            raise ValueError(f'vocab_size = {self.vocab_size} should be at least 1')
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f'{name} = {getattr(self, name)!r} is none of {", ".join(map(repr, known))}')
        if not self.head_size and self.n_embd % self.n_head:
            raise ValueError(f'n_embd = {self.n_embd} is not divisible by n_head = {self.n_head}')
        if self.n_head % self.kv_heads:
            raise ValueError(f'n_head = {self.n_head} is not divisible by n_kv_head = {self.n_kv_head}')
        if self.rope_theta and self.head_width % 2:
            raise ValueError(f'n_embd / n_head = {self.head_width} should be even for rotary positions')

    @classmethod
    def of_arch(cls, arch, **given):
        """The Config of an architecture by its name; values that are given and not None go before its own."""
        given = {name: value for name, value in given.items() if value is not None}
        return cls(**ARCHITECTURES[arch] | given)

    @property
    def padded_vocab_size(self):
        """Rows of the embedding, a multiple of 64: matrix products are faster."""
        return math.ceil(self.vocab_size / 64) * 64

    @property
    def head_width(self):
        return self.head_size or self.n_embd // self.n_head

    @property
    def kv_heads(self):
        return self.n_kv_head or self.n_head

    @property
    def hidden_width(self):
        """The width between the matrices of the MLP. A gate makes a third matrix: two thirds keep the size (Shazeer 2020)."""
        return self.mlp_width or (self.n_embd * 8 // 3 // 8 * 8 if self.mlp == 'swiglu' else 4 * self.n_embd)

    def make_norm(self):
        if self.norm == 'rms':
            return RMSNorm(self.n_embd, eps=self.norm_eps)
        affine = self.norm == 'layer'
        return nn.LayerNorm(self.n_embd, eps=self.norm_eps, elementwise_affine=affine, bias=self.bias)


class RMSNorm(nn.RMSNorm):
    def forward(self, x):  # the weights stay in fp32, the output has the type of the input
        return (F.rms_norm(x, self.normalized_shape, None, self.eps) * self.weight).to(x.dtype)


def rotary_table(config):
    """cos and sin of the angle of each position and pair of channels, (2, block_size, hs / 2)."""
    pairs = torch.arange(0, config.head_width, 2) / config.head_width
    turns = torch.outer(torch.arange(config.block_size).float(), config.rope_theta**-pairs)
    return torch.stack((turns.cos(), turns.sin()))


def rotate(x, rope):
    """Turn each pair of channels (i, i + hs / 2) of x (B, nh, T, hs) by its position's angle. rope (2, 1 or B, 1, T, hs / 2)."""
    cos, sin = rope.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.head_width, self.dropout = config.head_width, config.dropout
        C, width, kv_width = config.n_embd, config.n_head * self.head_width, config.kv_heads * self.head_width
        qkv_bias = config.bias or config.qkv_bias
        self.q_proj = nn.Linear(C, width, bias=qkv_bias)
        self.k_proj = nn.Linear(C, kv_width, bias=qkv_bias)
        self.v_proj = nn.Linear(C, kv_width, bias=qkv_bias)
        self.o_proj = nn.Linear(width, C, bias=config.bias)
        self.qkv_proj, self.widths = None, (width, kv_width, kv_width)
        self.q_norm = self.k_norm = None
        if config.qk_norm == 'rms':
            self.q_norm, self.k_norm = (RMSNorm(self.head_width, eps=config.norm_eps) for _ in 'qk')
        elif config.qk_norm:
            self.q_norm, self.k_norm = (nn.LayerNorm(self.head_width, elementwise_affine=False) for _ in 'qk')

    def fuse(self):
        """For inference: queries, keys and values by one product, which costs less than three where rows are few."""
        self.qkv_proj = kernels.fused_linear(self.q_proj, self.k_proj, self.v_proj)
        self.q_proj = self.k_proj = self.v_proj = None

    def forward(self, x, visible, rope, cache, start_pos):
        B, T, _ = x.shape
        if self.qkv_proj is None:
            qkv = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        else:
            qkv = self.qkv_proj(x).split(self.widths, dim=-1)
        # query i of row b stands at start_pos[b] + i, key j at j; under tensor parallelism (infra/mesh.py) a process has fewer heads
        q, k, v = (p.view(B, T, -1, self.head_width).transpose(1, 2) for p in qkv)  # (B, nh or nkv, T, hs)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        if cache is not None:
            k, v = cache.append(k, v, start_pos)  # (B, nkv, S, hs)
        dropout = self.dropout if self.training else 0.0
        y = kernels.attention(q, k, v, visible, dropout=dropout, training=self.training)  # (B, nh, T, hs)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.kind, C, width = config.mlp, config.n_embd, config.hidden_width
        self.gate_proj = nn.Linear(C, width, bias=config.bias) if self.kind == 'swiglu' else None
        self.up_proj = nn.Linear(C, width, bias=config.bias)
        self.down_proj = nn.Linear(width, C, bias=config.bias)
        self.gate_up_proj = None

    def fuse(self):
        if self.kind == 'swiglu':
            self.gate_up_proj = kernels.fused_linear(self.gate_proj, self.up_proj)
            self.gate_proj = self.up_proj = None

    def forward(self, x):  # (B, T, C) -> (B, T, C)
        if self.gate_up_proj is not None:
            gate, x = self.gate_up_proj(x).chunk(2, dim=-1)
            x = F.silu(gate) * x
        elif self.kind == 'swiglu':
            x = F.silu(self.gate_proj(x)) * self.up_proj(x)
        elif self.kind == 'relu2':
            x = F.relu(self.up_proj(x)).square()
        else:
            gelu = kernels.gelu_tanh if self.kind == 'gelu_tanh' else F.gelu
            x = gelu(self.up_proj(x))
        return self.down_proj(x)


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


class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.token_embedding = nn.Embedding(c.padded_vocab_size, c.n_embd)
        self.position_embedding = None if c.rope_theta else nn.Embedding(c.block_size, c.n_embd)
        self.register_buffer('rope', rotary_table(c) if c.rope_theta else None, persistent=False)
        self.type_embedding = nn.Embedding(c.token_types, c.n_embd) if c.token_types else None
        self.bigram_embedding = nn.Embedding(c.bigrams, c.n_embd) if c.bigrams else None
        self.embedding_norm = c.make_norm() if c.token_types or c.embedding_norm else None
        self.dropout = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.final_norm = c.make_norm() if c.prenorm else None
        self.mlm_head = None  # what BERT does to a position before the head
        if c.token_types:
            layers = dict(dense=nn.Linear(c.n_embd, c.n_embd), gelu=nn.GELU(), norm=c.make_norm())
            self.mlm_head = nn.Sequential(OrderedDict(layers))
        # a tied head needs no matrix of its own: no random numbers are drawn for it
        device = 'meta' if c.tied else None
        self.lm_head = nn.Linear(c.n_embd, c.padded_vocab_size, bias=False, device=device)
        if c.tied:
            self.lm_head.weight = self.token_embedding.weight
        if c.token_types:
            self.lm_head.bias = nn.Parameter(torch.zeros(c.padded_vocab_size))
        # A bias of -inf shuts the padding rows of the vocabulary out of every softmax: they are neither learned nor
        # sampled, and the loss is that of the unpadded vocabulary.
        pad_logit_bias = torch.zeros(c.padded_vocab_size)
        pad_logit_bias[c.vocab_size :] = -torch.inf
        padded = c.padded_vocab_size > c.vocab_size
        self.register_buffer('pad_logit_bias', pad_logit_bias if padded else None, persistent=False)
        self.summed_loss = SummedCrossEntropy()
        self.gradient_checkpointing = False
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Standard deviations, as GPT-2 and BERT have them; norms start as the identity.

        every embedding                0.02
        every linear layer             0.02, biases 0
        o_proj, down_proj, prenorm     0.02 / sqrt(2 n_layer): 2 n_layer of them add up in the residual stream
        """
        for name, p in self.named_parameters():
            if p.dim() > 1:
                residual = self.config.prenorm and name.endswith(('o_proj.weight', 'down_proj.weight'))
                p.normal_(std=0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02)
            elif name.endswith('bias'):
                p.zero_()

    def gradient_checkpointing_enable(self):
        """Keep only the inputs of blocks in training and compute the rest again in the backward pass: less memory, more time."""
        self.gradient_checkpointing = True

    def hidden(
        self,
        inputs,
        token_types=None,
        document=None,
        position_ids=None,
        caches=None,
        start_pos=0,
        prev_token=None,
    ):
        """The last layer's output (B, T, C) of token ids, inputs (B, T). See `forward` for the other parts of a batch.

        caches: a generate.Cache of each layer, which holds what came before. start_pos: how many positions that are; or of each
        row, (B,). prev_token: the id before each row's first, (B, 1), -1 where there is none; None: nowhere.
        """
        B, T = inputs.shape
        if isinstance(start_pos, torch.Tensor):
            position_ids = start_pos[:, None] + torch.arange(T, device=inputs.device)  # (B, T)
        elif start_pos + T > self.config.block_size:
            raise ValueError(f'{start_pos + T} positions are more than block_size = {self.config.block_size}')
        at = slice(start_pos, start_pos + T) if position_ids is None else position_ids
        x = self.token_embedding(inputs)  # (B, T, C)
        if self.bigram_embedding is not None:
            prev_token = inputs.new_full((B, 1), -1) if prev_token is None else prev_token
            first = torch.cat((prev_token, inputs[:, :-1]), dim=1)  # (B, T)
            if document is not None:  # the first token of a document has none before it
                first[:, 1:].masked_fill_(document[:, 1:] != document[:, :-1], -1)
            x = x + self.bigram_embedding((first * 1_000_003 + inputs) % self.config.bigrams)
        if self.position_embedding is not None:
            x = x + self.position_embedding.weight[at]
        if self.type_embedding is not None:
            types = self.type_embedding
            x = x + (types.weight[0] if token_types is None else types(token_types))
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = self.dropout(x)
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16:
            x = x.bfloat16()  # the residual stream as well: docs/experiments.md has what that costs and gives
        rope = None if self.rope is None else self.rope[:, at].unsqueeze(-3)  # (2, 1 or B, 1, T, hs / 2)
        visible = self.visible(inputs, document, caches, start_pos, position_ids)
        for i, block in enumerate(self.blocks):
            context = (visible, rope, caches[i] if caches else None, start_pos)
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, *context, use_reentrant=False)
            else:
                x = block(x, *context)
        return x if self.final_norm is None else self.final_norm(x)

    def visible(self, inputs, document, caches, start_pos, position_ids):
        """What each position sees, as kernels.attention takes it; a mask only where there is more to say than 'causal'."""
        T, per_row = inputs.shape[1], isinstance(start_pos, torch.Tensor)
        cached = caches and (per_row or start_pos)  # there are keys before these T
        if document is None and not (cached and (per_row or T > 1)):
            return 'causal' if self.config.causal and T > 1 else None
        k_rank = torch.arange(caches[0].seen if cached else T, device=inputs.device)[None]  # (1, S)
        q_rank = position_ids if per_row else k_rank[:, start_pos : start_pos + T]  # (1 or B, T)
        if not self.config.causal:
            q_rank, k_rank = q_rank * 0, k_rank * 0
        return kernels.visible_keys(q_rank, k_rank, document, document)

    def logits(self, x):
        """x (..., C) -> (..., padded_vocab_size), -inf in the padding rows."""
        logits = self.lm_head(x if self.mlm_head is None else self.mlm_head(x))
        if self.config.softcap:
            logits = self.config.softcap * torch.tanh(logits / self.config.softcap)
        return logits if self.pad_logit_bias is None else logits + self.pad_logit_bias.to(logits.dtype)

    def forward(
        self, inputs, targets=None, predict_at=None, token_types=None, document=None, position_ids=None
    ):
        """Logits, or the loss when there are targets.

        inputs (B, T): token ids. targets (B, T): ids to predict, -100 where nothing is.
        predict_at (B, K): the positions of a row that are predicted; logits are computed there only, targets elsewhere
        must be -100. None: everywhere. token_types (B, T): segments, 0 unless given. document (B, T): numbers of documents,
        which do not see each other; padding is a document of its own. position_ids (B, T): 0, 1, 2, ... unless given.
        Returns logits (B, T or K, padded_vocab_size), or the *sum* of the cross entropy over the predicted tokens, in
        nats: the caller knows how many there are in the whole batch. Raises ValueError if T exceeds block_size.
        """
        x = self.hidden(inputs, token_types, document, position_ids)
        if predict_at is not None:
            x = x.gather(1, predict_at[..., None].expand(-1, -1, x.shape[-1]))  # (B, K, C)
        if targets is None:
            return self.logits(x)
        if predict_at is not None:
            targets = targets.gather(1, predict_at)  # (B, K)
        x = x if self.mlm_head is None else self.mlm_head(x)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        x, targets = x.flatten(0, 1), targets.flatten()  # (N, C), (N,)
        vocabulary = (self.lm_head.weight, self.lm_head.bias, self.pad_logit_bias)
        return self.summed_loss(x, *vocabulary, targets, self.config.softcap)

    def num_params(self):
        """Parameters, the padding rows of the vocabulary left out: 124,439,808 for GPT-2."""
        pad_rows = self.config.padded_vocab_size - self.config.vocab_size
        per_row = self.config.n_embd * (1 if self.config.tied else 2) + (self.lm_head.bias is not None)
        return sum(p.numel() for p in self.parameters()) - pad_rows * per_row

    def flops_per_token(self, T, predicted=1.0):
        """FLOPs of training on one token in rows of T: forward and backward, as PaLM counts them (appendix B).

        6 per weight of a matrix product (embeddings are look-ups; the head counts for the `predicted` fraction of
        positions) plus 12 n_layer n_head hs T for attention, of which a causal mask needs half.
        """
        c = self.config
        matrices = sum(p.numel() for p in self.blocks.parameters() if p.dim() > 1)
        in_head = c.padded_vocab_size * c.n_embd + (c.n_embd**2 if self.mlm_head is not None else 0)
        return 6 * (matrices + predicted * in_head) + 12 * c.n_layer * c.n_head * c.head_width * T

    def save(self, directory, weights=None):
        """Write model.safetensors (fp32 as trained) and config.json. weights: name -> weight, if this process has not all."""
        weights = weights or dict(self.named_parameters())  # a tied matrix once
        weights = {name: w.detach().cpu().contiguous() for name, w in weights.items()}
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
            raise ValueError(f'block_size = {block_size} exceeds the {config.block_size} of {source}')
        if block_size:
            config.block_size = block_size
            if 'position_embedding.weight' in weights:
                weights['position_embedding.weight'] = weights['position_embedding.weight'][:block_size]
        for name in ('token_embedding.weight', 'lm_head.weight', 'lm_head.bias'):
            if name in weights:  # foreign vocabularies come without padding rows
                rows = weights[name]
                if len(rows) not in (config.vocab_size, config.padded_vocab_size):
                    raise ValueError(f'{source}: {name} has {len(rows)} rows for {config.vocab_size} tokens')
                zeros = rows.new_zeros(config.padded_vocab_size - len(rows), *rows.shape[1:])
                weights[name] = torch.cat((rows, zeros))
        if len({name.split('.')[1] for name in weights if name.startswith('blocks.')}) != config.n_layer:
            raise ValueError(f'the weights of {source} lack the {config.n_layer} layers of its config.json')
        model = cls(config)
        if config.tied and 'token_embedding.weight' in weights:
            weights['lm_head.weight'] = weights['token_embedding.weight']
        try:
            model.load_state_dict(weights)
        except RuntimeError as e:
            raise ValueError(f'the weights of {source} do not fit its config.json: {e}') from None
        return model
