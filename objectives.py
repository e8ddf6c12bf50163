"""Objectives: what is predicted. Rows of tokens -> a batch for the model, a pure function of the rows, their numbers and the seed.

A new objective is a function and an entry of OBJECTIVES; train.py, eval.py and estimate.py only read what the entry says.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from loader import DataError, Mixture

# -----------------------------------------------------------------------------
mask_ratio = 0.15  # masked: the part of a row's tokens that is hidden; evaluation always hides 0.15 (0, 1)
# -----------------------------------------------------------------------------


class Context(NamedTuple):
    """What make_batch gets besides the rows."""

    numbers: range  # of the rows in the run: random choices depend on (seed, number) alone
    seed: int
    meta: dict  # the data's meta.json ('special': name -> id, 'vocab_size', …) and 'mixture': name -> share
    config: object  # the model's Config
    training: bool = True


class Objective(NamedTuple):
    """An entry of OBJECTIVES. make_batch: (rows, Context) -> what model(**batch) takes; rows: a dict as of loader.py."""

    make_batch: Callable
    flags: dict  # of model.Config that a model must have
    cut: str = 'windows'  # how the loader cuts rows: 'windows' or 'documents'
    columns: tuple = ()  # of the data that are read: 'mask', 'label'
    special: tuple = ()  # tokens that the vocabulary must have
    more_tokens: int = 1  # raw tokens that a row takes beyond block_size
    # what eval.py reports of the cross entropy over targets; bits_per_byte is right only if every token is one
    metrics: tuple = ('loss', 'perplexity', 'bits_per_byte', 'accuracy')
    # the loss, summed up, and the number of what is counted, by which the sum over the global batch is divided
    loss: Callable = lambda model, batch: model(**batch)
    count: Callable = lambda batch: (batch['targets'] != -100).sum()


def causal(rows, ctx):
    """The next token from those before it. rows['tokens'] (B, T + 1) -> inputs, targets (B, T).

    Packed documents do not see each other, and each has positions of its own.
    """
    tokens = torch.from_numpy(rows['tokens'])
    batch = {'inputs': tokens[:, :-1].clone(), 'targets': tokens[:, 1:].clone()}
    if 'document' in rows:
        document = torch.from_numpy(rows['document'])  # (B, T + 1), -1 where the row is not filled
        batch['targets'][document[:, 1:] != document[:, :-1]] = -100
        batch['targets'][document[:, 1:] < 0] = -100
        batch['document'] = document[:, :-1].clone()
        batch['position_ids'] = torch.from_numpy(rows['position'])[:, :-1].clone()
    return batch


def masked(rows, ctx):
    """Hidden tokens from all the others (Devlin et al. 2018, section 3.1). rows['tokens'] (B, T + 1); the last is not used.

    The row is framed by cls and sep. A fixed number of its other tokens is chosen, mask_ratio of T (fewer where special
    tokens leave fewer): 80 % become mask, 10 % a random ordinary token, 10 % stay. Special tokens are never chosen.
    Returns inputs, targets (B, T), -100 but where chosen, and predict_at (B, K), the chosen positions, filled up with
    positions whose target is -100. Raises ValueError where T leaves nothing to hide.
    """
    special, inputs = ctx.meta['special'], rows['tokens'][:, :-1].copy()
    inputs[:, 0], inputs[:, -1] = special['cls'], special['sep']
    B, T = inputs.shape
    if T < 3:
        raise ValueError(f'block_size = {T} leaves nothing to hide between cls and sep')
    K = max(1, round((mask_ratio if ctx.training else 0.15) * T))
    draws = [np.random.Generator(np.random.Philox(key=[ctx.seed, n])).random((3, T)) for n in ctx.numbers]
    order, change, replacement = np.stack(draws, axis=1)  # (B, T) each, uniform in [0, 1)

    is_special = np.isin(inputs, list(special.values()))
    # the K lowest; special tokens come last
    predict_at = np.argpartition(order + is_special, K - 1, axis=1)[:, :K]
    original = np.take_along_axis(inputs, predict_at, 1)  # (B, K)
    chosen = ~np.take_along_axis(is_special, predict_at, 1)
    targets = np.full_like(inputs, -100)
    np.put_along_axis(targets, predict_at, np.where(chosen, original, -100), 1)

    specials = sorted(set(special.values()))
    ordinary = ctx.meta['vocab_size'] - len(specials)
    random_tokens = (np.take_along_axis(replacement, predict_at, 1) * ordinary).astype(np.int64)
    for s in specials:  # count the ordinary tokens only
        random_tokens += random_tokens >= s
    change = np.take_along_axis(change, predict_at, 1)
    shown = np.where(change < 0.8, special['mask'], np.where(change < 0.9, random_tokens, original))
    np.put_along_axis(inputs, predict_at, np.where(chosen, shown, original), 1)
    batch = dict(inputs=inputs, targets=targets, predict_at=predict_at)
    return {name: torch.from_numpy(array) for name, array in batch.items()}


OBJECTIVES = {
    'causal': Objective(causal, dict(causal=True)),
    # whole documents in a row, which do not see each other
    'packed': Objective(causal, dict(causal=True), cut='documents'),
    'masked': Objective(
        masked, dict(causal=False), special=('cls', 'sep', 'mask'), metrics=('loss', 'perplexity', 'accuracy')
    ),
}


class Batches:
    """Micro-batches of a split, by their numbers in the run: what an objective makes of the loader's rows.

    size: rows of each. Raises DataError where the data hold an id that is not in the vocabulary, and so has no embedding.
    """

    def __init__(self, objective, dataset, split, size, seed, meta, config, training=True):
        self.objective, self.dataset, self.size, self.seed = objective, dataset, size, seed
        self.meta, self.config, self.training = meta, config, training
        T, cut, columns = config.block_size, objective.cut, objective.columns
        self.rows = Mixture(dataset, split, T, T + objective.more_tokens, cut, columns, seed)

    def __getitem__(self, number):
        numbers = range(number * self.size, (number + 1) * self.size)
        context = Context(numbers, self.seed, self.meta, self.config, self.training)
        batch = self.objective.make_batch(self.rows.read(numbers, self.seed), context)
        highest = max(int(batch[name].max()) for name in ('inputs', 'targets'))
        if highest >= (size := self.meta['vocab_size']):
            raise DataError(f'data/{self.dataset}: id {highest}, but a vocabulary of {size}; make it again')
        return batch


def example_batch(objective, rows, config, meta):
    """A batch of `rows` invented rows, for what depends on shapes only: memory, time, the part of positions that is predicted."""
    R = config.block_size + objective.more_tokens
    special = {name: i for i, name in enumerate(objective.special)} | meta.get('special', {})
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=(rows, R))
    made = {'tokens': tokens} | {name: np.ones_like(tokens) for name in objective.columns}
    if objective.cut == 'documents':
        made |= {'document': np.zeros_like(tokens), 'position': np.arange(R) + np.zeros_like(tokens)}
    context = Context(range(rows), 0, dict(meta, special=special, vocab_size=config.vocab_size), config)
    return objective.make_batch(made, context)
