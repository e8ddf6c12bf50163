"""Fault tolerance: signals, processes that die or hang, steps without a finite loss, restarts, and what may change in them."""

import contextlib
import math
import os
import re
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
import traceback
from pathlib import Path

import torch

from common import fail, reason
from infra import checkpoint, mesh, runtime

STOPPED = 75  # exit code (EX_TEMPFAIL of sysexits.h): ended before its time, the same command goes on
WRITE_FAILED = 1000  # takes the place of a signal's number, which is lower
GO_ON = 'go on with the same command and --init_from=resume'
SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGUSR1') if hasattr(signal, name)]
SPIKE = 6.0  # standard deviations above the mean of the last losses from which a loss is logged as a spike


class Watch(contextlib.AbstractContextManager):
    """Whether the run should stop: a signal to any of its processes, a failed write, or a process that is gone or hangs.

    A signal ends it after the step or evaluation batch under way; before the first step is made, at once, as does a second
    Ctrl-C at any time. A process that has waited `timeout` seconds for another says where it stands and ends.

    A thread listens: the main one may be deep in a compiler or wait for a process that is gone. A context manager: signals
    are handled as before when it is left.
    """

    def __init__(self, timeout, saver, log):
        self.timeout, self.saver, self.log = timeout, saver, log
        self.signal, self.signal_time, self.last_progress = 0, 0.0, time.monotonic()
        self.first, self.step, self.others = None, None, False
        self.handlers = [signal.signal(each, lambda *_: None) for each in SIGNALS]
        self.inbox, self.outbox = socket.socketpair()
        self.outbox.setblocking(False)
        signal.set_wakeup_fd(self.outbox.fileno())  # Python's handler in C writes the signals' numbers there
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def stop_signal(self, step):
        """The number of a signal that any process was sent, 0 if none was; the same in all, which show that they live.

        Ends the program, in all processes, if a checkpoint could not be written.
        """
        if self.first is None:
            self.first = step
        self.step, self.others = step, torch.distributed.is_initialized()
        number = runtime.all_reduce_max(WRITE_FAILED if self.saver.failed() else self.signal)
        self.last_progress = time.monotonic()
        if number == WRITE_FAILED:
            self.saver.wait()
        return number

    def run(self):
        while True:
            if select.select([self.inbox], [], [], 1)[0]:
                numbers = self.inbox.recv(100)
                if not numbers:  # closed
                    return
                for number in set(numbers) & set(SIGNALS):
                    self.receive(signal.Signals(number))
            elif self.others and time.monotonic() - self.last_progress > self.timeout:
                self.exit_now(f'no answer from another process for {self.timeout} s; {GO_ON}', STOPPED)

    def receive(self, number):
        if self.step == self.first:
            self.exit_now(f'{number.name} before the first step was made', exit_code(number))
        # torchrun passes Ctrl-C on to processes that have it from the terminal already
        if number == signal.SIGINT and self.signal and time.monotonic() - self.signal_time > 1:
            self.exit_now('a second Ctrl-C: nothing more is saved', 128 + number)
        if not self.signal:
            self.signal_time = time.monotonic()
        self.signal = max(self.signal, int(number))

    def exit_now(self, why, code):
        """End this process whatever its main thread does."""
        line = f'rank {os.environ.get("RANK", 0)}, step {self.step or 0}: {why}'
        os.write(2, f'{line}\n'.encode())
        self.log.end(line)
        os._exit(code)

    def __exit__(self, kind, error, trace):
        """That another process is gone is one line, not a traceback."""
        lost = re.search('gloo|nccl|connect|timed? ?out', str(error), re.IGNORECASE)
        if 'RANK' in os.environ and isinstance(error, RuntimeError) and lost:
            if os.environ.get('DEBUG'):
                traceback.print_exception(kind, error, trace)
            self.saver.executor.shutdown()  # what it has begun to write is finished
            self.exit_now(f'another process is gone ({reason(error)[:100]}); {GO_ON}', STOPPED)
        signal.set_wakeup_fd(-1)
        for each, handler in zip(SIGNALS, self.handlers, strict=True):
            signal.signal(each, handler)
        self.outbox.close()
        self.thread.join(2)  # it should not run any more while Python ends


def exit_code(number):
    """Exit code of a run that a signal has ended: Ctrl-C is from a person, the others from a machine that may restart it."""
    return 0 if number in (0, signal.SIGINT) else STOPPED


def requeue(log):
    """Put the Slurm job that this is back into its queue."""
    if job := os.environ.get('SLURM_JOB_ID'):
        try:
            subprocess.run(['scontrol', 'requeue', job], check=True)
        except (OSError, subprocess.CalledProcessError) as e:
            log(f'the job {job} could not be requeued: {e}')


