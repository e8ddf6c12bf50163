"""train.py given 500 malformed checkpoints, token files, meta files and settings: each ends in one line or trains as it should.

    python tests/fuzz_run.py                         # or so many: python tests/fuzz_run.py 100

Not a test that pytest runs: it takes some minutes. Half of the spoilt checkpoints get new checksums, as one would that a
person edited; code that is hidden in a pickle leaves a file behind if it is run.
"""

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import torch
from conftest import TINY, run, settings_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import train
from model import ARCHITECTURES

SHORT = f'{TINY} --eval_interval=2 --eval_iters=1 --keep=2 --out_dir=out'
ODD = [
    None,
    True,
    -1,
    0,
    1,
    3,
    2**40,
    10**30,
    1.5,
    -0.5,
    float('nan'),
    float('inf'),
    '',
    'x',
    'gpt2',
    [],
    [1],
    {},
    {'a': 1},
]
outcomes = {}


class Trap:
    def __reduce__(self):
        return Path.touch, (Path('sprung'),)


def main(examples):
    os.chdir(tempfile.mkdtemp(prefix='fuzz-run-'))
    torch.set_num_threads(1)
    run(
        [
            'prepare.py',
            'tiny',
            f'--files={Path(json.__file__).parent}/*.py',
            '--tokenizer=byte',
            '--val_fraction=0.2',
        ],
        '.',
    )
    kind, end = attempt(f'{SHORT} --max_iters=4')
    assert kind == 'trained', end
    for path in ('data', 'out'):
        shutil.copytree(path, f'good-{path}')
    kind, weights = attempt(f'{SHORT} --max_iters=6 --init_from=resume')
    assert kind == 'trained'
    for spoil, share in (
        (spoil_checkpoint, 0.4),
        (spoil_tokens, 0.15),
        (spoil_meta, 0.2),
        (spoil_settings, 0.25),
    ):
        limits = settings(
            max_examples=round(examples * share), deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        fuzz(spoil, weights, limits)
    print(
        f'{sum(outcomes.values())} runs: ' + ', '.join(f'{n} {what}' for what, n in sorted(outcomes.items()))
    )


def fuzz(spoil, weights, limits):
    @limits
    @given(data=st.data())
    def test(data):
        one(spoil, data, weights)

    test()


def one(spoil, data, weights):
    for path in ('data', 'out'):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(f'good-{path}', path)
    flags, harmless = spoil(data.draw)
    kind, end = attempt(f'{SHORT} --max_iters=6 {flags}' if isinstance(flags, str) else SHORT.split() + flags)
    assert not Path('sprung').exists(), 'code was run'
    if kind == 'trained' and harmless:  # the damage was found and passed over
        assert end == weights, 'another result, and nothing was said'
    outcomes[f'{spoil.__name__} {kind}'] = outcomes.get(f'{spoil.__name__} {kind}', 0) + 1


def attempt(flags):
    """('trained', hash of the weights) or ('refused', line) of a run in this process; AssertionError for anything else."""
    out, err = io.StringIO(), io.StringIO()
    hook = sys.excepthook
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with settings_of(train, flags) as chosen:
                train.main(chosen)
        except SystemExit as e:
            lines = [line for line in err.getvalue().splitlines() if not line.startswith('passed over')]
            assert e.code == 2 and len(lines) == 1 and lines[0].startswith('error: '), (flags, err.getvalue())
            return 'refused', lines[0]
        except BaseException:
            raise AssertionError((flags, traceback.format_exc())) from None
        finally:
            sys.excepthook = hook
    paths = sorted(Path('out').glob('step-*/model.safetensors'))
    return 'trained', hashlib.sha256(paths[-1].read_bytes()).hexdigest() if paths else ''


def spoilt_bytes(draw, whole):
    """A file cut off, changed in a few places, replaced by noise or a pickle, or emptied."""
    how = draw(st.sampled_from(('cut', 'change', 'noise', 'pickle')))
    if how == 'cut':
        return whole[: draw(st.integers(0, max(0, len(whole) - 1)))]
    if how == 'noise':
        return draw(st.binary(max_size=200))
    if how == 'pickle':
        return pickle.dumps(Trap())
    changed = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        changed[draw(st.integers(0, len(whole) - 1))] ^= draw(st.integers(1, 255))
    return bytes(changed)


def spoilt_json(draw, text):
    """A value of a JSON object, at any depth, replaced by an odd one or gone."""
    top = json.loads(text)
    inside = top
    while True:
        key = draw(st.sampled_from(sorted(inside)))
        if not (isinstance(inside[key], dict) and inside[key] and draw(st.booleans())):
            break
        inside = inside[key]
    if draw(st.booleans()):
        inside[key] = draw(st.sampled_from(ODD))
    else:
        del inside[key]
    return json.dumps(top)


def spoil_checkpoint(draw):
    """The newest of two; resealed, its checksums fit."""
    where = Path('out/step-00000004')
    path = where / draw(st.sampled_from(sorted(p.name for p in where.iterdir())))
    if path.suffix == '.json' and path.name != 'tokenizer.json' and draw(st.booleans()):
        path.write_text(spoilt_json(draw, path.read_text()))
    elif path.name == 'optimizer.pt' and draw(st.booleans()):
        saved = torch.load(path, weights_only=True)
        states = saved['optimizers'][0]['state']
        states[draw(st.sampled_from(sorted(states)))] = draw(
            st.sampled_from([{}, {'exp_avg': torch.zeros(3)}, Trap()])
        )
        torch.save(saved, path)
    else:
        path.write_bytes(spoilt_bytes(draw, path.read_bytes()))
    resealed = draw(st.booleans()) and path.name != 'SHA256SUMS'
    if resealed:
        sums = [
            (p.name, hashlib.sha256(p.read_bytes()).hexdigest())
            for p in where.iterdir()
            if p.name != 'SHA256SUMS'
        ]
        (where / 'SHA256SUMS').write_text(''.join(f'{digest}  {name}\n' for name, digest in sums))
    return '--init_from=resume', not resealed


def spoil_tokens(draw):
    path = Path('data/tiny', draw(st.sampled_from(['train.bin', 'val.bin', 'tokenizer.json'])))
    path.write_bytes(spoilt_bytes(draw, path.read_bytes()))
    return '--verify_data=' + str(draw(st.booleans())), False


def spoil_meta(draw):
    path = Path('data/tiny/meta.json')
    if draw(st.integers(0, 3)):
        path.write_text(spoilt_json(draw, path.read_text()))
    else:
        path.write_bytes(spoilt_bytes(draw, path.read_bytes()))
    return draw(st.sampled_from(['', '--init_from=resume', '--verify_data=True'])), False


def spoil_settings(draw):
    """Odd values for a few settings, in a config file or as flags; or a file of noise."""
    if not draw(st.integers(0, 4)):
        Path('odd.py').write_bytes(draw(st.binary(max_size=50)))
        return ['odd.py'], False
    own = [
        name
        for name in chosen_names()
        if name not in ('out_dir', 'wandb_log', 'max_iters', 'dataset', 'compile')
    ]
    names = draw(st.lists(st.sampled_from(own), min_size=1, max_size=3, unique=True))
    odd = [value for value in ODD if value != 2**40] + sorted(ARCHITECTURES)
    lines = [
        f'{name} = {draw(st.sampled_from(odd))!r}'.replace('nan', "float('nan')").replace(
            'inf', "float('inf')"
        )
        for name in names
    ]
    Path('odd.py').write_text('max_iters = 3\n' + '\n'.join(lines))
    return ['odd.py'], False


def chosen_names():
    from configurator import own_settings

    return sorted(own_settings(vars(train)))


if __name__ == '__main__':
    main(int(sys.argv[1]) if sys.argv[1:] else 500)
