"""dedup.py: signatures against the theory of MinHash, clusters against union-find, overlaps against string comparison."""

import os
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from corpus import dedup

BANDS, ROWS = 14, 8
VOCABULARY = [f'w{i}' for i in range(5000)]


def sign_all(texts, **settings):
    return dedup.signatures(texts, dedup.lower_words(texts), **settings)


def alike(text, other):
    """In how many of the 14 bands two texts agree."""
    rows = sign_all([text, other])
    return int((rows['bands'][0] == rows['bands'][1]).sum())


def jaccard(words, others, n=5):
    """The exact overlap of the n-grams of two lists of words."""
    a, b = ({tuple(each[i : i + n]) for i in range(len(each) - n + 1)} for each in (words, others))
    return len(a & b) / len(a | b)


def with_changes(words, share, random):
    changed = np.array(words)
    where = random.random(len(words)) < share
    changed[where] = random.choice(VOCABULARY, where.sum())
    return list(changed)


# --- signatures -------------------------------------------------------------------


def test_signature_takes_less_than_200_bytes():
    assert dedup.signature_dtype(BANDS).itemsize == 176


@pytest.mark.parametrize('size', [7, 60, 700, 20_000])
def test_share_of_equal_minhashes_is_the_jaccard_similarity(size):
    """Unbiased: the number of agreements of 112 x trials permutations lies where a binomial would."""
    random = np.random.default_rng(size)
    trials = max(4, 4000 // size)
    for shared in (0, size // 3, size - size // 7, size):
        own = size - shared
        # the two sets of a trial: shared + own shingles each; their similarity is shared / (shared + 2 own)
        pools = random.integers(0, 2**32, (trials, shared + 2 * own), dtype=np.uint32)
        sets = np.concatenate([np.concatenate([pool[: shared + own], pool[own:]]) for pool in pools])
        # in the second one, what both have stands last in the first: pool[own : own + shared]
        lowest = dedup.minhashes(sets, np.full(2 * trials, size), 112)
        agree = (lowest[:, ::2] == lowest[:, 1::2]).sum()
        expected = shared / (shared + 2 * own) * lowest.size / 2
        assert abs(agree - expected) <= 4 * np.sqrt(expected * (1 - expected / (lowest.size / 2))) + 1e-9


def test_near_copies_are_found_as_often_as_the_theory_says():
    """Whole path, from text, at similarities from 0.2 to 0.95, for the bands and for the loose test."""
    random = np.random.default_rng(0)
    texts, similar = [], []
    for share in np.repeat([0.005, 0.02, 0.04, 0.06, 0.1, 0.15], 120):
        words = list(random.choice(VOCABULARY, 200))
        other = with_changes(words, share, random)
        similar.append(jaccard(words, other))
        texts += [' '.join(words), ' '.join(other)]
    similar = np.array(similar)
    assert similar.min() < 0.25 and similar.max() > 0.95
    rows = sign_all(texts)
    for field, band_rows in (('bands', ROWS), ('loose', dedup.LOOSE_ROWS)):
        agree = rows[field][::2] == rows[field][1::2]
        chance = 1 - (1 - similar**band_rows) ** BANDS
        for low, high in ((0.2, 0.5), (0.5, 0.7), (0.7, 0.85), (0.85, 1)):
            here = (low <= similar) & (similar < high)
            p = chance[here]
            assert here.sum() > 40
            assert abs(agree[here].any(1).sum() - p.sum()) <= 4 * np.sqrt((p * (1 - p)).sum()) + 1


def test_signature_equals_that_of_plain_python_integers():
    """No result depends on how wide, or in which byte order, a machine keeps its numbers."""
    mask = 2**64 - 1

    def mix(x):
        x = x + 0x9E3779B97F4A7C15 & mask
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
        return x ^ x >> 31

    texts = [
        'One two three; four "five" six.\nSeven eight',
        'short text',
        ' '.join(VOCABULARY[:40]),
        '漢字かな交じり文',
    ]
    for text, row in zip(texts, sign_all(texts, bands=3, rows=5), strict=True):
        hashes = [int(x) for x in dedup.words(text.lower())[2][dedup.words(text.lower())[3]]]
        hashes += [0] * (5 - len(hashes))
        shingles = [
            int(dedup.ngrams(np.array(hashes[i : i + 5], np.uint64), 5)[0]) for i in range(len(hashes) - 4)
        ]
        factors = [mix(i) % 2**32 | 1 for i in range(15)]
        lowest = [min(shingle * factor % 2**32 for shingle in shingles) for factor in factors]
        for band in range(3):
            keys = [0]
            for value in lowest[5 * band : 5 * band + 5]:
                keys.append(mix(keys[-1] ^ value))
            assert (int(row['bands'][band]), int(row['loose'][band])) == (
                keys[5],
                keys[dedup.LOOSE_ROWS] >> 32,
            )


documents = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.text(alphabet="aBc '’-_.\n漢あİΣ🙂", max_size=60),
        st.lists(st.sampled_from(['Foo', 'bar', "don't", '--', '漢']), max_size=30).map(' '.join),
    ),
    max_size=8,
)


