"""loader.py: rows are a pure function of (data, seed, number); damaged data ends in one line."""

import json
import shutil

import numpy as np
import pytest
from conftest import ends_in_one_line
from hypothesis import given, settings
from hypothesis import strategies as st

from loader import open_split, read_meta, read_rows, shuffled, windows


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
