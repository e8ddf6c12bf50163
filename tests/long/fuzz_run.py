"""Fuzzing train.py: 500 malformed checkpoints, token files, meta files and settings must end in one line or train correctly.

    python tests/long/fuzz_run.py                    # some minutes
    python tests/long/fuzz_run.py 100                # so many

Half of the damaged checkpoints get new checksums, like one that a person edited. Code hidden in a pickle creates a file
if it is run.
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

sys.path.insert(0, str(Path(__file__).parent.parent))
from conftest import TINY, run, settings_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import train
from configurator import own_settings
from model import ARCHITECTURES

SHORT = f'{TINY} --eval_interval=2 --eval_iters=1 --keep=2 --out_dir=out'
UNEXPECTED = [
    None, True, -1, 0, 1, 3, 2**40, 10**30, 1.5, -0.5, float('nan'), float('inf'), '', 'x', 'gpt2', [], [1], {}, {'a': 1},
]  # fmt: skip
outcomes = {}


class Trap:  # a pickle that runs code
    def __reduce__(self):
        return Path.touch, (Path('executed'),)


def main(examples):
    os.chdir(tempfile.mkdtemp(prefix='fuzz-run-'))
    torch.set_num_threads(1)
    files = f'--files={Path(json.__file__).parent}/*.py'
    run(['prepare.py', 'tiny', files, '--tokenizer=byte', '--val_fraction=0.2'], '.')
    kind, end = attempt(f'{SHORT} --max_iters=4')
    assert kind == 'trained', end
    for path in ('data', 'out'):
        shutil.copytree(path, f'good-{path}')
    kind, weights = attempt(f'{SHORT} --max_iters=6 --init_from=resume')
    assert kind == 'trained'
    for damage, part in (
        (damage_checkpoint, 0.4),
        (damage_tokens, 0.15),
        (damage_meta, 0.2),
        (damage_settings, 0.25),
    ):
        fuzz(damage, weights, round(examples * part))
    counts = ', '.join(f'{n} {what}' for what, n in sorted(outcomes.items()))
    print(f'{sum(outcomes.values())} runs: {counts}')


def fuzz(damage, weights, examples):
    @settings(max_examples=examples, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test(data):
        check(damage, data, weights)

    test()


def check(damage, data, weights):
    for path in ('data', 'out'):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(f'good-{path}', path)
    flags, detectable = damage(data.draw)
    kind, end = attempt(f'{SHORT} --max_iters=6 {flags}' if isinstance(flags, str) else SHORT.split() + flags)
    assert not Path('executed').exists(), 'the pickle was executed'
    if kind == 'trained' and detectable:  # then the damaged checkpoint was skipped
        assert end == weights, 'another result without a message'
    outcomes[f'{damage.__name__} {kind}'] = outcomes.get(f'{damage.__name__} {kind}', 0) + 1


def attempt(flags):
    """Train in this process -> ('trained', hash of the weights) or ('refused', line); AssertionError for anything else."""
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


def damaged_bytes(draw, content):
    """The bytes of a file cut short, changed in a few places, or replaced by noise or a pickle."""
    how = draw(st.sampled_from(('cut', 'change', 'noise', 'pickle')))
    if how == 'cut':
        return content[: draw(st.integers(0, max(0, len(content) - 1)))]
    if how == 'noise':
        return draw(st.binary(max_size=200))
    if how == 'pickle':
        return pickle.dumps(Trap())
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        changed[draw(st.integers(0, len(content) - 1))] ^= draw(st.integers(1, 255))
    return bytes(changed)


def damaged_json(draw, text):
    """A JSON object with one value, at any depth, removed or replaced by an unexpected one."""
    top = parent = json.loads(text)
    key = draw(st.sampled_from(sorted(parent)))
    while isinstance(parent[key], dict) and parent[key] and draw(st.booleans()):
        parent = parent[key]
        key = draw(st.sampled_from(sorted(parent)))
    if draw(st.booleans()):
        parent[key] = draw(st.sampled_from(UNEXPECTED))
    else:
        del parent[key]
    return json.dumps(top)


def damage_checkpoint(draw):
    """Damage a file of the newest of two checkpoints, for half of the cases with new checksums."""
    where = Path('out/step-00000004')
    path = where / draw(st.sampled_from(sorted(p.name for p in where.iterdir())))
    if path.suffix == '.json' and path.name != 'tokenizer.json' and draw(st.booleans()):
        path.write_text(damaged_json(draw, path.read_text()))
    elif path.name == 'optimizer.pt' and draw(st.booleans()):
        saved = torch.load(path, weights_only=True)
        states = saved['optimizers'][0]['state']
        states[draw(st.sampled_from(sorted(states)))] = draw(
            st.sampled_from([{}, {'exp_avg': torch.zeros(3)}, Trap()])
        )
        torch.save(saved, path)
    else:
        path.write_bytes(damaged_bytes(draw, path.read_bytes()))
    new_checksums = draw(st.booleans()) and path.name != 'SHA256SUMS'
    if new_checksums:
        files = [p for p in where.iterdir() if p.name != 'SHA256SUMS']
        lines = [f'{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n' for p in files]
        (where / 'SHA256SUMS').write_text(''.join(lines))
    return '--init_from=resume', not new_checksums


def damage_tokens(draw):
    path = Path('data/tiny', draw(st.sampled_from(['train.bin', 'val.bin', 'tokenizer.json'])))
    path.write_bytes(damaged_bytes(draw, path.read_bytes()))
    return '--verify_data=' + str(draw(st.booleans())), False


def damage_meta(draw):
    path = Path('data/tiny/meta.json')
    if draw(st.integers(0, 3)):
        path.write_text(damaged_json(draw, path.read_text()))
    else:
        path.write_bytes(damaged_bytes(draw, path.read_bytes()))
    return draw(st.sampled_from(['', '--init_from=resume', '--verify_data=True'])), False


def damage_settings(draw):
    """Write a config file with unexpected values of a few settings, or of noise."""
    if not draw(st.integers(0, 4)):
        Path('odd.py').write_bytes(draw(st.binary(max_size=50)))
        return ['odd.py'], False
    left_out = ('out_dir', 'wandb_log', 'max_iters', 'dataset', 'compile')
    known = [name for name in own_settings(vars(train)) if name not in left_out]
    names = draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=3, unique=True))
    values = [value for value in UNEXPECTED if value != 2**40] + sorted(ARCHITECTURES)
    chosen = [(name, draw(st.sampled_from(values))) for name in names]
    lines = [f'{name} = ' + (f"float('{v}')" if isinstance(v, float) else repr(v)) for name, v in chosen]
    Path('odd.py').write_text('max_iters = 3\n' + '\n'.join(lines))
    return ['odd.py'], False


if __name__ == '__main__':
    main(int(sys.argv[1]) if sys.argv[1:] else 500)
