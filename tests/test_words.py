"""words.py against a reference that looks at one character after the other."""

import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus import words as module
from corpus.words import (
    is_in,
    lookup_table,
    ngrams,
    occurs_more,
    repeated_characters,
    top_ngram_characters,
    words,
)

# what words meet in: letters, signs that may stand inside a word, wide characters, several kinds of space
MIXED = st.text(alphabet="ab_1é日本ไтж'’.,-–—¯=€😀\u0301\u200b\xa0 \n\t", max_size=60) | st.text(max_size=60)


def spans(text):
    """(start, end, is_word) of each word, by the definition in the docstring of `words`."""

    def kind(i):
        category = unicodedata.category(text[i])[0]
        if category in 'LMN' or text[i] == '_':
            wide = category in 'LMN' and any(a <= ord(text[i]) <= b for a, b in module.IDEOGRAPHS)
            return 'wide' if wide else 'letter'
        return text[i] if category in 'PS' else 'space'

    kinds = [kind(i) for i in range(len(text))]
    for i in range(1, len(text) - 1):
        if text[i] in "'’." and kind(i - 1) == kind(i + 1) == 'letter':
            kinds[i] = 'letter'
    found, start = [], 0
    for i in range(1, len(text) + 1):
        if i == len(text) or kinds[i] != kinds[start] or kinds[i] == 'wide':
            if kinds[start] != 'space':
                found.append((start, i, kinds[start] in ('letter', 'wide')))
            start = i
    return found if text else []


def strings(text):
    starts, ends, *_ = words(text)
    return [text[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]


@given(MIXED)
def test_words_are_those_of_the_definition(text):
    starts, ends, hashes, is_word = words(text)
    assert list(zip(starts.tolist(), ends.tolist(), is_word.tolist(), strict=True)) == spans(text)
    assert hashes.dtype == np.uint64 and len(hashes) == len(starts)


@given(MIXED, MIXED)
def test_equal_words_have_equal_hashes_and_others_do_not(text, other):
    """Whatever stands around them: the same word in ASCII text and beside wide characters."""
    together = strings(text) + strings(other)
    hashes = words(text)[2].tolist() + words(other)[2].tolist()
    assert len(set(zip(together, hashes, strict=True))) == len(set(together)) == len(set(hashes))


def test_words_of_every_length_that_differ_in_one_place_have_different_hashes():
    different = {'x' * n for n in range(1, 80)}
    different |= {
        'x' * i + 'y' + 'x' * (n - i - 1) for n in (3, 8, 9, 16, 17, 31, 32, 33, 40) for i in range(n)
    }
    found = words(' '.join(different))[2]
    assert len(found) == len(set(found.tolist())) == len(different)


@pytest.mark.parametrize('place', range(8))
def test_a_change_of_any_byte_changes_half_of_the_bits_of_the_hash(place):
    base = list('aaaaaaaa')
    hashes = [
        words(''.join(base[:place] + [letter] + base[place + 1 :]))[2][0] for letter in 'abcdefghijklmnop'
    ]
    differing = [bin(int(a) ^ int(b)).count('1') for a in hashes for b in hashes if a != b]
    assert 28 < np.mean(differing) < 36


@given(st.lists(MIXED), st.integers(1, 200))
def test_a_long_text_is_split_in_blocks_that_cut_no_word(texts, more):
    text = '\n'.join(' '.join(texts).split())
    unsplit = words(text)
    longest = max(map(len, text.split('\n')))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, 'BLOCK', longest + more)
        for block, expected in zip(words(text), unsplit, strict=True):
            np.testing.assert_array_equal(block, expected)


def test_a_word_longer_than_a_block_is_cut():
    starts, ends, _, is_word = words('a ' + 'b' * (2 * module.BLOCK + 5) + '-')
    assert (
        ends[-1] == 2 * module.BLOCK + 8
        and (starts[1:] == ends[:-1]).sum() == len(starts) - 2
        and not is_word[-1]
    )


@given(MIXED, st.integers(1, 14))
def test_ngrams_are_equal_where_the_words_are(text, n):
    expected, found = strings(text), ngrams(words(text)[2], n)
    n = min(n, len(expected))
    runs = [tuple(expected[i : i + n]) for i in range(len(expected) - n + 1)] if n else []
    assert len(found) == len(runs)
    assert len(set(zip(runs, found.tolist(), strict=True))) == len(set(runs)) == len(set(found.tolist()))


def test_ngrams_tell_orders_apart():
    hashes = words('a b c d e f g')[2]
    for n in range(2, 8):
        for i in range(n - 1):
            swapped = hashes.copy()
            swapped[[i, i + 1]] = swapped[[i + 1, i]]
            assert ngrams(swapped, n)[0] != ngrams(hashes, n)[0]


FEW = st.lists(st.integers(0, 5), max_size=40)


@given(FEW, FEW.map(sorted), st.integers(0, 8))
def test_is_in_and_occurs_more(values, ordered, times):
    if ordered:
        mask = is_in(np.array(values, np.uint64), lookup_table(np.array(ordered, np.uint64)))
        assert mask.tolist() == [value in ordered for value in values]
    more = any(count > times for count in Counter(ordered).values())
    assert bool(occurs_more(np.array(ordered, np.uint64), times)) == more


@given(st.lists(st.sampled_from(['a', 'bb', 'ccc']), min_size=1, max_size=40), st.integers(1, 4))
def test_the_most_frequent_ngram_is_the_first_of_equals(each, n):
    n = min(n, len(each))
    runs = [' '.join(each[i : i + n]) for i in range(len(each) - n + 1)]
    run, times = Counter(runs).most_common(1)[0]
    hashes = ngrams(words(' '.join(each))[2], n)
    assert top_ngram_characters(hashes, np.array([len(run) for run in runs])) == len(run) * times


@given(st.lists(st.sampled_from('abc'), min_size=5, max_size=60), st.integers(5, 10))
def test_repeated_characters_are_counted_from_left_to_right(each, n):
    seen, expected, i = set(), 0, 0
    while i + n <= len(each):
        run = ' '.join(each[i : i + n])
        expected += n if run in seen else 0
        i += n if run in seen else 1
        seen.add(run)
    hashes = words(' '.join(each))[2]
    fives = Counter(runs := ngrams(hashes, 5).tolist())
    positions = np.array([i for i, run in enumerate(runs) if fives[run] > 1], np.int64)
    assert repeated_characters(hashes, list(range(len(each) + 1)), positions, n) == expected
