"""checkpoint.py: what stays, what survives a crash or a full disk, and what is not executed."""

import contextlib
import json
import math
import os
import pickle
import resource
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ends_in_one_line

import tokenizer
from infra import checkpoint
from model import Config, Transformer

INTACT = ['SHA256SUMS', 'config.json', 'model.safetensors', 'optimizer.pt', 'state.json', 'tokenizer.json']


def parts(seed=0, n_embd=32):
    """A model with an optimizer that has made a step, and a scaler."""
    torch.manual_seed(seed)
    model = Transformer(Config(vocab_size=512, block_size=16, n_layer=1, n_head=2, n_embd=n_embd))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.arange(8)[None], torch.arange(8)[None]).backward()
    optimizer.step()
    return model, [optimizer], torch.amp.GradScaler('cpu', enabled=False)


@pytest.fixture
def save(workspace, tmp_path):
    """A function that saves a step of a run into tmp_path/out."""
    made = parts()

    def save(step, val_loss, run='a', out_dir=tmp_path / 'out', made=made, keep=1):
        state = dict(
            step=step, val_loss=val_loss, run=run, best_val_loss=math.inf, best_step=0, rows=4, rows_skipped=0
        )
        state |= dict(settings={}, tokenizer_hash='', mixture={}, data_hash={})
        gathered = checkpoint.gather(*made)
        return checkpoint.save(out_dir, state, made[0], gathered, workspace / 'data' / 'tiny', keep)

    return save


def steps(out_dir):
    return [checkpoint.read_state(path)['step'] for path in checkpoint.list_checkpoints(out_dir)]


def test_a_checkpoint_comes_back_and_needs_nothing_else(save, tmp_path, workspace, monkeypatch):
    model, optimizers, scaler = parts()
    path = save(7, 1.5)
    assert path.name == 'step-00000007' and sorted(p.name for p in path.iterdir()) == INTACT
    shutil.move(path, tmp_path / 'elsewhere')
    monkeypatch.chdir(tmp_path)
    again, vocabulary = checkpoint.load('elsewhere', 'no-such-directory')
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    assert vocabulary.hash == tokenizer.load(str(workspace / 'data' / 'tiny')).hash

    _, other, _ = parts(seed=1)
    checkpoint.load_optimizers(tmp_path / 'elsewhere', other, scaler)
    for ours, theirs in zip(optimizers[0].state.values(), other[0].state.values(), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ('step', 'exp_avg', 'exp_avg_sq'))
    # its disk space is free as soon as it is deleted: nothing of it is kept in use
    assert 'elsewhere' not in ' '.join(each.path for each in psutil.Process().memory_maps())


def test_the_newest_and_the_best_stay(save, tmp_path):
    out, losses = tmp_path / 'out', [3.0, 1.0, 2.0, None, 1.5, 0.5, 0.7, None]
    for step, loss in enumerate(losses):
        save(step, loss)
        so_far = {s: value for s, value in enumerate(losses[: step + 1]) if value is not None}
        best = min(so_far, key=so_far.get)
        assert steps(out) == sorted({best, step})
        assert checkpoint.latest(out).name == f'step-{step:08d}'
        assert checkpoint.best(out).name == f'step-{best:08d}'
    assert len(os.listdir(out)) == 2  # nothing hidden is left either


def test_never_evaluated_checkpoints_have_their_newest_as_best(save, tmp_path):
    for step in (1, 2):
        save(step, None)
    assert steps(tmp_path / 'out') == [2] and checkpoint.best(tmp_path / 'out').name == 'step-00000002'


@pytest.mark.parametrize('keep', [2, 3])
def test_as_many_of_the_newest_stay_as_are_to_be_kept_and_the_best(save, tmp_path, keep):
    for step in range(1, 7):
        save(step, 1.0 if step == 2 else 2.0, keep=keep)
        assert steps(tmp_path / 'out') == sorted({min(step, 2), *range(max(1, step - keep + 1), step + 1)})


def damages(path):
    """Each file cut off, with one bit changed, emptied, gone: what to do to it, and its name."""
    for file in sorted(path.iterdir()):
        original = file.read_bytes()
        middle = len(original) // 2
        for spoilt in (
            original[:middle],
            original[:middle] + bytes([original[middle] ^ 1]) + original[middle + 1 :],
            b'',
            None,
        ):
            file.unlink()
            if spoilt is not None:
                file.write_bytes(spoilt)
            yield file.name
            file.write_bytes(original)


