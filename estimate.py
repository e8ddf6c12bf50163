"""What a run will take, told before it runs: FLOPs, memory by part, time, energy, money, and the best size for the effort.

python train.py config/gpt2_124m.py --estimate
"""

import math
import os
import time
from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import loss
from common import clock, need, size
from infra import runtime
from model import Transformer
from optim import muon_groups

# Dense bf16 FLOP/s, bytes of memory and watts (the makers' data sheets of an A100 SXM and an H100 SXM; of a DGX, an eighth
# with all that is around the GPU), and dollars an hour, which clouds most often ask in 2025: put yours here.
MACHINES = {
    'A100': dict(gpus=1, peak=312e12, memory=80e9, watts=812, dollars=1.8),
    'H100': dict(gpus=1, peak=989e12, memory=80e9, watts=1275, dollars=3.0),
    '8 x H100': dict(gpus=8, peak=989e12, memory=80e9, watts=1275, dollars=3.0),
}
UTILISATION = 0.4  # of a GPU's peak, reached by llm.c: 10B tokens of GPT-2 124M in 45 minutes on 8 H100s
CPU_CORE = dict(watts=8, dollars=0.045)  # of a server: its share of 350 watts, and what clouds ask an hour
TOKENS_PER_PARAMETER = 20  # of the best model for its FLOPs (Hoffmann et al. 2022, "Chinchilla", table 3)


def saved_bytes(config, rows, predicted, device, precision):
    """What autograd keeps in one forward pass from inputs to loss, counted on tensors that have no memory.

    predicted: positions of a row that a masked model predicts; 0: all, as a causal model does.
    """
    kept = {}
    with FakeTensorMode(), torch.device(device):
        model = Transformer(config)
        weights = {p.untyped_storage()._cdata for p in model.parameters()}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage
            return tensor

        inputs = torch.zeros(rows, config.block_size, dtype=torch.long)
        where = torch.zeros(rows, predicted, dtype=torch.long) if predicted else None
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with runtime.autocast(torch.device(device), precision):
                model(inputs, targets=inputs, where=where)
        return sum(storage.nbytes() for storage in kept.values())


