"""Estimates: what a run will take, before it runs: FLOPs, memory by part, time, energy, money, and the best size for the effort.

python train.py config/gpt2_124m.py --estimate
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import loss
from common import clock, need, size
from infra import runtime
from infra.mesh import Layout
from model import Transformer
from objectives import Objective, example_batch
from optim import Muon

# Bytes of memory (the makers' data sheets), watts (of a DGX, an eighth with all that is around the GPU), and dollars an
# hour, which clouds most often ask in 2025: put yours here.
GPUS = {
    'A100': dict(memory=80e9, watts=812, dollars=1.8),
    'H100': dict(memory=80e9, watts=1275, dollars=3.0),
}
UTILISATION = 0.4  # of a GPU's peak, reached by llm.c: 10B tokens of GPT-2 124M in 45 minutes on 8 H100s
CPU_CORE = dict(watts=8, dollars=0.045)  # of a server: its share of 350 watts, and what clouds ask an hour
TOKENS_PER_PARAMETER = 20  # of the best model for its FLOPs (Hoffmann et al. 2022, "Chinchilla", table 3)


class Run(NamedTuple):
    """What is asked about: a run of train.py."""

    model: Transformer  # on any device, 'meta' too
    objective: Objective
    meta: dict  # of the data
    rows: int  # of a micro-batch
    micro_batches: int  # of a step, over all data-parallel processes
    steps: int
    device: torch.device
    precision: torch.dtype
    layout: Layout
    compile: bool
    make_optimizers: Callable  # (model, precision) -> list of optimizers

    def batch(self, rows):
        return example_batch(self.objective, rows, self.model.config, self.meta)

    def predicted(self):
        """The part of a row's positions that is predicted."""
        return float(self.objective.count(self.batch(1))) / self.model.config.block_size


def saved_bytes(run, n_layer):
    """What autograd keeps in one forward pass from inputs to loss, counted on tensors that have no memory."""
    kept, real = {}, run.batch(run.rows)
    with FakeTensorMode() as mode, torch.device(run.device):
        model = Transformer(replace(run.model.config, n_layer=n_layer))
        batch = {name: mode.from_tensor(t).to(run.device) for name, t in real.items()}
        weights = {p.untyped_storage()._cdata for p in model.parameters()}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with runtime.autocast(run.device, run.precision):
                run.objective.loss(model, batch)
        return sum(storage.nbytes() for storage in kept.values())