@given(documents)
@example(["'tis", "dogs'", 'ΑΣ', 'Σ', '', "'"])
# the last two together are more than words() takes at once
@example(['a b c ' * 9000, 'd é f ' * 9000, 'g', 'longer ' * 100_000, 'words ' * 100_000])
@settings(max_examples=150)
def test_signature_is_a_function_of_the_text_alone(texts):
    """Not of the documents that it shares a batch with."""
    together = sign_all(texts)
    assert len(together) == len(texts)
    for text, row in zip(texts, together, strict=True):
        assert row.tobytes() == sign_all([text])[0].tobytes()


def test_signature_of_a_long_document_spans_blocks():
    """More shingles than are permuted together: the order of words beyond the 5-grams does not matter to it."""
    words = [VOCABULARY[i] for i in np.random.default_rng(0).integers(0, 5000, 3 * dedup.WIDTH)]
    a, b = ' '.join(words), ' '.join(words[6000:] + words[:6000])  # all but 4 + 4 of the 5-grams
    assert alike(a, b) >= 12
    assert alike(a, ' '.join(words[: len(words) // 4])) == 0


def test_case_and_symbols_make_no_difference():
    a = 'It is a truth universally acknowledged, that a single man in possession of a good fortune'
    rows = sign_all([a, a.upper().replace(',', ' --') + '!!!'])
    assert rows['exact'][0] != rows['exact'][1]
    assert (rows['bands'][0] == rows['bands'][1]).all()


def test_short_empty_and_symbol_only_documents():
    """Fewer than 5 words are one shingle; no words at all are a copy of equal text only, never of one another."""
    assert alike('Hello world', 'hello, world!') == BANDS
    assert alike('hello world', 'hello there') == 0
    assert alike('one two three four five', 'one two three four') == 0
    nothing = ['', ' ', '---', '***', '?!', '^' * 100_000, '---']
    labels = dedup.clusters(sign_all([*nothing, 'word']))
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 2, 7]


def test_near_copies_in_scripts_without_spaces():
    random = np.random.default_rng(0)
    text = ''.join(map(chr, random.integers(0x4E00, 0x9F00, 400)))
    assert alike(text, text[:200] + '新' + text[201:]) >= 10
    assert alike(text, text[::-1]) == 0


def test_same_signatures_in_every_process():
    """Python salts its own hashes anew in each."""
    program = (
        'from corpus import dedup; t = ["the quick brown fox jumps over it", "", "--", "x" * 9999]; '
        'print(dedup.signatures(t, dedup.lower_words(t)).tobytes().hex())'
    )
    seen = set()
    for seed in ('0', '1'):
        env = os.environ | {'PYTHONHASHSEED': seed}
        seen.add(subprocess.check_output([sys.executable, '-c', program], cwd=ROOT, env=env))
    assert len(seen) == 1


def test_minhash_needs_little_memory_beside_the_shingles():
    hashes = dedup.mix(np.arange(1_000_000, dtype=np.uint64)).astype(np.uint32)
    _, peak = peak_memory(lambda: dedup.minhashes(hashes, np.array([len(hashes)]), 112))
    assert peak < 8 << 20


def peak_memory(function):
    """(what it returns, the most bytes that it held at a time)."""
    tracemalloc.start()
    try:
        return function(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# --- clusters -------------------------------------------------------------------


def made_up(exact, bands, loose=None):
    """Signatures from columns of small numbers."""
    bands = np.asarray(bands, np.uint64).reshape(len(exact), -1)
    rows = np.zeros(len(exact), dedup.signature_dtype(bands.shape[1]))
    rows['exact'], rows['bands'] = exact, bands
    rows['loose'] = bands if loose is None else loose
    return rows


def union_find(columns):
    """The first member of each one's cluster, one pair at a time."""
    parent = list(range(len(columns[0])))

    def root(i):
        while parent[i] != i:
            i = parent[i]
        return i

    for column in columns:
        first = {}
        for i, key in enumerate(column):
            a, b = root(i), root(first.setdefault(key, i))
            parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(len(parent))]


tables = st.integers(1, 40).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 30), min_size=n, max_size=n), min_size=2, max_size=4)
)


