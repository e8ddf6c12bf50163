"""Words of a text as arrays: where each begins, where it ends, and a hash of it; and hashes of runs of n words.

Repetition rules, near duplicates and contamination all count n-grams of words. As arrays they cost tens of
microseconds a page, as Python strings milliseconds.
"""

import functools
import hashlib
import unicodedata

import numpy as np

from common import mix

BLOCK = 1 << 17  # characters looked at together: few enough for the cache, and memory stays bounded
SPACE, LETTER, IDEOGRAPH, SYMBOL = range(4)
# scripts written without spaces: each character counts as a word
IDEOGRAPHS = ((0x0E00, 0x0EFF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
FIRST_BYTES = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # masks of the first n bytes of eight


@functools.cache
def labels():
    """A number for each code point, (1114112,) uint32, and as a table of bytes for ASCII.

    Neighbours of equal number stand in one word: 0 is space, LETTER, IDEOGRAPH, and a symbol is its own code point.
    """
    numbers = np.zeros(0x110000, np.uint32)
    for code in range(0x110000):
        # Letter, Mark, Number; Punctuation, Symbol; Zs, Cc and so on
        category = unicodedata.category(chr(code))[0]
        numbers[code] = LETTER if category in 'LMN' else code if category in 'PS' else SPACE
    numbers[ord('_')] = LETTER
    for first, last in IDEOGRAPHS:
        span = numbers[first : last + 1]
        span[span == LETTER] = IDEOGRAPH
    return numbers, numbers[:128].astype(np.uint8).tobytes() + bytes(128)


def words(text):
    """Split a text into words -> (starts, ends, hashes, is_word), arrays (words,): int64, int64, uint64, bool.

    A word is a run of letters, marks, digits and underscores, with single apostrophes and full stops inside it (don't,
    e.g, 3.14, example.com); or one character of a script without spaces; or a run of one and the same symbol, which
    is_word is False for. Places are in characters.
    """
    blocks, begin = [], 0
    while begin < len(text) or not blocks:
        end = begin + BLOCK
        if end < len(text):  # between words, unless there is none so long
            end = max(text.rfind(' ', begin, end), text.rfind('\n', begin, end)) + 1 or end
        blocks.append(words_of_block(text[begin:end], begin))
        begin = end
    return blocks[0] if len(blocks) == 1 else tuple(map(np.concatenate, zip(*blocks, strict=True)))


def words_of_block(text, offset):
    numbers, ascii_numbers = labels()
    raw = text.encode('utf-8', 'surrogatepass')
    if len(raw) == len(text):  # ASCII
        label = np.frombuffer(bytearray(raw.translate(ascii_numbers)), np.uint8)
    else:
        codes = np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), '<u4')
        label = numbers.take(codes)
    inside = (label[1:-1] == ord("'")) | (label[1:-1] == ord('.')) | (label[1:-1] == ord('’'))
    inside &= (label[:-2] == LETTER) & (label[2:] == LETTER)
    label[1:-1][inside] = LETTER
    changes = np.ones(len(text) + 1, bool)
    np.not_equal(label[1:], label[:-1], out=changes[1:-1])
    if len(raw) > len(text):
        changes[1:-1] |= label[1:] == IDEOGRAPH
    bounds = np.flatnonzero(changes)
    kind = label.take(bounds[:-1])
    at = np.flatnonzero(kind)  # but for SPACE
    starts, ends, is_word = bounds.take(at), bounds[1:].take(at), kind.take(at) <= IDEOGRAPH
    in_bytes = places_in_utf8(codes, starts, ends) if len(raw) > len(text) else (starts, ends)
    return starts + offset, ends + offset, hash_spans(raw, *in_bytes), is_word


def places_in_utf8(codes, *places):
    """Places in characters -> places in bytes of the UTF-8 text. codes: the text's code points."""
    wide = np.flatnonzero(codes > 0x7F)
    more = np.zeros(len(codes) + 1, np.int64)
    more[wide + 1] = 1 + (codes[wide] > 0x7FF) + (codes[wide] > 0xFFFF)
    np.cumsum(more, out=more)
    return [place + more[place] for place in places]


def hash_spans(raw, starts, ends):
    """A hash of each of some spans of bytes, (spans,) uint64: of its length, its first eight bytes and its last."""
    # the eight bytes from each place on
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
    """A hash of each run of n consecutive words, (words - n + 1,) uint64; of all words together where there are fewer."""
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


def among(values, ordered):
    """Whether each value is one of some ordered ones, all of them hashes."""
    some = np.zeros(1 << 16, bool)  # by their last 16 bits first: a search costs more than a look
    some[ordered & np.uint64(0xFFFF)] = True
    found = some[values & np.uint64(0xFFFF)]
    found[found] = ordered.take(np.searchsorted(ordered, values[found]), mode='clip') == values[found]
    return found


def occurs_more(ordered, times):
    """Whether any value occurs more than some times among ordered values."""
    return times < len(ordered) and (ordered[times:] == ordered[: len(ordered) - times]).any()


def top_ngram_characters(grams, spans):
    """Characters in all occurrences of the most frequent n-gram, the earliest of equally frequent ones."""
    ordered = np.sort(grams)
    bounds = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1], [True])))
    times = bounds[1:] - bounds[:-1]
    most_frequent = ordered[bounds[:-1][times == times.max()]]
    return times.max() * spans[among(grams, most_frequent).argmax()]


def repeated_fives(hashes, before, least):
    """Where runs of five words begin that occur more than once; none if at most `least` characters lie in them.

    before: the characters in the words before each word, and in all, (words + 1,). A longer run that occurs again
    consists of such fives, so that `least` bounds the characters of these as well.
    """
    runs = ngrams(hashes, 5)
    ordered = np.sort(runs)
    copies = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(copies) or len(copies) * (before[5:] - before[:-5]).max() <= least:
        return np.empty(0, np.int64)
    places = np.flatnonzero(among(runs, copies))
    until = np.minimum(places + 5, np.append(places[1:], len(hashes)))
    return places if (before[until] - before[places]).sum() > least else places[:0]


def repeated_characters(hashes, before, places, n):
    """Characters in runs of n words that came before, from left to right, none counted twice (as datatrove does).

    before: as of repeated_fives. places: where a run may begin that occurs more than once.
    """
    seen, characters, free, raw = set(), 0, 0, hashes.tobytes()
    for place in places.tolist():
        run = raw[8 * place : 8 * (place + n)]
        if place < free or len(run) < 8 * n:
            continue
        if run in seen:
            characters += before[place + n] - before[place]
            free = place + n
        seen.add(run)
    return characters
