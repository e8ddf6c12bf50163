"""What lasts: a checkpoint is a directory OUT_DIR/step-00001000/ that needs nothing else to be used.

    model.safetensors  config.json     the model
    tokenizer.json or tokenizer.txt    its vocabulary
    optimizer.pt                       optimizer and gradient scaler, tensors only
    state.json                         step, losses, settings, vocabulary

It is written beside its place and renamed when complete: what bears the name is whole. The newest is kept and the best.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError

import tokenizer
from config import fail
from model import Transformer
from pretrained import PRETRAINED
from runtime import user_errors


def save(out_dir, state, model, optimizer, scaler, vocabulary_dir):
    """Write the checkpoint of state['step'], then delete those that are neither the newest nor the best -> its path."""
    final = Path(out_dir, f'step-{state["step"]:08d}')
    partial = Path(out_dir, f'.{final.name}.partial')
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model.save(partial)
        for name in ('tokenizer.json', 'tokenizer.txt'):
            if Path(vocabulary_dir, name).exists():
                shutil.copyfile(Path(vocabulary_dir, name), partial / name)
        torch.save(
            {'optimizer': optimizer.state_dict(), 'scaler': scaler.state_dict()}, partial / 'optimizer.pt'
        )
        (partial / 'state.json').write_text(json.dumps(state, indent=2) + '\n')
        for path in partial.iterdir():
            flush(path)
        if (
            final.exists() and read_state(final)['run'] == state['run']
        ):  # resumed from: it holds these very weights
            os.replace(partial / 'state.json', final / 'state.json')
            shutil.rmtree(partial)
        else:
            remove(final)  # an earlier run's
            partial.rename(final)
        flush(out_dir)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as e:  # a full disk is the last two to torch and safetensors
        shutil.rmtree(partial, ignore_errors=True)
        fail(f'cannot write the checkpoint {final}: {getattr(e, "strerror", None) or str(e).splitlines()[0]}')
    states = {path: read_state(path) for path in every(out_dir)}
    own = [
        path
        for path in states
        if states[path]['run'] == state['run'] and states[path]['val_loss'] is not None
    ]
    kept = {final, min(own, key=lambda path: states[path]['val_loss'], default=final)}
    for path in states.keys() - kept:  # an earlier run's as well, once this one has something to show
        remove(path)
    return final


def remove(path):
    """Delete a checkpoint if it is there; hidden first, so that one half deleted is never taken for one."""
    if path.exists():
        hidden = path.with_name(f'.{path.name}.deleted')
        shutil.rmtree(hidden, ignore_errors=True)  # left by a kill
        path.rename(hidden)
        shutil.rmtree(hidden)


def flush(path):
    """Have a file, or a directory's entries, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def every(out_dir):
    """All complete checkpoints of a run, oldest first."""
    out_dir = Path(out_dir)
    found = sorted(out_dir.iterdir()) if out_dir.is_dir() else []
    return [
        path for path in found if re.fullmatch(r'step-\d{8}', path.name) and (path / 'state.json').exists()
    ]


def latest(out_dir):
    """The newest checkpoint of a run; ends the program if there is none."""
    found = every(out_dir)
    if not found:
        fail(f'there is no checkpoint in {out_dir}; train one first, or name another --out_dir')
    return found[-1]


def best(out_dir):
    """The checkpoint with the lowest validation loss; the newest if none was evaluated. A checkpoint is its own best."""
    if Path(out_dir, 'state.json').exists():
        return Path(out_dir)
    evaluated = [path for path in every(out_dir) if read_state(path)['val_loss'] is not None]
    return min(evaluated, key=lambda path: read_state(path)['val_loss']) if evaluated else latest(out_dir)


def read_state(path):
    """state.json of a checkpoint as a dict."""
    try:
        return json.loads(Path(path, 'state.json').read_text())
    except (OSError, ValueError) as e:
        fail(f'the checkpoint {path} is damaged: state.json: {e}')


def load(init_from, out_dir):
    """(model, vocabulary) to use: the best checkpoint of out_dir if init_from is 'resume', else pretrained ones."""
    if init_from == 'resume':
        path = best(out_dir)
        print(f'using {path}', file=sys.stderr)
        return load_model(path), tokenizer.load(str(path))
    vocabulary = 'gpt2' if init_from.startswith('gpt2') else PRETRAINED.get(init_from, init_from)
    return load_model(init_from), tokenizer.load(vocabulary)


def load_model(source, **changes):
    """`Transformer.from_pretrained`, ending the program with one line where that raises."""
    with user_errors():
        return Transformer.from_pretrained(source, **changes)


def load_optimizer(path, optimizer, scaler):
    """Put the optimizer and the scaler back into the state they had."""
    try:
        saved = torch.load(Path(path, 'optimizer.pt'), map_location='cpu', weights_only=True)
        optimizer.load_state_dict(saved['optimizer'])
        if saved['scaler']:  # empty unless both runs are in fp16
            scaler.load_state_dict(saved['scaler'])
    except (
        Exception
    ) as e:  # a damaged zip file, a foreign pickle, tensors of other shapes: many types, one meaning
        fail(f'cannot load {path}/optimizer.pt: {" ".join(str(e).split())[:200]}')
