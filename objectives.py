"""What is predicted: rows of tokens -> a batch of inputs and targets, a pure function of the rows and the seed."""

import numpy as np
import torch


def causal(rows):
    """Each token from those before it. rows (B, T + 1) -> inputs (B, T), targets (B, T)."""
    rows = torch.from_numpy(rows)
    return {'inputs': rows[:, :-1].clone(), 'targets': rows[:, 1:].clone()}


def masked(rows, numbers, seed, special, vocab_size, mask_ratio):
    """Hidden tokens from all the others (Devlin et al. 2018, section 3.1). rows (B, T + 1) -> a batch of T wide.

    The row is framed by cls and sep. A fixed number of its other tokens is chosen, mask_ratio of T (fewer where special
    tokens leave fewer): 80 % become mask, 10 % a random ordinary token, 10 % stay. Special tokens are never chosen.
    numbers: the B row numbers of the run; a row's choices depend on (seed, its number) only, not on the batch.
    special: the dict of special ids. Returns inputs, targets (B, T), -100 but where chosen, and where (B, K), the
    chosen positions, filled up with positions whose target is -100.
    """
    inputs = rows[:, :-1].copy()
    inputs[:, 0], inputs[:, -1] = special['cls'], special['sep']
    B, T = inputs.shape
    K = max(1, round(mask_ratio * T))
    draws = np.stack(
        [np.random.Generator(np.random.Philox(key=[seed, n])).random((3, T)) for n in numbers], axis=1
    )
    order, change, replacement = draws  # (B, T) each, uniform in [0, 1)

    is_special = np.isin(inputs, list(special.values()))
    # the K lowest; special tokens come last
    where = np.argpartition(order + is_special, K - 1, axis=1)[:, :K]
    original = np.take_along_axis(inputs, where, 1)  # (B, K)
    chosen = ~np.take_along_axis(is_special, where, 1)
    targets = np.full_like(inputs, -100)
    np.put_along_axis(targets, where, np.where(chosen, original, -100), 1)

    specials = sorted(set(special.values()))
    random_tokens = np.take_along_axis(replacement, where, 1) * (vocab_size - len(specials))
    random_tokens = random_tokens.astype(np.int64)
    for s in specials:  # count the ordinary tokens only
        random_tokens += random_tokens >= s
    change = np.take_along_axis(change, where, 1)
    shown = np.where(change < 0.8, special['mask'], np.where(change < 0.9, random_tokens, original))
    np.put_along_axis(inputs, where, np.where(chosen, shown, original), 1)
    return {
        name: torch.from_numpy(a) for name, a in (('inputs', inputs), ('targets', targets), ('where', where))
    }
