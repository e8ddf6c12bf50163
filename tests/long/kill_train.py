"""train.py killed fifty times at random moments and restarted by the same command must end with the same bytes.

    python tests/long/kill_train.py                      # some minutes
    python tests/long/kill_train.py --optimizer=adamw    # with flags of train.py

The run saves every few steps, so that some kills hit a save. If the weights equal those of the undisturbed run bit for
bit, no step was lost or repeated.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
KILLS = 50
FLAGS = (
    '--dataset=python --n_layer=2 --n_head=2 --n_embd=64 --block_size=64 --batch_size=4 --gradient_accumulation_steps=2 '
    '--arch=modern --optimizer=muon --dropout=0.1 --device=cpu --dtype=float32 --compile=False --eval_interval=100 '
    '--eval_iters=2 --max_iters=1500 --lr_decay_iters=1500 --warmup_iters=20 --save_interval=3 --keep=2 --log_interval=10 '
    '--init_from=auto'
).split()


def main():
    random.seed(0)
    where = Path(tempfile.mkdtemp(prefix='kill-train-'))
    prepare = [sys.executable, str(ROOT / 'prepare.py'), 'python', '--tokenizer=byte', '--max_documents=200']
    subprocess.run(prepare, cwd=where, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    began = time.time()
    assert start(where, 'undisturbed').wait() == 0
    print(f'undisturbed: {time.time() - began:.1f} s')
    killed = saving = finished = 0
    while killed < KILLS:
        process = start(where, 'killed')
        before = newest(where / 'killed')
        while (
            newest(where / 'killed') == before and process.poll() is None
        ):  # it makes progress: one save at least
            time.sleep(0.001)
        end = time.time() + random.uniform(0, 0.5)
        while time.time() < end and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        if process.wait() != -signal.SIGKILL:  # it had finished
            check(where)
            shutil.rmtree(where / 'killed')
            finished += 1
            continue
        killed += 1
        saving += any(path.name.startswith('.step') for path in (where / 'killed').iterdir())
    assert start(where, 'killed').wait() == 0
    check(where)
    print(
        f'killed {killed} times, {saving} of them during a save; {finished + 1} runs ended with the same weights'
    )
    shutil.rmtree(where)


def start(where, name):
    command = [sys.executable, str(ROOT / 'train.py'), *FLAGS, *sys.argv[1:], f'--out_dir={name}']
    return subprocess.Popen(command, cwd=where, stdout=subprocess.DEVNULL)


def newest(out_dir):
    return max((path.name for path in out_dir.glob('step-*')), default='')


def check(where):
    """The weights, the optimizers and the losses of each step are those of the undisturbed run."""
    one, other = (where / name / newest(where / name) for name in ('undisturbed', 'killed'))
    for name in ('model.safetensors', 'optimizer.pt'):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    losses = [
        [(r['step'], r.get('loss'), r.get('val_loss')) for r in map(json.loads, path.open())]
        for path in (where / 'undisturbed/metrics.jsonl', where / 'killed/metrics.jsonl')
    ]
    assert losses[0] == losses[1], 'metrics.jsonl'


if __name__ == '__main__':
    main()
