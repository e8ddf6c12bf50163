"""loader.py: rows are a pure function of (data, seed, number); damaged data ends in one line."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import ends_in_one_line
from hypothesis import given, settings
from hypothesis import strategies as st

from loader import (
    Documents,
    Mixture,
    Prefetch,
    Windows,
    best_fit,
    deal,
    mixture,
    open_split,
    read_meta,
    shuffled,
    unread_columns,
)


def windows(tokens, block_size):
    """How many windows an epoch has."""
    return Windows(tokens, {}, block_size, block_size + 1).rows_per_epoch


def read_rows(tokens, block_size, numbers, seed):
    return Windows(tokens, {}, block_size, block_size + 1).read(numbers, seed)['tokens']


def mixed_rows(parts, block_size, numbers, seed):
    """Rows of a mixture of parts (tokens, share), without any files."""
    mixed = Mixture.__new__(Mixture)
    mixed.parts = [(Windows(tokens, {}, block_size, block_size + 1), share) for tokens, share in parts]
    return mixed.read(numbers, seed)['tokens']


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_shuffled_is_a_permutation(n, key):
    out = shuffled(np.arange(n), n, np.array([key], dtype=np.uint64))
    assert sorted(out.tolist()) == list(range(n))


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 2**40), key=st.integers(0, 2**64 - 1), place=st.integers(0, 2**40))
def test_shuffled_stays_inside_and_does_not_depend_on_what_else_is_asked(n, key, place):
    key = np.array([key], dtype=np.uint64)
    places = np.array([place % n, 0, n - 1, n // 2])
    out = shuffled(places, n, key)
    assert ((0 <= out) & (out < n)).all()
    assert shuffled(places[:1], n, key) == out[:1]


def test_shuffled_looks_random():
    """Where a place goes is spread evenly over the keys, and neighbours do not stay together."""
    keys = np.arange(4000, dtype=np.uint64) * np.uint64(1_000_003)
    sent = np.array([shuffled(np.array([0, 1]), 10, key[None]) for key in keys])  # (4000, 2)
    pairs = np.bincount(10 * sent[:, 0] + sent[:, 1], minlength=100).reshape(10, 10)
    assert pairs.trace() == 0
    off_diagonal = pairs[~np.eye(10, dtype=bool)]  # 90 cells, each expected 44.4 times
    assert ((off_diagonal - 4000 / 90) ** 2 / (4000 / 90)).sum() < 89 + 5 * (2 * 89) ** 0.5  # chi-square


@settings(max_examples=100, deadline=None)
@given(length=st.integers(9, 400), block_size=st.integers(1, 8), seed=st.integers(0, 2**31), data=st.data())
def test_an_epoch_visits_every_window_once(length, block_size, seed, data):
    tokens = np.arange(length, dtype=np.uint16)  # a token is its own position
    n, epoch = windows(tokens, block_size), data.draw(st.integers(0, 5))
    rows = read_rows(tokens, block_size, range(epoch * n, (epoch + 1) * n), seed)
    assert rows.shape == (n, block_size + 1) and rows.dtype == np.int64
    assert (rows == rows[:, :1] + np.arange(block_size + 1)).all()  # slices of the tokens
    starts = np.sort(rows[:, 0])
    assert (np.diff(starts) == block_size).all()
    assert length - n * block_size < 2 * block_size + 1  # little is left out of an epoch


@settings(max_examples=50, deadline=None)
@given(numbers=st.lists(st.integers(0, 500), min_size=1, max_size=20), seed=st.integers(0, 1000))
def test_rows_do_not_depend_on_which_others_are_read(numbers, seed):
    tokens = np.arange(300, dtype=np.uint16)
    together = read_rows(tokens, 7, numbers, seed)
    one_by_one = [read_rows(tokens, 7, [number], seed)[0] for number in numbers]
    assert (together == np.stack(one_by_one)).all()
    assert (together == read_rows(tokens, 7, range(501), seed)[numbers]).all()


def test_epochs_and_seeds_differ_in_order_and_in_where_windows_begin():
    tokens = np.arange(1000, dtype=np.uint16)
    n = windows(tokens, 16)
    epochs = [read_rows(tokens, 16, range(e * n, (e + 1) * n), 1)[:, 0] for e in range(20)]
    assert len({tuple(np.argsort(starts)) for starts in epochs}) == 20
    assert len({starts.min() for starts in epochs}) > 5
    assert (read_rows(tokens, 16, range(n), 2)[:, 0] != epochs[0]).any()


@pytest.mark.parametrize('seed', [-1, 2**31, 2**62])
def test_any_seed_orders_the_rows(seed):
    tokens = np.arange(100, dtype=np.uint16)
    rows = read_rows(tokens, 4, range(windows(tokens, 4)), seed)
    assert len(set(rows[:, 0])) == windows(tokens, 4)


# --- mixtures ------------------------------------------------------------------


def slow_row(tokens, block_size, number, seed):
    """One row of a plain data set in Python's own integers, cycle walking and all."""

    def mix(x):
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    n = max(1, (len(tokens) - block_size) // block_size)
    epoch, place = divmod(number, n)
    key = mix((seed * 1_000_003 + epoch) % 2**64)
    half = 0  # bits
    while 4**half < n:
        half += 1
    while True:
        left, right = divmod(place, 2**half)
        for turn in range(6):
            left, right = right, left ^ (mix(right + mix((key + turn) % 2**64) % 2**64) % 2**half)
        place = left * 2**half + right
        if place < n:
            break
    start = mix((key + 1) % 2**64) % (len(tokens) - n * block_size) + block_size * place
    return [int(t) for t in tokens[start : start + block_size + 1]]


@settings(max_examples=100)
@given(
    length=st.integers(10, 300),
    block_size=st.integers(1, 9),
    seed=st.integers(0, 2**62),
    numbers=st.lists(st.integers(0, 2000) | st.integers(0, 10**12), min_size=1, max_size=9),
)
def test_a_plain_data_set_has_the_rows_it_always_had(length, block_size, seed, numbers):
    tokens = np.arange(length, dtype=np.uint16)
    rows = mixed_rows([(tokens, Fraction(1))], block_size, numbers, seed)
    assert rows.dtype == np.int64
    assert rows.tolist() == [slow_row(tokens, block_size, number, seed) for number in numbers]


# of any size, with as many digits as they like
WEIGHTS = st.integers(1, 100) | st.integers(1, 10**15) | st.fractions(Fraction(1, 10**9), 10**3)
SHARES = st.lists(WEIGHTS, min_size=1, max_size=8).map(
    lambda weights: [Fraction(w) / sum(weights) for w in sorted(weights, reverse=True)]
)


@settings(max_examples=300)
@given(shares=SHARES, first=st.just(0) | st.integers(0, 10**12), n=st.integers(1, 400))
def test_any_rows_in_a_row_hold_each_part_in_its_proportion(shares, first, n):
    source, own = deal(shares, range(first, first + n))
    bound = sum(Fraction(1, max(i, 1)) for i in range(len(shares) - 1))
    for i, share in enumerate(shares):
        assert abs((source == i).sum() - n * share) <= (bound if first else bound / 2)
        numbers = own[source == i]
        assert (numbers == np.arange(len(numbers)) + (numbers[0] if first and len(numbers) else 0)).all()


@settings(max_examples=100)
@given(shares=SHARES, numbers=st.lists(st.integers(0, 10**12), min_size=1, max_size=30))
def test_where_a_row_comes_from_does_not_depend_on_which_others_are_asked(shares, numbers):
    together = deal(shares, numbers)
    one_by_one = [deal(shares, [number]) for number in numbers]
    assert [(a, b) for a, b in zip(*together, strict=True)] == [(a[0], b[0]) for a, b in one_by_one]


def test_the_proportions_of_two_to_one_are_those_of_every_three_rows():
    source, own = deal([Fraction(2, 3), Fraction(1, 3)], range(3000))
    assert (np.sort(source.reshape(1000, 3)) == [0, 0, 1]).all()
    assert (own[source == 0] == np.arange(2000)).all() and (own[source == 1] == np.arange(1000)).all()


@settings(max_examples=50)
@given(shares=SHARES, block_size=st.integers(1, 8), seed=st.integers(0, 2**31), data=st.data())
def test_each_part_of_a_mixture_has_epochs_of_its_own(shares, block_size, seed, data):
    """Rows of a part are known by their tokens: every window once in as many rows of it as it has windows."""
    lengths = [data.draw(st.integers(block_size + 1, 120)) for _ in shares]
    parts = [
        (np.arange(1000 * i, 1000 * i + length), share)
        for i, (length, share) in enumerate(zip(lengths, shares, strict=True))
    ]
    rows = mixed_rows(parts, block_size, range(500), seed)
    assert (rows == rows[:, :1] + np.arange(block_size + 1)).all()
    for i, (tokens, _) in enumerate(parts):
        starts, n = rows[rows[:, 0] // 1000 == i, 0], windows(tokens, block_size)
        for epoch in range(len(starts) // n):
            visited = np.sort(starts[epoch * n : (epoch + 1) * n])
            assert (np.diff(visited) == block_size).all()


def write_data_set(name, tokens, vocabulary='one'):
    """data/NAME in the current directory, its validation split the training split reversed."""
    directory = Path('data', name)
    directory.mkdir(parents=True)
    np.asarray(tokens, '<u2').tofile(directory / 'train.bin')
    np.asarray(tokens, '<u2')[::-1].tofile(directory / 'val.bin')
    counts = dict(documents=1, tokens=len(tokens), bytes=len(tokens))
    meta = dict(
        train=counts, val=counts, dtype='uint16', vocab_size=9000, special={'eot': 0}, tokenizer='bpe'
    )
    meta |= dict(tokenizer_hash=vocabulary, sha256={'train.bin': f'hash of {name}'})
    (directory / 'meta.json').write_text(json.dumps(meta))
    return meta


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """data/a, data/b and data/c with one vocabulary, data/odd with another, the mixtures data/mix and data/wrong."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate('abc'):
        write_data_set(name, range(1000 * i, 1000 * i + 100 + i))
    write_data_set('odd', range(100), 'another')
    for name, mixed in (('mix', {'a': 0.3, 'b': '0.6', 'c': '1/10'}), ('wrong', {'a': 1, 'b': 'much'})):
        Path('data', name).mkdir()
        Path('data', name, 'meta.json').write_text(json.dumps({'mixture': mixed}))


TENTHS = {'b': Fraction(6, 10), 'a': Fraction(3, 10), 'c': Fraction(1, 10)}


@pytest.mark.parametrize(
    'dataset', ['a:0.3,b:0.6,c:0.1', 'c:1, b:6, a:3', 'b:3/5,a:30e-2,c:.1', 'c:50,a:150,b:300', 'mix']
)
def test_a_mixture_is_the_same_however_it_is_written(parts, dataset):
    assert mixture(dataset) == TENTHS and list(mixture(dataset)) == ['b', 'a', 'c']
    rows = Mixture(dataset, 'val', 8).read(range(100), 1)['tokens']
    by_name = {
        'a': rows[rows[:, 0] < 1000],
        'b': rows[rows[:, 0] // 1000 == 1],
        'c': rows[rows[:, 0] >= 2000],
    }
    for name, share in TENTHS.items():
        assert (by_name[name] == read_rows(open_split(name, 'val', 8), 8, range(int(100 * share)), 1)).all()


@pytest.mark.parametrize('dataset', ['a', 'a:1', 'a:0.01'])
def test_a_mixture_of_one_is_the_plain_data_set(parts, dataset):
    ((part, share),) = Mixture(dataset, 'train', 8).parts
    assert share == 1 and (part.tokens == np.arange(100)).all()
    assert read_meta(dataset).items() >= json.loads(Path('data/a/meta.json').read_text()).items()


def test_the_meta_of_a_mixture_is_what_its_parts_share(parts):
    meta = read_meta('a:1,b:3')
    shared = dict(dtype='uint16', vocab_size=9000, special={'eot': 0}, tokenizer='bpe', tokenizer_hash='one')
    assert meta == shared | dict(
        mixture={'b': '3/4', 'a': '1/4'},
        data_hash={'b': {'train.bin': 'hash of b'}, 'a': {'train.bin': 'hash of a'}},
    )
    assert json.loads(json.dumps(meta)) == meta


@pytest.mark.parametrize(
    'dataset, words',
    [
        ('a:0.7,b:-0.3', ['a:0.7,b:-0.3', 'b:-0.3', 'above 0']),
        ('a:0.7,b:0', ['b:0', 'above 0']),
        ('a:0.7,b:most', ['b:most', 'NAME:WEIGHT']),
        ('a:0.7,b:nan', ['b:nan', 'NAME:WEIGHT']),
        ('a:inf,b:1', ['a:inf', 'NAME:WEIGHT']),
        ('a:1/0,b:1', ['a:1/0', 'NAME:WEIGHT']),
        ('a,b', ['a:', 'NAME:WEIGHT']),
        ('a:1,', ['a:1,', 'NAME:WEIGHT']),
        (',', ['NAME:WEIGHT']),
        ('a:1:2,b:1', ['a:1:2', 'NAME:WEIGHT']),
        ('a:1,b:1,a:1', ['names a twice']),
        ('a:1,nowhere:2', ['data/nowhere', 'prepare.py nowhere']),
        ('a:1,odd:2', ['data/a', 'data/odd', 'vocabular']),
        ('a:1,mix:2', ['mix', 'a mixture itself']),
        ('wrong', ['wrong', 'b:much']),
    ],
)
def test_a_mixture_that_cannot_be_ends_in_one_line(parts, capsys, dataset, words):
    with ends_in_one_line(capsys, *words):
        read_meta(dataset)


# --- packed documents and columns -------------------------------------------------

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@settings(max_examples=200)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=80))
def test_best_fit_is_that_of_a_search_through_all_rows(lengths):
    row_of, room = best_fit(np.array(lengths), 12), []
    for piece in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = [r for r in range(len(room)) if room[r] >= lengths[piece]]
        if not fits:
            assert row_of[piece] == len(room)
            room.append(12)
        else:
            assert room[row_of[piece]] == min(room[r] for r in fits)
        room[row_of[piece]] -= lengths[piece]
    assert all(r >= 0 for r in room)


def packed(lengths, block_size, more=1, seed=3):
    """Documents of these lengths, each token its own position."""
    ends = np.cumsum(lengths)
    return Documents(
        np.arange(ends[-1], dtype=np.uint16), {}, ends, block_size, block_size + more, seed
    ), ends


@settings(max_examples=150)
@given(lengths=LENGTHS, block_size=st.integers(1, 12), more=st.integers(1, 2), epoch=st.integers(0, 3))
def test_packing_loses_nothing_and_cuts_only_what_does_not_fit(lengths, block_size, more, epoch):
    source, ends = packed(lengths, block_size, more)
    n, R = source.rows_per_epoch, block_size + more
    rows = source.read(range(epoch * n, (epoch + 1) * n), 7)
    tokens, document, position = rows['tokens'], rows['document'], rows['position']
    assert tokens.shape == document.shape == (n, R)
    begins, targets = np.append(0, ends[:-1]), []
    found = []
    for row in range(n):
        for k in range(document[row].max() + 1):
            here = document[row] == k
            piece = tokens[row][here]
            assert (np.diff(np.flatnonzero(here)) == 1).all() and (np.diff(piece) == 1).all()
            assert (position[row][here] == np.arange(len(piece))).all()
            own = np.searchsorted(ends, piece[0], side='right')
            assert piece[-1] < ends[own]  # of one document
            if lengths[own] <= R:  # not cut
                assert piece[0] == begins[own] and len(piece) == lengths[own]
            targets += piece[more:].tolist()
            found += piece.tolist()
    assert set(found) == set(range(ends[-1]))
    expected = [t for begin, end in zip(begins, ends, strict=True) for t in range(begin + more, end)]
    assert sorted(targets) == expected  # each once


def test_rows_of_documents_depend_on_the_seed_and_their_numbers_only_and_epochs_permute_them():
    lengths = np.random.default_rng(0).integers(1, 30, 300)
    source, _ = packed(lengths, 32)
    n = source.rows_per_epoch
    assert n <= 1.1 * lengths.sum() / 33  # little room is left
    epochs = [source.read(range(e * n, (e + 1) * n), 1)['tokens'] for e in range(3)]
    as_sets = [{tuple(row) for row in rows.tolist()} for rows in epochs]
    assert as_sets[0] == as_sets[1] == as_sets[2] and (epochs[0] != epochs[1]).any()
    alone = packed(lengths, 32)[0].read([n + 5, 3], 1)['tokens']
    assert (alone == np.stack([epochs[1][5], epochs[0][3]])).all()
    assert {
        tuple(row) for row in packed(lengths, 32, seed=4)[0].read(range(n), 1)['tokens'].tolist()
    } != as_sets[0]


@pytest.mark.parametrize('cut', ['windows', 'documents'])
def test_columns_come_with_the_tokens(parts, cut):
    ends, n = np.array([10, 25, 60, 100]), 100
    ends.astype('<u8').tofile('data/a/train.idx')
    (np.arange(n) % 3 == 0).astype(np.uint8).tofile('data/a/train.mask')
    np.array([5, 0, 2, 7], '<i4').tofile('data/a/train.label')
    rows = Mixture('a', 'train', 16, cut=cut, columns=('mask', 'label')).read(range(20), 1)
    real = rows.get('document', rows['tokens'] * 0) >= 0
    assert (rows['mask'][real] == (rows['tokens'][real] % 3 == 0)).all()
    labels = np.array([5, 0, 2, 7])[np.searchsorted(ends, rows['tokens'][real], side='right')]
    assert (rows['label'][real] == labels).all() and not rows['mask'][~real].any()
    assert [str(path) for path in unread_columns('a:1,b:1', ('mask',))] == ['data/a/train.label']


@pytest.mark.parametrize(
    'damage, words',
    [
        (lambda: Path('data/a/train.mask').unlink(), ['data/a/train.mask', '--task=chat']),
        (lambda: Path('data/a/train.mask').write_bytes(b'1' * 99), ['data/a/train.mask', 'does not fit']),
        (lambda: Path('data/a/train.label').write_bytes(b'1' * 4), ['data/a/train.label', 'does not fit']),
        (lambda: Path('data/a/train.idx').write_bytes(b'1' * 8), ['data/a/train.idx', 'does not fit']),
        (lambda: Path('data/a/train.idx').unlink(), ['data/a/train.idx', 'does not fit']),
    ],
)
def test_damaged_columns_end_in_one_line(parts, capsys, damage, words):
    np.array([40, 100], '<u8').tofile('data/a/train.idx')
    np.ones(100, np.uint8).tofile('data/a/train.mask')
    np.zeros(2, '<i4').tofile('data/a/train.label')
    damage()
    with ends_in_one_line(capsys, *words):
        Mixture('a', 'train', 16, cut='documents', columns=('mask', 'label'))


def test_prefetch_gives_the_batches_of_each_step_in_order_and_seeks():
    made = []
    ahead = Prefetch(lambda step: made.append(step) or step * 10, 3)
    assert [ahead.take() for _ in range(3)] == [30, 40, 50]
    ahead.seek(20)
    assert ahead.take() == 200 and ahead.take() == 210
    assert made[:3] == [3, 4, 5]


def test_a_mistake_while_batches_are_made_shows_where_they_are_taken():
    with pytest.raises(ZeroDivisionError):
        Prefetch(lambda step: 1 // step, 0).take()


# --- data sets and their damage --------------------------------------------------


def test_a_split_holds_the_tokens_that_were_written(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    expected = np.frombuffer((workspace / 'data/tiny/val.bin').read_bytes(), dtype='<u2')
    assert (open_split('tiny', 'val', 32) == expected).all()


@pytest.fixture
def copied(workspace, tmp_path, monkeypatch):
    """data/tiny in a directory of its own, to be damaged."""
    shutil.copytree(workspace / 'data', tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'data' / 'tiny'


def test_a_data_set_that_is_not_there_ends_in_one_line(copied, capsys):
    with ends_in_one_line(capsys, 'no data set in data/nowhere', 'prepare.py nowhere'):
        open_split('nowhere', 'train', 8)


@pytest.mark.parametrize('change', [lambda b: b[:-2], lambda b: b[:-1], lambda b: b + b'..', lambda b: b''])
def test_a_token_file_of_another_length_ends_in_one_line(copied, capsys, change):
    path = copied / 'train.bin'
    path.write_bytes(change(path.read_bytes()))
    with ends_in_one_line(capsys, 'train.bin', 'prepare.py tiny'):
        open_split('tiny', 'train', 8)


def test_a_token_file_that_is_missing_ends_in_one_line(copied, capsys):
    (copied / 'val.bin').unlink()
    with ends_in_one_line(capsys, 'val.bin', 'prepare.py tiny'):
        open_split('tiny', 'val', 8)


def without(name):
    return lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != name})


@pytest.mark.parametrize(
    'change',
    [
        lambda text: text[:50],
        lambda text: '',
        lambda text: '[]',
        lambda text: text.replace('uint16', 'uint7'),
        without('dtype'),
        without('special'),
        without('val'),
        without('vocab_size'),
        lambda text: '{"mixture": {}}',
        lambda text: '{"mixture": ["tiny"]}',
    ],
)
def test_damaged_meta_json_ends_in_one_line(copied, capsys, change):
    path = copied / 'meta.json'
    path.write_text(change(path.read_text()))
    with ends_in_one_line(capsys, 'meta.json is damaged', 'prepare.py tiny'):
        read_meta('tiny')


def test_rows_longer_than_a_split_end_in_one_line(copied, capsys):
    tokens = len(open_split('tiny', 'val', 8))
    assert len(open_split('tiny', 'val', tokens - 1)) == tokens
    with ends_in_one_line(capsys, f'block_size = {tokens}', f'{tokens:,} tokens'):
        open_split('tiny', 'val', tokens)