def memory(model, rows, predicted, device, precision, optimizer, accumulate, fsdp=1, tp=1):
    """Bytes of one training step by part, of one process, without a compiler (with one it is less) -> dict; 'peak' is the most
    at a time.

    model: on any device, 'meta' too. accumulate: gradients of earlier micro-batches wait while one is computed. fsdp, tp: as
    mesh.py deals it out; what tp spares of the activations is not counted, nor what Muon gathers under fsdp, nor
    on a CPU the copies that a checkpoint is written from.
    """
    c, vocabulary = model.config, model.config.padded_vocab_size
    params = sum(p.numel() for p in model.parameters())
    blocks = sum(p.numel() for p in model.blocks.parameters() if p.dim() > 1)
    matrices = sum(p.numel() for g in muon_groups(model) for p in g['params']) if optimizer == 'muon' else 0
    held = (params - blocks + blocks / tp) / fsdp
    states = 2 * held - matrices / tp / fsdp  # AdamW has two numbers of each weight, Muon one
    one, two = (saved_bytes(replace(c, n_layer=n), rows, predicted, device, precision) for n in (1, 2))
    layer = two - one
    stream = rows * c.block_size * c.n_embd * (2 if precision == torch.bfloat16 else 4)  # what enters a block
    positions = rows * (predicted or c.block_size)
    whole = positions * vocabulary <= loss.CHUNK
    # the products, logits in fp32, what goes back of them, and that in the type of the products again
    logits = min(positions // tp * vocabulary, loss.CHUNK) * 12
    parts = dict(
        weights=4 * held,
        gradients=4 * held,
        optimizer=4 * states,
        activations=one - layer + (c.n_layer * stream + layer if model.recompute else c.n_layer * layer),
        logits=logits,
    )
    if fsdp > 1:
        # two blocks, as the next one comes while one computes; a block's gradient, and in fp32 on its way; what is
        # outside of the blocks with its gradient in fp32
        parts['gathered'] = blocks / tp / c.n_layer * (3 * precision.itemsize + 4) + (params - blocks) * 8
    if whole:  # they were counted among what is saved
        parts['activations'] -= min(positions * vocabulary * 4, parts['activations'])
    standing = parts['weights'] + parts['optimizer'] + parts.get('gathered', 0)
    computing = parts['activations'] + parts['logits']
    if accumulate:
        parts['peak'] = standing + parts['gradients'] + computing
    else:
        parts['peak'] = standing + max(parts['gradients'] + layer, computing)
    return parts


def rows_that_fit(model, rows, predicted, device, precision, optimizer, ranks, fsdp, tp):
    """The most rows of a micro-batch, a divisor of the step's share of each of `ranks`, that fit into 85 % of free memory."""
    share = rows // ranks
    # on a CPU malloc keeps a quarter more than there is, and all processes of a machine have the same
    here = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    free = free_memory(device) * (0.85 if device.type == 'cuda' else 0.6 / here)

    def peak(n):
        return memory(model, n, predicted, device, precision, optimizer, n < share, fsdp, tp)['peak']

    # activations grow with the rows: two points tell all, but for the logits, of which only so many are held
    few, more = peak(1), peak(3)
    slope = max((more - few) / 2, 1)
    return max(n for n in range(1, share + 1) if share % n == 0 and (n == 1 or few + slope * (n - 1) <= free))


def free_memory(device):
    if device.type == 'cuda':
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return need('psutil').virtual_memory().available


def measured_flops(config, rows, device, precision, compile, make_optimizers, seconds=3):
    """FLOP/s of real training steps on this machine: of a large model's first two layers, on the rows half a second allows."""
    budget = runtime.peak_flops(device, precision) / 3 * 0.5  # FLOPs, if a third of the peak is reached
    with torch.device('meta'):
        if Transformer(config).flops_per_token(config.block_size) * config.block_size > budget:
            config = replace(config, n_layer=min(config.n_layer, 2))
    model = Transformer(config).to(device)
    per_row = model.flops_per_token(config.block_size) * config.block_size
    rows = max(1, min(rows, int(budget / per_row)))
    inputs = torch.randint(config.vocab_size, (rows, config.block_size), device=device)
    forward = torch.compile(model, dynamic=False) if compile else model
    optimizers = make_optimizers(model, precision)

    def step():
        with runtime.autocast(device, precision):
            total = forward(inputs, targets=inputs) / inputs.numel()
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
    return per_row * rows * done / (time.time() - began)


def describe(
    model,
    rows,
    predicted,
    micro_batches,
    steps,
    device,
    precision,
    optimizer,
    world_size,
    ranks,
    fsdp,
    tp,
    compile,
    make_optimizers,
):
    """All of it as lines of text. rows: of a micro-batch; micro_batches: of a step, over all `ranks` that rows are dealt to."""
    c = model.config
    tokens = rows * micro_batches * c.block_size * steps
    share = predicted / c.block_size if predicted else 1.0
    per_token = model.flops_per_token(c.block_size, share)
    flops = per_token * tokens
    embeddings = sum(p.numel() for name, p in model.named_parameters() if 'blocks' not in name)
    parts = memory(model, rows, predicted, device, precision, optimizer, micro_batches > ranks, fsdp, tp)
    dealt = f', of {fsdp * tp} that share the model' if fsdp * tp > 1 else ''
    lines = [
        f'parameters    {size(model.num_params())}: {size(embeddings)} in embeddings and head, the rest in '
        f'{c.n_layer} layers',
        f'work          {size(tokens)} tokens in {steps:,} steps of {size(tokens / steps)}; {flops:.2e} FLOPs, '
        f'{size(per_token, "G")} a token, {12 * c.n_layer * c.n_embd * c.block_size / per_token:.0%} of them attention',
        f'memory        {size(parts["peak"], "G")}B at most a process{dealt}, {rows} rows of {c.block_size} in '
        f'{str(precision)[6:]}, before compiling: '
        + ', '.join(f'{name} {size(n, "G")}B' for name, n in parts.items() if name != 'peak'),
    ]
    here = measured_flops(c, rows, device, precision, compile, make_optimizers)
    cores = os.cpu_count()
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'{cores} CPU cores'
    known = next((m for key, m in MACHINES.items() if key in name), None)
    known = known or {key: value * cores for key, value in CPU_CORE.items()}
    lines.append(
        f'{"":14}{"":24}{"FLOP/s":>9}{"tokens/s":>10}{"time":>10}{"kWh":>9}{"dollars":>9}{"memory":>16}'
    )
    rows_of_table = [
        (f'{world_size} x {name}, measured', here * world_size, known, world_size, free_memory(device))
    ]
    for name, m in MACHINES.items():
        rows_of_table.append(
            (f'{name} at {UTILISATION:.0%}', UTILISATION * m['peak'] * m['gpus'], m, m['gpus'], m['memory'])
        )
    for name, rate, m, count, room in rows_of_table:
        hours = flops / rate / 3600
        fits = 'fits' if parts['peak'] < room else 'too large'
        fits = fits if fsdp * tp <= count else f'{fsdp * tp} needed'
        lines.append(
            f'{"":14}{name:24}{size(rate, "G"):>9}{size(rate / per_token):>10}{clock(3600 * hours):>10}'
            f'{hours * count * m["watts"] / 1000:>9.3g}{hours * count * m["dollars"]:>9.3g}{fits:>16}'
        )
    best = math.sqrt(flops / 6 / TOKENS_PER_PARAMETER)
    lines.append(
        f'best size     {tokens / model.num_params():.3g} tokens a parameter; for these FLOPs the lowest loss is at about '
        f'{TOKENS_PER_PARAMETER}: {size(best)} parameters on {size(TOKENS_PER_PARAMETER * best)} tokens'
    )
    return '\n'.join(lines)
