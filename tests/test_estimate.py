"""estimate.py: what it counts against real tensors, and what --estimate and batch_size='auto' do."""

import re

import pytest
import torch
from conftest import TINY, one_line, run, settings_of

import estimate
import train
from model import ARCHITECTURES, Config, Transformer
from optim import muon_groups

CPU = torch.device('cpu')
SHAPE = dict(vocab_size=200, block_size=48, n_layer=3, n_head=2, n_embd=32)


def config(arch, **changes):
    return Config(**(ARCHITECTURES[arch] | SHAPE | changes))


@pytest.mark.parametrize('precision', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('arch, predicted', [('gpt2', 0), ('modern', 0), ('llama', 0), ('bert', 7)])
def test_what_is_kept_for_the_backward_pass_is_what_real_tensors_keep(arch, predicted, precision):
    model, kept = Transformer(config(arch)), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    inputs = torch.randint(200, (5, 48))
    where = torch.arange(7).expand(5, 7).contiguous() if predicted else None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            model(inputs, targets=inputs, where=where)
    expected = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)
    assert estimate.saved_bytes(model.config, 5, predicted, CPU, precision) == pytest.approx(
        expected, rel=0.02
    )


@pytest.mark.parametrize('arch, optimizer', [('gpt2', 'adamw'), ('modern', 'muon')])
def test_weights_gradients_and_optimizer_are_what_a_step_allocates(arch, optimizer):
    with settings_of(train, f'--optimizer={optimizer} --device=cpu'):
        model = Transformer(config(arch))
        optimizers = train.make_optimizers(model, torch.float32)
    ids = torch.randint(200, (2, 48))
    model(ids, ids).backward()
    gradients = sum(p.grad.nbytes for p in model.parameters())
    for each in optimizers:
        each.step()
    states = [t for each in optimizers for state in each.state.values() for t in state.values()]
    parts = estimate.memory(model, 2, 0, CPU, torch.float32, optimizer, accumulate=True)
    assert parts['weights'] == sum(p.nbytes for p in model.parameters())
    assert parts['gradients'] == gradients
    assert parts['optimizer'] == sum(t.nbytes for t in states if t.dim())  # not the counts of steps


def test_layers_computed_again_need_less_and_more_rows_need_more():
    model = Transformer(config('gpt2', n_layer=12))
    peaks = [estimate.memory(model, n, 0, CPU, torch.bfloat16, 'adamw', True)['peak'] for n in (1, 8, 64)]
    model.recompute = True
    again = estimate.memory(model, 64, 0, CPU, torch.bfloat16, 'adamw', True)['peak']
    assert peaks[0] < peaks[1] < peaks[2] and again < peaks[2] / 2


def test_as_many_rows_as_fit_but_a_divisor_of_the_step(monkeypatch):
    model = Transformer(config('modern'))
    groups = muon_groups(model)
    assert groups  # the recipe's matrices are Muon's

    def peak(n):
        return estimate.memory(model, n, 0, CPU, torch.float32, 'muon', accumulate=n < 24)['peak']

    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')  # they share the memory
    for most in (1, 2, 5, 12, 24):
        monkeypatch.setattr(estimate, 'free_memory', lambda device, most=most: 2.04 * peak(most) / 0.6)
        chosen = estimate.rows_that_fit(model, 48, 0, CPU, torch.float32, 'muon', 2, 1, 1)
        assert chosen == max(n for n in (1, 2, 3, 4, 6, 8, 12, 24) if n <= most)


def test_estimate_tells_and_writes_nothing_and_needs_no_data(tmp_path):
    out, _ = run(
        'train.py --n_layer=4 --n_embd=96 --n_head=3 --block_size=64 --estimate --device=cpu --compile=False',
        tmp_path,
    )
    assert list(tmp_path.iterdir()) == []
    for word in (
        'parameters',
        'work',
        'memory',
        'weights',
        'activations',
        'logits',
        'measured',
        '8 x H100',
        'best',
    ):
        assert word in out
    model = Transformer(Config(block_size=64, n_layer=4, n_head=3, n_embd=96, bias=False))
    assert f'{model.num_params() / 1e6:.3g}M' in out
    # 12 rows of 64 tokens, 40 micro-batches a step, 600,000 steps
    assert f'{12 * 64 * 40 * 600_000 / 1e9:.3g}B tokens' in out


def test_the_best_size_is_chinchillas(tmp_path):
    out, _ = run(f'train.py {TINY} --max_iters=1000000 --estimate'.replace('--dataset=tiny ', ''), tmp_path)
    flops = float(re.search(r'([\d.e+]+) FLOPs', out)[1])
    n, d = re.search(r'at about 20: ([\d.]+)M parameters on ([\d.]+)M tokens', out).groups()
    assert float(d) == pytest.approx(20 * float(n), rel=0.02)
    assert 6 * float(n) * float(d) * 1e12 == pytest.approx(flops, rel=0.05)


def test_batch_size_auto_takes_the_same_rows_in_one_piece(trained, tmp_path):
    (tmp_path / 'data').symlink_to(trained / 'data')
    losses = []
    for flags in ('', '--batch_size=auto --gradient_accumulation_steps=8'):
        run(f'train.py {TINY} {flags} --out_dir=out', tmp_path)
        lines = (tmp_path / 'out' / 'metrics.jsonl').read_text()
        losses.append([float(loss) for loss in re.findall(r'"loss": ([\d.]+)', lines)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and len(losses[0]) == 20


def test_only_batch_size_may_be_auto(tmp_path):
    one_line('train.py --block_size=auto', tmp_path, 'block_size should be int')
