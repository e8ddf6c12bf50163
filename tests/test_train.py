"""train.py: the step against a plain loop, resuming, processes, and every way a run can end."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT, TINY, ends_in_one_line, one_line, run, settings_of

import objectives
import train
from infra import checkpoint
from loader import Windows, open_split
from model import Config, Transformer
from objectives import OBJECTIVES, Objective


@pytest.fixture(scope='module')
def back(trained, tmp_path_factory):
    """data/tiny with every split reversed: another data set with the same vocabulary."""
    where = shutil.copytree(trained / 'data' / 'tiny', tmp_path_factory.mktemp('back') / 'back')
    for split in ('train.bin', 'val.bin'):
        np.fromfile(where / split, '<u2')[::-1].tofile(where / split)
    return where


@pytest.fixture
def cwd(trained, back, tmp_path, monkeypatch):
    """A directory with the data sets and nothing else, made the current one."""
    (tmp_path / 'data').mkdir()
    for path in (trained / 'data' / 'tiny', trained / 'data' / 'bytes', back):
        (tmp_path / 'data' / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train_here(flags, out_dir='out'):
    """Run train.py in this process with flags on top of TINY -> the records of metrics.jsonl."""
    with settings_of(train, f'{TINY} --out_dir={out_dir} {flags}') as settings:
        train.main(settings)
    return metrics(out_dir) if os.path.exists(out_dir) else []


def metrics(out_dir):
    with open(os.path.join(out_dir, 'metrics.jsonl')) as f:
        return [json.loads(line) for line in f]


def series(records, name='loss'):
    return {r['step']: r[name] for r in records if name in r}


def rows_of(name, split, numbers, seed):
    return Windows(open_split(name, split, 32), {}, 32, 33).read(numbers, seed)['tokens']


def weights(out_dir):
    return (checkpoint.latest(out_dir) / 'model.safetensors').read_bytes()


# --- one step ---------------------------------------------------------------------


def test_a_run_is_that_of_a_plain_loop_with_adamw_written_out(cwd):
    """Losses, norms and weights of 12 steps: accumulation, warm-up, clipping and decay on matrices only."""
    torch.manual_seed(3)
    model = Transformer(Config(vocab_size=512, block_size=32, n_layer=2, n_head=2, n_embd=32))
    (cwd / 'start').mkdir()
    model.save(cwd / 'start')
    flags = '--init_from=start --max_iters=12 --grad_clip=0.5 --weight_decay=0.3 --beta1=0.8 --beta2=0.9'
    records = train_here(flags)

    m, v = {}, {}
    for step in range(12):
        rows = torch.from_numpy(rows_of('tiny', 'train', range(8 * step, 8 * step + 8), 1337))
        loss = torch.nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        assert series(records)[step] == pytest.approx(loss.item(), abs=1e-5)
        assert series(records, 'norm')[step] == pytest.approx(norm.item(), rel=1e-4)
        lr = nanogpt_learning_rate(step, 1e-2, 5, 20, 6e-5)
        with torch.no_grad():
            for name, p in model.named_parameters():
                g = p.grad * min(1, 0.5 / norm)
                m[name] = 0.8 * m.get(name, 0) + 0.2 * g
                v[name] = 0.9 * v.get(name, 0) + 0.1 * g**2
                if p.dim() > 1:
                    p *= 1 - lr * 0.3
                unbiased = m[name] / (1 - 0.8 ** (step + 1)), v[name] / (1 - 0.9 ** (step + 1))
                p -= lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    trained = checkpoint.load_model(checkpoint.latest('out'))
    for name, p in model.named_parameters():
        torch.testing.assert_close(dict(trained.named_parameters())[name], p, atol=2e-4, rtol=1e-3)


def assert_same_losses(a, b):
    for name in ('loss', 'norm', 'train_loss', 'val_loss'):
        assert series(a, name) == pytest.approx(series(b, name), abs=1e-5, rel=1e-5), name


UNEVEN = '--objective=masked --arch=bert --mask_ratio=0.97'  # all ordinary tokens: rows differ in how many they have
MIXTURE = '--dataset=tiny:0.7,back:0.3'
MODERN = '--arch=modern --optimizer=muon --bigrams=300 --n_kv_head=1'


@pytest.mark.parametrize(
    'flags', ['', f'{UNEVEN} {MIXTURE}', MODERN], ids=['causal', 'masked mixture', 'modern']
)
def test_the_same_global_batch_gives_the_same_losses_however_it_is_cut(cwd, flags):
    whole = train_here(f'{flags} --batch_size=8 --gradient_accumulation_steps=1 --max_iters=10', 'whole')
    cut = train_here(f'{flags} --batch_size=2 --gradient_accumulation_steps=4 --max_iters=10', 'cut')
    for name in ('loss', 'norm'):
        assert series(cut, name) == pytest.approx(series(whole, name), abs=2e-5, rel=2e-5), name


@pytest.mark.parametrize(
    'flags', ['', f'{UNEVEN} {MIXTURE}', MODERN], ids=['causal', 'masked mixture', 'modern']
)
def test_two_processes_have_the_losses_of_one(cwd, flags):
    """Three evaluation batches for two processes, so that they have different shares."""
    words = f'{TINY} {flags} --eval_iters=3 --log_interval=1'
    launch = '-m torch.distributed.run --standalone --nproc_per_node=2'.split()
    command = [sys.executable, *launch, str(ROOT / 'train.py'), *words.split(), '--out_dir=two']
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one = train_here(f'{flags} --eval_iters=3', 'one')
    assert_same_losses(metrics('two'), one)
    assert len(series(one)) == 20 and done.stdout.count('step 19/20') == 1  # one of the two speaks


@pytest.mark.parametrize('training', [True, False], ids=['a step', 'an evaluation'])
def test_where_nothing_is_predicted_the_run_ends_in_one_line(cwd, capsys, monkeypatch, training):
    def nothing(rows, ctx):
        batch = objectives.causal(rows, ctx)
        batch['targets'][:] = -100 if ctx.training == training else batch['targets']
        return batch

    monkeypatch.setitem(OBJECTIVES, 'nothing', Objective(nothing, dict(causal=True)))
    with ends_in_one_line(capsys, 'to predict', 'look at the data'):
        train_here('--objective=nothing')


# --- the learning rate -------------------------------------------------------------


def nanogpt_learning_rate(it, learning_rate, warmup_iters, lr_decay_iters, min_lr):
    """nanoGPT's get_lr."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    decay_ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    coeff = 0.5 * (1.0 + math.cos(math.pi * decay_ratio))
    return min_lr + coeff * (learning_rate - min_lr)