@given(tables)
@settings(max_examples=300)
def test_clusters_equal_those_of_union_find(columns):
    rows = made_up(columns[0], np.transpose(columns[1:]))
    assert dedup.clusters(rows).tolist() == union_find(columns)
    assert dedup.first_exact(rows).tolist() == union_find(columns[:1])


@pytest.mark.parametrize('shape', ['chain', 'shuffled chain', 'one cluster', 'grid', 'strangers'])
def test_clusters_of_hard_shapes_within_memory(shape):
    """A hundred thousand documents in clusters of the worst shapes, at under 43 bytes a document."""
    n = 100_000
    i = np.arange(n)
    strangers = i + np.uint64(n)
    bands = {
        'chain': [i // 2, (i + 1) // 2],
        'shuffled chain': [i // 2, (i + 1) // 2],
        'one cluster': [0 * i, strangers],
        'grid': [i // 316, i % 316],
        'strangers': [strangers, strangers],
    }[shape]
    if shape == 'shuffled chain':
        places = np.random.default_rng(0).permutation(n)
        bands = [column[places] for column in bands]
    rows = made_up(strangers, np.stack(bands, 1))
    labels, peak = peak_memory(lambda: dedup.clusters(rows))
    expected = n if shape == 'strangers' else 1
    assert len(np.unique(labels)) == expected
    assert (labels <= i).all() and (labels[labels] == labels).all()
    assert peak < 43 * n + 100_000


def test_planted_near_copies_are_clustered_and_strangers_are_not():
    random = np.random.default_rng(1)
    originals = [list(random.choice(VOCABULARY, 300)) for _ in range(60)]
    texts = [' '.join(words) for words in originals]
    texts += [' '.join(with_changes(words, 0.01, random)) for words in originals[:30]]
    labels = dedup.clusters(sign_all(texts))
    assert labels.tolist() == [*range(60), *range(30)]


# --- similar documents across the split -------------------------------------------------


@given(tables, st.data())
@settings(max_examples=200)
def test_similar_ones_equal_those_of_comparing_all_pairs(columns, data):
    n = len(columns[0])
    kept, chosen = (np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))) for _ in range(2))
    rows = made_up([0] * n, np.transpose(columns))
    found = dedup.similar(rows, kept, chosen)
    for i in range(n):
        others = (j for j in range(n) if j != i and kept[j])
        related = any(column[i] == column[j] for j in others for column in columns)
        assert found[i] == (kept[i] and chosen[i] and related)


