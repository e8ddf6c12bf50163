"""objectives.py: what is predicted, by the definitions of the papers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import objectives
from model import Config
from objectives import OBJECTIVES, Context, example_batch

# ids of special tokens in the middle and at the end of a vocabulary of 60
SPECIAL = dict(eot=7, pad=55, unk=56, cls=57, sep=58, mask=59)
ORDINARY = np.setdiff1d(np.arange(60), list(SPECIAL.values()))


META = dict(special=SPECIAL, vocab_size=60)


def masked(rows, numbers, seed=1, ratio=0.15, training=True):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objectives, 'mask_ratio', ratio)
        batch = objectives.masked({'tokens': rows}, Context(numbers, seed, META, None, training))
    return {name: tensor.numpy() for name, tensor in batch.items()}


def causal(rows):
    return objectives.causal({'tokens': rows}, Context(range(len(rows)), 0, META, None))


def random_rows(B, T, seed=0):
    return np.random.default_rng(seed).integers(0, 60, (B, T + 1))


def test_causal_targets_are_the_next_tokens():
    rows = np.arange(15).reshape(3, 5)
    batch = causal(rows)
    assert batch['inputs'].tolist() == [[0, 1, 2, 3], [5, 6, 7, 8], [10, 11, 12, 13]]
    assert batch['targets'].tolist() == [[1, 2, 3, 4], [6, 7, 8, 9], [11, 12, 13, 14]]
    assert batch['inputs'].dtype == batch['targets'].dtype == torch.int64


@pytest.mark.parametrize('B', [1, 2])
def test_causal_targets_can_be_changed_without_changing_the_inputs(B):
    """A slice of a single row is contiguous as it is: it takes care to make it a copy."""
    batch = causal(np.arange(B * 5).reshape(B, 5))
    batch['targets'][:] = -100
    assert (batch['inputs'] >= 0).all()


@settings(max_examples=100, deadline=None)
@given(
    T=st.integers(3, 70),
    ratio=st.floats(0.01, 0.99),
    seed=st.integers(0, 10**9),
    rare=st.booleans(),
    number=st.integers(0, 10**12),
)
def test_masked_rows_hide_a_fixed_number_of_ordinary_tokens_and_nothing_else(T, ratio, seed, rare, number):
    B, K = 3, max(1, round(ratio * T))
    rows = random_rows(B, T, seed)
    if rare:  # so few ordinary tokens that fewer than K can be chosen
        rows[:, 2:] = SPECIAL['eot']
    before = rows.copy()
    batch = masked(rows, range(number, number + B), seed, ratio)
    assert (rows == before).all()  # a view of the data set may come in

    framed = rows[:, :-1].copy()
    framed[:, 0], framed[:, -1] = SPECIAL['cls'], SPECIAL['sep']
    is_ordinary = np.isin(framed, ORDINARY)
    chosen = batch['targets'] != -100
    assert not chosen[~is_ordinary].any()
    assert (chosen.sum(1) == np.minimum(K, is_ordinary.sum(1))).all()
    assert (batch['targets'][chosen] == framed[chosen]).all()
    assert (batch['inputs'][~chosen] == framed[~chosen]).all()
    assert np.isin(batch['inputs'][chosen], [*ORDINARY, SPECIAL['mask']]).all()

    assert batch['predict_at'].shape == (B, K)
    for row in range(B):
        assert len(set(batch['predict_at'][row])) == K
        assert set(np.flatnonzero(chosen[row])) <= set(batch['predict_at'][row])


def test_eight_in_ten_become_mask_one_random_one_stays():
    rows = np.random.default_rng(0).choice(ORDINARY, (500, 513))
    batch = masked(rows, range(500))
    chosen = batch['targets'] != -100
    shown, original = batch['inputs'][chosen], batch['targets'][chosen]
    n = chosen.sum()
    assert n == 500 * round(0.15 * 512)

    def close(count, p):  # within five standard deviations of the binomial distribution
        return abs(count - n * p) < 5 * math.sqrt(n * p * (1 - p))

    by_chance = 0.1 / len(ORDINARY)  # a random token that is the original
    assert close((shown == SPECIAL['mask']).sum(), 0.8)
    assert close((shown == original).sum(), 0.1 + by_chance)
    random = shown[(shown != SPECIAL['mask']) & (shown != original)]
    assert close(len(random), 0.1 - by_chance)
    counts = np.bincount(random, minlength=60)
    assert counts[list(SPECIAL.values())].sum() == 0
    assert all(close(count, (0.1 - by_chance) / len(ORDINARY)) for count in counts[ORDINARY])


def test_every_position_but_the_frame_is_chosen_equally_often():
    rows = np.random.default_rng(0).choice(ORDINARY, (4000, 22))
    chosen = masked(rows, range(4000), ratio=0.2)['targets'] != -100
    counts, p = chosen.sum(0), 4 / 19
    assert counts[0] == counts[-1] == 0
    assert (abs(counts[1:-1] - 4000 * p) < 5 * math.sqrt(4000 * p * (1 - p))).all()


@pytest.mark.parametrize('order', [[4], [4, 0], [3, 1, 4, 0, 2]])
def test_choices_depend_on_the_seed_and_the_row_number_only(order):
    rows = random_rows(5, 40)
    together = masked(rows, range(100, 105))
    apart = masked(rows[order], [100 + i for i in order])
    for name in together:
        assert (apart[name] == together[name][order]).all()
    for other in (masked(rows, range(100, 105), seed=2), masked(rows, range(101, 106))):
        for row in range(5):
            assert (other['targets'][row] != together['targets'][row]).any()


def test_evaluation_hides_as_many_whatever_training_hides():
    rows = random_rows(4, 40)
    in_evaluation = masked(rows, range(4), ratio=0.5, training=False)
    for name, array in masked(rows, range(4), ratio=0.15).items():
        assert (in_evaluation[name] == array).all()


def test_rows_too_short_to_hide_anything_are_refused():
    with pytest.raises(ValueError, match='block_size = 2'):
        masked(random_rows(1, 2), range(1))


def test_packed_documents_have_targets_and_positions_of_their_own():
    rows = dict(
        tokens=np.array([[10, 11, 12, 20, 21, 30, 0, 0]]),
        document=np.array([[0, 0, 0, 1, 1, 2, -1, -1]]),
        position=np.array([[0, 1, 2, 0, 1, 0, 0, 0]]),
    )
    batch = OBJECTIVES['packed'].make_batch(rows, Context(range(1), 0, META, None))
    assert batch['inputs'].tolist() == [[10, 11, 12, 20, 21, 30, 0]]
    assert batch['targets'].tolist() == [[11, 12, -100, 21, -100, -100, -100]]
    assert batch['document'].tolist() == [[0, 0, 0, 1, 1, 2, -1]]
    assert batch['position_ids'].tolist() == [[0, 1, 2, 0, 1, 0, 0]]


@pytest.mark.parametrize('name', OBJECTIVES)
def test_an_invented_batch_has_the_shapes_of_a_real_one(name):
    objective, config = OBJECTIVES[name], Config(vocab_size=60, block_size=20, n_layer=1, n_head=1, n_embd=8)
    batch = example_batch(objective, 3, config, {})
    assert batch['inputs'].shape == batch['targets'].shape == (3, 20)
    predicted = 3 * (3 if name == 'masked' else 20)  # 15 % of 20
    assert int(objective.count(batch)) == predicted
