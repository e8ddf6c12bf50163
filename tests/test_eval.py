"""eval.py against a score made one token at a time."""

import json
import math
import shutil
import string

import numpy as np
import pytest
import torch
from conftest import TINY, ends_in_one_line, run, settings_of

import eval as evaluation
import objectives
from infra import checkpoint
from loader import open_split, read_meta

EXACT = '--device=cpu --dtype=float32'


@pytest.fixture
def cwd(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


def evaluate(flags, capsys, out_dir='out-gpt'):
    """The JSON object that eval.py prints for a data set."""
    (results,) = evaluate_each(flags, capsys, out_dir)
    return results


def evaluate_each(flags, capsys, out_dir='out-gpt'):
    """The JSON objects that eval.py prints, one for each part of a mixture."""
    capsys.readouterr()
    with settings_of(evaluation, f'{EXACT} --json --out_dir={out_dir} {flags}'):
        evaluation.main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@torch.no_grad()
def slowly(model, tokens, block_size, stride):
    """(loss, accuracy) of every token but the first, each with the context of the first window that holds it."""
    ids = torch.from_numpy(tokens.astype(np.int64))
    nats, right, start = 0.0, 0, 0
    for t in range(1, len(ids)):
        if t > start + block_size:  # the next window; the last one ends with the split
            start = min(start + stride, len(ids) - 1 - block_size)
        logits = model(ids[None, start:t])[0, -1]
        nats += torch.nn.functional.cross_entropy(logits, ids[t]).item()
        right += (logits.argmax() == ids[t]).item()
    return nats / (len(ids) - 1), right / (len(ids) - 1)


@pytest.mark.parametrize('block_size, stride', [(32, 32), (32, 16), (24, 7)])
def test_every_token_is_scored_once_with_the_context_that_fits(cwd, capsys, block_size, stride):
    model, tokens = checkpoint.load_model(checkpoint.best('out-gpt')).eval(), open_split('tiny', 'val', 32)
    results = evaluate(f'--block_size={block_size} --stride={stride} --batch_size=5', capsys)
    loss, accuracy = slowly(model, tokens, block_size, stride)
    assert results['val']['tokens'] == len(tokens) - 1
    assert results['val']['loss'] == pytest.approx(loss, abs=1e-5)
    assert results['val']['perplexity'] == pytest.approx(math.exp(loss), rel=1e-4)
    assert results['val']['accuracy'] == pytest.approx(accuracy, abs=2 / len(tokens))  # ties may break
    assert (results['block_size'], results['stride'], results['dataset']) == (block_size, stride, 'tiny')


def test_half_a_window_of_context_is_the_default(cwd, capsys):
    assert evaluate('', capsys) == evaluate('--stride=16 --block_size=32 --dataset=tiny', capsys)


def test_bits_per_byte_count_the_bytes_of_the_text(cwd, capsys):
    model, vocabulary = checkpoint.load('resume', 'out-gpt')
    results = evaluate('', capsys)
    for split in ('train', 'val'):
        tokens = open_split('tiny', split, 32)
        text = vocabulary.decode(tokens[tokens != vocabulary.special['eot']])
        bits = results[split]['loss'] / math.log(2) * len(tokens)
        assert results[split]['bits_per_byte'] == pytest.approx(bits / len(text.encode()))


def test_the_commonest_token_of_the_training_text_is_the_rate_to_beat(cwd, capsys):
    train, val = (open_split('tiny', split, 32).tolist() for split in ('train', 'val'))
    special = set(read_meta('tiny')['special'].values())
    commonest = max(set(train) - special, key=train.count)
    assert evaluate('', capsys)['commonest_token_rate'] == pytest.approx(val.count(commonest) / len(val))


def test_the_training_split_is_scored_on_a_sample_of_it(cwd, capsys):
    train = open_split('tiny', 'train', 32)
    sampled = evaluate('--train_tokens=1600', capsys)
    assert sampled['train']['tokens'] == 1600
    assert sampled['gap'] == pytest.approx(sampled['val']['loss'] - sampled['train']['loss'])
    everything = evaluate(f'--train_tokens={len(train)} --stride=32', capsys)['train']['loss']
    model = checkpoint.load_model(checkpoint.best('out-gpt')).eval()
    assert everything == pytest.approx(slowly(model, train, 32, 32)[0], abs=0.01)  # windows lie elsewhere
    alone = evaluate('--train_tokens=0', capsys)
    assert 'train' not in alone and 'gap' not in alone and alone['val'] == sampled['val']


def test_a_masked_model_is_scored_at_15_percent_of_the_tokens(cwd, capsys):
    results = evaluate('', capsys, 'out-bert')
    val = results['val']
    assert val['tokens'] == pytest.approx(0.15 * len(open_split('tiny', 'val', 32)), rel=0.05)
    assert 'bits_per_byte' not in val  # a masked model gives no probability of a text
    model, meta = checkpoint.load_model(checkpoint.best('out-bert')).eval(), read_meta('tiny')
    tokens, nats, right, count = open_split('tiny', 'val', 32).astype(np.int64), 0.0, 0, 0
    last = len(tokens) - 33
    for i, start in enumerate([*range(0, last, 32), last]):
        rows = {'tokens': tokens[None, start : start + 33]}
        batch = objectives.masked(rows, objectives.Context([i], 0, meta, None, training=False))
        with torch.no_grad():
            logits = model(batch['inputs'])[0]
        for t in (batch['targets'][0] != -100).nonzero()[:, 0]:
            target = batch['targets'][0, t]
            nats -= logits[t].log_softmax(-1)[target].item()
            right, count = right + (logits[t].argmax() == target).item(), count + 1
    assert val['tokens'] == count
    assert val['loss'] == pytest.approx(nats / count, abs=1e-5)
    assert val['accuracy'] == pytest.approx(right / count, abs=2 / count)  # ties may break


def test_each_part_of_a_mixture_is_scored_on_its_own(trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained / 'data' / 'tiny', tmp_path / 'data' / 'tiny')
    shutil.copytree(trained / 'data' / 'tiny', tmp_path / 'data' / 'back')
    for split in ('train.bin', 'val.bin'):
        path = tmp_path / 'data' / 'back' / split
        np.fromfile(path, '<u2')[::-1].tofile(path)
    shutil.copytree(checkpoint.best(trained / 'out-gpt'), tmp_path / 'out')
    monkeypatch.chdir(tmp_path)
    alone = [evaluate(f'--dataset={name}', capsys, 'out') for name in ('tiny', 'back')]
    assert evaluate_each('--dataset=back:1,tiny:2', capsys, 'out') == alone
    assert alone[0]['val']['loss'] < alone[1]['val']['loss']
    assert alone[0]['epochs'] > 0 == alone[1]['epochs']
    state = checkpoint.read_state('out')
    state['settings']['dataset'], state['mixture'] = 'tiny:3,back:1', {'tiny': '3/4', 'back': '1/4'}
    (tmp_path / 'out' / 'state.json').write_text(json.dumps(state))
    checkpoint.write_checksums('out')
    epochs = [results['epochs'] for results in evaluate_each('', capsys, 'out')]
    assert epochs == pytest.approx([alone[0]['epochs'] * 3 / 4, alone[0]['epochs'] / 4])


def test_memorising_is_called_overfitting_and_a_beginner_is_not(tmp_path, monkeypatch, capsys):
    """Random letters: nothing in them helps to predict others, they can only be learned by heart."""
    letters = np.random.default_rng(0).choice(list(string.ascii_letters), 700)
    (tmp_path / 'letters.txt').write_text(''.join(letters))
    run('prepare.py letters --files=letters.txt --tokenizer=char --val_fraction=0.3', tmp_path)
    flags = '--dataset=letters --n_embd=64 --batch_size=16 --gradient_accumulation_steps=1'
    shared = f'train.py {TINY} {flags} --schedule=constant'
    run(f'{shared} --max_iters=1 --out_dir=beginner', tmp_path)
    run(f'{shared} --max_iters=300 --eval_interval=300 --out_dir=memory', tmp_path)
    monkeypatch.chdir(tmp_path)
    results = evaluate('--train_tokens=1000', capsys, 'memory')
    assert results['train']['loss'] < 2 and results['val']['loss'] > math.log(52)
    assert results['overfitting'] is True
    assert evaluate('', capsys, 'beginner')['overfitting'] is False
    for out_dir, words in (('memory', ': overfitting'), ('beginner', 'no overfitting')):
        with settings_of(evaluation, f'{EXACT} --train_tokens=1000 --out_dir={out_dir}'):
            evaluation.main()
        assert words in capsys.readouterr().out


def test_the_command_prints_a_table_of_what_json_holds(cwd, capsys):
    stdout, _ = run(f'eval.py --out_dir=out-gpt {EXACT}', cwd)
    val = evaluate('', capsys)['val']
    (row,) = [line.split() for line in stdout.splitlines() if line.startswith('val ')]
    assert row[1:4] == [f'{val["tokens"]:,}', f'{val["loss"]:.4f}', f'{val["perplexity"]:.2f}']
    assert row[4:] == [f'{val["bits_per_byte"]:.4f}', f'{val["accuracy"]:.2%}']


@pytest.mark.parametrize(
    'flags, words',
    [
        ('--dataset=bytes', ['vocabular', 'data/bytes']),
        ('--dataset=nowhere', ['data/nowhere']),
        ('--block_size=33', ['block_size = 33', '32']),
        ('--stride=33', ['stride = 33']),
        ('--stride=-1', ['stride = -1']),
        ('--block_size=-1', ['block_size']),
        ('--batch_size=0', ['batch_size']),
        ('--init_from=gpt2', ['--dataset']),
        ('--out_dir=nowhere', ['no checkpoint', 'nowhere']),
    ],
)
def test_a_mistake_ends_in_one_line(cwd, capsys, flags, words):
    with ends_in_one_line(capsys, *words):
        evaluate(flags, capsys)