def rates(flags, steps=130):
    words = '--learning_rate=6e-4 --min_lr=6e-5 --lr_decay_iters=100 --max_iters=120 '
    with settings_of(train, words + flags):
        return [6e-4 * train.lr_multiplier(step) for step in range(steps)]


def test_cosine_is_nanogpts():
    expected = [nanogpt_learning_rate(step, 6e-4, 10, 100, 6e-5) for step in range(130)]
    assert rates('--warmup_iters=10') == pytest.approx(expected)
    expected = [nanogpt_learning_rate(step, 6e-4, 0, 100, 6e-5) for step in range(130)]
    assert rates('--warmup_iters=0') == pytest.approx(expected)


@pytest.mark.parametrize(
    'schedule, corners',
    [
        ('linear', {10: 6e-4, 100: 6e-5}),
        ('constant', {10: 6e-4}),
        ('wsd', {10: 6e-4, 80: 6e-4, 100: 6e-5}),
    ],
)
def test_other_schedules_run_straight_between_their_corners(schedule, corners):
    x, y = [-1, *corners], [0, *corners.values()]  # the warm-up begins one step before the first, at 0
    warm = {step: 6e-4 * (step + 1) / 11 for step in range(10)}
    expected = [warm.get(step, np.interp(step, x, y)) for step in range(130)]
    assert rates(f'--warmup_iters=10 --schedule={schedule}') == pytest.approx(expected)


def test_the_whole_of_wsd_may_be_decay_and_none():
    assert rates('--warmup_iters=0 --schedule=wsd --wsd_decay=1') == pytest.approx(
        rates('--warmup_iters=0 --schedule=linear')
    )
    assert rates('--warmup_iters=0 --schedule=wsd --wsd_decay=0', 100) == pytest.approx([6e-4] * 100)


def test_without_decay_the_rate_is_always_the_same():
    assert set(rates('--decay_lr=False --warmup_iters=10')) == {6e-4}


# --- a run leaves, and goes on after ------------------------------------------------


