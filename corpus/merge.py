"""The shards of a corpus -> its token files: which documents stay, which are for validation, and the files themselves.

`decide` looks at all documents by their sketches, never more than a column of them at a time; `join` copies the tokens of
those that stay.
"""

import numpy as np

from common import fail, progress
from corpus import dedup, shard

FEW = 100  # fewer documents than this are split by position: a hash would leave the shares to chance
BLOCK = 1 << 22  # tokens copied together


def open_shards(directory, count, vocabulary):
    """The shards there are, in order; of the units behind max_documents there are none."""
    paths = [shard.path_of(directory, number) for number in range(count)]
    return [shard.Shard(path, vocabulary.dtype) for path in paths if path.is_dir()]


# --- which documents stay ---------------------------------------------------------


def decide(shards, job):
    """What becomes of every document, in the order of the shards -> (places, found).

    places: (documents,) int8: 0 goes, 1 is for training, 2 for validation. Of copies, exact or near, the first stays;
    the others are dropped. The split is a function of the content alone, and a document goes to training rather than
    to validation where it is even remotely like another. found: what report.json says about copies.
    """
    sketches = shard.gather_sketches(shards, job['bands'] if job['dedup'] == 'near' else 0)
    count = len(sketches)
    found = dict(first=np.arange(count), exact=np.zeros(count, bool), moved=0)
    if job['dedup'] != 'none':
        found['first'] = first = dedup.first_exact(sketches)
        found['exact'] = first != np.arange(count)
    if job['dedup'] == 'near':
        found['first'] = dedup.clusters(sketches)
    kept = found['first'] == np.arange(count)
    if kept.sum() < FEW:
        return split_by_position(shards, kept, job['val_fraction']), found
    hashes = sketches['exact']
    bound = max(job['val_fraction'] * 2.0**64, hashes[kept].min())  # one document at least
    chosen = kept & (hashes <= bound)
    if job['dedup'] == 'near':
        moved = dedup.similar(sketches, kept, chosen)
        found['moved'] = int(moved.sum())
        chosen &= ~moved
    return kept.astype(np.int8) + chosen, found


def split_by_position(shards, kept, val_fraction):
    """Of a few documents the last val_fraction of all characters is for validation; one may lie across the cut."""
    lengths = shard.column(shards, 'characters') * kept
    begins = np.cumsum(lengths) - lengths
    return kept.astype(np.int8) + (kept & (begins >= training_characters(lengths, val_fraction)))


def training_characters(lengths, val_fraction):
    return int(int(lengths.sum()) * (1 - val_fraction))


def cut_document(units, shards, places, job):
    """The texts before and after the cut of the one document that lies across it, whose place becomes 0; none: ('', '')."""
    lengths = shard.column(shards, 'characters') * (places > 0)
    ends = np.cumsum(lengths, dtype=np.int64)
    index = int(
        np.searchsorted(ends, left := training_characters(lengths, job['val_fraction']), side='right')
    )
    if job['task'] != 'text' or np.sum(places > 0) >= FEW or index == len(ends) or places[index] == 2:
        return '', ''
    which = int(np.searchsorted(np.cumsum([len(s.rows) for s in shards]), index, side='right'))
    number = shards[which].rows['number'][index - sum(len(s.rows) for s in shards[:which])]
    documents = shard.judged(units[shards[which].number], job, shard.new_report())
    text = next(document['text'] for document in documents if document['number'] == number)
    places[index] = 0
    cut = left - int(ends[index] - lengths[index])
    return text[:cut], text[cut:]


# --- the token files --------------------------------------------------------------


