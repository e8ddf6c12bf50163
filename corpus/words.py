"""Words of a text as arrays: where each begins, where it ends, and a hash of it; and hashes of n-grams of words.

Repetition rules, near duplicates and contamination all count n-grams of words. As arrays they cost tens of
microseconds a page, as Python strings milliseconds.
"""

import functools
import hashlib
import unicodedata

import numpy as np

from common import mix

BLOCK = 1 << 17  # characters looked at together: few enough for the cache, and memory stays bounded
SPACE, LETTER, IDEOGRAPH = range(3)
# scripts written without spaces: each character counts as a word
IDEOGRAPHS = ((0x0E00, 0x0EFF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
FIRST_BYTES = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # masks of the first n bytes of eight


@functools.cache
def char_classes():
    """The class of each code point, (1114112,) uint32, and as a table of bytes for ASCII.

    Neighbours of one class stand in one word: SPACE, LETTER, IDEOGRAPH; a symbol's class is its own code point.
    """
    classes = np.zeros(0x110000, np.uint32)
    for code in range(0x110000):
        # Letter, Mark, Number; Punctuation, Symbol; Zs, Cc and so on
        category = unicodedata.category(chr(code))[0]
        classes[code] = LETTER if category in 'LMN' else code if category in 'PS' else SPACE
    classes[ord('_')] = LETTER
    for first, last in IDEOGRAPHS:
        span = classes[first : last + 1]
        span[span == LETTER] = IDEOGRAPH
    return classes, classes[:128].astype(np.uint8).tobytes() + bytes(128)


def words(text):
    """Split a text into words -> (starts, ends, hashes, is_word), arrays (words,): int64, int64, uint64, bool.

    A word is a run of letters, marks, digits and underscores, with single apostrophes and full stops inside it (don't,
    e.g, 3.14, example.com); or one character of a script without spaces; or a run of one and the same symbol, for which
    is_word is False. Starts and ends are in characters.
    """
    blocks, begin = [], 0
    while begin < len(text) or not blocks:
        end = begin + BLOCK
        if end < len(text):  # between words, unless a word is that long
            end = max(text.rfind(' ', begin, end), text.rfind('\n', begin, end)) + 1 or end
        blocks.append(words_of_block(text[begin:end], begin))
        begin = end
    return blocks[0] if len(blocks) == 1 else tuple(map(np.concatenate, zip(*blocks, strict=True)))


def words_of_block(text, offset):
    classes, ascii_classes = char_classes()
    raw = text.encode('utf-8', 'surrogatepass')
    if len(raw) == len(text):  # ASCII
        kinds = np.frombuffer(bytearray(raw.translate(ascii_classes)), np.uint8)
    else:
        codes = np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), '<u4')
        kinds = classes.take(codes)
    inside = (kinds[1:-1] == ord("'")) | (kinds[1:-1] == ord('.')) | (kinds[1:-1] == ord('’'))
    inside &= (kinds[:-2] == LETTER) & (kinds[2:] == LETTER)
    kinds[1:-1][inside] = LETTER
    borders = np.ones(len(text) + 1, bool)
    np.not_equal(kinds[1:], kinds[:-1], out=borders[1:-1])
    if len(raw) > len(text):
        borders[1:-1] |= kinds[1:] == IDEOGRAPH
    bounds = np.flatnonzero(borders)
    kind = kinds.take(bounds[:-1])
    at = np.flatnonzero(kind)  # all but SPACE
    starts, ends, is_word = bounds.take(at), bounds[1:].take(at), kind.take(at) <= IDEOGRAPH
    spans = utf8_offsets(codes, starts, ends) if len(raw) > len(text) else (starts, ends)
    return starts + offset, ends + offset, hash_spans(raw, *spans), is_word


def utf8_offsets(codes, *offsets):
    """Offsets in characters -> offsets in bytes of the UTF-8 text. codes: the text's code points."""
    wide = np.flatnonzero(codes > 0x7F)
    more = np.zeros(len(codes) + 1, np.int64)
    more[wide + 1] = 1 + (codes[wide] > 0x7FF) + (codes[wide] > 0xFFFF)
    np.cumsum(more, out=more)
    return [offset + more[offset] for offset in offsets]


