"""Checkpoints: a checkpoint is a directory OUT_DIR/step-00001000/ that needs nothing else to be used.

    model.safetensors  config.json     the model
    tokenizer.json or tokenizer.txt    its vocabulary; tokenizer_config.json, of conversations, the chat template
    optimizer.pt                       optimizer and gradient scaler, tensors only
    state.json                         step, losses, settings, vocabulary
    SHA256SUMS                         of all of these, as `sha256sum -c SHA256SUMS` reads it; written last

Written under a hidden name and renamed when complete, read only if its checksums still fit: at every instant an intact
one is in its place. What it holds may come from anybody: nothing in it is run.
"""

import json
import math
import os
import re
import shutil
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError

import tokenizer
from common import fail, reason, sha256
from infra import mesh
from infra.runtime import run_on_rank0
from model import Transformer
from pretrained import PRETRAINED

SUMS = 'SHA256SUMS'
FILES = ('config.json', 'model.safetensors', 'optimizer.pt', 'state.json')  # that each has

# What is read of state.json, and of which type; val_loss is None where it was not evaluated.
NUMBER = (int, float, type(None))
STATE = dict(step=int, best_step=int, rows=int, rows_skipped=int, val_loss=NUMBER, best_val_loss=NUMBER)
STATE |= dict(run=str, tokenizer_hash=str, settings=dict, mixture=dict, data_hash=dict)


class Saver:
    """Checkpoints written in the background by rank 0 while training goes on, one after the other."""

    def __init__(self, log):
        self.log, self.executor, self.writing = log, ThreadPoolExecutor(1), None

    def save(self, out_dir, state, model, optimizers, scaler, vocabulary_dir, keep=1):
        """Copy weights and optimizers and start to write them, when the write before is done. All processes take part."""
        self.wait()
        copies = gather(model, optimizers, scaler)
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            self.writing = self.executor.submit(save, out_dir, state, model, copies, vocabulary_dir, keep)

    def failed(self):
        """Whether the last write has failed, without waiting for it; says so if it succeeded."""
        if self.writing and self.writing.done() and not self.writing.exception():
            self.finish()
        return bool(self.writing and self.writing.done())

    def wait(self):
        """Wait for the last write and say where it is; ends the program, in all processes, if it failed."""
        run_on_rank0(self.finish)

    def finish(self):
        writing, self.writing = self.writing, None
        try:
            if writing:
                self.log(f'saved {writing.result()}')
        except OSError as e:
            fail(e)


def gather(model, optimizers, scaler):
    """What `save` writes, as copies on rank 0: weights, optimizers and scaler. All processes take part."""
    states = [mesh.full_optimizer_state(optimizer) for optimizer in optimizers]
    return mesh.full_weights(model), dict(optimizers=states, scaler=scaler.state_dict())


def save(out_dir, state, model, gathered, vocabulary_dir, keep=1):
    """Write the checkpoint of state['step'], then delete all but the `keep` newest and the best -> its path.

    Raises OSError where that cannot be done, and leaves nothing of it.
    """
    weights, tensors = gathered
    final = Path(out_dir, f'step-{state["step"]:08d}')
    partial = Path(out_dir, f'.{final.name}.partial')
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model.save(partial, weights)
        for name in ('tokenizer.json', 'tokenizer.txt', 'tokenizer_config.json'):
            if Path(vocabulary_dir, name).exists():
                shutil.copyfile(Path(vocabulary_dir, name), partial / name)
        torch.save(tensors, partial / 'optimizer.pt')
        (partial / 'state.json').write_text(json.dumps(state, indent=2) + '\n')
        write_checksums(partial)
        for path in (*partial.iterdir(), partial):
            fsync(path)
        # an earlier run's, or one that is evaluated only now: it stays in sight until the new one is
        if final.exists():
            remove(old := final.with_suffix('.old'))
            final.rename(old)
        partial.rename(final)
        fsync(out_dir)
        prune(out_dir, final, state['run'], keep)
    # a full disk is a RuntimeError to torch and a SafetensorError to safetensors
    except (OSError, RuntimeError, SafetensorError) as e:
        shutil.rmtree(partial, ignore_errors=True)
        why = reason(e) if isinstance(e, OSError) else f'the disk is full or fails ({reason(e)})'
        raise OSError(f'cannot write the checkpoint {final}: {why}; those before it are intact') from e
    return final


def write_checksums(path):
    """Write the SHA256SUMS of a directory."""
    files = sorted(file for file in Path(path).iterdir() if file.name != SUMS)
    Path(path, SUMS).write_text(''.join(f'{sha256(file)}  {file.name}\n' for file in files))


def prune(out_dir, newest, run, keep):
    """Delete all but the `keep` newest of a run and its best; also those of steps that a rollback has undone."""
    states = {path: state for path in list_checkpoints(out_dir) if (state := readable_state(path))}
    own = [path for path in states if states[path]['run'] == run and path <= newest]
    kept = {*own[-keep:], min(reversed(own), key=lambda path: loss_of(states[path]))}
    for path in states.keys() - kept:  # an earlier run's as well, once this one has something to show
        remove(path)


def remove(path):
    """Delete a checkpoint if it is there; hidden first, so that one half deleted is never taken for one."""
    if path.exists():
        hidden = path.with_name(f'.{path.name}.deleted')
        shutil.rmtree(hidden, ignore_errors=True)  # left by a kill
        path.rename(hidden)
        shutil.rmtree(hidden)


