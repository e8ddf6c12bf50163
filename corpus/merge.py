"""Merge: all shards -> the files of a data set. Which documents are kept, which are for validation, and their tokens."""

import itertools

import numpy as np

from common import fail, progress
from corpus import dedup, shard

FEW = 100  # fewer documents than this are split by position: hashes would leave the fraction to chance
BLOCK = 1 << 22  # tokens copied together
DROPPED, TRAIN, VAL = range(3)


# --- which documents are kept, and where ------------------------------------------


def assign_splits(shards, job):
    """The split of every document, in the order of the shards -> (split_of, cut, copies).

    split_of: (documents,) int8, DROPPED, TRAIN or VAL. The first of each cluster of copies is kept. The split is a
    function of the text alone, except that a document even remotely similar to another one is for training. cut: of
    split_by_position. copies: `first` (documents,), the first document of each one's cluster; `exact` (documents,) bool,
    copies of equal text; `moved`, how many documents were moved to training.
    """
    signatures = shard.gather_signatures(shards, job['bands'] if job['dedup'] == 'near' else 0)
    index = np.arange(len(signatures))
    copies = dict(first=index, exact=np.zeros(len(index), bool), moved=0)
    if job['dedup'] != 'none':
        copies['first'] = dedup.first_exact(signatures)
        copies['exact'] = copies['first'] != index
    if job['dedup'] == 'near':
        copies['first'] = dedup.clusters(signatures)
    kept = copies['first'] == index
    if kept.sum() < FEW:
        return *split_by_position(shards, kept, job), copies
    hashes = signatures['exact']
    bound = max(job['val_fraction'] * 2.0**64, hashes[kept].min())  # one document at least
    validation = kept & (hashes <= bound)
    if job['dedup'] == 'near':
        leaking = dedup.similar(signatures, kept, validation)
        copies['moved'] = int(leaking.sum())
        validation &= ~leaking
    return kept.astype(np.int8) + validation, None, copies


def split_by_position(shards, kept, job):
    """Of few documents, the last val_fraction of the characters is for validation -> (split_of, cut).

    cut: (index, fraction) of the text across the boundary and how much of it is for training, or None.
    """
    lengths = shard.column(shards, 'characters') * kept
    begins = np.cumsum(lengths) - lengths
    boundary = int(int(lengths.sum()) * (1 - job['val_fraction']))
    across = np.flatnonzero((begins < boundary) & (boundary < begins + lengths))
    cut = [(int(i), (boundary - int(begins[i])) / int(lengths[i])) for i in across if job['task'] == 'text']
    return kept.astype(np.int8) + (kept & (begins >= boundary)), cut[0] if cut else None


def cut_document(ids, size, fraction, vocabulary):
    """Cut a document between two tokens -> ((ids, bytes) of its first part, of its last part).

    fraction: of its characters, in the first part, as nanoGPT cuts Shakespeare: exact to a token. With a vocabulary that does
    not give text back exactly, it is the fraction of the decoded text.
    """
    text = vocabulary.decode(ids)
    cut = round(fraction * len(text))
    first, last = map(len, vocabulary.encode_batch([text[:cut], text[cut:]]))
    cut = len(ids) * first // max(first + last, 1)
    while (first_text := vocabulary.decode(ids[:cut])).endswith('\ufffd') and cut < len(ids):
        cut += 1  # not between the bytes of a character
    first_size = size * len(first_text.encode()) // max(len(text.encode()), 1)
    return (ids[:cut], first_size), (ids[cut:], size - first_size)


# --- the files --------------------------------------------------------------------


