"""train.py when its disk fills during a save, becomes read-only, or loses write permission, all in the middle of a run.

    sudo python tests/long/full_disk.py              # as root: it mounts 40 MB of memory as a disk

Each time the run must end with exit code 2 and one line, the last checkpoint must be intact, the training data unchanged;
once there is space again, the same command must continue. About a minute.
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

    if os.geteuid():
        return print('full_disk.py: skipped, mounting a disk needs root')
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
        for what, launch, damage, repair in (
            ('filled during a save', [], lambda: fill(disk), lambda: (disk / 'ballast').unlink()),
            ('read-only', [], lambda: remount(disk, 'ro'), lambda: remount(disk, 'rw')),
            ('without permission', nobody, lambda: change_owner(disk, 0), lambda: None),
        ):
            change_owner(disk, 65534 if launch else 0)
            code, error = train(where, launch, damage)
            repair()
            saved = checkpoint.latest(disk / 'out')
            left = [p.name for p in (disk / 'out').iterdir() if p.name.endswith('.partial')]
            print(
                f'{what}: exit code {code}; {error.strip()}; {saved.name} is intact, temporary files: {left}',
                flush=True,
            )
            assert (
                code == 2
                and error.count('\n') == 1
                and error.startswith('error: ')
                and hashes(where / 'data') == before
            )
        assert train(where, [], None)[0] == 0
        print('the same command continues')
    finally:
        subprocess.run(['umount', disk], check=True)


def train(where, launch, damage):
    """Run until the first save, call damage() and wait for the end -> (exit code, stderr). None: press Ctrl-C instead."""
    command = [*launch, sys.executable, '-u', str(ROOT / 'train.py'), *FLAGS]
    env = os.environ | {'HOME': str(where), 'MPLCONFIGDIR': str(where / 'disk')}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, cwd=where, env=env, **pipes) as process:
        for line in process.stdout:
            if line.startswith('saved'):
                break
        if damage:
            damage()
        else:
            process.send_signal(2)
        _, error = process.communicate(timeout=300)
    return process.returncode, error


def fill(disk):
    """Leave less space than half a checkpoint takes."""
    free = os.statvfs(disk)
    with open(disk / 'ballast', 'wb') as f:
        f.write(bytes(max(0, free.f_bavail * free.f_bsize - 3_000_000)))


def remount(disk, how):
    """Remount the disk as soon as no file is being written."""
    for _ in range(1000):
        if not subprocess.run(['mount', '-o', f'remount,{how}', disk], capture_output=True).returncode:
            return
    raise SystemExit(f'{disk} cannot be remounted {how}')


def change_owner(disk, user):
    for path in [disk, *disk.rglob('*')]:
        os.chown(path, user, user)
        path.chmod(0o755)


def hashes(directory):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.rglob('*') if p.is_file()}


if __name__ == '__main__':
    main()
