"""faults.py: signals to one process of two, processes that die or hang, bad steps, what may change on resuming."""

import contextlib
import datetime
import errno
import gc
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT, TINY, ends_in_one_line, run, settings_of

import train
from infra import checkpoint, faults, runtime
from model import Transformer
from objectives import Batches
from optim import Muon

MODERN = '--arch=modern --optimizer=muon --bigrams=300 --n_kv_head=1'
LONG = f'{TINY} --max_iters=100000 --lr_decay_iters=100000 --out_dir=out'


@pytest.fixture
def cwd(workspace, tmp_path, monkeypatch):
    """A directory with data/tiny and nothing else, made the current one."""
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'tiny').symlink_to(workspace / 'data' / 'tiny')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train_here(flags, out_dir='out'):
    """Run train.py in this process with flags on top of TINY -> its losses by step."""
    with settings_of(train, f'{TINY} --out_dir={out_dir} {flags}') as settings:
        train.main(settings)
    return losses(out_dir)


def losses(out_dir):
    with open(os.path.join(out_dir, 'metrics.jsonl')) as f:
        return {r['step']: r['loss'] for r in map(json.loads, f) if 'loss' in r}


def weights(out_dir='out'):
    return (checkpoint.latest(out_dir) / 'model.safetensors').read_bytes()


def ending(out_dir='out'):
    """How a run ended: what the last line of log.txt says."""
    *_, last = Path(out_dir, 'log.txt').read_text().splitlines()
    assert re.match(r'ended \d{4}-\d\d-\d\d \d\d:\d\d:\d\d: ', last), last
    return last[27:]


@contextlib.contextmanager
def started(flags, *launch, script=ROOT / 'train.py', **env):
    """A running train.py, its output a pipe of lines."""
    command = [sys.executable, *launch, str(script), *flags.split()]
    env = os.environ | {'PYTHONUNBUFFERED': '1'} | env
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
            process.communicate(timeout=60)
        finally:
            for child in (
                psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ()
            ):
                child.kill()
            process.kill()


TWO = '-m torch.distributed.run --standalone --nproc_per_node=2'.split()


def rank(number, process):
    """A process that torchrun started."""
    return next(p for p in psutil.Process(process.pid).children() if p.environ().get('RANK') == str(number))


def wait_for(text, process):
    """Read the output until a line holds a text -> that line."""
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f'{text} was never said')


# --- signals ---------------------------------------------------------------------


@pytest.mark.parametrize(
    'flags, moment',
    [('--save_interval=50', 'step 60/'), ('--eval_iters=1000000 --eval_interval=20', 'step 19/')],
)
def test_sigterm_to_one_of_two_processes_ends_both_with_an_intact_checkpoint(cwd, flags, moment):
    """In a step, and in an evaluation of tens of seconds."""
    (cwd / 'data' / 'long').mkdir()
    shutil.copy('data/tiny/tokenizer.json', 'data/long')
    meta = json.loads((cwd / 'data/tiny/meta.json').read_text())
    for split in ('train', 'val'):  # much data, so that an evaluation may take long
        tokens = np.tile(np.fromfile(f'data/tiny/{split}.bin', '<u2'), 200)
        tokens.tofile(f'data/long/{split}.bin')
        meta[split]['tokens'] = len(tokens)
    (cwd / 'data/long/meta.json').write_text(json.dumps(meta))
    first = '' if 'eval_iters' not in flags else '--eval_interval=20 --max_iters=19 --eval_iters=1'
    if first:  # up to just before the evaluation
        train_here(f'{LONG} --dataset=long {first}')
    flags += ' --init_from=auto'
    with started(f'{LONG} --dataset=long {flags}', *TWO) as process:
        wait_for(moment, process)
        victim, began = rank(1, process), time.time()
        time.sleep(0.3)
        victim.send_signal(signal.SIGTERM)
        said = wait_for('stopped at step', process)
        output = process.stdout.read()
    assert time.time() - began < 10 and '--init_from=resume' in said
    assert f'{ending()}\n' in f'{said.partition(" (")[0]}\n' and 'by SIGTERM; go on' in ending()
    assert 'exitcode  : 75' in output and 'train.py", line' not in output
    step = int(re.search(r'stopped at step (\d+)', said)[1])
    saved = checkpoint.latest('out')
    assert checkpoint.read_state(saved)['step'] == step and (step == 20 if first else step > 60)