def memory(run):
    """Bytes of one training step by part, of one process, without a compiler (with one it is less) -> dict; 'peak' at a time.

    Not counted: what tp spares of the activations, what Muon gathers under fsdp, a checkpoint's copies on a CPU.
    """
    c, model, fsdp, tp = run.model.config, run.model, run.layout.fsdp, run.layout.tp
    params = sum(p.numel() for p in model.parameters())
    blocks = sum(p.numel() for p in model.blocks.parameters() if p.dim() > 1)
    muon = [o for o in run.make_optimizers(model, run.precision) if isinstance(o, Muon)]
    matrices = sum(p.numel() for o in muon for group in o.param_groups for p in group['params'])
    held = (params - blocks + blocks / tp) / fsdp
    states = 2 * held - matrices / tp / fsdp  # AdamW has two numbers of each weight, Muon one
    one, two = (saved_bytes(run, n_layer) for n_layer in (1, 2))
    layer = two - one
    bytes_of_stream = 2 if run.precision == torch.bfloat16 else 4
    block_input = run.rows * c.block_size * c.n_embd * bytes_of_stream
    batch = run.batch(run.rows)
    positions = batch.get('predict_at', batch['inputs']).numel()
    # the products, logits in fp32, their gradient, and that in the type of the products again
    logits = min(positions // tp * c.padded_vocab_size, loss.CHUNK) * 12
    layers = c.n_layer * block_input + layer if model.gradient_checkpointing else c.n_layer * layer
    parts = dict(weights=4 * held, gradients=4 * held, optimizer=4 * states)
    parts |= dict(activations=one - layer + layers, logits=logits)
    if fsdp > 1:
        # two blocks, as the next one comes while one computes; a block's gradient, and in fp32 on its way; what is
        # outside of the blocks with its gradient in fp32
        parts['gathered'] = blocks / tp / c.n_layer * (3 * run.precision.itemsize + 4) + (params - blocks) * 8
    if positions * c.padded_vocab_size <= loss.CHUNK:  # all at once: they were counted among what is saved
        parts['activations'] -= min(positions * c.padded_vocab_size * 4, parts['activations'])
    standing = parts['weights'] + parts['optimizer'] + parts.get('gathered', 0)
    computing = parts['activations'] + parts['logits']
    # gradients of earlier micro-batches wait while one is computed
    if run.micro_batches > run.layout.dp_size:
        parts['peak'] = standing + parts['gradients'] + computing
    else:
        parts['peak'] = standing + max(parts['gradients'] + layer, computing)
    return parts


def rows_that_fit(run):
    """The most rows of a micro-batch, a divisor of a process's share of run.micro_batches rows, that fit into 85 % of free memory."""
    share = run.micro_batches // run.layout.dp_size
    # on a CPU malloc keeps a quarter more than there is, and all processes of a machine have the same
    here = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    free = free_memory(run.device) * (0.85 if run.device.type == 'cuda' else 0.6 / here)

    def peak(rows):
        return memory(run._replace(rows=rows, micro_batches=-(-run.micro_batches // rows)))['peak']

    # activations grow with the rows: two points tell all, but for the logits, of which only so many are held
    few, more = peak(1), peak(3)
    slope = max((more - few) / 2, 1)
    return max(n for n in range(1, share + 1) if share % n == 0 and (n == 1 or few + slope * (n - 1) <= free))


def free_memory(device):
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    return need('psutil').virtual_memory().available


def measured_flops(run, seconds=3):
    """FLOP/s of real training steps on this machine: of a large model's first two layers, on the rows half a second allows."""
    config, T = run.model.config, run.model.config.block_size
    # FLOPs of half a second, if a third of the peak is reached
    budget = runtime.peak_flops(run.device, run.precision) / 3 * 0.5
    if run.model.flops_per_token(T) * T > budget:
        config = replace(config, n_layer=min(config.n_layer, 2))
    model = Transformer(config).to(run.device)
    per_row = model.flops_per_token(T) * T
    rows = max(1, min(run.rows, int(budget / per_row)))
    batch = runtime.to_device(run.batch(rows), run.device)
    per_step = rows * T * model.flops_per_token(T, run.predicted())
    forward = torch.compile(model, dynamic=False) if run.compile else model
    optimizers = run.make_optimizers(model, run.precision)

    def step():
        with runtime.autocast(run.device, run.precision):
            total = run.objective.loss(forward, batch) / batch['inputs'].numel()
        total.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        total.item()  # waits for a GPU

    step()  # warms up
    began, done = time.time(), 0
    while time.time() - began < seconds:
        step()
        done += 1
    return per_step * done / (time.time() - began)


def describe(run):
    """All of it as lines of text."""
    c, model, layout = run.model.config, run.model, run.layout
    tokens = run.rows * run.micro_batches * c.block_size * run.steps
    per_token = model.flops_per_token(c.block_size, run.predicted())
    flops = per_token * tokens
    attention = 12 * c.n_layer * c.n_head * c.head_width * c.block_size / per_token
    outside = sum(p.numel() for name, p in model.named_parameters() if 'blocks' not in name)
    parts = memory(run)
    peak, shared = parts.pop('peak'), layout.fsdp * layout.tp  # processes that share a model
    sharing = f', of {shared} that share the model' if shared > 1 else ''
    lines = [
        f'parameters    {size(model.num_params())}: {size(outside)} in embeddings and head, the rest in '
        f'{c.n_layer} layers',
        f'work          {size(tokens)} tokens in {run.steps:,} steps of {size(tokens / max(run.steps, 1))}; '
        f'{flops:.2e} FLOPs, {size(per_token, "G")} a token, {attention:.0%} of them attention',
        f'memory        {size(peak, "G")}B at most a process{sharing}, {run.rows} rows of {c.block_size} in '
        f'{str(run.precision)[6:]}, before compiling: '
        + ', '.join(f'{name} {size(n, "G")}B' for name, n in parts.items()),
        f'{"":14}{"":24}{"FLOP/s":>9}{"tokens/s":>10}{"time":>10}{"kWh":>9}{"dollars":>9}{"memory":>16}',
    ]
    for name, count, rate, machine in machines(run):
        hours = flops / rate / 3600
        fits = 'fits' if peak < machine['memory'] else 'too large'
        fits = fits if shared <= count else f'{shared} needed'
        lines.append(
            f'{"":14}{name:24}{size(rate, "G"):>9}{size(rate / per_token):>10}{clock(3600 * hours):>10}'
            f'{hours * count * machine["watts"] / 1000:>9.3g}{hours * count * machine["dollars"]:>9.3g}{fits:>16}'
        )
    best = math.sqrt(flops / 6 / TOKENS_PER_PARAMETER)
    lines.append(
        f'best size     {tokens / model.num_params():.3g} tokens a parameter; for these FLOPs the lowest loss is at about '
        f'{TOKENS_PER_PARAMETER}: {size(best)} parameters on {size(TOKENS_PER_PARAMETER * best)} tokens'
    )
    return '\n'.join(lines)


def machines(run):
    """(name, number of GPUs or processes, FLOP/s of all, an entry as of GPUS) of this machine, measured, and of others."""
    count, cores = run.layout.world_size, os.cpu_count()
    name = torch.cuda.get_device_name(run.device) if run.device.type == 'cuda' else f'{cores} CPU cores'
    cpu = {key: value * cores for key, value in CPU_CORE.items()}
    here = next((gpu for key, gpu in GPUS.items() if key in name), cpu) | dict(memory=free_memory(run.device))
    yield f'{count} x {name}, measured', count, measured_flops(run) * count, here
    for name, count, gpu in (('A100', 1, 'A100'), ('H100', 1, 'H100'), ('8 x H100', 8, 'H100')):
        rate = UTILISATION * runtime.GPU_PEAKS[gpu] * count
        yield f'{name} at {UTILISATION:.0%}', count, rate, GPUS[gpu]