def test_a_run_leaves_metrics_a_picture_and_one_checkpoint(cwd):
    records = train_here('')
    assert list(series(records)) == list(range(20)) and list(series(records, 'val_loss')) == [0, 10, 20]
    assert series(records)[19] < series(records)[0] - 0.5
    assert (cwd / 'out/loss.png').read_bytes().startswith(b'\x89PNG') and os.path.getsize(
        'out/loss.png'
    ) > 5000
    assert sorted(os.listdir('out')) == ['log.txt', 'loss.png', 'metrics.jsonl', 'run', 'step-00000020']
    state = checkpoint.read_state('out/step-00000020')
    assert (state['step'], state['val_loss']) == (20, series(records, 'val_loss')[20])


def test_bert_learns_under_the_masked_objective(cwd):
    """The loss at hidden tokens falls below that of the best guess without context, the tokens' frequencies."""
    flags = '--objective=masked --arch=bert_prenorm --max_iters=120 --lr_decay_iters=120 --batch_size=16'
    records = train_here(f'{flags} --eval_interval=120 --eval_iters=20')
    counts = np.bincount(open_split('tiny', 'train', 32))
    frequencies = counts[counts > 0] / counts.sum()
    assert series(records, 'train_loss')[120] < -(frequencies * np.log(frequencies)).sum()


LONG = f'train.py {TINY} {MODERN} --dropout=0.1 --eval_interval=50 --max_iters=200 --lr_decay_iters=200 --out_dir='


@pytest.fixture(scope='module')
def undisturbed(trained):
    """(weights, metrics) of a run of 200 steps that nothing stopped."""
    run(f'{LONG}out-long', trained)
    return weights(trained / 'out-long'), metrics(trained / 'out-long')


def stop_at(step, cwd, how):
    """Start the long run and send it a signal at a step -> (exit code, its whole output)."""
    env = os.environ | {'PYTHONUNBUFFERED': '1'}
    command = [sys.executable, str(ROOT / 'train.py'), *LONG.split()[1:-1], '--out_dir=out']
    output = ''
    with subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            output += line
            if line.startswith(f'step {step}/'):
                process.send_signal(how)
    return process.returncode, output


def test_killed_and_resumed_a_run_ends_with_the_weights_of_an_undisturbed_one(cwd, undisturbed):
    code, _ = stop_at(70, cwd, signal.SIGKILL)
    assert code == -signal.SIGKILL and checkpoint.read_state(checkpoint.latest('out'))['step'] < 200
    with open('out/metrics.jsonl', 'a') as f:
        f.write('{"step": 75, "lo')  # a crash may end in the middle of a line
    run(f'{LONG}out --init_from=resume', cwd)
    assert weights('out') == undisturbed[0]
    for name in ('loss', 'norm', 'lr', 'val_loss'):
        assert [(r['step'], r[name]) for r in metrics('out') if name in r] == [
            (r['step'], r[name]) for r in undisturbed[1] if name in r
        ]


def test_ctrl_c_saves_and_says_how_to_go_on(cwd, undisturbed):
    code, output = stop_at(70, cwd, signal.SIGINT)
    assert code == 0 and '--init_from=resume' in output.splitlines()[-1]
    *_, last = (cwd / 'out/log.txt').read_text().splitlines()
    assert last.startswith('ended ') and 'by SIGINT; go on with the same command' in last
    stopped = checkpoint.read_state(checkpoint.latest('out'))['step']
    assert 70 < stopped < 200 and f'stopped at step {stopped}' in output
    assert checkpoint.read_state(checkpoint.best('out'))['step'] in (50, 100, 150)  # one that was evaluated
    run(f'{LONG}out --init_from=resume', cwd)
    assert weights('out') == undisturbed[0]
    assert list(series(metrics('out'))) == list(range(200))


@pytest.mark.parametrize('flags', ['', MODERN], ids=['gpt2', 'modern'])
def test_resuming_goes_on_past_the_old_end(cwd, flags):
    flags += ' --decay_lr=False'
    straight = train_here(f'{flags} --max_iters=20', 'straight')
    train_here(f'{flags} --max_iters=10')
    assert series(train_here(f'{flags} --max_iters=20 --init_from=resume')) == series(straight)
    assert weights('out') == weights('straight')


def test_resuming_what_has_ended_changes_nothing(cwd):
    train_here('')
    before = weights('out')
    assert list(series(train_here('--init_from=resume'))) == list(range(20))
    assert weights('out') == before and checkpoint.read_state(checkpoint.latest('out'))['step'] == 20


