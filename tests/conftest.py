"""What several tests share: running the scripts as a user types them, and a small data set."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent
os.environ['OMP_NUM_THREADS'] = '1'  # threads that share work this small wait for each other most of the time
sys.path.insert(0, str(ROOT))
settings.register_profile('any machine', deadline=None)  # a busy one takes its time
settings.load_profile('any machine')


def run(command, cwd, code=0, timeout=300, **env):
    """Run 'train.py --a=b ...' (a string or a list) in a directory, expecting an exit code -> (stdout, stderr)."""
    words = command.split() if isinstance(command, str) else list(command)
    done = subprocess.run(
        [sys.executable, str(ROOT / words[0]), *words[1:]],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == code, f'{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}'
    return done.stdout, done.stderr


def one_line(command, cwd, *words, **env):
    """Run a command that must end with exit code 2 and one line on stderr that holds the words -> that line."""
    _, stderr = run(command, cwd, code=2, **env)
    lines = [line for line in stderr.splitlines() if not line.startswith('using ')]
    assert len(lines) == 1 and lines[0].startswith('error: '), stderr
    for word in words:
        assert word in lines[0], lines[0]
    return lines[0]


@contextlib.contextmanager
def settings_of(script, flags):
    """Within it, an imported script has the settings of a command line, handed out as a dict; later its own again."""
    import objectives
    from configurator import configure

    load = getattr(script, 'load_settings', lambda argv: configure(vars(script), argv))
    own = {module: dict(vars(module)) for module in (script, objectives)}
    try:
        yield load(flags.split() if isinstance(flags, str) else flags)
    finally:
        for module, before in own.items():
            vars(module).update(before)


@contextlib.contextmanager
def ends_in_one_line(capsys, *words):
    """What `one_line` demands of a command, of code that runs in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        yield
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith('using ')]
    assert stopped.value.code == 2 and len(lines) == 1 and lines[0].startswith('error: '), lines
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture(scope='session')
def library():
    """Some real text: the directory of the standard library's json package, five source files."""
    import json

    return Path(json.__file__).parent


@pytest.fixture(scope='session')
def workspace(tmp_path_factory, library):
    """A directory with data/tiny (bpe of 512 tokens, about 15,000 of them), for runs that only read it."""
    where = tmp_path_factory.mktemp('workspace')
    files = f'--files={library}/*.py'
    run(['prepare.py', 'tiny', files, '--tokenizer=bpe', '--vocab_size=512', '--val_fraction=0.2'], where)
    return where


# a model that trains in a second, as flags of train.py
TINY = (
    '--dataset=tiny --n_layer=2 --n_head=2 --n_embd=32 --block_size=32 --batch_size=4 --gradient_accumulation_steps=2 '
    '--device=cpu --dtype=float32 --compile=False --eval_interval=10 --eval_iters=2 --max_iters=20 --lr_decay_iters=20 '
    '--warmup_iters=5 --learning_rate=1e-2'
)


@pytest.fixture(scope='session')
def trained(tmp_path_factory, workspace, library):
    """A directory with data/tiny, data/bytes, a GPT in out-gpt and a BERT in out-bert; for runs that only read it."""
    where = tmp_path_factory.mktemp('trained')
    (where / 'data').mkdir()
    (where / 'data' / 'tiny').symlink_to(workspace / 'data' / 'tiny')
    run(['prepare.py', 'bytes', f'--files={library}/*.py', '--tokenizer=byte', '--val_fraction=0.2'], where)
    longer = (
        '--max_iters=300 --lr_decay_iters=300 --eval_interval=150'  # until its guesses depend on the context
    )
    run(f'train.py {TINY} {longer} --out_dir=out-gpt --bias=True', where)
    run(f'train.py {TINY} --out_dir=out-bert --arch=bert --objective=masked --bias=True', where)
    return where
