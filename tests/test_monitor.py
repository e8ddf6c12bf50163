"""monitor.py: log.txt says how a run ended, speed leaves out what is no training, and no record or picture ends a run."""

import os
import time

import pytest

from common import UserError
from infra import monitor
from infra.monitor import Log, Monitor, Speed


def lines(path):
    return (path / 'log.txt').read_text().splitlines()


def test_lines_are_kept_until_there_is_an_out_dir_and_without_one_nothing_is_written(tmp_path, capsys):
    with Log() as log:
        log('one')
        assert os.listdir(tmp_path) == []
        log.open(tmp_path)
        log('two')
        log.end('done')
    assert capsys.readouterr().out == 'one\ntwo\n'
    assert lines(tmp_path)[0].startswith('started ') and lines(tmp_path)[1:3] == ['one', 'two']
    assert len(lines(tmp_path)) == 4 and lines(tmp_path)[3].startswith('ended ')
    assert lines(tmp_path)[3].endswith(': done')
    with pytest.raises(RuntimeError), Log() as log:
        log('kept')
        raise RuntimeError('before there is an out_dir')
    assert len(lines(tmp_path)) == 4


@pytest.mark.parametrize(
    'error, words, explained',
    [
        (UserError('no such data'), 'error: no such data', False),
        (ValueError('a\nb'), 'ValueError: a b', True),
        (SystemExit(2), None, False),  # another process has said why
    ],
)
def test_what_ends_a_run_is_the_last_line_with_the_traceback_of_a_mistake_in_the_code(
    tmp_path, error, words, explained
):
    with pytest.raises(type(error)), Log() as log:
        log.open(tmp_path)
        raise error
    last = lines(tmp_path)[-1]
    assert last.startswith('ended ') and last.endswith(words) if words else last.startswith('started ')
    assert ('Traceback (most recent call last):' in lines(tmp_path)) == explained


def test_the_first_process_that_ends_says_why_and_only_rank_0_writes_lines(tmp_path, monkeypatch, capsys):
    first = Log()
    first.open(tmp_path)
    monkeypatch.setenv('RANK', '1')
    second = Log()
    second('never')
    second.open(tmp_path)
    second('never')
    second.end('another process is gone')
    first.end('because of it')
    assert len(lines(tmp_path)) == 2 and lines(tmp_path)[1].endswith('another process is gone')
    assert capsys.readouterr().out == ''
    first.open(tmp_path)  # started again
    first.end('done')
    assert [line.split()[0] for line in lines(tmp_path)] == ['started', 'ended', 'started', 'ended']


def test_a_log_that_cannot_be_written_is_no_reason_to_stop(tmp_path, capsys):
    log = Log()
    log.open(tmp_path / 'nowhere')
    log('still said')
    log.end('done')
    assert capsys.readouterr().out == 'still said\n'


def test_speed_is_of_the_steps_since_the_last_line_and_a_reset_leaves_out_what_was_between(monkeypatch):
    clock = iter([0.0, 2.0, 100.0, 104.0])
    monkeypatch.setattr(time, 'time', lambda: next(clock))
    speed = Speed(tokens_per_step=10)
    assert speed.rate(0) is None and speed.rate(4) == 20.0
    speed.reset()
    assert speed.rate(5) is None and speed.rate(7) == 5.0


def test_metrics_and_pictures_that_fail_are_said_once(tmp_path, monkeypatch, capsys):
    made = Monitor(tmp_path, 0, dict(wandb_log=False), True, Log())
    made.write(step=0, loss=1.0)
    made.write(step=1, loss=float('nan'), train_loss=2.0, val_loss=2.0)
    made.plot()
    assert (tmp_path / 'loss.png').read_bytes().startswith(b'\x89PNG')
    monkeypatch.setattr(made, 'path', tmp_path / 'nowhere' / 'metrics.jsonl')
    monkeypatch.setattr(monitor, 'draw', None)
    for _ in range(2):
        made.write(step=2, loss=1.0)
        made.plot()
        made.begin_at(1)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and all('going on without it' in line for line in said), said


@pytest.mark.parametrize('title', ['out$x', 'out$_{$', 'a\nb'])
def test_a_picture_has_any_title(tmp_path, title):
    monitor.draw([dict(step=s, loss=1.0, val_loss=2.0) for s in range(3)], title, tmp_path / 'loss.png')
    assert (tmp_path / 'loss.png').stat().st_size > 5000
