"""What can go wrong in a run of days, and what is done: signals, processes that wait in vain, steps that are no good, restarts."""

import math
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from common import fail, reason
from infra import checkpoint, mesh, runtime

STOPPED = (
    75  # exit code (EX_TEMPFAIL of sysexits.h) of a run that ended before its time: the same command goes on
)
GO_ON = 'go on with the same command and --init_from=resume'
SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGUSR1') if hasattr(signal, name)]
SPIKE = 6.0  # standard deviations by which a loss lies above the mean of those before it to be worth a word


class Watch:
    """Whether the run should stop: asked by a signal to any of its processes, or because one of them moves no more.

    Signals ask for an end after the step or evaluation batch under way. Before the first step is made there is nothing to
    save, be it compiling for minutes: they end the process at once, as a second Ctrl-C does at any time. A process that
    has waited `timeout` seconds for another says where it stands and ends.

    A thread does it, which lives while the main one is deep in a compiler or waits for a process that is gone.

    writer: an executor; what it has begun to write is finished before this process ends because another is gone.
    """

    def __init__(self, timeout, writer):
        self.timeout, self.writer, self.moved = timeout, writer, time.monotonic()
        self.signal, self.when, self.first, self.step, self.others = 0, 0.0, None, None, False
        self.before = [signal.signal(each, lambda *_: None) for each in SIGNALS]
        self.inbox, outbox = socket.socketpair()
        outbox.setblocking(False)
        signal.set_wakeup_fd(outbox.fileno())  # Python's handler in C writes the numbers of signals there
        self.outbox, self.hook = outbox, sys.excepthook
        sys.excepthook = self.last_words
        threading.Thread(target=self.run, daemon=True).start()

    def asked(self, step):
        """The number of a signal that any process was sent, 0 if none was. All get the same answer, and so show that they move."""
        if self.first is None:
            self.first = step
        self.step, self.others = step, torch.distributed.is_initialized()
        asked = runtime.highest_of_processes(self.signal)
        self.moved = time.monotonic()
        return asked

    def run(self):
        while True:
            if select.select([self.inbox], [], [], 1)[0]:
                numbers = self.inbox.recv(100)
                if not numbers:  # closed
                    return
                for number in set(numbers) & set(SIGNALS):
                    self.receive(number)
            elif self.others and time.monotonic() - self.moved > self.timeout:
                self.leave(f'no answer from another process for {self.timeout} s; {GO_ON}', STOPPED)

    def receive(self, number):
        if self.step == self.first:
            self.leave(f'{signal.Signals(number).name} before the first step was made', exit_code(number))
        # torchrun passes Ctrl-C on to processes that have it from the terminal already
        if number == signal.SIGINT and self.signal and time.monotonic() - self.when > 1:
            os._exit(128 + number)
        if not self.signal:
            self.when = time.monotonic()
        self.ask(number)

    def ask(self, number):
        """Have all processes stop as if this one was sent a signal."""
        self.signal = max(self.signal, int(number))

    def last_words(self, kind, error, trace):
        """sys.excepthook: that another process is gone is one line, not a traceback."""
        lost = re.search('gloo|nccl|connect|timed? ?out', str(error), re.IGNORECASE)
        if 'RANK' in os.environ and issubclass(kind, RuntimeError) and lost:
            self.writer.shutdown()
            self.leave(f'another process is gone ({reason(error)[:100]}); {GO_ON}', STOPPED)
        self.hook(kind, error, trace)

    def leave(self, why, code):
        where = f'rank {os.environ.get("RANK", 0)}, step {self.step or 0}'
        os.write(2, f'{where}: {why}\n'.encode())
        os._exit(code)

    def end(self):
        """Give the signals back, for whoever goes on in this Python."""
        signal.set_wakeup_fd(-1)
        for each, handler in zip(SIGNALS, self.before, strict=True):
            signal.signal(each, handler)
        sys.excepthook = self.hook
        self.outbox.close()


def exit_code(number):
    """Of a run that a signal has ended: Ctrl-C is a person's wish, the others a machine's, which may start it again."""
    return 0 if number in (0, signal.SIGINT) else STOPPED


def requeue():
    """Put the job of Slurm that this is back into its queue."""
    if job := os.environ.get('SLURM_JOB_ID'):
        try:
            subprocess.run(['scontrol', 'requeue', job], check=True)
        except (OSError, subprocess.CalledProcessError) as e:
            print(f'the job {job} could not be requeued: {e}', file=sys.stderr, flush=True)


def restarted():
    """Whether torchrun or Slurm started this process again, after it failed or was preempted."""
    return any(int(os.environ.get(f'{who}_RESTART_COUNT') or 0) for who in ('TORCHELASTIC', 'SLURM'))