def test_whatever_happens_to_a_file_of_the_newest_the_one_before_is_taken_and_said(save, tmp_path, capsys):
    out = tmp_path / 'out'
    save(1, 1.0, keep=2)
    newest = save(2, 0.5, keep=2)
    assert checkpoint.latest(out) == checkpoint.best(out) == newest
    for name in damages(newest):
        capsys.readouterr()
        assert checkpoint.latest(out).name == 'step-00000001'
        said = capsys.readouterr().err
        assert said.startswith(f'passed over {newest}') and said.count('\n') == 1, said
        assert name in said or name == 'SHA256SUMS'
        if name not in ('optimizer.pt', 'SHA256SUMS'):
            assert checkpoint.best(out).name == 'step-00000001'
    assert checkpoint.latest(out) == newest  # all was put back


def test_with_none_intact_one_line_names_all(save, tmp_path, capsys):
    save(1, 1.0, keep=2)
    for path in (save(2, 0.5, keep=2), tmp_path / 'out/step-00000001'):
        (path / 'state.json').unlink()
    for take in (checkpoint.latest, checkpoint.best):
        with ends_in_one_line(capsys, 'no checkpoint', 'step-00000001', 'step-00000002', 'state.json'):
            take(tmp_path / 'out')


def test_sums_are_those_of_sha256sum(save):
    assert not subprocess.run(['sha256sum', '--quiet', '-c', 'SHA256SUMS'], cwd=save(1, 1.0)).returncode


def test_a_checkpoint_is_its_own_best(save):
    path = save(3, 1.0)
    assert checkpoint.best(path) == path


def test_an_earlier_runs_checkpoints_stay_until_the_new_run_has_one(save, tmp_path):
    for step, loss in ((10, 0.1), (20, 0.2)):
        save(step, loss, run='earlier')
    assert steps(tmp_path / 'out') == [10, 20]
    save(5, 3.0, run='new')
    assert steps(tmp_path / 'out') == [5]


def test_what_a_crash_left_half_written_is_not_a_checkpoint(save, tmp_path):
    path, out = save(10, 1.0), tmp_path / 'out'
    shutil.copytree(path, out / '.step-00000020.partial')
    shutil.copytree(path, out / 'step-00000020.partial')
    assert checkpoint.list_checkpoints(out) == [path]
    assert save(20, 2.0).name == 'step-00000020' and steps(out) == [10, 20]


class Killed(BaseException):
    """Stands in for SIGKILL: nothing in the code may catch it."""


def rmtree(path, ignore_errors=False):
    """shutil's promises no order; this one lets a checkpoint look intact until the end."""
    if ignore_errors and not os.path.isdir(path):
        return
    for name in sorted(os.listdir(path)):  # state.json comes after the weights
        os.unlink(os.path.join(path, name))
    os.rmdir(path)