SLOW = f"""import sys, time
sys.path.insert(0, {str(ROOT)!r})
from infra import checkpoint
import train
from pathlib import Path
write_checksums = checkpoint.write_checksums
def slow(path):
    print('in the midst of', path, flush=True)
    time.sleep(1.5)
    write_checksums(path)
checkpoint.write_checksums = slow
raise SystemExit(train.main(train.load_settings()))
"""


def test_sigterm_while_a_checkpoint_is_written_ends_with_it_and_one_of_the_step(cwd):
    (cwd / 'slow.py').write_text(SLOW)
    with started(f'{LONG} --save_interval=50 --eval_interval=100000', *TWO, script='slow.py') as process:
        wait_for('in the midst of out/.step-00000050', process)
        began = time.time()
        rank(1, process).send_signal(signal.SIGTERM)
        step = int(re.search(r'stopped at step (\d+)', wait_for('stopped at step', process))[1])
    assert time.time() - began < 10
    saved = checkpoint.list_checkpoints('out')
    assert checkpoint.read_state(saved[-1])['step'] == step and not any(map(checkpoint.find_damage, saved))


def test_training_goes_on_while_a_checkpoint_is_written_of_the_step_it_was_asked_for(cwd):
    """With the optimizer's and the weights of that step, bit for bit, though they have changed since."""
    (cwd / 'slow.py').write_text(SLOW)
    flags = f'{TINY} {MODERN} --eval_interval=20 --eval_iters=1 --keep=9 --out_dir=slow'
    with started(f'{flags} --save_interval=10', script='slow.py') as process:
        lines = process.stdout.read().splitlines()
    began, said = (
        next(i for i, line in enumerate(lines) if line.startswith(words + ' slow/'))
        for words in ('in the midst of', 'saved')
    )
    assert sum(line.startswith('step ') for line in lines[began:said]) > 3, lines
    train_here(f'{MODERN} --max_iters=10 --eval_iters=1', 'straight')
    for name in ('model.safetensors', 'optimizer.pt'):
        ours, theirs = (Path(out_dir, 'step-00000010', name) for out_dir in ('slow', 'straight'))
        assert ours.read_bytes() == theirs.read_bytes(), name


def test_a_checkpoint_that_cannot_be_written_ends_the_run_at_once_in_one_line(cwd, monkeypatch, capsys):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, 'write_checksums', full)
        with ends_in_one_line(capsys, 'cannot write the checkpoint out/step-00000005', 'No space left'):
            train_here('--save_interval=5 --max_iters=100000')
    assert max(losses('out')) < 1000 and not os.path.exists('out/step-00000005')
    assert ending().startswith('error: cannot write the checkpoint out/step-00000005: No space left')


def test_a_checkpoint_that_rank_0_cannot_write_ends_both_processes_in_one_line(cwd):
    (cwd / 'full.py').write_text(
        f'import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport train\nfrom infra import checkpoint\n'
        'write = checkpoint.write_checksums\n'
        'def full(path):\n    if "40" in str(path):\n        raise OSError(28, "No space left on device")\n    write(path)\n'
        'checkpoint.write_checksums = full\nraise SystemExit(train.main(train.load_settings()))\n'
    )
    with started(f'{LONG} --save_interval=20 --eval_interval=100000', *TWO, script='full.py') as process:
        output = process.stdout.read()
    assert output.count('error: ') == 1 and 'train.py", line' not in output, output
    assert output.count('exitcode  : 2') == 2 and checkpoint.latest('out').name == 'step-00000020'
    assert ending().startswith('error: cannot write the checkpoint out/step-00000040: No space left')