def fsync(path):
    """Have a file, or a directory's entries, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_checkpoints(out_dir, run=None):
    """All checkpoints of a directory, or of one run in it, oldest first, intact or not.

    One that ends in .old is about to be replaced by another of its step.
    """
    found = [p for p in Path(out_dir).glob('step-*') if re.fullmatch(r'step-\d{8}(\.old)?', p.name)]
    found.sort(key=lambda path: (path.stem, not path.suffix))
    return [path for path in found if run is None or (readable_state(path) or {}).get('run') == run]


def find_damage(path, but=()):
    """What is wrong with a checkpoint, in a few words; '' if all its files but some are what was written."""
    try:
        lines = Path(path, SUMS).read_text().splitlines()
        sums = {name: digest for digest, name in (line.split('  ') for line in lines)}
        if any(name != Path(name).name for name in sums):  # it leads out of the directory
            return f'{SUMS} is damaged'
        for name in (*FILES, *sums):
            if name not in but and sha256(Path(path, name)) != sums.get(name):
                return f'{name} is not what {SUMS} says'
    except OSError as e:
        return f'{Path(e.filename or path).name}: {reason(e)}'
    except ValueError:
        return f'{SUMS} is damaged'
    return '' if readable_state(path) else 'state.json is damaged'


def warn(line):
    print(line, file=sys.stderr, flush=True)


def first_intact(paths, out_dir, but=(), log=warn):
    """The first of some checkpoints that is intact, naming those passed over; ends the program if none is."""
    damaged = []
    for path in paths:
        if not (wrong := find_damage(path, but)):
            for line in damaged:
                log(f'passed over {line}')
            return path
        damaged.append(f'{path}, which is damaged: {wrong}')
    if damaged:
        fail(f'no checkpoint in {out_dir} is intact: ' + '; '.join(damaged))
    fail(f'there is no checkpoint in {out_dir}; train one first, or name another --out_dir')


def latest(out_dir, run=None, log=warn):
    """The newest intact checkpoint of a directory, or of one run in it; ends the program if there is none."""
    return first_intact(reversed(list_checkpoints(out_dir, run)), out_dir, log=log)


def best(out_dir):
    """The intact checkpoint with the lowest validation loss; the newest if none was evaluated. A checkpoint is its own best."""
    if Path(out_dir, 'state.json').exists():
        paths = [Path(out_dir)]
    else:  # those that cannot be read come first, and are named
        states = {path: readable_state(path) for path in reversed(list_checkpoints(out_dir))}
        paths = sorted(states, key=lambda path: loss_of(states[path]) if states[path] else -math.inf)
    return first_intact(paths, out_dir, but=('optimizer.pt',))  # which may be deleted


def loss_of(state):
    """The validation loss of a checkpoint, infinite if it has none."""
    loss = state['val_loss']
    return loss if loss is not None and math.isfinite(loss) else math.inf


def readable_state(path):
    """state.json of a checkpoint as a dict, None if it is damaged."""
    try:
        state = json.loads(Path(path, 'state.json').read_text())
        intact = all(isinstance(state[name], kind) for name, kind in STATE.items())
        intact &= all(0 <= state[name] < 2**40 for name, kind in STATE.items() if kind is int)
        intact &= all(re.fullmatch(r'\d{1,20}(/[1-9]\d{0,19})?', x) for x in state['mixture'].values())
        return state if intact else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def read_state(path):
    """state.json of a checkpoint as a dict; ends the program if it is damaged."""
    return readable_state(path) or fail(f'the checkpoint {path} is damaged: state.json')


def resolve(init_from, out_dir):
    """The checkpoint that init_from means: the best of out_dir for 'resume', or of the run it names; None if it is no run."""
    if init_from == 'resume':
        return best(out_dir)
    is_run = list_checkpoints(init_from) or Path(init_from, 'state.json').exists()
    return best(init_from) if is_run else None


def load(init_from, out_dir):
    """(model, vocabulary) of what init_from means."""
    source = resolve(init_from, out_dir) or init_from
    return load_model(source), load_vocabulary(source)


def load_vocabulary(source):
    """The vocabulary that belongs to a checkpoint, to a pretrained name, or to a directory that transformers saved."""
    if source in PRETRAINED and source.startswith('gpt2'):
        return tokenizer.load('gpt2')
    return tokenizer.load(str(PRETRAINED.get(source, source)))


def load_model(source, **overrides):
    """`Transformer.from_pretrained`, ending the program with one line where that raises."""
    try:
        return Transformer.from_pretrained(source, **overrides)
    # a config.json may say anything
    except (ValueError, OSError, RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError) as e:
        fail(f'cannot load the model {source}: {" ".join(str(e).split())[:500]}')


def load_optimizers(path, optimizers, scaler):
    """Put the optimizers and the scaler back into the state they had; ends the program if the file does not fit."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about pickles that torch has not written
            # mapped, not read: a process may need but a part
            saved = torch.load(Path(path, 'optimizer.pt'), map_location='cpu', weights_only=True, mmap=True)
        for optimizer, state in zip(optimizers, saved['optimizers'], strict=True):
            chosen = [{k: v for k, v in group.items() if k != 'params'} for group in optimizer.param_groups]
            optimizer.load_state_dict(mesh.sharded_optimizer_state(state, optimizer))
            for group, settings in zip(optimizer.param_groups, chosen, strict=True):
                group |= settings  # those of this command, not of the one that saved
            for p, values in optimizer.state.items():  # which torch leaves unchecked
                if any(value.dim() and value.shape != p.shape for value in values.values()):
                    raise ValueError('its tensors have other shapes than the weights')
        if saved['scaler']:  # empty unless both runs are in fp16
            scaler.load_state_dict(saved['scaler'])
    # a damaged zip file, a foreign pickle, tensors of other shapes: many types, one meaning
    except Exception as e:
        # torch advises to load without the protection
        why = 'it is no file of tensors' if 'weights_only' in str(e) else reason(e)[:200]
        fail(f'cannot load {path}/optimizer.pt: {why}')