class Health:
    """Bad steps, whose loss or gradient is not finite, and losses that stand out. in_all, in_a_row: the bad steps so far, tensors
    () on the device that nothing waits for. streak: the latter when last read.
    """

    def __init__(self, device):
        self.in_all, self.in_a_row = torch.zeros(2, device=device)
        self.streak, self.count, self.mean, self.variance = 0, 0, 0.0, 0.0

    def is_bad(self, loss, norm):
        """1.0 if the step is to be left out, 0.0 if not, as a tensor () on the device of the loss."""
        bad = 1 - (loss.isfinite() & norm.isfinite()).float()
        self.in_all += bad
        self.in_a_row += 1
        self.in_a_row *= bad
        return bad

    def metrics(self, loss, norm):
        """What is logged of a step, as numbers: loss, norm, the bad steps so far and the z-score of a spike, if any."""
        loss, norm, in_all, in_a_row = torch.stack((loss, norm, self.in_all, self.in_a_row)).tolist()
        self.streak = int(in_a_row)
        record, z_score = dict(loss=loss, norm=norm), self.z_score(loss)
        if in_all:
            record['left_out'] = int(in_all)
        if z_score > SPIKE:
            record['spike'] = z_score
        return record

    def z_score(self, loss, memory=100):
        """How far a loss lies above those before it, in standard deviations, both of about the last `memory`.

        0 for the first twenty, which show what is usual.
        """
        if not math.isfinite(loss):
            return 0.0
        distance = loss - self.mean
        z_score = distance / math.sqrt(self.variance) if self.count >= 20 and self.variance else 0.0
        self.count += 1
        weight = 1 / min(self.count, memory)
        self.mean += weight * distance
        self.variance = (1 - weight) * (self.variance + weight * distance**2)
        return z_score


def rollback(out_dir, before, health, state, model, optimizers, scaler, log):
    """Restore the last checkpoint, in place, and go on with the rows after those just tried -> its path.

    before: the path that this returned last time; ends the program if it would be the same, or if there is no checkpoint.
    """
    path = runtime.run_on_rank0(rollback_target, out_dir, before, health.streak, state, log)
    next_rows, saved = state['step'] + state['rows_skipped'], checkpoint.read_state(path)
    state |= {name: saved[name] for name in state}
    state['rows_skipped'] = next_rows - state['step']
    mesh.load_weights(model, dict(checkpoint.load_model(path).named_parameters()))
    checkpoint.load_optimizers(path, optimizers, scaler)
    health.in_a_row.zero_()
    return path


def rollback_target(out_dir, before, streak, state, log):
    own = checkpoint.list_checkpoints(out_dir, state['run'])
    if own and str(own[-1]) != before:
        return str(checkpoint.latest(out_dir, state['run'], log))
    again = f'once more after going back to {before}' if own else 'and there is no checkpoint to go back to'
    wrong = f'step {state["step"] - 1}: no finite loss and gradient for {streak} steps in a row, {again}'
    fail(f'{wrong}; lower the learning rate, or look at the data')


def choose_start(init_from, out_dir, log=checkpoint.warn):
    """(the source of the model: 'scratch', a checkpoint, a name or a directory; whether the run of that checkpoint goes on)."""
    noted = Path(out_dir, 'run')  # the latest run there
    # by torchrun or Slurm, after this process failed or was preempted
    restarted = any(int(os.environ.get(f'{by}_RESTART_COUNT') or 0) for by in ('TORCHELASTIC', 'SLURM'))
    run = noted.read_text(errors='replace') if restarted and noted.exists() else ''
    again = run and checkpoint.list_checkpoints(out_dir, run)
    if init_from == 'resume' or again or (init_from == 'auto' and checkpoint.list_checkpoints(out_dir)):
        return str(checkpoint.latest(out_dir, log=log)), True
    if init_from in ('scratch', 'auto'):
        return 'scratch', False
    return str(checkpoint.resolve(init_from, out_dir) or init_from), False


def make_out_dir(out_dir, run):
    """Make out_dir, and note there which run is its latest, for when torchrun or Slurm starts it again."""
    try:
        os.makedirs(out_dir, exist_ok=True)
        tempfile.TemporaryFile(dir=out_dir).close()
        Path(out_dir, 'run').write_text(run)
    except OSError as e:
        fail(f'cannot write into out_dir = {out_dir!r}: {reason(e)}')


def check_resume(path, settings, fixed, meta, rows):
    """What differs between the run of a checkpoint and the command that goes on with it, in words, '' if nothing.

    rows: of a step. fixed: settings that cannot change. Ends the program with the difference where one is not possible.
    """
    saved = checkpoint.read_state(path)
    before = saved['settings']
    changed = [name for name in settings if settings[name] != before.get(name, settings[name])]
    refused = [(name, settings[name], before[name]) for name in changed if name in fixed]
    if rows != saved['rows']:
        refused.append(('batch_size * gradient_accumulation_steps', rows, saved['rows']))
    for name, now, then in refused:
        fail(f'{name} = {now!r} cannot change on resuming: {path} has {then!r}')
    if files_of(meta) != files_of(saved):
        fail(f'the data cannot change on resuming: {path} was trained on other files, by their SHA-256')
    quiet = ('init_from', 'out_dir', 'dataset')
    words = [f'{name} {before[name]!r} -> {settings[name]!r}' for name in changed if name not in quiet]
    return ', with ' + ', '.join(words) if words else ''


def files_of(meta):
    """(share, hashes of the files) of each part of a mixture, whatever the directories are called."""
    return [(share, meta['data_hash'].get(name)) for name, share in meta['mixture'].items()]
