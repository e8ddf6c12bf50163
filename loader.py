"""Loader: token files -> rows. It has no state: the rows of a step are a function of (data, seed, step).

Rows are numbered through the whole run; each process takes its rows of the step by their numbers. An epoch visits every row of
the split once, in shuffled order. An objective says how rows are cut: `Windows` over the stream of tokens, or `Documents`.

A mixture, 'wikipedia:0.3,fineweb-edu:0.6,github-code:0.1', takes each row from one of its data sets, which each have row numbers
and epochs of their own. A plain data set is a mixture of one.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np

from common import fail, mix, sha256


def mixture(dataset):
    """The data sets that `dataset` means and their shares of the rows, {name: Fraction}, the greatest first, 1 in all.

    It lists them, 'a:2,b:1', with weights of any size, or names one, maybe one that `prepare.py mix` wrote. Ends the program
    with one line unless all are there and share a vocabulary.
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
            fail(f'the mixture {dataset!r} should be NAME:WEIGHT,…, weights above 0: {name}:{weight}')
        meta = directory_meta(name)
        if 'mixture' in meta:
            fail(f'{name} in {dataset!r} is a mixture itself: name what it consists of')
        hashes[name] = meta['tokenizer_hash']
    heaviest_first = sorted(weights, key=lambda name: (-weights[name], name))
    first = heaviest_first[0]
    for name in heaviest_first:
        if hashes[name] != hashes[first]:
            same = f'prepare.py {name} --tokenizer=data/{first}'
            fail(f'data/{name} and data/{first} have different vocabularies: {same}')
    return {name: weights[name] / sum(weights.values()) for name in heaviest_first}