@pytest.mark.parametrize(
    'earlier, now',
    [
        ([('a', 10, 1.0), ('a', 20, 2.0)], ('a', 30, 0.5)),  # two go at once
        ([('a', 10, 0.1), ('a', 20, 0.2)], ('b', 5, 3.0)),  # an earlier run's go
        ([('a', 10, 1.0)], ('a', 10, 1.0)),  # a resumed run saves the step it began with again
        ([('a', 10, 1.0)], ('b', 10, 1.0)),
    ],
    ids=['deletes', 'new run', 'overwrites', 'new run overwrites'],
)
def test_killed_at_any_moment_an_intact_checkpoint_remains(save, tmp_path, monkeypatch, earlier, now):
    """The process ends before its nth change of the disk, for each n: every checkpoint listed can be loaded."""
    for moment in range(100):
        out, calls = tmp_path / f'out{moment}', 0
        for run, step, loss in earlier:
            save(step, loss, run, out)

        def mortal(original, moment=moment):
            def call(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls > moment:
                    raise Killed
                return original(*args, **kwargs)

            return call

        with monkeypatch.context() as patched:
            patched.setattr(shutil, 'rmtree', rmtree)
            for name in ('unlink', 'rmdir', 'mkdir', 'rename', 'replace', 'fsync'):
                patched.setattr(os, name, mortal(getattr(os, name)))
            run, step, loss = now
            try:
                save(step, loss, run, out)
                finished = True
            except Killed:
                finished = False
        assert checkpoint.list_checkpoints(out) and not any(
            map(checkpoint.find_damage, checkpoint.list_checkpoints(out))
        ), moment
        for path in {*checkpoint.list_checkpoints(out), checkpoint.latest(out), checkpoint.best(out)}:
            model, optimizers, scaler = parts(seed=1)
            assert checkpoint.load_model(path).config == model.config
            checkpoint.load_optimizers(path, optimizers, scaler)
        if finished:
            assert moment > 10
            return
    raise AssertionError('never finished')


@contextlib.contextmanager
def full_disk(size):
    """Files of this process cannot grow past so many bytes: the system refuses to write, as on a full disk.

    Lifted as soon as possible: pytest's own output may be a file longer than that.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize('size', [2_000, 100_000, 240_000])  # tokenizer or weights, weights, optimizer
def test_a_full_disk_is_told_and_leaves_the_last_checkpoint(save, tmp_path, size):
    path, out = save(1, 1.0), tmp_path / 'out'
    sizes = {p.name: p.stat().st_size for p in path.iterdir()}
    assert sizes['tokenizer.json'] < 100_000 < sizes['model.safetensors'] < 240_000 < sizes['optimizer.pt']
    with pytest.raises(OSError, match='step-00000002: (the disk is full|File too large)'), full_disk(size):
        save(2, 0.5)
    assert os.listdir(out) == ['step-00000001'] and checkpoint.load_model(path)


def test_an_out_dir_that_is_a_file_is_told(save, tmp_path):
    (tmp_path / 'file').write_text('precious')
    with pytest.raises(OSError, match='cannot write the checkpoint'):
        save(1, 1.0, out_dir=tmp_path / 'file')
    assert (tmp_path / 'file').read_text() == 'precious'


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize('as_torch_does', [True, False])
def test_a_pickle_with_code_in_it_is_refused_without_running_it(save, tmp_path, capsys, as_torch_does):
    path, trap = save(1, 1.0), {'optimizers': [Trap(tmp_path / 'sprung')], 'scaler': {}}
    if as_torch_does:
        torch.save(trap, path / 'optimizer.pt')
    else:
        (path / 'optimizer.pt').write_bytes(pickle.dumps(trap, protocol=2))
    _, optimizers, scaler = parts()
    with ends_in_one_line(capsys, 'cannot load', 'optimizer.pt'):
        checkpoint.load_optimizers(path, optimizers, scaler)
    assert not (tmp_path / 'sprung').exists()


def test_a_name_in_the_checksums_that_leads_elsewhere_is_not_followed(save, tmp_path, monkeypatch):
    path = save(1, 1.0)
    (tmp_path / 'out/x').write_text('')
    with open(path / 'SHA256SUMS', 'a') as f:
        f.write(f'{checkpoint.sha256(tmp_path / "out/x")}  ../x\n')
    monkeypatch.setattr(checkpoint, 'sha256', None)  # nothing is read
    assert checkpoint.find_damage(path) == 'SHA256SUMS is damaged'


@pytest.mark.parametrize(
    'name, changes',
    [
        ('state.json', dict(step='1')),
        ('state.json', dict(step=-1)),
        ('state.json', dict(rows=2**70)),
        ('state.json', dict(val_loss='low')),
        ('state.json', dict(settings=[])),
        ('state.json', dict(mixture=dict(tiny='1/0'))),
        ('state.json', dict(mixture=dict(tiny=[]))),
        ('config.json', dict(n_layer=2**40)),
        ('config.json', dict(n_layer=-1)),
        ('config.json', dict(n_embd='wide')),
        ('config.json', dict(n_embd=2**29)),
        ('config.json', dict(vocab_size=2**30)),
        ('config.json', dict(arch=[])),
        ('config.json', dict(no_such_setting=1)),
    ],
)
def test_senseless_values_with_checksums_that_fit_end_in_one_line(save, tmp_path, capsys, name, changes):
    path = save(1, 1.0)
    (path / name).write_text(json.dumps(json.loads((path / name).read_text()) | changes))
    checkpoint.write_checksums(path)
    with ends_in_one_line(capsys, *[str(path)] * (name == 'state.json')):
        checkpoint.load('resume', tmp_path / 'out')


def test_damaged_files_end_in_one_line(save, tmp_path, capsys):
    path = save(1, 1.0)
    for name, load in (
        ('optimizer.pt', lambda: checkpoint.load_optimizers(path, *parts()[1:])),
        ('model.safetensors', lambda: checkpoint.load_model(path)),
        ('config.json', lambda: checkpoint.load_model(path)),
        ('state.json', lambda: checkpoint.best(tmp_path / 'out')),
        ('tokenizer.json', lambda: checkpoint.load('resume', path)),
    ):
        original = (path / name).read_bytes()
        (path / name).write_bytes(original[: len(original) // 2])
        with ends_in_one_line(capsys, str(path)):
            load()
        (path / name).write_bytes(original)


def test_an_optimizer_of_another_model_ends_in_one_line(save, capsys):
    path = save(1, 1.0)
    model = Transformer(Config(vocab_size=512, block_size=16, n_layer=2, n_head=2, n_embd=32))
    with ends_in_one_line(capsys, 'optimizer.pt'):
        checkpoint.load_optimizers(path, [torch.optim.AdamW(model.parameters())], parts()[2])


def test_no_checkpoint_ends_in_one_line(tmp_path, capsys):
    for missing in (tmp_path, tmp_path / 'nowhere'):
        with ends_in_one_line(capsys, 'no checkpoint', str(missing)):
            checkpoint.load('resume', missing)