def hash_spans(raw, starts, ends):
    """A hash of each of some spans of bytes, (spans,) uint64: of its length, its first eight bytes and its last."""
    # the eight bytes at each offset
    eight = np.ndarray((len(raw) + 1,), '<u8', raw + bytes(8), strides=(1,))
    sizes = ends - starts
    mask = FIRST_BYTES.take(np.minimum(sizes, 8))
    hashes = mix((eight.take(starts) & mask) + sizes.astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93))
    hashes = mix(hashes + (eight.take(np.maximum(ends - 8, starts)) & mask))
    if len(long := np.flatnonzero(sizes > 16)):
        hashes[long] = mix(mix(hashes[long] + eight[starts[long] + 8]) + eight[ends[long] - 16])
        for i in long[sizes[long] > 32].tolist():
            digest = hashlib.blake2b(raw[starts[i] : ends[i]], digest_size=8).digest()
            hashes[i] = int.from_bytes(digest, 'little')
    return hashes


def ngrams(hashes, n):
    """A hash of each n-gram, n consecutive words, (words - n + 1,) uint64; of all words together if they are fewer."""
    n = min(n, len(hashes))
    if n < 2:
        return hashes if n else hashes[:0]
    half = ngrams(hashes, n // 2)
    runs = chain(half[: len(half) - n // 2], half[n // 2 :])
    return chain(runs[:-1], hashes[n - 1 :]) if n % 2 else runs


def chain(first, second):
    """A hash of each pair of hashes, order counting."""
    first = first * np.uint64(0x9E3779B97F4A7C15)
    first ^= first >> np.uint64(32)
    first += second
    return first


def lookup_table(ordered):
    """What `is_in` looks hashes up in -> (ordered hashes, table, shift).

    table[hash >> shift] is False where none of them begins with these bits, which saves 15 searches of 16.
    """
    bits = (16 * len(ordered)).bit_length()
    table, shift = np.zeros(1 << bits, bool), np.uint64(64 - bits)
    table[ordered >> shift] = True
    return ordered, table, shift


def is_in(values, lookup):
    """Whether each hash is one of those of a lookup_table, (values,) bool."""
    ordered, table, shift = lookup
    found = table[values >> shift]
    found[found] = ordered.take(np.searchsorted(ordered, values[found]), mode='clip') == values[found]
    return found


def occurs_more(ordered, times):
    """Whether any value occurs more than some times among ordered values."""
    return times < len(ordered) and (ordered[times:] == ordered[: len(ordered) - times]).any()


def top_ngram_characters(grams, spans):
    """Characters in all occurrences of the most frequent n-gram, the first one of equally frequent ones."""
    ordered, times = np.unique(grams, return_counts=True)
    most_frequent = lookup_table(ordered[times == times.max()])
    return times.max() * spans[is_in(grams, most_frequent).argmax()]


def repeated_fives(hashes, offsets, limit):
    """Where 5-grams begin that occur more than once; none if at most `limit` characters lie in them.

    offsets: characters in the words before each word, and in all, (words + 1,). A longer n-gram that occurs again
    consists of such 5-grams, so that `limit` bounds its characters as well.
    """
    runs = ngrams(hashes, 5)
    ordered = np.sort(runs)
    copies = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(copies) or len(copies) * (offsets[5:] - offsets[:-5]).max() <= limit:
        return np.empty(0, np.int64)
    positions = np.flatnonzero(is_in(runs, lookup_table(copies)))
    until = np.minimum(positions + 5, np.append(positions[1:], len(hashes)))
    return positions if (offsets[until] - offsets[positions]).sum() > limit else positions[:0]


def repeated_characters(hashes, offsets, positions, n):
    """Characters in n-grams that came before, from left to right, none counted twice (as datatrove does).

    offsets: as of repeated_fives. positions: where an n-gram may begin that occurs more than once.
    """
    seen, characters, free, raw = set(), 0, 0, hashes.tobytes()
    for position in positions.tolist():
        gram = raw[8 * position : 8 * (position + n)]
        if position < free or len(gram) < 8 * n:
            continue
        if gram in seen:
            characters += offsets[position + n] - offsets[position]
            free = position + n
        seen.add(gram)
    return characters