def test_patience_stops_a_run_that_does_not_improve(cwd, capsys):
    records = train_here('--learning_rate=0 --min_lr=0 --eval_interval=4 --patience=3')
    assert list(series(records, 'val_loss')) == [0, 4, 8, 12] and list(series(records)) == list(range(12))
    assert 'step 0' in capsys.readouterr().out.splitlines()[-1]


def test_patience_lets_a_run_go_on_that_improves(cwd):
    assert list(series(train_here('--eval_interval=4 --patience=1'), 'val_loss')) == [0, 4, 8, 12, 16, 20]


def test_only_improvements_are_kept_if_so_asked(cwd):
    """The rate rises from the 9th step on until the run diverges: the last evaluations are no improvements."""
    flags = '--schedule=linear --warmup_iters=9 --min_lr=8'
    losses = series(train_here(f'{flags} --eval_interval=4 --always_save_checkpoint=False'), 'val_loss')
    best = min(losses, key=losses.get)
    assert 0 < best < 20
    assert [path.name for path in checkpoint.list_checkpoints('out')] == [f'step-{best:08d}']
    assert checkpoint.read_state(checkpoint.latest('out'))['val_loss'] == losses[best]


def test_eval_only_evaluates_and_leaves_nothing(cwd, capsys):
    train_here('--eval_only=True')
    assert 'step 0: train loss' in capsys.readouterr().out and os.listdir() == ['data']


def test_eval_only_of_a_run_gives_its_loss_and_changes_nothing(cwd, capsys):
    loss = series(train_here(''), 'val_loss')[20]
    before = {name: os.stat(os.path.join('out', name)).st_mtime_ns for name in os.listdir('out')}
    capsys.readouterr()
    train_here('--init_from=resume --eval_only=True')
    assert f'val loss {loss:.4f}' in capsys.readouterr().out
    assert {name: os.stat(os.path.join('out', name)).st_mtime_ns for name in os.listdir('out')} == before


# --- mixtures ------------------------------------------------------------------------


@torch.no_grad()
def mean_loss(model, rows):
    rows = torch.from_numpy(rows)
    return torch.nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).item()


def test_a_mixture_is_trained_and_evaluated_in_its_proportions(cwd, capsys):
    """Of 20 rows 14 are tiny's first and 6 back's first, whatever their order: for evaluation and for 5 steps of 4."""
    torch.manual_seed(3)
    model = Transformer(Config(vocab_size=512, block_size=32, n_layer=2, n_head=2, n_embd=32))
    (cwd / 'start').mkdir()
    model.save(cwd / 'start')
    flags = '--batch_size=4 --gradient_accumulation_steps=1 --eval_iters=5 --max_iters=5'
    records = train_here(f'--init_from=start --learning_rate=0 --min_lr=0 {MIXTURE} {flags}')

    def expected(split, seed):
        tiny = rows_of('tiny', split, range(14), seed)
        back = rows_of('back', split, range(6), seed)
        return pytest.approx(mean_loss(model, np.concatenate([tiny, back])), abs=1e-5)

    assert np.mean(list(series(records).values())) == expected('train', 1337)
    assert series(records, 'train_loss')[0] == expected('train', 0)
    assert series(records, 'val_loss')[0] == expected('val', 0)
    seen = 5 * 4 * 32 / len(open_split('tiny', 'train', 32))
    line = f'{0.7 * seen:.2f} epochs of data/tiny, {0.3 * seen:.2f} epochs of data/back'
    assert line in capsys.readouterr().out
    saved = checkpoint.latest('out')
    assert checkpoint.read_state(saved)['mixture'] == {'tiny': '7/10', 'back': '3/10'}
    assert (saved / 'tokenizer.json').read_bytes() == (cwd / 'data/tiny/tokenizer.json').read_bytes()


def test_a_resumed_run_on_a_named_mixture_is_the_undisturbed_one_on_the_list(cwd):
    (cwd / 'data' / 'mix').mkdir()
    (cwd / 'data/mix/meta.json').write_text('{"mixture": {"back": "0.3", "tiny": 0.7}}')
    train_here(f'{MIXTURE} --max_iters=8 --decay_lr=False', 'straight')
    train_here('--dataset=mix --max_iters=3 --decay_lr=False')
    train_here('--dataset=mix --max_iters=8 --decay_lr=False --init_from=resume')
    assert weights('out') == weights('straight')