@pytest.mark.parametrize('which', [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_a_run_with_code_75_and_a_checkpoint_of_its_step(cwd, which):
    """SIGUSR1, as Slurm sends it before the end of a job, has the job queued again."""
    (cwd / 'scontrol').write_text('#!/bin/sh\necho "$@" > requeued\n')
    (cwd / 'scontrol').chmod(0o755)
    env = dict(PATH=f'{cwd}:{os.environ["PATH"]}', SLURM_JOB_ID='4711')
    with started(f'{LONG} --requeue=True', **env) as process:
        wait_for('step 30/', process)
        process.send_signal(which)
        step = re.search(r'stopped at step (\d+)', wait_for('stopped at', process))[1]
    assert process.returncode == 75
    assert checkpoint.read_state(checkpoint.latest('out'))['step'] == int(step)
    requeue = which == signal.SIGUSR1
    assert (cwd / 'requeued').exists() == requeue
    assert not requeue or (cwd / 'requeued').read_text() == 'requeue 4711\n'


def test_a_second_ctrl_c_leaves_at_once(cwd):
    """Here in the middle of a step that takes for ever."""
    (cwd / 'slow.py').write_text(
        f'import sys, time\nsys.path.insert(0, {str(ROOT)!r})\nimport train\n'
        'def lr_multiplier(step):\n'
        '    if step == 30:\n        print("now", flush=True)\n        time.sleep(1000)\n'
        '    return 0.1\n'
        'train.lr_multiplier = lr_multiplier\ntrain.main(train.load_settings())\n'
    )
    with started(LONG, script='slow.py') as process:
        wait_for('now', process)
        process.send_signal(signal.SIGINT)
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.wait(timeout=5)
        assert ending() == 'rank 0, step 30: a second Ctrl-C: nothing more is saved'
        assert process.returncode == 130 and 'Traceback' not in process.stdout.read()


def test_a_signal_before_the_first_step_ends_at_once(cwd):
    with started(f'{LONG} --eval_iters=1000000 --block_size=2 --batch_size=1') as process:
        wait_for('tokens a step', process)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=5)
    assert process.returncode == 75 and 'SIGTERM before the first step' in output
    assert ending() == 'rank 0, step 0: SIGTERM before the first step was made'
    assert 'Traceback' not in output and not checkpoint.list_checkpoints('out')


# --- processes that die and hang ---------------------------------------------------


def test_torchrun_brings_a_run_back_of_which_a_process_was_killed(cwd):
    """The command still says 'scratch'."""
    flags = f'{TINY} {MODERN} --max_iters=120 --lr_decay_iters=120 --eval_interval=120 --save_interval=40'
    with started(f'{flags} --out_dir=out', *TWO, '--max-restarts=3') as process:
        wait_for('saved out/step-00000040', process)
        rank(1, process).kill()
        assert 'out/step-00000' in wait_for('going on from', process)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    ends = [line for line in Path('out/log.txt').read_text().splitlines() if line.startswith('ended ')]
    assert len(ends) == 2 and 'rank 0, step' in ends[0] and 'another process is gone' in ends[0]
    assert ending() == 'done'
    straight = train_here(flags.removeprefix(TINY), 'straight')
    assert losses('out') == pytest.approx(straight, abs=1e-4) and list(losses('out')) == list(range(120))
    ours, theirs = (
        checkpoint.load_model(checkpoint.latest('out')),
        checkpoint.load_model('straight/step-00000120'),
    )
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, theirs.state_dict()[name], atol=1e-3, rtol=1e-2)


def test_processes_find_those_of_their_own_start_in_a_store_that_has_seen_others():
    """Whoever comes first; some die before all have come."""
    server = torch.distributed.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    number = random.Random(0)

    def start(ranks):
        """What each of some ranks out of three finds of the others in the store, when all have written there."""

        def process(rank):
            time.sleep(number.random() / 5)
            timeout = datetime.timedelta(seconds=20 if len(ranks) == 3 else 0.5)
            client = torch.distributed.TCPStore('127.0.0.1', server.port, is_master=False, timeout=timeout)
            store = runtime.store_of_this_start(client, rank, 3, timeout)
            already = store.check(['2'])
            store.set(str(rank), token)
            return already and store.get('2'), [store.get(str(other)) for other in range(3)]

        token = number.randbytes(4)
        with ThreadPoolExecutor() as pool:
            waiting = [pool.submit(process, rank) for rank in ranks]
        return token, waiting

    for ranks in ({0, 1, 2}, {0, 1, 2}, {1, 2}, {0, 1, 2}, {0, 2}, {0, 1}, {2}, {0, 1, 2}):
        token, waiting = start(ranks)
        for each in waiting:
            if len(ranks) == 3:
                assert each.result()[0] in (False, token) and each.result()[1] == [token] * 3
            else:
                with pytest.raises(RuntimeError, match='timed? ?out'):
                    each.result()


