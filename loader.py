"""Token files -> rows. The loader has no state: the rows of a step are a function of (data, seed, step).

Rows are numbered through the whole run. An epoch visits every window of the split once, in shuffled order; the next
one is cut at another offset. Whatever the number of processes, each takes its rows of the step by their numbers.

A mixture, 'wikipedia:0.3,fineweb-edu:0.6,github-code:0.1', deals the rows to its data sets; each numbers its own anew and
visits them in epochs of its own. A plain data set is a mixture of one.
"""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np

from common import fail, mix, sha256


def mixture(dataset):
    """The data sets that `dataset` means and their shares of the rows, {name: Fraction}, the greatest first, 1 in all.

    'a:2,b:1' lists them, with weights of any size; a name that `prepare.py mix` wrote means what its meta.json lists; any
    other name means itself. Ends the program with one line unless all are there and share a vocabulary.
    """
    if ':' in dataset or ',' in dataset:
        listed = [item.strip().partition(':')[::2] for item in dataset.split(',')]
    else:
        listed = directory_meta(dataset).get('mixture', {dataset: 1}).items()
    weights, hashes = {}, {}
    for name, weight in listed:
        if name in weights:
            fail(f'the mixture {dataset!r} names {name} twice')
        try:
            weights[name] = Fraction(str(weight))
        except (ValueError, ZeroDivisionError):
            weights[name] = Fraction(0)
        if weights[name] <= 0:
            fail(
                f'the mixture {dataset!r} should be NAME:WEIGHT,NAME:WEIGHT, each weight above 0: {name}:{weight}'
            )
        meta = directory_meta(name)
        if 'mixture' in meta:
            fail(f'{name} in {dataset!r} is a mixture itself: name what it consists of')
        hashes[name] = meta['tokenizer_hash']
    heaviest_first = sorted(weights, key=lambda name: (-weights[name], name))
    for name in heaviest_first:
        if hashes[name] != hashes[heaviest_first[0]]:
            other = f'data/{heaviest_first[0]}'
            fail(
                f'data/{name} and {other} have different vocabularies; prepare data/{name} with --tokenizer={other}'
            )
    return {name: weights[name] / sum(weights.values()) for name in heaviest_first}


def read_meta(dataset):
    """What prepare.py wrote about a data set; of a mixture, that on which all parts agree, such as the vocabulary -> dict.

    It tells the shares as 'mixture' and the hashes of the files as 'data_hash', both by name, all as JSON can hold it.
    """
    shares = mixture(dataset)
    metas = {name: directory_meta(name) for name in shares}
    first, *others = metas.values()
    agreed = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    agreed['mixture'] = {name: str(share) for name, share in shares.items()}
    agreed['data_hash'] = {name: meta.get('sha256') for name, meta in metas.items()}
    return agreed


def directory_meta(name):
    """meta.json of data/NAME as a dict; ends the program with one line if there is none."""
    path = Path('data', name, 'meta.json')
    try:
        meta = json.loads(path.read_text())
        if 'mixture' in meta:
            _ = list(meta['mixture'].items())[0]
        elif not is_whole(meta):
            raise ValueError
        return meta
    except OSError:
        fail(f'there is no data set in data/{name}; make it first: python prepare.py {name}')
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        fail(f'{path} is damaged; make the data set again: python prepare.py {name}')


def is_whole(meta):
    """Whether a meta.json tells what is read of it, in the form that it should have."""
    counts = [meta[split]['tokens'] for split in ('train', 'val')] + [meta['vocab_size']]
    ids, hashes = list(meta['special'].values()), list(meta.get('sha256', {}).values())
    return (
        meta['dtype'] in ('uint16', 'uint32')
        and all(type(n) is int and n >= 0 for n in counts + ids)
        and max(ids, default=0) < meta['vocab_size'] <= 2**32
        and all(isinstance(text, str) for text in [meta['tokenizer_hash'], *hashes])
    )


def verify(dataset):
    """Compare the files of a data set with the hashes in its meta.json; ends the program with one line where they differ."""
    for name in mixture(dataset):
        hashes = directory_meta(name).get('sha256') or fail(f'data/{name}/meta.json has no hashes to verify')
        for file, digest in hashes.items():
            path = Path('data', name, file)
            if not path.is_file() or sha256(path) != digest:
                fail(f'{path} is not what meta.json says; make it again: python prepare.py {name}')


def open_mixture(dataset, split, block_size):
    """What `mixed_rows` reads: a list of (tokens, share), the split of each data set of the mixture."""
    return [(open_split(name, split, block_size), share) for name, share in mixture(dataset).items()]


def open_split(name, split, block_size):
    """The token ids of a split as a read-only memory map (tokens,), checked against meta.json and the block size."""
    meta = directory_meta(name)
    path = Path('data', name, f'{split}.bin')
    dtype = np.dtype(meta['dtype']).newbyteorder('<')
    expected = meta[split]['tokens'] * dtype.itemsize
    size = path.stat().st_size if path.exists() else 0
    if size != expected:
        fail(
            f'{path} has {size:,} bytes where meta.json says {expected:,}; make it again: python prepare.py {name}'
        )
    if meta[split]['tokens'] <= block_size:
        fail(
            f'block_size = {block_size} is too long for {path}, which holds {meta[split]["tokens"]:,} tokens'
        )
    return np.memmap(path, dtype=dtype, mode='r')


def windows(tokens, block_size):
    """How many windows an epoch has; what is left over lets each epoch begin at another offset."""
    return max(1, (len(tokens) - block_size) // block_size)


def mixed_rows(parts, block_size, numbers, seed):
    """Rows by their numbers in the run, (len(numbers), block_size + 1) int64: each from its part, a (tokens, share)."""
    source, own = deal([share for _, share in parts], numbers)
    rows = np.empty((len(source), block_size + 1), dtype=np.int64)
    for i in np.unique(source):
        rows[source == i] = read_rows(parts[i][0], block_size, own[source == i], seed)
    return rows


def deal(shares, numbers):
    """The part that each row belongs to, as an index, and its number among that part's rows: int64 (len(numbers),) both.

    Of the first r rows, r times its share, to the nearest whole row, are the first part's; the others are numbered anew
    and dealt to the parts that follow in the same way. So each rounding moves less than one row into or out of any n
    consecutive rows, and the parts that follow divide that by their shares. Where the shares fall, each of k >= 3 parts
    has n times its share of them, within 1 + (1 + 1/2 + ... + 1/(k - 2)) rows; within 1 where there are two.
    """
    source, own = np.empty((2, len(numbers)), dtype=np.int64)
    place = np.arange(len(numbers))
    number = np.array(numbers, dtype=object)  # Python's integers, exact at any size
    left = Fraction(1)
    for i, share in enumerate(shares):
        p, q = (share / left).as_integer_ratio()
        before, after = (2 * number * p + q) // (2 * q), (2 * (number + 1) * p + q) // (2 * q)
        here = after > before
        source[place[here]], own[place[here]] = i, before[here]
        place, number, left = place[~here], (number - before)[~here], left - share
    return source, own


def read_rows(tokens, block_size, numbers, seed):
    """Rows of one part by their numbers in it, (len(numbers), block_size + 1) int64: each holds its last token's target too."""
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
