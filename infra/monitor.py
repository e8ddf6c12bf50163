"""Logs of a run: every line and how it ended in log.txt, numbers in metrics.jsonl, a picture, Weights & Biases; its speed."""

import contextlib
import importlib.util
import json
import math
import os
import sys
import time
import traceback
from pathlib import Path

from common import UserError, reason

CLOCK = '%Y-%m-%d %H:%M:%S'


class Log(contextlib.AbstractContextManager):
    """log('a line') prints it, on rank 0, and appends it to OUT_DIR/log.txt; the last line there says how the run ended.

    Lines are kept until `open` names the directory: what ends before that writes nothing. Every process has a Log: the first
    to say how the run ended is right. A context manager: it logs the exception that ends the run, with its traceback unless
    it is a user's mistake.
    """

    def __init__(self):
        self.path, self.kept, self.failed = None, [], set()
        self.active = os.environ.get('RANK', '0') == '0'

    def __call__(self, line):
        if self.active:
            with contextlib.suppress(BrokenPipeError):  # who reads it has left, as `head` does
                print(line, flush=True)
            self.append(line)

    def open(self, out_dir):
        """Write to a directory's log.txt from now on, after what is there."""
        self.path, kept = Path(out_dir, 'log.txt'), self.kept
        if self.active:
            self.append('\n'.join([f'started {time.strftime(CLOCK)}: {" ".join(sys.argv)}', *kept]))

    def append(self, text):
        if not self.path:
            self.kept.append(text)
            return
        with contextlib.suppress(OSError), open(self.path, 'a', encoding='utf-8', errors='replace') as f:
            f.write(text + '\n')

    def end(self, how, details=''):
        """Write the last line, if none of the processes has written it yet; above it what explains it."""
        with contextlib.suppress(OSError):
            text = self.path.read_text(errors='replace') if self.path else 'ended '
            if not text.rstrip().rpartition('\n')[2].startswith('ended '):
                self.append(f'{details}ended {time.strftime(CLOCK)}: {" ".join(how.split())}')

    def __exit__(self, kind, error, trace):
        if isinstance(error, UserError):
            self.end(f'error: {error}')
        elif error is not None and not isinstance(error, SystemExit):
            self.end(f'{kind.__name__}: {error}', ''.join(traceback.format_exception(kind, error, trace)))

    @contextlib.contextmanager
    def optional(self, what):
        """What goes wrong within it is said in one line, once, and the run goes on: no record or picture is worth it."""
        try:
            yield
        except Exception as e:
            if os.environ.get('DEBUG'):
                traceback.print_exc()
            if what not in self.failed:
                self(f'{what}: {type(e).__name__}: {reason(e)}; going on without it')
            self.failed.add(what)


class Speed:
    """Tokens per second between log lines; evaluations and saving are left out by `reset`."""

    def __init__(self, tokens_per_step):
        self.tokens_per_step, self.since = tokens_per_step, None

    def rate(self, step):
        """Tokens per second since the last call; None if there was none, or a reset since then."""
        before, self.since = self.since, (step, time.time())
        return self.tokens_per_step * (step - before[0]) / (self.since[1] - before[1]) if before else None

    def reset(self):
        self.since = None


class Monitor:
    """Metrics of one run. A process of another rank than 0 has one too, which does nothing."""

    def __init__(self, out_dir, first_step, settings, active, log):
        self.path, self.plot_path = Path(out_dir, 'metrics.jsonl'), Path(out_dir, 'loss.png')
        self.active, self.log, self.wandb = active, log, None
        self.begin_at(first_step)
        if active and settings['wandb_log']:
            with log.optional('wandb'):
                import wandb

                name = settings['wandb_run_name'] or settings['out_dir']
                self.wandb = wandb.init(project=settings['wandb_project'], name=name, config=settings)

    def begin_at(self, step):
        """Drop the records of this step and those after it: they are made again."""
        if self.active:
            partial = self.path.with_name('.metrics.partial')
            with self.log.optional(self.path):
                partial.write_text(''.join(json.dumps(r) + '\n' for r in self.records() if r['step'] < step))
                partial.replace(self.path)

    def records(self):
        """The records of metrics.jsonl; a crash may have left half a line."""
        records = []
        for line in self.path.read_bytes().splitlines() if self.path.exists() else ():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
        return records

    def write(self, **record):
        """Append a record; it has at least `step`, the updates made so far."""
        if not self.active:
            return
        record = {k: v if math.isfinite(v) else None for k, v in record.items()}  # JSON has no infinity
        with self.log.optional(self.path), open(self.path, 'a') as f:
            f.write(json.dumps(record) + '\n')
        if self.wandb is not None:
            wandb, self.wandb = self.wandb, None
            with self.log.optional('wandb'):
                wandb.log(record, step=record['step'])
                self.wandb = wandb

    def plot(self):
        """Draw the losses of metrics.jsonl into loss.png, where matplotlib is installed."""
        if self.active and importlib.util.find_spec('matplotlib'):
            with self.log.optional(self.plot_path):
                draw(self.records(), self.path.parent.name, self.plot_path)


def draw(records, title, path):
    """Losses over steps as a picture. Without pyplot: it would choose a backend, and may find no screen."""
    if len(records) < 2:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout='tight')
    axes = figure.subplots()
    steps = [(r['step'], r['loss']) for r in records if r.get('loss') is not None]
    if steps:
        axes.plot(*zip(*steps, strict=True), color='0.75', linewidth=1, label='training batches')
    for split, color in (('train', 'tab:blue'), ('val', 'tab:orange')):
        points = [(r['step'], r[f'{split}_loss']) for r in records if r.get(f'{split}_loss') is not None]
        if points:
            label = f'{split}: {points[-1][1]:.3f}, lowest {min(loss for _, loss in points):.3f}'
            axes.plot(*zip(*points, strict=True), color=color, marker='o', markersize=3, label=label)
    axes.set(xlabel='step', ylabel='loss (nats per predicted token)')
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
