"""Measuring whole commands side by side: machines drift, so only figures taken in turns, in one run, are compared."""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import psutil

from common import clock, fail

ROOT = Path(__file__).parent.parent.resolve()


def run_parts(what, parts, nanogpt):
    """Run the named parts of a benchmark (all, where none is named), each with an empty directory to work in."""
    if unknown := [name for name in what if name not in parts]:
        fail(f'{unknown[0]!r} is none of {", ".join(parts)}')
    if nanogpt and not Path(nanogpt, 'train.py').exists():
        fail(f'there is no nanoGPT checkout in {nanogpt}')
    for name in what or parts:
        with tempfile.TemporaryDirectory() as work:
            parts[name](Path(work))


def take_turns(title, unit, sides, rounds):
    """Run each side (name -> function that returns a figure) once a round; print medians, ranges and ratios to the first peer."""
    figures = {name: [] for name in sides}
    for turn in range(rounds):
        for name, run in sides.items():
            start = time.time()
            figures[name].append(run())
            took = clock(time.time() - start)
            print(f'  round {turn + 1}: {name} {figures[name][-1]:,.1f} {unit} in {took}', file=sys.stderr)
    print(f'{title}, {unit}, median of {rounds} (lowest to highest)')
    peer = next((name for name in sides if not name.startswith('barelm')), None)
    for name, values in figures.items():
        line = f'  {name:38} {statistics.median(values):>10,.1f} ({min(values):,.1f} to {max(values):,.1f})'
        if peer and name != peer:
            ratios = [value / base for value, base in zip(values, figures[peer], strict=True)]
            line += f'   {statistics.median(ratios):.2f} x {peer.partition(",")[0]}'
        print(line, flush=True)


def run_script(cwd, script, *words, measure_memory=False, env=None, **flags):
    """Run a Python script with --name=value flags -> its stdout, its seconds, and the peak_memory of it and its children in bytes.

    A script that fails ends the program with its last line.
    """
    command = [sys.executable, script, *words, *(f'--{name}={value}' for name, value in flags.items())]
    command, start, peak = list(map(str, command)), time.perf_counter(), 0
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = psutil.Popen(command, cwd=cwd, env=os.environ | (env or {}), **pipes)
    while True:
        try:
            stdout, stderr = process.communicate(timeout=0.1 if measure_memory else None)
            break
        except subprocess.TimeoutExpired:
            with contextlib.suppress(psutil.Error):  # a child may end meanwhile
                tree = [process, *process.children(recursive=True)]
                peak = max(peak, sum(p.memory_info().rss for p in tree))
    if process.returncode:
        fail(f'{" ".join(command)} failed: {(stderr.strip() or stdout.strip()).rpartition(chr(10))[2]}')
    return SimpleNamespace(stdout=stdout, seconds=time.perf_counter() - start, peak_memory=peak)