@pytest.mark.parametrize('who', ['TORCHELASTIC', 'SLURM'])
def test_a_restarted_run_takes_its_own_checkpoint_not_an_earlier_runs(cwd, monkeypatch, capsys, who):
    train_here('--max_iters=10')
    (cwd / 'out/run').write_text('the next')  # which was killed before it saved
    monkeypatch.setenv(f'{who}_RESTART_COUNT', '1')
    train_here('--max_iters=5 --eval_interval=5')
    assert 'going on from' not in capsys.readouterr().out
    train_here('--max_iters=6 --eval_interval=5')
    assert 'going on from out/step-00000005' in capsys.readouterr().out


def test_a_process_that_waits_in_vain_says_where_and_ends(cwd):
    with started(f'{LONG} --hang_timeout=4 --save_interval=20', *TWO) as process:
        wait_for('step 60/', process)
        stopped, began = rank(1, process), time.time()
        stopped.suspend()
        said = wait_for('no answer', process)
        assert time.time() - began < 8 and re.match(r'rank 0, step \d+: ', said), said
        assert ending() == said.strip()
        stopped.kill()
    assert checkpoint.read_state(checkpoint.latest('out'))['step'] >= 60


# --- bad steps -----------------------------------------------------------------------


@contextlib.contextmanager
def not_a_number(monkeypatch, numbers):
    """Within it the losses of some micro-batches of training are NaN."""
    real, forward, spoilt = Batches.__getitem__, Transformer.forward, []

    def make_batch(self, number):
        batch = real(self, number)
        if number in numbers and self.training:
            spoilt.append(batch['inputs'])
        return batch

    def spoil(self, **batch):
        loss = forward(self, **batch)
        mine = any(torch.equal(batch['inputs'], inputs) for inputs in spoilt)
        return loss * torch.nan if self.training and mine else loss

    with monkeypatch.context() as patched:
        patched.setattr(Batches, '__getitem__', make_batch)
        patched.setattr(Transformer, 'forward', spoil)
        yield


@pytest.mark.parametrize('flags', ['', MODERN, '--dtype=float16'], ids=['adamw', 'muon', 'float16'])
def test_a_bad_step_leaves_weights_and_optimizers_untouched(cwd, monkeypatch, flags):
    """One of two micro-batches of the last step is NaN: the checkpoint after it is that of before it, the scaler's apart."""
    train_here(f'{flags} --max_iters=12 --eval_interval=12', 'undisturbed')
    train_here(f'{flags} --max_iters=11 --eval_interval=11', 'before')
    with not_a_number(monkeypatch, {23}):
        after = train_here(f'{flags} --max_iters=12 --eval_interval=12 --save_interval=11', 'after')
    assert after[11] is None and after[10] is not None
    assert weights('after') == weights('before') and weights('after') != weights('undisturbed')
    ours, theirs = (
        torch.load(checkpoint.latest(out_dir) / 'optimizer.pt', weights_only=True)['optimizers']
        for out_dir in ('before', 'after')
    )
    for one, other in zip(ours, theirs, strict=True):
        for i, state in one['state'].items():
            assert all(torch.equal(value, other['state'][i][name]) for name, value in state.items())


def test_a_bad_step_of_one_process_is_left_out_by_both(cwd):
    (cwd / 'spoilt.py').write_text(
        f'import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]\n'
        'import pytest, train\nfrom test_faults import not_a_number\n'
        'with not_a_number(pytest.MonkeyPatch(), {21}):\n    train.main(train.load_settings())\n'
    )
    with started(f'{TINY} --out_dir=out', *TWO, script='spoilt.py') as process:
        output = process.stdout.read()
    assert process.returncode == 0 and '1 steps left out' in output
    straight = train_here('', 'straight')
    assert losses('out')[10] is None and list(losses('out')) == list(range(20))
    assert losses('out')[19] == pytest.approx(straight[19], abs=0.1)
    # not those of a run that had no bad step, and before it the same
    assert losses('out')[9] == pytest.approx(straight[9], abs=1e-4) and losses('out')[12] != straight[12]


def test_after_many_bad_steps_the_run_goes_back_and_takes_other_rows(cwd, monkeypatch, capsys):
    """Those of steps 12 to 14 are spoilt: from the checkpoint of step 10 it goes on with those of step 15."""
    flags = '--save_interval=5 --max_bad_steps=3'
    with not_a_number(monkeypatch, range(24, 30)):
        straight = train_here(f'{flags} --max_iters=22', 'straight')
        made = train_here(f'{flags} --max_iters=20')
    assert 'back to out/step-00000010' in capsys.readouterr().out
    assert list(made) == list(range(20)) and None not in made.values()
    assert checkpoint.read_state(checkpoint.latest('out'))['rows_skipped'] == 5
    # a run that goes on from there has them too: its last two steps are those of a run that was not stopped
    again = train_here(f'{flags} --max_iters=22 --init_from=resume')
    assert again == straight and len(again) == 22 and again != train_here('--max_iters=22', 'healthy')


