"""Deduplication and decontamination: exact and near copies among documents, and evaluation texts inside them.

Near copies are found by MinHash and banding (Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter 3), with
the settings of FineWeb (Penedo et al. 2024, section 3.4) and datatrove: 5-grams of words, 14 bands of 8 rows. Two
documents whose 5-grams overlap by s (Jaccard) meet with probability 1 - (1 - s^8)^14: 0.56 at s = 0.7, 0.92 at 0.8, 0.99 at
0.86. The signature of a document takes 176 bytes, whatever its length, and is the same on every machine whose Python
knows the same Unicode.

    found = lower_words(texts)                      # once, for both of the next
    rows = signatures(texts, found)                 # in the workers, a batch of documents at a time
    leaked = overlaps(texts, found, benchmark_ngrams(evaluation_texts))
    labels = clusters(all_rows)                     # in one process, from the signatures of all shards
"""

import hashlib

import numpy as np

from common import mix
from corpus.words import BLOCK, is_in, lookup_table, ngrams, words

GROUP = min(BLOCK, 1 << 16)  # characters split into words together: as much as stays in the cache
WIDTH = 4096  # shingles permuted together; numpy copies rows shorter than a third of its 8192-element buffer
LOOSE_ROWS = (
    3  # of a band that `similar` looks at: similarity 0.75 is found with 99.95 %, 0.5 with 85 %, 0.1 with 1 %
)
# words of an evaluation text that is looked for: fewer are a common phrase (GPT-3: Brown et al. 2020, appendix C)
SHORTEST = 8


def signature_dtype(bands):
    """What is kept of a document: 8 + 12 bytes a band, 176 at 14 bands."""
    return np.dtype([('exact', '<u8'), ('bands', '<u8', (bands,)), ('loose', '<u4', (bands,))])


def fingerprint(text):
    """64 bits of the text's hash: equal for equal documents; among 100M others a false match has odds of 1 in 3,700."""
    digest = hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).digest()
    return int.from_bytes(digest, 'little')


# --- words and shingles of a batch of documents ---------------------------------


def lower_words(texts):
    """The lower-cased words, without symbols, of a list of documents -> (starts, ends, hashes, firsts).

    starts, ends (words,) int64 are offsets in '\\n'.join(texts); hashes (words,) uint64; the words of document d are
    those from firsts[d] to firsts[d + 1]. A batch at a time, since a numpy call costs more than a short document's words.
    """
    # the one letter whose lower case has two characters, which would move all offsets after it
    lowered = [text.replace('İ', 'i').lower() for text in texts]
    offsets = np.cumsum([0, *(len(text) + 1 for text in texts)])
    found, group, began = [words('')[:3]], 0, 0
    for end in range(1, len(texts) + 1):
        # cut between documents, as words() cuts inside them at BLOCK: a document's words depend on it alone
        if (
            end == len(texts)
            or offsets[end + 1] - began > GROUP
            or lowered[end].isascii() != lowered[group].isascii()  # which words() is faster at
        ):
            # a line end on both sides of every document, the outer ones too
            starts, ends, hashes, is_word = words('\n'.join(['', *lowered[group:end], '']))
            own = np.flatnonzero(is_word)
            found.append((starts[own] + (began - 1), ends[own] + (began - 1), hashes[own]))
            group, began = end, offsets[end]
    starts, ends, hashes = map(np.concatenate, zip(*found, strict=True))
    return starts, ends, hashes, np.searchsorted(starts, offsets)


