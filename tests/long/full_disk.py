"""train.py on a file system that fills during a save, that turns read-only, and whose permission goes, all in mid-run.

    sudo python tests/full_disk.py                   # as root, which mounting 40 MB of memory needs

Not a test that pytest runs. Each time: exit code 2, one line, the last checkpoint whole, the training data untouched, and
once there is room again the same command goes on.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))
FLAGS = (
    '--dataset=tiny --n_layer=4 --n_head=4 --n_embd=128 --block_size=32 --batch_size=2 --gradient_accumulation_steps=1 '
    '--device=cpu --dtype=float32 --compile=False --eval_interval=1000 --eval_iters=2 --max_iters=100000 --save_interval=30 '
    '--init_from=auto --out_dir=disk/out'
).split()


def main():
    from infra import checkpoint

    where = Path(tempfile.mkdtemp(prefix='full-disk-'))
    where.chmod(0o755)
    prepare = ['prepare.py', 'tiny', f'--files={Path(json.__file__).parent}/*.py', '--tokenizer=byte']
    subprocess.run(
        [sys.executable, ROOT / prepare[0], *prepare[1:]], cwd=where, check=True, capture_output=True
    )
    before, disk = hashes(where / 'data'), where / 'disk'
    disk.mkdir()
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=40m', 'tmpfs', disk], check=True)
    try:
        nobody = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', '--']
        for what, launch, harm, heal in (
            ('filled during a save', [], lambda: fill(disk), lambda: (disk / 'ballast').unlink()),
            ('read-only', [], lambda: remount(disk, 'ro'), lambda: remount(disk, 'rw')),
            ('without permission', nobody, lambda: own(disk, 0), lambda: None),
        ):
            own(disk, 65534 if launch else 0)
            code, error = train(where, launch, harm)
            heal()
            saved = checkpoint.latest(disk / 'out')
            left = [p.name for p in (disk / 'out').iterdir() if p.name.endswith('.partial')]
            print(
                f'{what}: exit code {code}; {error.strip()}; {saved.name} is whole, left behind: {left}',
                flush=True,
            )
            assert (
                code == 2
                and error.count('\n') == 1
                and error.startswith('error: ')
                and hashes(where / 'data') == before
            )
        assert train(where, [], None)[0] == 0
        print('and goes on')
    finally:
        subprocess.run(['umount', disk], check=True)


def train(where, launch, harm):
    """Run until something is saved, do the harm, and wait for the end -> (exit code, stderr). Without harm: Ctrl-C then."""
    command = [*launch, sys.executable, '-u', str(ROOT / 'train.py'), *FLAGS]
    env = os.environ | {'HOME': str(where), 'MPLCONFIGDIR': str(where / 'disk')}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, cwd=where, env=env, **pipes) as process:
        for line in process.stdout:
            if line.startswith('saved'):
                break
        if harm:
            harm()
        else:
            process.send_signal(2)
        _, error = process.communicate(timeout=60)
    return process.returncode, error


def fill(disk):
    """Leave less than half of a checkpoint's room."""
    free = os.statvfs(disk)
    with open(disk / 'ballast', 'wb') as f:
        f.write(bytes(max(0, free.f_bavail * free.f_bsize - 3_000_000)))


def remount(disk, how):
    """As soon as no file is being written."""
    for _ in range(1000):
        if not subprocess.run(['mount', '-o', f'remount,{how}', disk], capture_output=True).returncode:
            return
    raise SystemExit(f'{disk} cannot be mounted {how}')


def own(disk, user):
    for path in [disk, *disk.rglob('*')]:
        os.chown(path, user, user)
        path.chmod(0o755)


def hashes(directory):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.rglob('*') if p.is_file()}


if __name__ == '__main__':
    main()