def test_when_every_step_is_bad_the_run_stops_with_its_last_good_checkpoint(cwd, monkeypatch, capsys):
    with (
        not_a_number(monkeypatch, range(24, 10**6)),
        ends_in_one_line(capsys, 'after going back', 'step-00000010'),
    ):
        train_here('--save_interval=5 --max_bad_steps=3 --max_iters=60')
    saved = checkpoint.latest('out')
    assert ending().startswith('error: step 12: no finite loss and gradient for 3 steps in a row')
    assert saved.name == 'step-00000010' and not checkpoint.find_damage(saved)
    assert all(p.isfinite().all() for p in checkpoint.load_model(saved).parameters())


def test_with_no_checkpoint_to_go_back_to_the_run_stops(cwd, monkeypatch, capsys):
    with (
        not_a_number(monkeypatch, range(10**6)),
        ends_in_one_line(capsys, 'step 2', 'no checkpoint', '3 steps'),
    ):
        train_here('--max_bad_steps=3')
    assert not checkpoint.list_checkpoints('out')


def test_muon_without_a_bad_step_is_as_before():
    """found_inf of 0 changes no bit of a step."""
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.ones(8, 8))] for _ in range(2))
    made = [Muon([dict(params=p, parts=[8])], lr=0.1, weight_decay=0.1) for p in (ours, theirs)]
    for _ in range(3):
        ours[0].grad = torch.randn(8, 8)
        theirs[0].grad = ours[0].grad.clone()
        made[0].found_inf = torch.zeros(())
        for each in made:
            each.step()
    assert torch.equal(ours[0], theirs[0]) and not torch.equal(ours[0], torch.ones(8, 8))


def test_a_spike_stands_out_and_noise_does_not():
    health = faults.Health('cpu')
    noise = np.random.default_rng(0).normal(3, 0.1, 1000)
    assert max(health.z_score(loss) for loss in noise) < faults.SPIKE
    assert health.z_score(4.5) > 10 and health.z_score(float('nan')) == 0


# --- how it ended ---------------------------------------------------------------------


def test_log_txt_holds_what_was_said_of_a_run_and_of_the_one_that_went_on(cwd, capsys):
    train_here('--max_iters=10')
    train_here(
        '--init_from=resume --eval_interval=4 --patience=1 --learning_rate=0 --min_lr=0 --always_save_checkpoint=False'
    )
    said, logged = capsys.readouterr().out.splitlines(), Path('out/log.txt').read_text().splitlines()
    assert [line for line in logged if not line.startswith(('started ', 'ended '))] == said
    assert [line.split()[0] for line in logged if line not in said] == ['started', 'ended'] * 2
    assert ending().startswith('stopped early at step 16: no better val loss since step')


def test_a_mistake_in_the_code_shows_its_traceback_and_leaves_python_as_it_was(cwd, monkeypatch, capsys):
    forward, calls = Transformer.forward, []

    def planted(self, *args, **batch):
        calls.append(1)
        return forward(self, *args, **batch) if len(calls) < 34 else batch['no such key']

    with monkeypatch.context() as patched, pytest.raises(KeyError):
        patched.setattr(Transformer, 'forward', planted)
        train_here('')
    assert ending() == "KeyError: 'no such key'"
    log = Path('out/log.txt').read_text()
    assert 'Traceback' in log and 'in planted' in log and log.count('ended ') == 1
    assert gc.isenabled() and not gc.get_freeze_count()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train_here('--init_from=resume')
    assert ending() == 'done'
    capsys.readouterr()
    with pytest.raises(SystemExit):  # before there is an out_dir
        train_here('--arch=rwkv', 'other')
    assert not os.path.exists('other')


