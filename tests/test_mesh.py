"""mesh.py: the same losses and the same files whatever the processes hold. `layouts.py` does it at length."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY, ends_in_one_line, settings_of
from layouts import KINDS, SHAPE, difference, losses, out_dir, together
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

import estimate
import train
from infra import checkpoint, mesh
from model import ARCHITECTURES, Config, Transformer

FLAGS = '--decay_lr=False --eval_interval=3 --eval_iters=3'  # of which processes have different numbers
ONE, TP, FSDP_TP, HSDP = (1, 1, 1), (1, 1, 2), (1, 2, 2), (2, 2, 1)  # ddp x fsdp x tp


@pytest.fixture(scope='module')
def runs(workspace, tmp_path_factory):
    """A directory with 6 steps of each kind of model by one process; others have run them too, or the second half."""
    where = tmp_path_factory.mktemp('runs')
    (where / 'data').symlink_to(workspace / 'data')

    def job(kind, m, steps, stem, before=''):
        return (m, f'{KINDS[kind]} {FLAGS} --max_iters={steps}', f'{kind}/{stem}', before)

    jobs = [job(kind, ONE, 6, 'straight') for kind in ('gpt2', 'masked', 'muon')]
    jobs += [job('masked', TP, 6, 'straight'), job('muon', ONE, 3, 'half'), job('muon', FSDP_TP, 3, 'half')]
    jobs += [job('muon', FSDP_TP, 6, 'on', out_dir('muon/half', ONE))]
    jobs += [job('muon', HSDP, 6, 'on', out_dir('muon/half', FSDP_TP))]
    together(where, jobs)
    return where


@pytest.mark.parametrize(
    'kind, stem, shared', [('masked', 'straight', TP), ('muon', 'on', FSDP_TP), ('muon', 'on', HSDP)]
)
def test_losses_are_those_of_one_process(runs, kind, stem, shared):
    one = losses(runs / out_dir(f'{kind}/straight', ONE))
    assert difference(one, losses(runs / out_dir(f'{kind}/{stem}', shared))) < 1e-4
    assert {step for step, name in one if name == 'loss'} == set(range(6))


def test_a_checkpoint_is_the_same_whatever_the_mesh(runs):
    one, shared = (checkpoint.latest(runs / out_dir('muon/half', m)) for m in (ONE, FSDP_TP))
    of_one, of_shared = (load_file(path / 'model.safetensors') for path in (one, shared))
    torch.testing.assert_close(of_shared, of_one, atol=1e-4, rtol=0)
    of_one, of_shared = (torch.load(path / 'optimizer.pt', weights_only=True) for path in (one, shared))
    torch.testing.assert_close(of_shared, of_one, atol=1e-5, rtol=1e-4)


def test_the_command_a_user_types(runs):
    launch = '-m torch.distributed.run --standalone --nproc_per_node=2'.split()
    words = f'{TINY} {SHAPE} {KINDS["gpt2"]} {FLAGS} --fsdp=2 --max_iters=6 --out_dir=typed'
    command = [sys.executable, *launch, str(ROOT / 'train.py'), *words.split()]
    done = subprocess.run(command, cwd=runs, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert difference(losses(runs / out_dir('gpt2/straight', ONE)), losses(runs / 'typed')) < 1e-4


@pytest.fixture(params=['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu'])
def alone(request):
    """A mesh of this process only."""
    backend = 'gloo' if request.param == 'cpu' else 'nccl'
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh(request.param, (1, 1, 1), mesh_dim_names=('ddp', 'fsdp', 'tp'))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('arch', ['gpt2', 'bert', 'modern'])
@pytest.mark.parametrize('precision', [torch.float32, torch.bfloat16])
def test_dealt_out_to_one_process_a_model_computes_as_before(alone, arch, precision):
    made = []
    for deal in (False, True):
        torch.manual_seed(0)
        model = Transformer(
            Config(vocab_size=60, block_size=16, n_layer=2, n_head=2, n_embd=16, **ARCHITECTURES[arch])
        )
        if deal:
            mesh.shard_model(model, alone, precision)
        model.to(alone.device_type)
        ids = torch.arange(32, device=alone.device_type).view(2, 16)
        with torch.autocast(alone.device_type, precision, enabled=precision != torch.float32):
            loss = model(ids, ids)
        loss.backward()
        norm = mesh.clip_grad_norm_(model.parameters(), 1.0)
        made.append([loss.detach(), norm, *(mesh.full_tensor(p.grad) for p in model.parameters())])
    # a GPU adds up in any order, and so do the gradients of what enters a block with the norms after the sum
    exactly = (
        dict(atol=0, rtol=0) if alone.device_type == 'cpu' and arch != 'bert' else dict(atol=5e-3, rtol=1e-4)
    )
    torch.testing.assert_close(made[1], made[0], **exactly)


@pytest.mark.parametrize(
    'processes, fsdp, tp, words',
    [(1, 2, 1, ['fsdp = 2', '1']), (8, 1, 3, ['tp = 3', '8']), (4, 0, 1, ['fsdp = 0'])],
)
def test_a_mesh_that_does_not_come_out_even_ends_in_one_line(capsys, processes, fsdp, tp, words):
    with ends_in_one_line(capsys, *words):
        mesh.make_layout(torch.device('cpu'), processes, fsdp, tp)


@pytest.mark.parametrize(
    'precision, words',
    [(torch.float32, ['tp = 3', 'n_head = 2']), (torch.float16, ['float16', 'bfloat16'])],
)
def test_a_model_that_cannot_be_dealt_out_ends_in_one_line(capsys, precision, words):
    """Three processes that only pretend to be there."""
    torch.distributed.init_process_group('fake', store=FakeStore(), rank=0, world_size=3)
    try:
        tp = 3 if precision == torch.float32 else 1
        layout = mesh.make_layout(torch.device('cpu'), 3, 3 // tp, tp)
        model = Transformer(Config(vocab_size=60, block_size=16, n_layer=1, n_head=2, n_embd=16))
        with ends_in_one_line(capsys, *words):
            mesh.shard_model(model, layout.mesh, precision)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    'config, processes', [('gpt2_xl.py', 8), ('llama_7b.py', 64), ('modern_124m.py --fsdp=2 --tp=3', 12)]
)
def test_a_process_holds_what_the_estimate_says(config, processes):
    """Of weights, gradients and optimizer states, on the meta device, as the first of many that only pretend to be."""
    torch.distributed.init_process_group('fake', store=FakeStore(), rank=0, world_size=processes)
    try:
        with settings_of(train, f'{ROOT}/config/{config} --estimate') as chosen:
            fsdp, tp = chosen['fsdp'], chosen['tp']
            plain = mesh.Layout(dp_size=processes // tp, fsdp=fsdp, tp=tp)
            machine = (torch.device('cpu'), torch.bfloat16, plain)
            run, _ = train.plan_run(chosen, 'scratch', False, *machine, print)
            model = run.model
            told = estimate.memory(run._replace(rows=1))
            mesh.shard_model(
                model, mesh.make_layout(torch.device('cpu'), processes, fsdp, tp).mesh, torch.bfloat16
            )
            optimizers = train.make_optimizers(model, torch.bfloat16)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        for group in optimizers[-1].param_groups:
            group['fused'] = False  # there is no such kernel for the meta device
        optimizers[-1].step()
    finally:
        torch.distributed.destroy_process_group()
    assert sum(p.to_local().nbytes for p in model.parameters()) == pytest.approx(told['weights'], rel=0.01)
    assert sum(p.grad.to_local().nbytes for p in model.parameters()) == pytest.approx(
        told['gradients'], rel=0.01
    )
    states = [t for state in optimizers[-1].state.values() for t in state.values() if t.dim()]
    matrices = [p for o in optimizers[:-1] for g in o.param_groups for p in g['params']]  # Muon's
    muon = sum(p.to_local().nbytes for p in matrices)
    assert sum(t.to_local().nbytes for t in states) + muon == pytest.approx(told['optimizer'], rel=0.01)