def read_meta(dataset):
    """What prepare.py wrote about a data set; of a mixture, what all parts agree on -> dict, with 'mixture' (name -> share) and
    'data_hash' (name -> hashes of the files), all as JSON can hold it.
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
            valid = len(meta['mixture'].items()) > 0
        else:  # what is read of it, with the right types
            ids, hashes = meta['special'].values(), meta.get('sha256', {}).values()
            counts = [meta['train']['tokens'], meta['val']['tokens'], meta['vocab_size'], *ids]
            valid = all(type(n) is int and n >= 0 for n in counts) and meta['dtype'] in ('uint16', 'uint32')
            valid &= max(ids, default=0) < meta['vocab_size'] <= 2**32
            valid &= all(isinstance(text, str) for text in [meta['tokenizer_hash'], *hashes])
        if not valid:
            raise ValueError
        return meta
    except OSError:
        fail(f'there is no data set in data/{name}; make it first: python prepare.py {name}')
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        fail(f'{path} is damaged; make the data set again: python prepare.py {name}')


def verify(dataset):
    """Compare the files of a data set with the hashes in its meta.json; ends the program with one line where they differ."""
    for name in mixture(dataset):
        hashes = directory_meta(name).get('sha256') or fail(f'data/{name}/meta.json has no hashes to verify')
        for file, digest in hashes.items():
            path = Path('data', name, file)
            if not path.is_file() or sha256(path) != digest:
                fail(f'{path} is not what meta.json says; make it again: python prepare.py {name}')


def open_split(name, split, block_size):
    """The token ids of a split as a read-only memory map (tokens,), checked against meta.json and the block size."""
    meta = directory_meta(name)
    path = Path('data', name, f'{split}.bin')
    dtype = np.dtype(meta['dtype']).newbyteorder('<')
    expected = meta[split]['tokens'] * dtype.itemsize
    size = path.stat().st_size if path.exists() else 0
    if size != expected:
        fail(f'{path} has {size:,} bytes, not {expected:,}; make it again: python prepare.py {name}')
    if meta[split]['tokens'] <= block_size:
        fail(f'block_size = {block_size} is too long for {path} of {meta[split]["tokens"]:,} tokens')
    return np.memmap(path, dtype=dtype, mode='r')


def document_ends(name, split):
    """Where each document of a split ends, (documents,) int64, checked against meta.json."""
    path, meta = Path('data', name, f'{split}.idx'), directory_meta(name)[split]
    ends = np.fromfile(path, '<u8').astype(np.int64) if path.exists() else np.empty(0, np.int64)
    if not len(ends) or ends[-1] != meta['tokens'] or (np.diff(ends, prepend=0) < 1).any():
        fail(f'{path} does not fit the tokens that meta.json counts; make it again: python prepare.py {name}')
    return ends


def open_columns(name, split, columns, tokens):
    """{column: function of positions in the token file (an array) -> its values there}, for 'mask' and 'label'."""
    found = {}
    for column in columns:
        path = Path('data', name, f'{split}.{column}')
        if not path.exists():
            task = dict(mask='chat', label='classify')[column]
            fail(f'there is no {path}; make the data set with it: python prepare.py {name} --task={task}')
        if column == 'mask':
            values, ends = np.memmap(path, np.uint8, 'r'), None
            found[column] = values.__getitem__
        else:
            values, ends = np.memmap(path, '<i4', 'r'), document_ends(name, split)
            found[column] = lambda at, v=values, e=ends: v[np.searchsorted(e, at, side='right')]
        if len(values) != (tokens if ends is None else len(ends)):
            fail(f'{path} does not fit the token file; make it again: python prepare.py {name}')
    return found


def unread_columns(dataset, columns):
    """Columns that data sets of a mixture have and an objective does not read, as paths."""
    unread = [column for column in ('mask', 'label') if column not in columns]
    paths = [Path('data', name, f'train.{column}') for name in mixture(dataset) for column in unread]
    return [path for path in paths if path.exists()]


class DataError(Exception):
    """Data that are not what their meta.json says, found while they are read."""


class Windows:
    """Rows cut from a split as one stream of tokens: an epoch visits every window of block_size tokens once.

    A row has row_tokens tokens, block_size and a few more: the last targets. They are the first of the next window.
    """

    def __init__(self, tokens, columns, block_size, row_tokens):
        self.tokens, self.columns, self.block_size, self.row_tokens = tokens, columns, block_size, row_tokens
        # what is left over lets each epoch begin at another offset
        self.rows_per_epoch = max(1, (len(tokens) - row_tokens + 1) // block_size)

    def read(self, numbers, seed):
        """Rows by their numbers, as a dict of arrays (len(numbers), row_tokens): 'tokens' int64 and the columns."""
        n = self.rows_per_epoch
        slack = len(self.tokens) - self.row_tokens + self.block_size - n * self.block_size
        epochs, places = np.divmod(np.asarray(numbers, dtype=np.int64), n)
        starts = np.empty_like(places)
        for epoch in np.unique(epochs):
            this = epochs == epoch
            key = epoch_key(seed, epoch)
            offset = int(mix(key + np.uint64(1))[0] % np.uint64(slack + 1))
            starts[this] = offset + self.block_size * shuffled(places[this], n, key)
        return self.cut(starts)

    def cut(self, starts):
        """Rows that begin at the positions `starts`, as of `read`."""
        at = np.asarray(starts)[:, None] + np.arange(self.row_tokens)  # (B, R)
        tokens = np.stack([self.tokens[start : start + self.row_tokens] for start in starts]).astype(np.int64)
        return {'tokens': tokens, **{name: read(at) for name, read in self.columns.items()}}


class Documents:
    """Rows packed with whole documents, best fit: none is cut that fits into a row, and nothing is lost.

    Packed once for a seed; an epoch visits every row once. A longer document is cut into pieces that each fit; a piece begins
    with the last tokens of the one before, so that every token but a document's first is a target once.
    """

    def __init__(self, tokens, columns, ends, block_size, row_tokens, seed):
        self.tokens, self.columns, self.row_tokens = tokens, columns, row_tokens
        begins = np.append(0, ends[:-1])
        pieces = np.maximum(1, -(-(ends - begins - (row_tokens - block_size)) // block_size))
        document = np.repeat(np.arange(len(ends)), pieces)
        # of a piece in its document
        number = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        starts = begins[document] + number * block_size
        lengths = np.minimum(ends[document] - starts, row_tokens)
        order = shuffled(np.arange(len(lengths)), len(lengths), epoch_key(seed, -1))
        row_of = best_fit(lengths[order], row_tokens)
        by_row = order[np.argsort(row_of, kind='stable')]
        self.starts, self.lengths = starts[by_row], lengths[by_row]  # of pieces, in the order of rows
        # pieces of row r: firsts[r] to firsts[r + 1]
        self.firsts = np.append(0, np.cumsum(np.bincount(row_of)))
        self.rows_per_epoch = len(self.firsts) - 1

    def read(self, numbers, seed):
        """Rows by their numbers, as a dict of arrays (len(numbers), row_tokens): 'tokens' int64, 'document', the number of a
        document within its row, -1 behind the last one, 'position' in it, and the columns.
        """
        epochs, places = np.divmod(np.asarray(numbers, dtype=np.int64), self.rows_per_epoch)
        shape = (len(places), self.row_tokens)
        at, position = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        document = np.full(shape, -1, np.int64)
        for i, (epoch, place) in enumerate(zip(epochs, places, strict=True)):
            row = int(shuffled(place[None], self.rows_per_epoch, epoch_key(seed, epoch))[0])
            filled = 0
            for k, piece in enumerate(range(self.firsts[row], self.firsts[row + 1])):
                here = slice(filled, filled := filled + self.lengths[piece])
                position[i, here] = np.arange(self.lengths[piece])
                at[i, here] = self.starts[piece] + position[i, here]
                document[i, here] = k
        rows = {'tokens': self.tokens[at].astype(np.int64), 'document': document, 'position': position}
        return rows | {name: read(at) * (document >= 0) for name, read in self.columns.items()}


def best_fit(lengths, capacity):
    """Pack pieces into rows of `capacity` tokens, the longest first, each where it leaves the least room -> row of each piece."""
    open_rows = [[] for _ in range(capacity + 1)]  # by the room that is left in them
    rooms = 0  # a bit for each number of tokens that some row has room for
    row_of, rows = np.empty(len(lengths), np.int64), 0
    for piece in np.argsort(-lengths, kind='stable').tolist():
        length = int(lengths[piece])
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1  # the lowest bit
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms &= ~(1 << room)
        else:
            room, row, rows = capacity, rows, rows + 1
        row_of[piece] = row
        open_rows[room - length].append(row)
        rooms |= 1 << (room - length)
    return row_of


class Mixture:
    """The rows of a split of a data set or of several, each with its share, numbered through the whole run.

    cut: 'windows' or 'documents'. columns: those to read: 'mask' (uint8 a token: 1 = learn to predict it), 'label' (int32: the
    class of the token's document). row_tokens: tokens in a row; block_size: how far rows are apart. seed: of the packing.
    """

    def __init__(self, dataset, split, block_size, row_tokens=0, cut='windows', columns=(), seed=0):
        row_tokens = row_tokens or block_size + 1
        self.parts = []
        for name, share in mixture(dataset).items():
            tokens = open_split(name, split, row_tokens - 1 if cut == 'windows' else 0)
            found = open_columns(name, split, columns, len(tokens))
            if cut == 'windows':
                part = Windows(tokens, found, block_size, row_tokens)
            else:
                part = Documents(tokens, found, document_ends(name, split), block_size, row_tokens, seed)
            self.parts.append((part, share))

    @property
    def rows_per_epoch(self):
        """The rows after which every part has been seen once."""
        return max(part.rows_per_epoch / share for part, share in self.parts)

    def read(self, numbers, seed):
        """Rows by their numbers in the run, a dict of arrays (len(numbers), row_tokens)."""
        source, own = deal([share for _, share in self.parts], numbers)
        rows = {}
        for i in np.unique(source):
            for name, values in self.parts[i][0].read(own[source == i], seed).items():
                if name not in rows:
                    rows[name] = np.empty((len(source), *values.shape[1:]), values.dtype)
                rows[name][source == i] = values
        return rows


class Prefetch:
    """The batches of the next step, made in a thread while the current step is computed. make: step -> batches."""

    def __init__(self, make, step):
        self.make, self.thread = make, ThreadPoolExecutor(1)
        self.seek(step)

    def seek(self, step):
        """Go on with the batches of another step."""
        self.step, self.next = step, self.thread.submit(self.make, step)

    def take(self):
        """The batches of the step; those of the one after it are begun."""
        batches = self.next.result()
        self.seek(self.step + 1)
        return batches


def epoch_key(seed, epoch):
    """What the order of an epoch is drawn from, (1,) uint64."""
    return mix(np.array([(seed * 1_000_003 + int(epoch)) % 2**64], dtype=np.uint64))


def deal(shares, numbers):
    """The part that each row belongs to, as an index, and its number among that part's rows: int64 (len(numbers),) both.

    Of the first r rows, r times its share, to the nearest whole row, are the first part's; the others are numbered again
    and given to the parts that follow in the same way. So each rounding moves less than one row into or out of any n
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