class Health:
    """Which steps are no good, their loss or gradient not finite, counted on the device; and losses that stand out.

    in_all, in_a_row: the bad steps so far, tensors () that nothing waits for. streak: the latter when last read.
    """

    def __init__(self, device):
        self.in_all, self.in_a_row = torch.zeros(2, device=device)
        self.streak, self.count, self.mean, self.variance = 0, 0, 0.0, 0.0

    def judge(self, loss, norm):
        """1.0 if the step is to be left out, 0.0 if not, as a tensor () where the loss is."""
        bad = 1 - (loss.isfinite() & norm.isfinite()).float()
        self.in_all += bad
        self.in_a_row += 1
        self.in_a_row *= bad
        return bad

    def read(self, loss, norm):
        """What is to be told of a step, as numbers: loss, norm, and if there are any, steps left out and the height of a spike."""
        loss, norm, in_all, in_a_row = torch.stack((loss, norm, self.in_all, self.in_a_row)).tolist()
        self.streak = int(in_a_row)
        told, height = dict(loss=loss, norm=norm), self.height(loss)
        if in_all:
            told['left_out'] = int(in_all)
        if height > SPIKE:
            told['spike'] = height
        return told

    def height(self, loss, memory=100):
        """How far a loss lies above those before it, in standard deviations, both of about the last `memory`.

        0 for the first twenty, which tell what is usual.
        """
        if not math.isfinite(loss):
            return 0.0
        apart = loss - self.mean
        height = apart / math.sqrt(self.variance) if self.count >= 20 and self.variance else 0.0
        self.count += 1
        weight = 1 / min(self.count, memory)
        self.mean += weight * apart
        self.variance = (1 - weight) * (self.variance + weight * apart**2)
        return height


def go_back(out_dir, before, health, state, model, optimizers, scaler):
    """Put everything where the last checkpoint has it, but for the rows, which go on after those just tried -> its path.

    before: where this returned to last time; ends the program if it would be there again, or if there is no checkpoint.
    """
    path = runtime.by_rank_0(way_back, out_dir, before, health.streak, state)
    tried, saved = state['step'] + state['ahead'], checkpoint.read_state(path)
    state |= {name: saved[name] for name in state}
    state['ahead'] = tried - state['step']
    mesh.load_weights(model, dict(checkpoint.load_model(path).named_parameters()))
    checkpoint.load_optimizers(path, optimizers, scaler)
    health.in_a_row.zero_()
    return path


def way_back(out_dir, before, streak, state):
    own = checkpoint.every(out_dir, state['run'])
    if own and str(own[-1]) != before:
        return str(checkpoint.latest(out_dir, state['run']))
    again = f'once more after going back to {before}' if own else 'and there is no checkpoint to go back to'
    fail(
        f'step {state["step"] - 1}: no finite loss and gradient for {streak} steps in a row, {again}; '
        'lower the learning rate, or look at the data'
    )


def choose_start(init_from, out_dir):
    """(what the model comes from: 'scratch', a checkpoint, a name or a directory; whether the run of that checkpoint goes on)."""
    noted = Path(out_dir, 'run')  # the latest run there
    again = restarted() and noted.exists() and checkpoint.every(out_dir, noted.read_text(errors='replace'))
    if init_from == 'resume' or again or (init_from == 'auto' and checkpoint.every(out_dir)):
        return str(checkpoint.latest(out_dir)), True
    if init_from in ('scratch', 'auto'):
        return 'scratch', False
    return str(checkpoint.find(init_from, out_dir) or init_from), False


def make_out_dir(out_dir, run):
    """Make out_dir, and note there which run is its latest, for when torchrun or Slurm starts it again."""
    try:
        os.makedirs(out_dir, exist_ok=True)
        tempfile.TemporaryFile(dir=out_dir).close()
        Path(out_dir, 'run').write_text(run)
    except OSError as e:
        fail(f'cannot write into out_dir = {out_dir!r}: {reason(e)}')


# What makes another run of it, and so cannot change when it goes on; the number of rows in a step, the vocabulary and the
# data neither.
FIXED = ('seed', 'objective', 'mask_ratio', 'optimizer', 'arch', 'n_layer', 'n_head', 'n_kv_head', 'n_embd')
FIXED += ('block_size', 'bias', 'bigrams')


def changes(path, settings, meta, rows):
    """What differs between the run of a checkpoint and the command that goes on with it, in words, '' if nothing.

    rows: of a step. Ends the program with the difference where it is one that cannot be.
    """
    saved = checkpoint.read_state(path)
    before = saved['settings']
    for name in FIXED:
        if name in before and before[name] != settings[name]:
            fail(f'{name} = {settings[name]!r} cannot change on resuming: {path} has {before[name]!r}')
    if rows != saved['rows']:
        fail(
            f'batch_size * gradient_accumulation_steps = {rows} cannot change on resuming, only how it is '
            f'divided: {path} has {saved["rows"]}'
        )
    ours, theirs = files_of(meta), files_of(saved)
    if ours != theirs:
        new, old = next((a, b) for a, b in zip(ours + [None], theirs + [None], strict=False) if a != b)
        fail(f'the data cannot change on resuming: {path} was trained on {old}, this is {new}')
    quiet = ('init_from', 'out_dir', 'dataset')
    differ = [
        name for name in settings if name not in quiet and settings[name] != before.get(name, settings[name])
    ]
    told = [f'{name} {before[name]!r} -> {settings[name]!r}' for name in differ]
    return ', with ' + ', '.join(told) if told else ''


def files_of(meta):
    """The token files of a mixture, each in words that tell it from others: whatever the directories are called."""
    told = []
    for name, share in meta['mixture'].items():
        hashes = meta['data_hash'].get(name)
        hashes = hashes if isinstance(hashes, dict) else {}
        for split in ('train.bin', 'val.bin'):
            told.append(f'{share} of {split} with the SHA-256 {str(hashes.get(split))[:16]}')
    return told
