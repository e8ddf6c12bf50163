"""prepare.py on a Ray cluster of this machine: the same bytes, one line for a mistake, and a worker that dies is replaced."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray  # noqa: F401  (make test-long installs it)

ROOT = Path(__file__).parent.parent.parent
FLAGS = '--files=rows.jsonl --tokenizer=bpe --vocab_size=400 --val_fraction=0.1'


@pytest.fixture
def rows(tmp_path):
    """A directory with 6 MB of rows, which make six units, and a row that is damaged."""
    lines = [json.dumps({'text': f'{n}: ' + f'row {n % 97} of many ' * (n % 60)}) for n in range(12_000)]
    (tmp_path / 'rows.jsonl').write_text('\n'.join([*lines, '{"text": ']))
    return tmp_path


def start(command, cwd):
    command = [sys.executable, str(ROOT / 'prepare.py'), *command.split()]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return [line for line in err.splitlines() if not line.startswith('preparing: ')]


def result(directory):
    return {p.name: p.read_bytes() for p in directory.iterdir() if not p.name.startswith('report')}


def test_ray_makes_the_same_files(rows):
    assert finish(start(f'here {FLAGS}', rows)) == []
    assert finish(start(f'cluster {FLAGS} --ray=local', rows)) == []
    assert result(rows / 'data/cluster') == result(rows / 'data/here')


def test_filter_settings_reach_the_workers(rows):
    finish(start(f'x {FLAGS} --ray=local --clean=code --code_max_line=20 --dedup=none', rows))
    dropped = json.loads((rows / 'data/x/report.json').read_text())['dropped']
    assert dropped['code: a long line']['documents'] > 11_000


def test_a_mistake_is_one_line(rows):
    (line,) = finish(start(f'x {FLAGS} --ray=local --strict', rows), code=2)
    assert line.startswith('error: ') and 'rows.jsonl:12001' in line
    (line,) = finish(start(f'x {FLAGS} --ray=auto', rows), code=2)
    assert line.startswith('error: cannot reach the Ray cluster auto: ')


def test_a_worker_that_is_killed_is_replaced(rows):
    process, killed = start(f'x {FLAGS} --ray=local', rows), False
    while not killed and process.poll() is None:
        for each in psutil.Process(process.pid).children(recursive=True):
            if each.name().startswith('ray::make'):  # Ray names a worker by its task
                each.kill()
                killed = True
        time.sleep(0.01)
    assert killed and finish(process) == []
    assert finish(start(f'here {FLAGS}', rows)) == []
    assert result(rows / 'data/x') == result(rows / 'data/here')
