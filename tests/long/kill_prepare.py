"""prepare.py killed twenty times at random moments and restarted by the same command must write the same bytes.

    python tests/long/kill_prepare.py                # some minutes
    python tests/long/kill_prepare.py --num_proc=4   # with flags of prepare.py

The corpus is Python's standard library. The moments are spread over the whole run, so that every stage is hit.
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
KILLS_PER_RUN = 4  # at most, before a run is left to finish


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
        for _ in range(KILLS_PER_RUN):
            process = start(where, name)
            wait_a_while(process, random.uniform(0.5, 0.9 * seconds))
            process.kill()
            if process.wait() != -signal.SIGKILL:  # it had finished
                break
            killed += 1
            stage, now = state(where / 'data' / name)
            again = sum(finished[shard] != now.get(shard, finished[shard]) for shard in finished)
            print(
                f'{name}: killed {stage}; {len(now)} finished shards, {again} of the earlier ones made again'
            )
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
    """Wait for so many seconds or until the process ends."""
    end = time.time() + seconds
    while time.time() < end and process.poll() is None:
        time.sleep(0.001)


def state(directory):
    """(the stage a run is in, {shard: (inode, time)} of its finished shards)."""
    work = directory / '.work'
    if (directory / 'meta.json').exists() and not work.exists():
        return 'after the end', {}
    shards = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in work.glob('*') if p.name.isdigit()}
    stages = {
        'while publishing': (directory / 'train.bin').exists(),
        'while writing the splits': (work / 'result').exists(),
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
