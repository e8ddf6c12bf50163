"""Measuring whole commands, and what is compared by turns: machines drift, so that only what was measured side by side counts."""

import os
import statistics
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import psutil

from common import clock, fail


def take_turns(title, unit, sides, rounds):
    """Run each side (name -> function that returns a figure) `rounds` times in turn and print medians and ratios."""
    figures = {name: [] for name in sides}
    for turn in range(rounds):
        for name, run in sides.items():
            began = time.time()
            figures[name].append(run())
            print(
                f'  round {turn + 1}: {name} {figures[name][-1]:,.1f} {unit} in {clock(time.time() - began)}',
                file=sys.stderr,
            )
    print(f'{title}, {unit}, median of {rounds} (lowest to highest)')
    base = next((name for name in sides if not name.startswith('barelm')), None)
    for name, values in figures.items():
        line = f'  {name:38} {statistics.median(values):>10,.1f} ({min(values):,.1f} to {max(values):,.1f})'
        if base and name != base:
            ratios = [ours / theirs for ours, theirs in zip(values, figures[base], strict=True)]
            line += f'   {statistics.median(ratios):.2f} x {base.partition(",")[0]}'
        print(line, flush=True)


def run_script(script, cwd, *words, **flags):
    """Run a script with --name=value flags -> its stdout; ends the program with its last words if it fails."""
    command = [sys.executable, str(script), *words, *(f'--{name}={value}' for name, value in flags.items())]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        fail(f'{" ".join(command)} failed: {(done.stderr.strip() or done.stdout).splitlines()[-1]}')
    return done.stdout


def run_measuring_memory(command, cwd):
    """Run a Python script to its end -> the highest sum of the resident memory of it and its children, in bytes."""
    peak, finished = 0, threading.Event()
    environment = {
        'HF_HOME': str(cwd / f'cache-{time.time()}')
    }  # datasets would find its last result in a cache
    process = psutil.Popen(
        [sys.executable, *map(str, command)], cwd=cwd, env=os.environ | environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def watch():
        nonlocal peak
        while not finished.wait(0.1):
            try:
                peak = max(
                    peak, sum(p.memory_info().rss for p in [process, *process.children(recursive=True)])
                )
            except psutil.Error:
                pass  # a child ended while it was looked at

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, errors = process.communicate()
    finished.set()
    watcher.join()
    if process.returncode:
        fail(f'{" ".join(map(str, command))} failed: {errors.strip().splitlines()[-1]}')
    return peak


def some_sources(megabytes):
    """Python source files of this machine until there are `megabytes` of them."""
    total = 0
    for root in (sysconfig.get_paths()['stdlib'], sysconfig.get_paths()['purelib']):
        for file in sorted(Path(root).rglob('*.py')):
            if total < megabytes * 1e6:
                total += file.stat().st_size
                yield file
