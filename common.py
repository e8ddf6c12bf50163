"""What every script needs: errors a user sees, progress, sizes and durations for people to read."""

import hashlib
import importlib
import os
import sys
import traceback


class UserError(SystemExit):
    """The end of a program by a mistake of its user, or by a file. str() of it is the message."""

    code = 2


def fail(message, mine=False):
    """End the program with one line on stderr and exit code 2; DEBUG=1 in the environment shows where it was.

    mine: only this process found the mistake. Others are found by all of torchrun's processes and said once a machine.
    """
    if os.environ.get('DEBUG'):
        traceback.print_exc() if sys.exc_info()[0] else traceback.print_stack()
    if mine or os.environ.get('LOCAL_RANK', '0') == '0':
        print(f'error: {message}', file=sys.stderr, flush=True)
    raise UserError(message)


def reason(e):
    """An exception in one line: what the system says, else the first line of its text, else its type."""
    text = str(getattr(e, 'strerror', None) or e).strip()
    return text.splitlines()[0] if text else type(e).__name__


def need(module, package=''):
    """Import a module of an optional package, or end the program saying how to get it. package: its name where that differs."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = package or module.partition('.')[0]
        fail(f'this needs the package {package}: pip install {package}')


def sha256(path):
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def size(n, billion='B'):
    """A count for people to read: 950, 12.4K, 124M, 1.56B. Bytes and FLOPs have 'G' for a billion."""
    for unit, name in ((1e15, 'P'), (1e12, 'T'), (1e9, billion), (1e6, 'M'), (1e3, 'K')):
        if n >= unit * 0.9995:  # 999,999 is 1M, not 1e+03K
            return f'{float(f"{n / unit:.3g}"):g}{name}'
    return f'{n:.0f}'


def clock(seconds):
    """A duration for people to read: 8s, 2m05s, 1h10m, 3d04h."""
    s = int(seconds + 0.5)
    for unit, part, names in ((86400, 3600, 'dh'), (3600, 60, 'hm'), (60, 1, 'ms')):
        if s >= unit:
            return f'{s // unit}{names[0]}{s % unit // part:02d}{names[1]}'
    return f'{s}s'


def progress(label, total, unit):
    """A tqdm to update() with what has been done: a bar on a terminal, a plain line every ten seconds in a log file.

    total may be 0 where it is not known; unit is what is counted, as in 'B' or 'tok'.
    """
    from tqdm import tqdm

    looks = dict(desc=label, total=total or None, unit=unit, unit_scale=True, leave=False)
    if sys.stderr.isatty():
        return tqdm(**looks, dynamic_ncols=True)
    lines = '{desc}: {percentage:.0f}% ' if total else '{desc}: '
    lines += '{n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left' if total else '{n_fmt}, {rate_fmt}'
    return tqdm(**looks, bar_format=lines, mininterval=10, miniters=1, delay=10, file=PlainLines())


class PlainLines:
    """stderr for tqdm where it is no terminal: each redrawing of the bar becomes a line of its own."""

    def write(self, text):
        if text.strip():
            print(text.strip(), file=sys.stderr)

    def flush(self):
        sys.stderr.flush()


def mix(x):
    """A 64-bit hash of each element of a uint64 array (the finaliser of splitmix64, Steele et al. 2014)."""
    import numpy as np  # not needed by --help

    x = x + np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