def test_no_near_copy_remains_across_the_split():
    """Copies too different for the clusters, at similarity 0.6 to 0.8, are still kept on one side."""
    random = np.random.default_rng(2)
    originals = [list(random.choice(VOCABULARY, 300)) for _ in range(200)]
    others = [with_changes(words, 0.04, random) for words in originals]
    texts = [' '.join(words) for words in originals + others]
    similar = np.array([jaccard(a, b) for a, b in zip(originals, others, strict=True)])
    rows = sign_all(texts)
    labels = dedup.clusters(rows)
    kept, chosen = labels == np.arange(400), np.arange(400) < 200
    moved = dedup.similar(rows, kept, chosen)
    left = kept[200:] & ~moved[:200]
    missed = ((1 - similar**dedup.LOOSE_ROWS) ** BANDS)[kept[200:]].sum()
    assert kept[200:].sum() > 30  # there was something to be moved
    assert left.sum() <= missed + 4 * np.sqrt(missed) + 1


# --- decontamination ------------------------------------------------------------


def overlap_by_strings(text, benchmarks, n=13):
    """The first shared run, longest kind of run first, found word by word."""
    spans = [(m.start(), m.end()) for m in re.finditer(r'[a-z]+', text.lower())]
    words = [text[a:b].lower() for a, b in spans]
    runs = {}
    for benchmark in benchmarks:
        other = re.findall(r'[a-z]+', benchmark.lower())
        length = min(n, len(other))
        if length >= 8:
            runs.setdefault(length, set()).update(
                tuple(other[i : i + length]) for i in range(len(other) - length + 1)
            )
    for length in sorted(runs, reverse=True):
        for i in range(len(words) - length + 1):
            if tuple(words[i : i + length]) in runs[length]:
                return text[spans[i][0] : spans[i + length - 1][1]]
    return ''


# few words in few rhythms, or no run would ever be shared
rhythms = st.tuples(st.sampled_from(['a ', 'B, ', 'a b. ', 'a (B) b ', '- ']), st.integers(1, 9))
wordy = st.lists(rhythms, max_size=5).map(lambda drawn: ''.join(rhythm * times for rhythm, times in drawn))


@given(st.lists(wordy, max_size=6), st.lists(wordy, max_size=3))
@settings(max_examples=300)
def test_overlaps_equal_those_of_comparing_strings(texts, benchmarks):
    found = dedup.overlaps(texts, dedup.lower_words(texts), dedup.benchmark_ngrams(benchmarks))
    assert found == [overlap_by_strings(text, benchmarks) for text in texts]


def test_overlap_is_shown_as_it_stands_in_the_text():
    question = 'What is the sum of all the even numbers between one and one hundred, both included?'
    texts = [
        'Nothing here.',
        'İ 🙂 Quiz:\nWHAT is the sum of *all* the even numbers between one and one — hundred?',
        'What is the sum of all the even numbers between one and two hundred, both included?',
        question[:40],  # one after the other these two hold it, neither does
        question[40:],
    ]
    found = dedup.overlaps(texts, dedup.lower_words(texts), dedup.benchmark_ngrams([question]))
    assert found == ['', 'WHAT is the sum of *all* the even numbers between one and one', '', '', '']


def test_short_evaluation_texts():
    """From 8 words on they count as a whole; shorter ones would match by chance."""
    benchmark = dedup.benchmark_ngrams(['a b c d e f g', 'One two three four five six seven eight', ''])
    texts = [
        'a b c d e f g',
        'zero one two three four five six seven eight nine',
        'one two three four five six seven',
    ]
    found = dedup.overlaps(texts, dedup.lower_words(texts), benchmark)
    assert found == ['', 'one two three four five six seven eight', '']
    assert dedup.overlaps(texts, dedup.lower_words(texts), dedup.benchmark_ngrams([])) == ['', '', '']


def test_every_letter_keeps_its_place_when_lowered():
    """Places found in the lower-cased text are used in the text itself."""
    for code in range(0x110000):
        assert len(chr(code).replace('İ', 'i').lower()) == 1
