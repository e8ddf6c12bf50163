"""What a run tells while it trains: metrics.jsonl always, loss.png where matplotlib is, Weights & Biases when asked."""

import json
import math
from pathlib import Path

from common import need


class Monitor:
    """Records of one run. A process of another rank than 0 has one too, which does nothing."""

    def __init__(self, out_dir, first_step, settings, active):
        self.path, self.plot_path = Path(out_dir, 'metrics.jsonl'), Path(out_dir, 'loss.png')
        self.active, self.wandb = active, None
        if not active:
            return
        self.begin_at(first_step)
        if settings['wandb_log']:
            self.start_wandb(settings)

    def begin_at(self, step):
        """Drop what was told of this step and those after it: they are made again."""
        if self.active:
            partial = self.path.with_name('.metrics.partial')
            partial.write_text(''.join(json.dumps(r) + '\n' for r in self.records() if r['step'] < step))
            partial.replace(self.path)

    def records(self):
        """What metrics.jsonl holds; a crash may have left half a line, a disk anything."""
        records = []
        for line in self.path.read_bytes().splitlines() if self.path.exists() else ():
            try:
                record = json.loads(line)
                if 'step' in record and all(isinstance(v, int | float | None) for v in record.values()):
                    records.append(record)
            except (ValueError, TypeError, AttributeError, RecursionError):
                pass
        return records

    def write(self, **record):
        """Append a record; it has at least `step`, the updates made so far."""
        if not self.active:
            return
        record = {k: v if math.isfinite(v) else None for k, v in record.items()}  # JSON has no infinity
        with open(self.path, 'a') as f:
            f.write(json.dumps(record) + '\n')
        if self.wandb is not None:
            try:
                self.wandb.log(record, step=record['step'])
            except Exception as e:
                self.give_up_wandb(e)

    def start_wandb(self, settings):
        wandb = need('wandb')
        try:
            project, name = settings['wandb_project'], settings['wandb_run_name']
            self.wandb = wandb.init(project=project, name=name, config=settings)
        except Exception as e:
            self.give_up_wandb(e)

    def give_up_wandb(self, error):
        """Logging elsewhere is never worth a run: say what went wrong and go on without."""
        print(f'wandb: {type(error).__name__}: {error}; going on without it, {self.path} has everything')
        self.wandb = None

    def plot(self):
        """Draw the losses of metrics.jsonl into loss.png."""
        records = self.records() if self.active else []
        if len(records) < 2:
            return
        try:
            import matplotlib
        except ImportError:
            return
        matplotlib.use('Agg')
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(8, 5), dpi=120)
        steps = [(r['step'], r['loss']) for r in records if r.get('loss') is not None]
        if steps:
            axes.plot(*zip(*steps, strict=True), color='0.75', linewidth=1, label='training batches')
        for split, color in (('train', 'tab:blue'), ('val', 'tab:orange')):
            points = [(r['step'], r[f'{split}_loss']) for r in records if r.get(f'{split}_loss') is not None]
            if points:
                label = f'{split}: {points[-1][1]:.3f}, lowest {min(loss for _, loss in points):.3f}'
                axes.plot(*zip(*points, strict=True), color=color, marker='o', markersize=3, label=label)
        axes.set(xlabel='step', ylabel='loss (nats per predicted token)', title=self.path.parent.name)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.tight_layout()
        figure.savefig(self.plot_path)
        plt.close(figure)