# --- starting points ----------------------------------------------------------------


@pytest.mark.parametrize('start', ['the run', 'its checkpoint'])
def test_fine_tuning_starts_from_a_checkpoint_with_a_run_of_its_own(cwd, trained, start):
    best = checkpoint.best(trained / 'out-gpt')
    source = best if start == 'its checkpoint' else trained / 'out-gpt'
    records = train_here(f'--init_from={source} --max_iters=1 --bias=True')
    expected = checkpoint.read_state(best)['val_loss']
    assert series(records, 'val_loss')[0] == pytest.approx(expected, abs=1e-5)
    assert sorted(os.listdir('out')) == ['log.txt', 'loss.png', 'metrics.jsonl', 'run', 'step-00000001']


def test_fine_tuning_starts_from_what_transformers_saved(cwd):
    config = transformers.GPT2Config(vocab_size=512, n_positions=48, n_layer=1, n_head=2, n_embd=32)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(cwd / 'theirs')
    records = train_here('--init_from=theirs --max_iters=10')
    rows = torch.from_numpy(rows_of('tiny', 'val', range(8), 0))
    with torch.no_grad():
        logits = theirs(rows[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    assert series(records, 'val_loss')[0] == pytest.approx(loss.item(), abs=1e-5)
    assert series(records, 'val_loss')[10] < series(records, 'val_loss')[0]
    assert checkpoint.load_model(checkpoint.latest('out')).config.block_size == 32


# --- the machine ---------------------------------------------------------------------


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_trains_on_a_cpu(cwd, dtype):
    of_exact = train_here('--max_iters=10', 'exact')
    of_half = train_here(f'--max_iters=10 --dtype={dtype}', 'half')
    assert series(of_half, 'norm')[9] == pytest.approx(series(of_exact, 'norm')[9], rel=0.2)
    exact, half = series(of_exact, 'val_loss'), series(of_half, 'val_loss')
    assert half[0] == pytest.approx(exact[0], abs=0.01) and half != exact
    assert half[10] < half[0] - 0.2
    saved = checkpoint.load_model(checkpoint.latest('half'))
    assert {p.dtype for p in saved.parameters()} == {torch.float32}


def test_a_resumed_half_precision_run_goes_on_as_if_undisturbed(cwd):
    """The scaler's state is part of the checkpoint."""
    flags = '--dtype=float16 --eval_interval=4 --eval_iters=1'
    train_here(f'{flags} --max_iters=8', 'straight')
    train_here(f'{flags} --max_iters=4')
    train_here(f'{flags} --max_iters=8 --init_from=resume')
    assert weights('out') == weights('straight')


def test_a_compiled_run_has_the_losses_of_an_eager_one(cwd):
    eager = train_here('--n_layer=1 --max_iters=3', 'eager')
    run(f'train.py {TINY} --n_layer=1 --max_iters=3 --compile=True --out_dir=out', cwd)
    for name in ('loss', 'val_loss'):
        assert series(metrics('out'), name) == pytest.approx(series(eager, name), abs=1e-4)


def test_wandb_and_matplotlib_failing_do_not_stop_a_run(cwd):
    """Nobody is logged in, and there is no terminal to ask on; matplotlib's settings are senseless."""
    (cwd / 'home').mkdir()
    env = dict(HOME=str(cwd / 'home'), WANDB_MODE='online', WANDB_API_KEY='', NETRC=str(cwd / 'netrc'))
    env |= dict(MPLBACKEND='nonsense', MPLCONFIGDIR='/proc/nowhere')
    out, _ = run(f'train.py {TINY} --wandb_log=True --max_iters=2 --out_dir=out', cwd, **env)
    said = [line for line in out.splitlines() if 'going on without it' in line]
    assert len(said) == 2 and said[0].startswith('wandb: ') and said[1].startswith('out/loss.png: '), out
    assert list(series(metrics('out'))) == [0, 1]


# --- mistakes --------------------------------------------------------------------------


def contents(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob('*'))


@pytest.mark.parametrize(
    'flags, words',
    [
        ('--batchsize=4', ['batchsize', 'batch_size']),
        ('--batch_size=many', ['batch_size', 'int']),
        ('--compile=1', ['compile', 'bool']),
        ('--dataset=nowhere', ['data/nowhere', 'prepare.py nowhere']),
        ('--dataset=tiny:0.7,bytes:0.3', ['data/tiny', 'data/bytes', 'vocabular']),
        ('--n_embd=33', ['n_embd = 33', 'n_head = 2']),
        ('--block_size=100000', ['block_size = 100000', 'tokens']),
        ('--block_size=4000', ['block_size = 4000', 'val.bin']),
        ('--block_size=0', ['block_size']),
        ('--batch_size=0', ['batch_size']),
        ('--eval_interval=0', ['eval_interval']),
        ('--gradient_accumulation_steps=0', ['gradient_accumulation_steps']),
        ('--dropout=1.5', ['dropout']),
        ('--mask_ratio=1.5', ['mask_ratio']),
        ('--device=tpu9', ['tpu9']),
        ('--device=cuda:99', ['cuda:99', '--device=cpu']),
        ('--dtype=float8', ['float8', 'bfloat16']),
        ('--arch=rwkv', ['rwkv', 'bert']),
        ('--optimizer=sgd', ['sgd', 'muon']),
        ('--n_kv_head=4', ['n_head = 2', 'n_kv_head = 4']),
        ('--bigrams=-1', ['bigrams']),
        ('--objective=guess', ['guess', 'masked']),
        ('--schedule=square', ['square', 'wsd']),
        ('--objective=masked', ['masked', 'arch']),
        ('--arch=bert', ['causal', 'arch']),
        ('--warmup_iters=50', ['warmup_iters = 50', 'lr_decay_iters = 20']),
        ('--init_from=resume', ['no checkpoint', 'out']),
        ('--init_from=gpt5', ['gpt5']),
        ('--init_from=./nowhere', ['nowhere']),
    ],
)
def test_a_mistake_ends_in_one_line_and_leaves_nothing(cwd, capsys, flags, words):
    before = contents(cwd)
    with ends_in_one_line(capsys, *words):
        train_here(flags)
    assert contents(cwd) == before


@pytest.mark.parametrize('start', ['resume', 'out-gpt'])
def test_another_vocabulary_than_the_checkpoints_ends_in_one_line(cwd, trained, capsys, start):
    shutil.copytree(trained / 'out-gpt', cwd / 'out-gpt')
    before = contents(cwd)
    with ends_in_one_line(capsys, 'vocabulary', 'data/bytes'):
        train_here(f'--init_from={start} --dataset=bytes', 'out-gpt' if start == 'resume' else 'out')
    assert contents(cwd) == before


def test_another_vocabulary_than_a_foreign_models_ends_in_one_line(cwd, capsys):
    config = transformers.GPT2Config(vocab_size=300, n_positions=32, n_layer=1, n_head=2, n_embd=32)
    transformers.GPT2LMHeadModel(config).save_pretrained(cwd / 'theirs')
    before = contents(cwd)
    with ends_in_one_line(capsys, '300', '512', 'data/tiny'):
        train_here('--init_from=theirs')
    assert contents(cwd) == before


def test_a_cut_off_train_bin_ends_in_one_line(trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained / 'data', tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    os.truncate('data/tiny/train.bin', os.path.getsize('data/tiny/train.bin') - 1000)
    with ends_in_one_line(capsys, 'train.bin', 'prepare.py tiny'):
        train_here('')
    assert os.listdir() == ['data']


@pytest.mark.parametrize('out_dir', ['file', 'file/out', '/proc/out'])
def test_an_out_dir_that_cannot_be_written_ends_in_one_line(cwd, capsys, out_dir):
    (cwd / 'file').write_text('precious')
    before = contents(cwd)
    with ends_in_one_line(capsys, 'out_dir', out_dir):
        train_here('', out_dir)
    assert contents(cwd) == before and (cwd / 'file').read_text() == 'precious'


def test_a_mistake_in_a_config_file_ends_in_one_line(cwd):
    (cwd / 'mine.py').write_text('n_embd = 32\nlearning_rat = 1\n')
    one_line('train.py mine.py', cwd, 'mine.py', 'learning_rate')


def test_cuda_where_there_is_none_ends_in_one_line(cwd):
    before = contents(cwd)
    one_line('train.py --dataset=tiny --device=cuda', cwd, 'cuda', '--device=cpu', CUDA_VISIBLE_DEVICES='')
    assert contents(cwd) == before