class Split:
    """The files of a split as they grow: token ids, the end of every document, what is to be learned, labels."""

    def __init__(self, directory, split, dtype):
        self.directory, self.split = directory, split
        self.dtype, self.documents, self.tokens, self.bytes = dtype.newbyteorder('<'), 0, 0, 0
        for ending in ('bin', 'idx'):
            self.append(ending, np.empty(0, np.uint8))

    def append(self, ending, array):
        with open(self.directory / f'{self.split}.{ending}', 'ab') as f:
            f.write(array.tobytes())

    def write(self, ids, counts, size, mask=None, labels=None):
        """ids of some documents, the array of the number that each has, and their bytes as text."""
        self.append('bin', ids.astype(self.dtype))
        self.append('idx', (self.tokens + np.cumsum(counts)).astype('<u8'))
        if mask is not None:
            self.append('mask', mask)
        if labels is not None:
            self.append('label', labels.astype('<i4'))
        self.documents += len(counts)
        self.tokens += len(ids)
        self.bytes += int(size)

    def counts(self):
        return {'documents': self.documents, 'tokens': self.tokens, 'bytes': self.bytes}


def join(shards, places, directory, vocabulary, cut, job):
    """Write the tokens of the documents that stay, shard by shard -> meta: counts and vocabulary.

    cut: the end of the training text and the beginning of the validation text where these are parts of one document.
    """
    splits = {1: Split(directory, 'train', vocabulary.dtype), 2: Split(directory, 'val', vocabulary.dtype)}
    labels = label_numbers(shards)
    write_text(splits[2], cut[1], vocabulary)
    offset = 0
    with progress('writing', sum(len(s.tokens) for s in shards), 'tok') as bar:
        for each in shards:
            for part, tokens in blocks(each.rows['tokens']):
                here = places[offset + part.start : offset + part.stop]
                for place, split in splits.items():
                    copy_documents(each, part, tokens, here == place, split, labels, job['task'])
                bar.update(tokens.stop - tokens.start)
            offset += len(each.rows)
    write_text(splits[1], cut[0], vocabulary)
    if not splits[1].tokens:
        fail(f'{job["files"] or job["hub"]}: no document is left')
    if not splits[2].tokens:
        fail(
            'no document is left for validation, each is too like another: raise --val_fraction or give --dedup=exact'
        )
    meta = {split.split: split.counts() for split in splits.values()}
    if job['task'] == 'classify':
        meta['labels'] = [label for label, _ in sorted(labels.items(), key=lambda item: item[1])]
    return meta | dict(
        tokenizer=vocabulary.name,
        tokenizer_hash=vocabulary.hash,
        vocab_size=vocabulary.vocab_size,
        special=vocabulary.special,
        dtype=vocabulary.dtype.name,
    )


def blocks(counts):
    """Yield (documents, tokens), two slices of a shard, so that each holds about BLOCK tokens of whole documents."""
    ends = np.cumsum(counts, dtype=np.int64)
    first = begin = 0
    while first < len(ends):
        last = max(first + 1, int(np.searchsorted(ends, begin + BLOCK, side='right')))
        yield slice(first, last), slice(begin, int(ends[last - 1]))
        first, begin = last, int(ends[last - 1])


def copy_documents(source, part, tokens, chosen, split, labels, task):
    """Append the chosen documents of a part of a shard, and its tokens, to a split."""
    rows = source.rows[part]
    wanted = np.repeat(chosen, rows['tokens'])
    mask = source.mask[tokens][wanted] if task == 'chat' else None
    label = None
    if task == 'classify':
        numbers = np.array([labels[name] for name in source.report['labels']])
        label = numbers[rows['label'][chosen]]
    split.write(
        source.tokens[tokens][wanted], rows['tokens'][chosen], rows['bytes'][chosen].sum(), mask, label
    )


def write_text(split, text, vocabulary):
    """Append a document given as text to a split, if there is any."""
    if text:
        ids = np.append(
            vocabulary.encode_batch([text])[0], np.array([vocabulary.special['eot']], vocabulary.dtype)
        )
        split.write(ids, [len(ids)], len(text.encode()))


def label_numbers(shards):
    """The number of each label: itself where all are numbers, else its place among the sorted names."""
    names = sorted({name for each in shards for name in each.report['labels']})
    return {
        name: int(name) if all(map(str.isdecimal, names)) else number for number, name in enumerate(names)
    }