# --- going on ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    'flags, words',
    [
        ('--seed=7', ['seed = 7', '1337']),
        ('--n_layer=3', ['n_layer = 3', 'has 2']),
        ('--arch=llama', ["'llama'", "'gpt2'"]),
        ('--block_size=16', ['block_size = 16', 'has 32']),
        ('--optimizer=muon', ["'muon'", "'adamw'"]),
        ('--batch_size=8', ['gradient_accumulation_steps = 16', 'has 8']),
        ('--dataset=other', ['data', 'SHA-256']),
    ],
)
def test_what_makes_another_run_of_it_is_refused_with_the_difference(cwd, trained_ten, capsys, flags, words):
    shutil.copytree(trained_ten, 'out')
    shutil.copytree('data/tiny', 'data/other')
    meta = json.loads((cwd / 'data/other/meta.json').read_text())
    meta['sha256']['train.bin'] = 'f' * 64
    (cwd / 'data/other/meta.json').write_text(json.dumps(meta))
    before = weights()
    with ends_in_one_line(capsys, *words, 'cannot change on resuming'):
        train_here(f'--init_from=resume {flags}')
    assert weights() == before


@pytest.fixture(scope='module')
def trained_ten(workspace, tmp_path_factory):
    """The out_dir of a run of ten steps of twenty."""
    directory = tmp_path_factory.mktemp('ten')
    (directory / 'data').symlink_to(workspace / 'data')
    run(f'train.py {TINY} --max_iters=10 --out_dir=out', directory)
    return directory / 'out'


def test_what_may_change_is_said(cwd, trained_ten, capsys):
    shutil.copytree(trained_ten, 'out')
    train_here('--init_from=resume --learning_rate=0.005')
    said = capsys.readouterr().out.splitlines()[0]
    assert 'learning_rate 0.01 -> 0.005' in said and 'max_iters 10 -> 20' in said and 'seed' not in said


def test_a_run_goes_on_with_the_same_rows_however_a_step_is_divided(cwd, trained_ten):
    shutil.copytree(trained_ten, 'out')
    straight = train_here('', 'straight')
    divided = train_here('--init_from=resume --batch_size=1 --gradient_accumulation_steps=8')
    assert divided == pytest.approx(straight, abs=2e-5)
    shutil.rmtree('out')
    shutil.copytree(trained_ten, 'out')
    with started(f'{TINY} --out_dir=out --init_from=resume', *TWO) as process:
        output = process.stdout.read()
    assert process.returncode == 0, output
    assert losses('out') == pytest.approx(straight, abs=2e-5)


def test_auto_goes_on_where_there_is_a_checkpoint_and_begins_where_there_is_none(cwd):
    straight = train_here('', 'straight')
    train_here('--init_from=auto --max_iters=10')
    assert train_here('--init_from=auto') == straight and weights() == weights('straight')


def test_a_damaged_checkpoint_is_passed_over_by_a_run_that_goes_on(cwd, capsys):
    train_here('--keep=2')
    undisturbed = weights()
    path = checkpoint.latest('out') / 'optimizer.pt'
    path.write_bytes(path.read_bytes()[:-1] + b'!')
    capsys.readouterr()
    train_here('--keep=2 --init_from=resume')
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith('passed over out/step-00000020') and 'optimizer.pt' in said[0]
    assert 'going on from out/step-00000010' in said[1] and said[0] in Path('out/log.txt').read_text()
    assert weights() == undisturbed
    for path in checkpoint.list_checkpoints('out'):
        (path / 'config.json').unlink()
    for start in ('resume', 'auto'):
        with ends_in_one_line(capsys, 'no checkpoint in out is intact', '00010', '00020'):
            train_here(f'--keep=2 --init_from={start}')


# --- data -------------------------------------------------------------------------------


def spoil(directory, split, place, value):
    tokens = np.fromfile(directory / f'{split}.bin', '<u2')
    tokens[place] = value
    tokens.tofile(directory / f'{split}.bin')


def test_an_id_outside_the_vocabulary_ends_in_one_line(cwd, workspace, capsys):
    shutil.copytree(workspace / 'data/tiny', 'data/bad')
    spoil(cwd / 'data/bad', 'train', slice(None, None, 50), 600)
    with ends_in_one_line(capsys, 'data/bad', 'id 600', '512'):
        train_here('--dataset=bad')


def test_verify_data_finds_a_single_wrong_id(cwd, workspace, capsys):
    shutil.copytree(workspace / 'data/tiny', 'data/bad')
    train_here('--dataset=bad --verify_data=True --max_iters=1')
    spoil(cwd / 'data/bad', 'val', 7, 0)
    with ends_in_one_line(capsys, 'val.bin', 'meta.json', 'prepare.py bad'):
        train_here('--dataset=bad --verify_data=True')
