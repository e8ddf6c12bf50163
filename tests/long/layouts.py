"""The same losses on every mesh of ddp, fsdp and tp, with 1, 2 and 4 processes, for each kind of model.

    python tests/long/layouts.py               # all kinds, some ten minutes each on 2 cores
    python tests/long/layouts.py gpt2 muon     # some kinds

Prints for each kind and mesh the largest difference of losses and norms over 50 steps from those of one process. Then the
same for runs that one mesh saved after 25 steps and another continued for 10 more, for every pair of meshes.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from conftest import TINY, run, settings_of

KINDS = {
    'gpt2': '--bias=True --batch_size=2',
    'masked': '--arch=bert --objective=masked --mask_ratio=0.97 --bias=True --batch_size=2',  # rows differ in how many tokens they predict
    'muon': '--arch=modern --optimizer=muon --bigrams=300 --n_kv_head=4 --batch_size=2',
    'llama': '--arch=llama --optimizer=muon --n_kv_head=4 --batch_size=2',
}
SHAPE = '--n_head=8 --n_embd=64 --gradient_accumulation_steps=8'
MESHES = {  # (ddp, fsdp, tp)
    1: [(1, 1, 1)],
    2: [(2, 1, 1), (1, 2, 1), (1, 1, 2)],
    4: [(4, 1, 1), (1, 4, 1), (1, 1, 4), (1, 2, 2), (2, 2, 1), (2, 1, 2)],
}
ALL = [mesh for some in MESHES.values() for mesh in some]


def main(kinds):
    where = Path(tempfile.mkdtemp(prefix='layouts-'))
    files = f'--files={Path(json.__file__).parent}/*.py'
    run(['prepare.py', 'tiny', files, '--tokenizer=bpe', '--vocab_size=512', '--val_fraction=0.2'], where)
    for kind in kinds:
        straight(where, kind)
        taken_over(where, kind)
    shutil.rmtree(where)


def straight(where, kind):
    """Compare 50 steps on each mesh with those of one process; and make 25 for `taken_over`."""
    jobs = [(mesh, f'{flags(kind)} --max_iters=50', f'{kind}/straight', '') for mesh in ALL]
    jobs += [(mesh, f'{flags(kind)} --max_iters=25', f'{kind}/half', '') for mesh in ALL]
    together(where, jobs)
    one = losses(where / out_dir(f'{kind}/straight', (1, 1, 1)))
    for mesh in ALL:
        off = difference(one, losses(where / out_dir(f'{kind}/straight', mesh)))
        print(f'{kind}, {name(mesh)}: {off:.1e} from one process at most', flush=True)


def taken_over(where, kind):
    """Compare steps 25 to 35 on each mesh, continued from what each mesh saved, with those of one process."""
    jobs = [
        (
            after,
            f'{flags(kind)} --max_iters=35',
            f'{kind}/from-{name(before)}',
            out_dir(f'{kind}/half', before),
        )
        for before, after in itertools.product(ALL, ALL)
    ]
    together(where, jobs)
    one, off = losses(where / out_dir(f'{kind}/straight', (1, 1, 1))), {}
    one = {(step, what): value for (step, what), value in one.items() if step < 35 + what.endswith('_loss')}
    for before, after in itertools.product(ALL, ALL):
        other = losses(where / out_dir(f'{kind}/from-{name(before)}', after))
        off[f'from {name(before)} to {name(after)}'] = difference(one, other)
    worst = max(off, key=off.get)
    print(f'{kind}, {len(off)} changes of mesh: {off[worst]:.1e} at most, {worst}', flush=True)


def flags(kind):
    return f'{KINDS[kind]} --decay_lr=False --learning_rate=3e-3 --eval_interval=5'


def name(mesh):
    return 'x'.join(map(str, mesh))


def out_dir(stem, mesh):
    return f'{stem}-{name(mesh)}'


def together(where, jobs):
    """Run jobs (mesh, flags, stem of out_dir, directory to resume from or ''), one torchrun for each number of processes."""
    for size in MESHES:
        own = [job for job in jobs if job[0][0] * job[0][1] * job[0][2] == size]
        if not own:
            continue
        launch = (
            ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={size}'] if size > 1 else []
        )
        command = [sys.executable, *launch, __file__, '--worker', json.dumps(own)]
        done = subprocess.run(
            command, cwd=where, capture_output=True, text=True, env=os.environ | {'OMP_NUM_THREADS': '1'}
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]


def work(jobs):
    """In each process: one run of train.py after the other, in one process group."""
    import torch

    import train
    from infra import runtime

    again = runtime.init_distributed('', torch.device('cpu'), 600)
    leave = torch.distributed.destroy_process_group
    runtime.init_distributed, torch.distributed.destroy_process_group = lambda *_: again, lambda: None
    for (ddp, fsdp, tp), flags, stem, before in jobs:
        out = out_dir(stem, (ddp, fsdp, tp))
        if before and again[0] == 0:
            shutil.copytree(before, out)
        runtime.all_reduce_sum(torch.zeros(()))  # a barrier
        resume = '--init_from=resume' if before else ''
        words = f'{TINY} {SHAPE} --out_dir={out} --fsdp={fsdp} --tp={tp} {resume} {flags}'
        with settings_of(train, words) as settings:
            train.main(settings)
    if again[1] > 1:
        leave()


def losses(directory):
    """{(step, name): value} of all losses of a run and the norms of its gradients."""
    with open(directory / 'metrics.jsonl') as f:
        records = [json.loads(line) for line in f]
    names = ('loss', 'norm', 'train_loss', 'val_loss')
    return {(record['step'], name): record[name] for record in records for name in names if name in record}


def difference(one, other):
    """The largest difference of two runs at the same step: absolute for losses, relative for norms."""
    assert one.keys() == other.keys()
    return max(abs(one[key] - other[key]) / (one[key] if key[1] == 'norm' else 1) for key in one)


if __name__ == '__main__':
    if sys.argv[1:2] == ['--worker']:
        work(json.loads(sys.argv[2]))
    else:
        main(sys.argv[1:] or KINDS)
