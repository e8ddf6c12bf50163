"""estimate.py: what it counts against real tensors, and what --estimate and batch_size='auto' do."""

import re

import pytest
import torch
from conftest import TINY, one_line, run, settings_of

import estimate
import train
from infra.mesh import Layout
from model import Config, Transformer
from objectives import OBJECTIVES

CPU = torch.device('cpu')
SHAPE = dict(vocab_size=200, block_size=48, n_layer=3, n_head=2, n_embd=32)


def plan(
    arch, objective='causal', optimizer='adamw', precision=torch.float32, rows=2, micro_batches=8, **changes
):
    """A run to be estimated, of one process."""
    model = Transformer(Config.of_arch(arch, **SHAPE | changes))

    def make_optimizers(model, precision):
        with settings_of(train, f'--optimizer={optimizer}'):
            return train.make_optimizers(model, precision)

    return estimate.Run(
        model,
        OBJECTIVES[objective],
        {},
        rows,
        micro_batches,
        10,
        CPU,
        precision,
        Layout(),
        False,
        make_optimizers,
    )


@pytest.mark.parametrize('precision', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    'arch, objective', [('gpt2', 'causal'), ('modern', 'packed'), ('llama', 'causal'), ('bert', 'masked')]
)
def test_what_is_kept_for_the_backward_pass_is_what_real_tensors_keep(arch, objective, precision):
    run, kept = plan(arch, objective, precision=precision, rows=5), {}
    weights = {p.untyped_storage().data_ptr() for p in run.model.parameters()}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    batch = run.batch(5)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            run.model(**batch)
    expected = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)
    assert estimate.saved_bytes(run, 3) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize('arch, optimizer', [('gpt2', 'adamw'), ('modern', 'muon')])
def test_weights_gradients_and_optimizer_are_what_a_step_allocates(arch, optimizer):
    run = plan(arch, optimizer=optimizer)
    optimizers = run.make_optimizers(run.model, torch.float32)
    ids = torch.randint(200, (2, 48))
    run.model(ids, ids).backward()
    gradients = sum(p.grad.nbytes for p in run.model.parameters())
    for each in optimizers:
        each.step()
    states = [t for each in optimizers for state in each.state.values() for t in state.values()]
    parts = estimate.memory(run)
    assert parts['weights'] == sum(p.nbytes for p in run.model.parameters())
    assert parts['gradients'] == gradients
    assert parts['optimizer'] == sum(t.nbytes for t in states if t.dim())  # not the counts of steps


def test_checkpointed_layers_need_less_and_more_rows_need_more():
    run = plan('gpt2', precision=torch.bfloat16, n_layer=12)
    peaks = [estimate.memory(run._replace(rows=n))['peak'] for n in (1, 8, 64)]
    run.model.gradient_checkpointing_enable()
    again = estimate.memory(run._replace(rows=64))['peak']
    assert peaks[0] < peaks[1] < peaks[2] and again < peaks[2] / 2


def test_as_many_rows_as_fit_but_a_divisor_of_the_step(monkeypatch):
    run = plan('modern', optimizer='muon', micro_batches=48)._replace(layout=Layout(dp_size=2))

    def peak(n):
        return estimate.memory(run._replace(rows=n, micro_batches=48 // n))['peak']

    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')  # they share the memory
    for most in (1, 2, 12, 24):
        monkeypatch.setattr(estimate, 'free_memory', lambda device, most=most: 2.04 * peak(most) / 0.6)
        assert estimate.rows_that_fit(run) == most


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
    model = Transformer(Config(block_size=64, n_layer=4, n_head=3, n_embd=96))
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
