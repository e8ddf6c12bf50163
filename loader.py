"""Token files -> rows. The loader has no state: the rows of a step are a function of (data, seed, step).

Rows are numbered through the whole run. An epoch visits every window of the split once, in shuffled order; the next
one is cut at another offset. Whatever the number of processes, each takes its rows of the step by their numbers.
"""

import json
from pathlib import Path

import numpy as np

from config import fail


def read_meta(dataset):
    """What prepare.py wrote about a data set, as a dict; ends the program with one line if there is none."""
    path = Path('data', dataset, 'meta.json')
    try:
        meta = json.loads(path.read_text())
        _ = np.dtype(meta['dtype']), meta['train']['tokens'], meta['val']['tokens']
        _ = meta['vocab_size'], meta['special'], meta['tokenizer_hash']
        return meta
    except OSError:
        fail(f'there is no data set in data/{dataset}; make it first: python prepare.py {dataset}')
    except (ValueError, KeyError, TypeError):
        fail(f'{path} is damaged; make the data set again: python prepare.py {dataset}')


def open_split(dataset, split, block_size):
    """The token ids of a split as a read-only memory map (tokens,), checked against meta.json and the block size."""
    meta = read_meta(dataset)
    path = Path('data', dataset, f'{split}.bin')
    dtype = np.dtype(meta['dtype']).newbyteorder('<')
    expected = meta[split]['tokens'] * dtype.itemsize
    size = path.stat().st_size if path.exists() else 0
    if size != expected:
        fail(
            f'{path} has {size:,} bytes where meta.json says {expected:,}; make it again: python prepare.py {dataset}'
        )
    if meta[split]['tokens'] <= block_size:
        fail(
            f'block_size = {block_size} is too long for {path}, which holds {meta[split]["tokens"]:,} tokens'
        )
    return np.memmap(path, dtype=dtype, mode='r')


def windows(tokens, block_size):
    """How many windows an epoch has; what is left over lets each epoch begin at another offset."""
    return max(1, (len(tokens) - block_size) // block_size)


def read_rows(tokens, block_size, numbers, seed):
    """Rows by their numbers in the run, (len(numbers), block_size + 1) int64: each holds its last token's target too."""
    n = windows(tokens, block_size)
    slack = len(tokens) - 1 - n * block_size
    epochs, places = np.divmod(np.asarray(numbers, dtype=np.int64), n)
    starts = np.empty_like(places)
    for epoch in np.unique(epochs):
        this = epochs == epoch
        key = mix(np.array([(seed * 1_000_003 + int(epoch)) % 2**64], dtype=np.uint64))
        offset = int(mix(key + np.uint64(1))[0] % np.uint64(slack + 1))
        starts[this] = offset + block_size * shuffled(places[this], n, key)
    return np.stack([tokens[start : start + block_size + 1] for start in starts]).astype(np.int64)


def shuffled(places, n, key):
    """Where a permutation of range(n), chosen by the key, sends each place, without ever holding it in memory.

    A Feistel network permutes the next power of four; what lands outside walks on until it is inside
    (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    half = np.uint64((max(n - 1, 1).bit_length() + 1) // 2)
    low = (np.uint64(1) << half) - np.uint64(1)
    out = places.astype(np.uint64)
    outside = np.ones(len(out), dtype=bool)
    while outside.any():
        left, right = out[outside] >> half, out[outside] & low
        for turn in range(6):
            left, right = right, left ^ (mix(right + mix(key + np.uint64(turn))) & low)
        out[outside] = left << half | right
        outside = out >= n
    return out.astype(np.int64)


def mix(x):
    """A 64-bit hash of each element of a uint64 array (the finaliser of splitmix64, Steele et al. 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
