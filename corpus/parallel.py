"""Who makes the shards: processes of this machine, ranks of torchrun or Slurm, the workers of a Ray cluster.

They need no other word between them than the files they write: a shard that is there is whole, and none is made twice
but where two begin it at once, which does no harm.
"""

import contextlib
import io
import json
import os
import signal
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait as wait_for
from pathlib import Path

from common import fail, need, progress, reason
from corpus import shard

# Under torchrun and Slurm every process runs prepare.py; rank 0 does what is done once, the others wait for its files.
RANK = int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0)))
WORLD_SIZE = int(os.environ.get('WORLD_SIZE', os.environ.get('SLURM_NTASKS', 1)))
BEGAN = time.time()


def once(path, make):
    """Have rank 0 call make(a path beside it) unless the path is there; it appears, a file or a directory, when it is whole."""
    if not path.exists() and RANK == 0:
        partial = path.with_name(path.name + '.partial')
        make(partial)
        os.rename(partial, path)
    wait_for_rank_0(path.exists, path.parent)


def wait_for_rank_0(is_there, directory):
    """Wait for what rank 0 writes into a directory; this process is done if rank 0 has had all of it to do, and has done it."""
    published = directory.parent / 'meta.json'
    while not is_there():
        if published.exists() and published.stat().st_mtime > BEGAN:
            raise SystemExit(0)
        time.sleep(0.2)


def cores():
    """The cores that each process of this machine may use, if more than one runs prepare.py."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return max(1, count // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))


def make_shards(units, job, sizes, num_proc, ray):
    """Have the shard of every unit made that is not there, by num_proc processes or the Ray cluster at an address.

    sizes: bytes of each input. Ranks take the units in turn; rank 0 waits for all. Progress is read off the disk,
    whoever made it.
    """
    directory = Path(job['directory'])
    lengths = [sum((stop or sizes[path]) - start for path, start, stop in unit) for unit in units]
    missing = [n for n in range(len(units)) if not shard.path_of(directory, n).is_dir()]
    if job['max_documents']:  # one process, in order, until there are enough
        return make_first(units, job) if RANK == 0 else None
    mine = [n for n in missing if n % WORLD_SIZE == RANK]
    workers = by_ray(units, mine, job, ray) if ray else by_processes(units, mine, job, num_proc)
    with progress('preparing', sum(lengths), 'B') as bar, contextlib.closing(workers):
        for _ in workers:
            bar.update(bytes_done(directory, lengths) - bar.n)
        while RANK == 0 and not all(shard.path_of(directory, n).is_dir() for n in missing):
            bar.update(bytes_done(directory, lengths) - bar.n)
            time.sleep(1)


def make_first(units, job):
    """Shards of the first max_documents documents."""
    left = job['max_documents']
    with progress('preparing', left, ' docs') as bar:
        for number, unit in enumerate(units):
            if not left:
                break
            shard.make(number, unit, job | dict(max_documents=left))
            read = json.loads((shard.path_of(job['directory'], number) / 'report.json').read_text())[
                'documents'
            ]
            left -= read
            bar.update(read)


def by_processes(units, numbers, job, num_proc):
    """Make shards in num_proc processes; yields every second and whenever one is finished."""
    # spawned, not forked: a fork of a process that runs threads can hang
    pool = ProcessPoolExecutor(max(1, min(num_proc, len(numbers))), get_context('spawn'), start_worker)
    try:
        waiting, running = iter(numbers), set()
        while True:
            running |= {
                pool.submit(shard.make, n, units[n], job)
                for n in islice(waiting, 2 * num_proc - len(running))
            }
            if not running:
                return
            finished, running = wait(running, timeout=1, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
            yield
    except BaseException:  # an error, Ctrl-C, nobody asks any more: do not wait for the units under way
        for child in active_children():
            child.terminate()
        raise
    finally:  # its thread must be gone before Python ends, or may trip over that
        pool.shutdown(cancel_futures=True)


def start_worker():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # the processes are the parallelism
    os.environ['LOCAL_RANK'] = '0'  # what goes wrong here no other process knows: say it
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    """A worker whose main process was killed would wait for its next task forever."""
    wait_for([parent_process().sentinel])
    os._exit(1)


def by_ray(units, numbers, job, address):
    """Make shards on a Ray cluster that shares this directory; what fails by no fault of the data is tried again."""
    cluster = need('ray')
    here = dict(directory=os.path.abspath(job['directory']))
    try:
        cluster.init(address=address, log_to_driver=False, logging_level='ERROR')
    except Exception as e:
        fail(f'cannot reach the Ray cluster {address}: {reason(e)}')
    remote = cluster.remote(max_retries=3, num_cpus=1)(make_or_say)
    running = [remote.remote(n, absolute(units[n]), job | here) for n in numbers]
    while running:
        finished, running = cluster.wait(running, timeout=1)
        try:
            for said in cluster.get(finished):
                if said:
                    fail(said)
        except (cluster.exceptions.WorkerCrashedError, cluster.exceptions.OutOfMemoryError) as e:
            raise BrokenProcessPool from e
        yield
    cluster.shutdown()


def make_or_say(number, unit, job):
    """Make a shard -> '', or the line that its making ends with: to Ray, a task that exits is a machine that died."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            shard.make(number, unit, job)
        except SystemExit:
            return said.getvalue().strip().removeprefix('error: ')
    return ''


def absolute(unit):
    """The unit with paths that hold in any working directory."""
    return [(path if '://' in path else os.path.abspath(path), start, stop) for path, start, stop in unit]


def bytes_done(directory, lengths):
    """Bytes of the input that finished shards stand for, and those under way have read."""
    done = 0
    for path in directory.glob('[0-9]*'):
        if path.name.isdigit():
            done += lengths[int(path.name)]
        else:
            with contextlib.suppress(OSError):  # it may be finished by now
                done += int((path / 'progress').read_text() or 0)
    return done
