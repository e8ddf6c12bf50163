"""Parallel preparation: processes of this machine, ranks of torchrun or Slurm, or the workers of a Ray cluster make shards.

They communicate through files only. If two of them begin the same shard at the same time, it does no harm.
"""

import contextlib
import os
import signal
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait as wait_for
from pathlib import Path

from common import fail, need, progress, reason
from corpus import shard

# Under torchrun and Slurm every process runs prepare.py; rank 0 does what is done once, the others wait for its files.
RANK = int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0)))
WORLD_SIZE = int(os.environ.get('WORLD_SIZE', os.environ.get('SLURM_NTASKS', 1)))
STARTED = time.time()


def wait_for_rank_0(is_done, directory):
    """Wait for what rank 0 writes into a directory. This process ends if rank 0 has finished the data set without it."""
    published = directory.parent / 'meta.json'
    while not is_done():
        if published.exists() and published.stat().st_mtime > STARTED:
            raise SystemExit(0)
        time.sleep(0.2)


def cores():
    """The cores of each process of this machine, of which several may run prepare.py."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return max(1, count // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))


def make_shards(units, job, sizes, num_proc, ray):
    """Make the shard of every unit that has none, in num_proc processes or on the Ray cluster at an address.

    sizes: bytes of each input. Ranks take the units in turn; rank 0 waits for all. Progress is read from the disk.
    """
    directory = Path(job['directory'])
    lengths = [sum((stop or sizes[path]) - start for path, start, stop in unit) for unit in units]
    done = {int(path.name) for path in shard.finished(directory)}
    mine = [number for number in range(RANK, len(units), WORLD_SIZE) if number not in done]
    workers = run_on_ray(units, mine, job, ray) if ray else run_processes(units, mine, job, num_proc)
    with progress('preparing', sum(lengths), 'B') as bar, contextlib.closing(workers):
        for _ in workers:
            bar.update(bytes_done(directory, lengths) - bar.n)
        while RANK == 0 and len(shard.finished(directory)) < len(units):
            bar.update(bytes_done(directory, lengths) - bar.n)
            time.sleep(1)


def run_processes(units, numbers, job, num_proc):
    """Make shards in num_proc processes. Yields every second and whenever one is finished."""
    # spawned, not forked: a fork of a process with threads can hang
    pool = ProcessPoolExecutor(max(1, min(num_proc, len(numbers))), get_context('spawn'), start_worker)
    try:
        running = {pool.submit(shard.make, n, units[n], job) for n in numbers}
        while running:
            finished, running = wait(running, timeout=1, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
            yield
    except BaseException:  # an error, Ctrl-C, or the generator is closed: do not wait for running units
        for child in active_children():
            child.terminate()
        raise
    finally:  # the pool's thread must have ended before Python does
        pool.shutdown(cancel_futures=True)


def start_worker():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # the processes are the parallelism
    os.environ['LOCAL_RANK'] = '0'  # so that fail() prints: no other process knows of a worker's error
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    """End a worker whose main process was killed: it would wait for its next task forever."""
    wait_for([parent_process().sentinel])
    os._exit(1)


def run_on_ray(units, numbers, job, address):
    """Make shards on a Ray cluster that shares this directory. Ray repeats tasks whose machine or process died."""
    cluster = need('ray')
    try:
        cluster.init(address=address, log_to_driver=False, logging_level='ERROR')
    except Exception as e:
        fail(f'cannot reach the Ray cluster {address}: {reason(e)}')
    task = cluster.remote(max_retries=3, num_cpus=1)(make_or_report)
    running = [task.remote(os.getcwd(), number, units[number], job) for number in numbers]
    while running:
        finished, running = cluster.wait(running, timeout=1)
        try:
            for error in cluster.get(finished):
                if error:
                    fail(error)
        except (cluster.exceptions.WorkerCrashedError, cluster.exceptions.OutOfMemoryError) as e:
            raise BrokenProcessPool from e
        yield
    cluster.shutdown()


def make_or_report(directory, number, unit, job):
    """Make a shard -> '' or the message of fail(): Ray takes a task that exits for a crashed worker."""
    os.chdir(directory)  # where relative paths are valid
    try:
        shard.make(number, unit, job)
    except SystemExit as e:
        return str(e)
    return ''


def bytes_done(directory, lengths):
    """Bytes of input in finished shards, and read so far for unfinished ones."""
    done = 0
    for path in directory.glob('[0-9]*'):
        if path.name.isdigit():
            done += lengths[int(path.name)]
        else:
            with contextlib.suppress(OSError):  # not begun, or just finished
                done += int((path / 'progress').read_text() or 0)
    return done
