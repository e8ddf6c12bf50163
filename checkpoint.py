"""What lasts: a checkpoint is a directory OUT_DIR/step-00001000/ that needs nothing else to be used.

    model.safetensors  config.json     the model
    tokenizer.json or tokenizer.txt    its vocabulary; tokenizer_config.json, of conversations, the chat template
    optimizer.pt                       optimizer and gradient scaler, tensors only
    state.json                         step, losses, settings, vocabulary

It is written beside its place and renamed when complete: what bears the name is whole. The newest is kept and the best.
"""

import json
import os
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError

import mesh
import tokenizer
from config import fail, reason
from model import Transformer
from pretrained import PRETRAINED
from runtime import user_errors


def save(out_dir, state, model, optimizers, scaler, vocabulary_dir):
    """Write the checkpoint of state['step'], then delete those that are neither the newest nor the best -> its path.

    All processes take part, as each may hold but a part; rank 0 writes.
    """
    final = Path(out_dir, f'step-{state["step"]:08d}')
    weights = mesh.whole_weights(model)
    tensors = {'optimizers': [mesh.whole_state(o) for o in optimizers], 'scaler': scaler.state_dict()}
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return final
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
        for path in partial.iterdir():
            flush(path)
        if final.exists() and read_state(final)['run'] == state['run']:  # resumed from: the very same weights
            os.replace(partial / 'state.json', final / 'state.json')
            shutil.rmtree(partial)
        else:
            remove(final)  # an earlier run's
            partial.rename(final)
        flush(out_dir)
    # a full disk is a RuntimeError to torch and a SafetensorError to safetensors
    except (OSError, RuntimeError, SafetensorError) as e:
        shutil.rmtree(partial, ignore_errors=True)
        fail(f'cannot write the checkpoint {final}: {reason(e)}')
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


def find(init_from, out_dir):
    """The checkpoint that init_from means: the best of out_dir for 'resume', or of the run it names; None if it names none."""
    if init_from == 'resume':
        return best(out_dir)
    return best(init_from) if every(init_from) or Path(init_from, 'state.json').exists() else None


def load(init_from, out_dir):
    """(model, vocabulary) of what init_from means."""
    source = find(init_from, out_dir) or init_from
    return load_model(source), load_vocabulary(source)


def load_vocabulary(source):
    """The vocabulary that belongs to a checkpoint, to a pretrained name, or to a directory that transformers saved."""
    if source in PRETRAINED and source.startswith('gpt2'):
        return tokenizer.load('gpt2')
    return tokenizer.load(str(PRETRAINED.get(source, source)))


def load_model(source, **changes):
    """`Transformer.from_pretrained`, ending the program with one line where that raises."""
    with user_errors():
        return Transformer.from_pretrained(source, **changes)


def load_optimizers(path, optimizers, scaler):
    """Put the optimizers and the scaler back into the state they had."""
    try:
        # mapped, not read: a process may need but a part
        saved = torch.load(Path(path, 'optimizer.pt'), map_location='cpu', weights_only=True, mmap=True)
        for optimizer, state in zip(optimizers, saved['optimizers'], strict=True):
            chosen = [{k: v for k, v in group.items() if k != 'params'} for group in optimizer.param_groups]
            optimizer.load_state_dict(mesh.part_of_state(state, optimizer))
            for group, settings in zip(optimizer.param_groups, chosen, strict=True):
                group |= settings  # those of this command, not of the one that saved
        if saved['scaler']:  # empty unless both runs are in fp16
            scaler.load_state_dict(saved['scaler'])
    # a damaged zip file, a foreign pickle, tensors of other shapes: many types, one meaning
    except Exception as e:
        fail(f'cannot load {path}/optimizer.pt: {reason(e)[:200]}')