class Split:
    """The files of a split, which grow: token ids (.bin), the end of every document (.idx), and .mask or .label."""

    def __init__(self, directory, name, vocabulary):
        self.path, self.vocabulary = directory / name, vocabulary
        self.counts = dict(documents=0, tokens=0, bytes=0)
        self.write(np.empty(0), np.empty(0, int), 0)

    def write(self, ids, lengths, size, **columns):
        """Append documents: their ids, the number of ids of each, their bytes of text, and other columns by suffix."""
        ends = self.counts['tokens'] + np.cumsum(lengths)
        columns |= dict(bin=ids.astype(self.vocabulary.dtype), idx=ends.astype(np.uint64))
        for suffix, array in columns.items():
            shard.append(f'{self.path}.{suffix}', array)
        for key, count in dict(documents=len(lengths), tokens=len(ids), bytes=int(size)).items():
            self.counts[key] += count

    def write_part(self, ids, size):
        """Append a part of a document as a document."""
        if len(ids):
            self.write(np.append(ids, self.vocabulary.special['eot']), [len(ids) + 1], size)


def write_splits(shards, split_of, cut, directory, vocabulary, job):
    """Write the tokens of the documents that are kept, shard by shard -> meta: counts and vocabulary."""
    train, val = (Split(directory, name, vocabulary) for name in ('train', 'val'))
    labels = label_numbers(shards)
    if cut:
        index, fraction = cut
        split_of[index] = DROPPED
        ids, size = shard.tokens_of(shards, index, vocabulary.dtype), shard.column(shards, 'bytes')[index]
        first, last = cut_document(ids, int(size), fraction, vocabulary)
        val.write_part(*last)
    counts = shard.column(shards, 'tokens')
    with progress('writing', int(counts.sum(dtype=np.int64)), 'tok') as bar:
        for path in shards:
            documents = copy_shard(path, split_of, {TRAIN: train, VAL: val}, labels, job['task'])
            bar.update(int(counts[:documents].sum(dtype=np.int64)))
            split_of, counts = split_of[documents:], counts[documents:]
    if cut:
        train.write_part(*first)
    if not train.counts['tokens']:
        fail(f'{job["files"] or job["hub"]}: no document is left')
    if not val.counts['tokens']:
        fail('validation has no document, all are too similar: raise --val_fraction or try --dedup=exact')
    meta = dict(train=train.counts, val=val.counts)
    if job['task'] == 'classify':
        meta['labels'] = sorted(labels, key=labels.get)
    meta |= dict(tokenizer=vocabulary.name, tokenizer_hash=vocabulary.hash)
    meta |= dict(vocab_size=vocabulary.vocab_size, special=vocabulary.special)
    return meta | dict(dtype=vocabulary.dtype.name)


def copy_shard(path, split_of, splits, labels, task):
    """Append the documents of a shard to their splits, about BLOCK tokens at a time -> how many documents it has."""
    rows = shard.read_array(path / 'rows.bin', shard.ROW)
    ids = shard.read_array(path / 'tokens.bin', splits[TRAIN].vocabulary.dtype)
    mask = shard.read_array(path / 'mask.bin', np.dtype(np.uint8))
    if task == 'classify':
        numbers = np.array([labels[name] for name in shard.read_report(path)['labels']], np.int32)
    ends = np.append(0, np.cumsum(rows['tokens'], dtype=np.int64))
    bounds = [0, *np.flatnonzero(np.diff(ends[:-1] // BLOCK)) + 1, len(rows)]
    for first, last in itertools.pairwise(bounds):
        block, tokens = rows[first:last], slice(ends[first], ends[last])
        for name, split in splits.items():
            chosen = split_of[first:last] == name
            wanted, columns = np.repeat(chosen, block['tokens']), {}
            if task == 'chat':
                columns['mask'] = mask[tokens][wanted]
            if task == 'classify':
                columns['label'] = numbers[block['label'][chosen]]
            split.write(ids[tokens][wanted], block['tokens'][chosen], block['bytes'][chosen].sum(), **columns)
    return len(rows)


def label_numbers(shards):
    """The number of each label: itself if all are numbers, else its place among the sorted names."""
    names = sorted({name for path in shards for name in shard.read_report(path)['labels']})
    return {name: int(name) if all(map(str.isdecimal, names)) else n for n, name in enumerate(names)}