def shingles(hashes, firsts, n):
    """Hashes of each document's n-grams, or of all its words if they are fewer than n -> (hashes, counts).

    hashes (shingles,) uint32; counts (documents,) int64: how many are each document's, 0 if it has no word.
    """
    lengths = np.diff(firsts)
    # n - 1 zeros behind each document: no n-gram holds words of two, and a document shorter than n has one
    gaps = (n - 1) * np.arange(len(lengths))
    padded = np.zeros(len(hashes) + (n - 1) * len(lengths), np.uint64)
    padded[np.arange(len(hashes)) + np.repeat(gaps, lengths)] = hashes
    counts = np.where(lengths < n, lengths > 0, lengths - n + 1)
    own = np.repeat(firsts[:-1] + gaps - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    return ngrams(padded, n)[own].astype(np.uint32), counts


# --- signatures -----------------------------------------------------------------


def signatures(texts, found=None, bands=14, rows=8, n=5):
    """MinHash signatures of documents, (documents,) of signature_dtype(bands). found: lower_words(texts).

    Without bands they find equal documents only, and need no words.
    """
    out = np.empty(len(texts), signature_dtype(bands))
    out['exact'] = [fingerprint(text) for text in texts]
    # a document without words, a row of dashes, is a copy of its equals only
    out['bands'] = out['exact'][:, None]
    out['loose'] = out['exact'][:, None] >> np.uint64(32)
    hashes, counts = shingles(*found[2:], n) if bands else ((), ())
    if len(hashes):
        lowest = minhashes(hashes, counts[counts > 0], bands * rows).reshape(bands, rows, -1)
        keys = np.zeros((bands, lowest.shape[2]), np.uint64)
        for row in range(rows):
            keys = mix(keys ^ lowest[:, row])
            if row < LOOSE_ROWS:
                loose = keys >> np.uint64(32)
        out['bands'][counts > 0], out['loose'][counts > 0] = keys.T, loose.T
    return out


def minhashes(hashes, counts, permutations):
    """The lowest of each document's shingles under each permutation, (permutations, documents) uint32.

    hashes (shingles,) uint32, counts (documents,): how many belong to each, none 0. A permutation of the 32-bit numbers
    is a product with an odd one. That would be too regular for numbers from the world; these are hashes already, so
    that the lowest is any shingle with equal chances.
    """
    factors = mix(np.arange(permutations, dtype=np.uint64)).astype(np.uint32) | np.uint32(1)
    begins = np.cumsum(counts) - counts
    lowest = np.full((permutations, len(counts)), 0xFFFFFFFF, np.uint32)
    block = np.empty((permutations, min(WIDTH, len(hashes))), np.uint32)  # one for all: new memory is slow
    for start in range(0, len(hashes), WIDTH):
        permuted = block[:, : len(hashes) - start]
        np.multiply(factors[:, None], hashes[start : start + WIDTH], out=permuted)
        first = np.searchsorted(begins, start, 'right') - 1
        here = slice(first, np.searchsorted(begins, start + WIDTH))
        found = np.minimum.reduceat(permuted, np.maximum(begins[here] - start, 0), axis=1)
        lowest[:, here] = np.minimum(lowest[:, here], found)
    return lowest


# --- clusters, over all shards --------------------------------------------------


def first_exact(rows):
    """The index of the first document of equal text, for each document, (documents,) int64. rows: their signatures."""
    labels = np.arange(len(rows))
    merge_equal(labels, rows['exact'])
    return labels


def clusters(rows):
    """The index of the first document of each document's cluster, (documents,) int64: copies, near copies, their copies.

    rows: the signatures of the documents. Takes about 40 bytes a document at its peak, one column of them at a time.
    """
    labels = first_exact(rows)
    for band in rows['bands'].T:
        merge_equal(labels, band)
    return labels


def merge_equal(labels, column):
    """Merge, in place, the clusters of documents that agree in a column of their signatures.

    Connected components by hooking each root below the lowest one beside it and jumping to the roots (Shiloach &
    Vishkin 1982): every two rounds at least halve the clusters yet to be merged, whatever their shape.
    """
    keys = np.array(column)
    order = np.argsort(keys)
    keys = keys[order]
    same = keys[1:] == keys[:-1]
    del keys  # and so on: at 100M documents each array is a gigabyte
    left, right = order[:-1][same], order[1:][same]
    del order, same
    while len(left):
        left = labels[left]
        right = labels[right]
        apart = left != right
        left = left[apart]
        right = right[apart]
        high = np.maximum(left, right)
        left, right = np.minimum(left, right, out=left), high
        np.minimum.at(labels, right, left)
        while (labels != (roots := labels[labels])).any():
            labels[:] = roots


def similar(rows, kept, chosen):
    """Which chosen documents resemble any other that is kept, (documents,) bool: they would leak across a split.

    rows: the signatures of the documents; kept, chosen: (documents,) bool; kept has one document of each cluster,
    chosen are those of them meant for validation. The test is looser than that of `clusters`. A chosen document that
    resembles only chosen ones counts too: one of the two may move to training.
    """
    found = np.zeros(len(kept), bool)
    chosen = np.flatnonzero(kept & chosen)
    for column in rows['loose'].T:
        keys = np.array(column)
        ours, keys = keys[chosen], np.sort(keys[kept])
        found[chosen] |= np.isin(ours, keys[1:][keys[1:] == keys[:-1]])
    return found


# --- decontamination ------------------------------------------------------------


def benchmark_ngrams(texts, n=13):
    """The n-grams of evaluation texts, for `overlaps`: {n: words.lookup_table of their hashes}, longest first.

    13 words as in GPT-3 and The Pile; a text of 8 to 12 words is looked for as a whole, which is GPT-3's range; a
    shorter one is not looked for.
    """
    _, _, hashes, firsts = lower_words(texts)
    grams = {}
    for first, last in zip(firsts[:-1], firsts[1:], strict=True):
        if last - first >= SHORTEST:
            grams.setdefault(int(min(n, last - first)), []).append(ngrams(hashes[first:last], n))
    return {
        length: lookup_table(np.unique(np.concatenate(grams[length])))
        for length in sorted(grams, reverse=True)
    }


def overlaps(texts, found, benchmark):
    """The first n-gram that each document shares with an evaluation text, as it stands there; '' if it has none.

    found: lower_words(texts); benchmark: of benchmark_ngrams.
    """
    starts, ends, hashes, firsts = found
    shared = [''] * len(texts)
    for length, lookup in benchmark.items():
        if length > len(hashes):
            continue
        hits = np.flatnonzero(is_in(ngrams(hashes, length), lookup))
        owners = np.searchsorted(firsts, hits, 'right') - 1
        for hit, owner in zip(hits, owners, strict=True):
            if not shared[owner] and hit + length <= firsts[owner + 1]:
                offset = sum(len(text) + 1 for text in texts[:owner])
                shared[owner] = texts[owner][starts[hit] - offset : ends[hit + length - 1] - offset]
    return shared
