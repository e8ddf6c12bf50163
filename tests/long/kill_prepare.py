"""prepare.py killed twenty times at random moments, each time begun again by the same command: the same bytes in the end?

    python tests/kill_prepare.py                     # or with more of its flags: --num_proc=4

Not a test that pytest runs: it takes some minutes. The corpus is the standard library; the moments are spread over the
time that is left, by chance, so that every stage has its turn.
"""

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
KILLS = 20
AT_MOST = 4  # of them in a run from nothing to the end, which has only so many moments


def main():
    random.seed(0)
    where = Path(tempfile.mkdtemp(prefix='kill-prepare-'))
    began = time.time()
    start(where, 'undisturbed').wait()
    seconds = time.time() - began
    expected = files(where / 'data/undisturbed')
    print(f'undisturbed: {seconds:.1f} s, {len(expected)} files, {sum(map(len, expected.values())):,} bytes')
    killed = number = 0
    while killed < KILLS:
        number += 1
        name, finished = f'killed{number}', {}
        for _ in range(AT_MOST):
            process = start(where, name)
            wait_a_while(process, random.uniform(0.5, 0.9 * seconds))
            process.kill()
            if process.wait() != -signal.SIGKILL:  # it was quicker
                break
            killed += 1
            stage, now = state(where / 'data' / name)
            again = sum(finished[shard] != now.get(shard, finished[shard]) for shard in finished)
            print(f'{name}: killed {stage}; {len(now)} finished shards, {again} of the earlier made again')
            finished = now
        began = time.time()
        code = start(where, name).wait()
        same = code == 0 and files(where / 'data' / name) == expected
        print(f'{name}: finished in {time.time() - began:.1f} s, {"the same bytes" if same else "DIFFERENT"}')
        if not same:
            sys.exit(1)
    print(f'killed {killed} times; every file is the same')
    shutil.rmtree(where)


def start(where, name):
    flags = ['--files=python', '--tokenizer=bpe', '--vocab_size=2048', '--val_fraction=0.1', *sys.argv[1:]]
    command = [sys.executable, str(ROOT / 'prepare.py'), name, *flags]
    return subprocess.Popen(command, cwd=where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_a_while(process, seconds):
    """Until the time is over, or else until it publishes, which is too short a moment to be met by chance."""
    end = time.time() + seconds
    while time.time() < end and process.poll() is None:
        time.sleep(0.001)


def state(directory):
    """(the stage a run was in, {shard: (inode, time)} of its finished shards)."""
    work = directory / '.work'
    if (directory / 'meta.json').exists() and not work.exists():
        return 'after the end', {}
    shards = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in work.glob('*') if p.name.isdigit()}
    stages = {
        'while publishing': (directory / 'train.bin').exists(),
        'while joining': (work / 'result').exists(),
        'while making shards': (work / 'shared').exists(),
        'while learning the vocabulary': (work / 'plan.json').exists(),
    }
    return next((stage for stage, reached in stages.items() if reached), 'while starting'), shards


def files(directory):
    return {
        p.name: p.read_bytes() for p in directory.iterdir() if p.is_file() and not p.name.startswith('report')
    }


if __name__ == '__main__':
    main()
