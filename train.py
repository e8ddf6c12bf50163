"""Train a model. The one loop of the project: every model, objective and starting point goes through it.

    python train.py config/quickstart.py                                  # this machine
    python train.py config/train_shakespeare_char.py --batch_size=32 --compile=False
    torchrun --standalone --nproc_per_node=8 train.py config/gpt2_124m.py  # 8 GPUs of one machine
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 train.py config/gpt2_124m.py
    python train.py config/quickstart.py --init_from=resume               # go on after Ctrl-C or a crash
    python train.py config/gpt2_124m.py --estimate                        # memory, time and money it takes, before it runs

Writes checkpoints, metrics.jsonl and loss.png into out_dir. Ctrl-C, SIGTERM and SIGUSR1 finish the step, save and say how
to go on. Exit codes: 0 done, or stopped by Ctrl-C; 2 a mistake, or nothing to be saved in; 75 stopped by another signal or
by the loss of a process: the same command goes on.
"""

import functools
import gc
import math
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from common import clock, fail, reason, size
from configurator import answer_help, configure

if __name__ == '__main__':
    answer_help(globals())  # before torch is imported, which takes seconds

import torch

import objectives
from estimate import describe, rows_that_fit
from infra import checkpoint, faults, mesh, runtime
from infra.monitor import Log, Monitor, Speed
from loader import mixed_rows, open_mixture, read_meta, verify, windows
from model import ARCHITECTURES, Config, Transformer
from optim import Muon, muon_groups
from pretrained import PRETRAINED

# -----------------------------------------------------------------------------
# the run
out_dir = 'out'
init_from = 'scratch'  # 'resume', 'auto' (resume if possible), a name as 'gpt2-xl', a directory with a model
seed = 1337  # of the weights, the order of the data, masks and dropout [0, inf)
eval_interval = 2000  # steps between evaluations, each followed by a checkpoint [1, inf)
eval_iters = 200  # batches of each split in an evaluation, always the same ones [1, inf)
eval_only = False  # evaluate once and stop
estimate = False  # tell what the run will take, and stop
always_save_checkpoint = True  # False: only when the validation loss improves
save_interval = 0  # steps between checkpoints besides evaluations': what a crash costs; 0: none [0, inf)
keep = 1  # of the newest checkpoints are kept, and the best [1, inf)
patience = 0  # stop after so many evaluations without improvement; 0: never [0, inf)
log_interval = 1  # steps between log lines [1, inf)
wandb_log = False  # to Weights & Biases too
wandb_project = 'owt'
wandb_run_name = 'gpt2'
# data
dataset = 'openwebtext'  # data/DATASET, made by prepare.py; 'a:0.7,b:0.3' takes 70 % of the rows from a, 30 % from b
batch_size = 12  # rows in a micro-batch; 'auto': gradient_accumulation_steps a step, as many as fit [1, inf)
block_size = 1024  # tokens in a row [1, inf)
gradient_accumulation_steps = 5 * 8  # micro-batches in a step, over all processes [1, inf)
verify_data = False  # compare the hashes in meta.json first; sizes and ids are always checked
# objective
objective = 'causal'  # 'causal' predicts the next token (GPT), 'masked' the hidden ones (BERT)
mask_ratio = 0.15  # of the tokens of a row are hidden; evaluation always hides 0.15 (0, 1)
# model
arch = 'gpt2'  # 'gpt2', 'bert', 'bert_prenorm', 'llama', 'modern', 'modern_bert': the flags of model.py
n_layer = 12  # [1, inf)
n_head = 12  # [1, inf)
n_embd = 768  # [1, inf)
dropout = 0.0  # 0 is good for pretraining, try 0.1 and more for fine-tuning [0, 1)
bias = False  # in linear layers and norms; without is slightly better and faster
bigrams = 0  # rows of an embedding of hashed pairs of tokens: quicker to learn; 0: none [0, inf)
n_kv_head = 0  # heads of keys and values; fewer than n_head generate faster; 0: as many [0, inf)
# optimizer
optimizer = 'adamw'  # or 'muon', for the matrices of the blocks; AdamW for the rest
muon_learning_rate = 0.02  # the highest, of Muon [0, inf)
momentum_warmup_iters = 300  # steps in which Muon's momentum grows from 0.85 to 0.95 [0, inf)
learning_rate = 6e-4  # the highest, of AdamW [0, inf)
max_iters = 600000  # steps [0, inf)
weight_decay = 1e-1  # of matrices only [0, inf)
beta1 = 0.9  # [0, 1)
beta2 = 0.95  # [0, 1)
grad_clip = 1.0  # clip the norm of the gradient to this; 0: do not [0, inf)
max_bad_steps = 10  # in a row, without a finite loss and norm: back to a checkpoint; 0: never [0, inf)
# learning rate over the steps
decay_lr = True  # False: learning_rate throughout, without warm-up
schedule = 'cosine'  # after the warm-up: 'cosine' or 'linear' down to min_lr, 'constant', or 'wsd' (constant, then linear)
warmup_iters = 2000  # [0, inf)
lr_decay_iters = 600000  # where the decay ends, most often max_iters [0, inf)
min_lr = 6e-5  # most often learning_rate / 10 [0, inf)
wsd_decay = 0.2  # the part of lr_decay_iters that wsd's decay takes [0, 1]
# the machine
device = 'auto'  # 'cuda', 'cuda:1', 'cpu', 'mps'; auto takes the fastest there is
dtype = 'auto'  # 'float32', 'bfloat16', or 'float16' with a gradient scaler; auto is bf16 where the hardware has it
compile = True  # torch.compile: slower to start, faster to run
activation_checkpointing = False  # compute layers again in the backward pass: less memory, a third more time
fsdp = 1  # processes among which weights, gradients and optimizer states are sharded: infra/mesh.py [1, inf)
tp = 1  # processes that share the work within each block; fsdp * tp processes share one model [1, inf)
backend = ''  # of torch.distributed: 'nccl', 'gloo'; '' is nccl on CUDA, gloo elsewhere
hang_timeout = 600  # seconds that a process waits for the others before it ends the run [1, inf)
requeue = False  # on SIGUSR1, as of Slurm's --signal=USR1@120: put the job back into its queue
# -----------------------------------------------------------------------------

SCHEDULES = ('cosine', 'linear', 'constant', 'wsd')


def main(settings):
    """Train as the settings say -> exit code. However it ends, log.txt says how, and Python is as it was."""
    log = Log()
    saver = checkpoint.Saver(log)
    with log, faults.Watch(hang_timeout, saver, log) as watch:
        try:
            return train(settings, log, saver, watch)
        except OSError as e:  # a full disk, most often
            fail(f'{e.filename or out_dir}: {reason(e)}', mine=True)
        except torch.OutOfMemoryError:
            fail(
                'out of GPU memory: halve batch_size and double gradient_accumulation_steps; the result stays the same'
            )
        finally:
            gc.enable()
            gc.unfreeze()


def train(settings, log, saver, watch):
    # The machine and the data: what can be wrong is found before the first expensive step.
    where = runtime.choose_device(device)
    precision = runtime.choose_dtype(dtype, where)
    if where.type == 'cpu':
        runtime.keep_freed_memory()
    rank, world_size = runtime.init_distributed(backend, where, hang_timeout)
    # the question may be put to one process, about many
    asked_about = mesh.Layout(ranks=max(world_size, fsdp * tp) // max(tp, 1))
    layout = asked_about if estimate else mesh.lay_out(where, world_size, fsdp, tp)
    check_settings(layout)
    if estimate:
        log(describe_run(where, precision, world_size, layout.ranks))
        return 0
    meta = read_meta(dataset)
    if verify_data:
        runtime.run_on_rank0(verify, dataset)
    data = {split: open_mixture(dataset, split, block_size) for split in ('train', 'val')}

    # The model, new or from what was saved: built whole on the CPU, then shared out.
    torch.manual_seed(seed)
    start, resuming = runtime.run_on_rank0(faults.choose_start, init_from, out_dir, log)
    model, state = build_model(start, resuming, meta)
    if batch_size == 'auto':
        settings |= runtime.run_on_rank0(fit_batch, model, where, precision, layout.ranks)
        globals().update(settings)
    flops_per_token = model.flops_per_token(block_size, mask_ratio if objective == 'masked' else 1.0)
    compiled = compile_model(model, where, layout, log)
    mesh.share(model, layout, where, precision)
    rows = batch_size * gradient_accumulation_steps  # of a step: which ones depends on this alone
    if resuming:
        log(f'going on from {start}{faults.check_resume(start, settings, meta, rows)}')
    if not eval_only:
        runtime.run_on_rank0(faults.make_out_dir, out_dir, state['run'])
        log.open(out_dir)
    with runtime.user_errors():
        optimizers = make_optimizers(model, precision)
    scaler = torch.amp.GradScaler(where.type, enabled=precision == torch.float16)
    if resuming:
        checkpoint.load_optimizers(start, optimizers, scaler)
    # what a checkpoint says besides where the run stands
    facts = {name: meta[name] for name in ('tokenizer_hash', 'mixture', 'data_hash')}
    facts |= dict(rows=rows, settings=settings)
    tokens_per_step = rows * block_size
    peak = runtime.peak_flops(where, precision) * world_size
    epochs = [float(tokens_per_step * max_iters * share / len(tokens)) for tokens, share in data['train']]
    log(
        f'{size(model.num_params())} parameters, {meta["vocab_size"]:,} tokens in the vocabulary; {where.type} in '
        f'{str(precision)[6:]}, {layout}\n'
        f'{size(tokens_per_step)} tokens a step, {size(tokens_per_step * max_iters)} in all, '
        + ', '.join(f'{n:.2f} epochs of data/{name}' for n, name in zip(epochs, meta['mixture'], strict=True))
    )
    if peak:
        log(
            f'utilisation is {size(flops_per_token, "G")} FLOPs a token (6 N + 12 L C T) of {size(peak, "G")} FLOP/s'
        )
    forward = mesh.replica(compiled, layout, where)  # averages gradients over the processes during backward

    # The loop.
    monitor = Monitor(out_dir, state['step'], settings, active=rank == 0 and not eval_only, log=log)
    # the batches of a step are made while the one before it is computed
    ahead = ThreadPoolExecutor(1)
    batches_of = functools.partial(step_batches, data, meta, where, layout)
    upcoming = ahead.submit(batches_of, state['step'] + state['rows_skipped'])
    gc.collect()
    gc.freeze()
    gc.disable()  # it would stop each process at another moment, and a step leaves it nothing to find
    began, speed = time.time(), Speed(tokens_per_step)
    health = faults.Health(where)
    saved_step, back_at = state['step'], None  # back_at: the checkpoint of the last rollback
    while True:
        step = state['step']
        val_loss, saving = None, bool(save_interval) and step % save_interval == 0
        if stopped := watch.stop_signal(step):  # by a signal to any process
            ending, saving = f'stopped at step {step} by {signal.Signals(stopped).name}; {faults.GO_ON}', True
        elif step % eval_interval == 0 or step >= max_iters or eval_only:
            gc.collect()
            stop = functools.partial(watch.stop_signal, step)
            losses = estimate_losses(compiled, data, meta, where, precision, layout, stop)
            if not losses:  # asked to stop, which the next turn does
                continue
            val_loss = losses['val']
            log(f'step {step}: train loss {losses["train"]:.4f}, val loss {val_loss:.4f}')
            monitor.write(step=step, train_loss=losses['train'], val_loss=val_loss)
            monitor.plot()
            if improved := math.isfinite(val_loss) and val_loss < (state['best_val_loss'] or math.inf):
                state |= dict(best_val_loss=val_loss, best_step=step)
            saving |= improved or always_save_checkpoint
            speed.reset()
        # weights that have just given what is not finite are no place to go back to
        new = step > 0 and (step != saved_step or val_loss is not None)
        if saving and new and not eval_only and not health.in_a_row and math.isfinite(val_loss or 0):
            state['val_loss'] = val_loss
            saver.save(
                out_dir,
                state | facts,
                model,
                optimizers,
                scaler,
                Path('data', next(iter(meta['mixture']))),
                keep,
            )
            saved_step = step
            speed.reset()
        if stopped:
            break
        if step >= max_iters or eval_only:
            ending = 'done'
            break
        if patience and val_loss is not None and step - state['best_step'] >= patience * eval_interval:
            ending = f'stopped at step {step}: no better validation loss since step {state["best_step"]}'
            break

        # One update. The loss is a sum over the tokens that the whole global batch predicts, divided by their number,
        # over micro-batches and processes: a mean of means is wrong as soon as rows differ.
        lr = learning_rate_at(step)
        share = lr / learning_rate if learning_rate else 0.0
        for group in (group for each in optimizers for group in each.param_groups):
            group['lr'] = group['initial_lr'] * share
            if 'momentum' in group:  # Muon's, which grows with the steps there are to remember
                group['momentum'] = 0.95 - 0.1 * max(0, 1 - step / max(momentum_warmup_iters, 1))
        batches = upcoming.result()  # {number: batch}
        upcoming = ahead.submit(batches_of, step + 1 + state['rows_skipped'])
        for batch in batches.values():
            check_ids(batch, meta)
        predicted = sum(int((batch['targets'] != -100).sum()) for batch in batches.values())
        # on the host: no GPU waits
        predicted = runtime.all_reduce_sum(torch.tensor(float(predicted)), layout.group).item()
        loss = torch.zeros((), device=where)
        for number, batch in batches.items():
            # so dropout needs no state, and no other processes
            torch.manual_seed((seed * 1_000_003 + number) % 2**63)
            with mesh.averaging(forward, last=number == max(batches)):
                with runtime.autocast(where, precision):
                    part = forward(**runtime.to_device(batch, where)) / predicted
                scaler.scale(part * layout.ranks).backward()  # a mean over the ranks is taken of it
            loss += part.detach()
        for each in optimizers:
            scaler.unscale_(each)
        norm = mesh.clip_grad_norm_(model.parameters(), grad_clip or torch.inf)
        loss = runtime.all_reduce_sum(loss, layout.group)
        bad = health.is_bad(loss, norm)
        for each in optimizers:
            each.found_inf = bad  # 1.0 and it leaves everything as it is: nobody waits to know
            each.step()
            each.zero_grad(set_to_none=True)
        scaler.update()
        state['step'] += 1

        if step % log_interval == 0:
            record = dict(step=step, **health.metrics(loss, norm), lr=lr)  # waits for the GPU
            if rate := speed.rate(step):
                record['tokens_per_second'] = rate
                if peak:
                    record['utilisation'] = rate * flops_per_token / peak
            log(log_line(record, tokens_per_step))
            monitor.write(**record)
            if health.streak >= max_bad_steps > 0:
                saver.wait()
                back_at = faults.rollback(out_dir, back_at, health, state, model, optimizers, scaler, log)
                log(f'{health.streak} steps in a row left out: back to {back_at}, with the rows after them')
                monitor.begin_at(state['step'])
                upcoming = ahead.submit(batches_of, state['step'] + state['rows_skipped'])
                speed.reset()
    saver.wait()
    log(f'{ending} ({clock(time.time() - began)}, peak memory {size(runtime.memory_used(where), "G")}B)')
    if stopped == signal.SIGUSR1 and requeue and rank == 0:
        faults.requeue(log)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if rank == 0:
        log.end(ending)
    return faults.exit_code(stopped)


def check_settings(layout):
    """Refuse what cannot be, in one line."""
    for setting, known in (
        ('objective', ('causal', 'masked')),
        ('arch', ARCHITECTURES),
        ('optimizer', ('adamw', 'muon')),
        ('schedule', SCHEDULES),
    ):
        if globals()[setting] not in known:
            fail(f'{setting} = {globals()[setting]!r} is none of {", ".join(known)}')
    if gradient_accumulation_steps % layout.ranks:
        fail(
            f'gradient_accumulation_steps = {gradient_accumulation_steps} is not divisible by {layout.ranks} processes'
        )
    if objective == 'masked' and block_size < 3:
        fail(f'block_size = {block_size} leaves nothing to hide between cls and sep')
    if decay_lr and schedule != 'constant' and warmup_iters > lr_decay_iters:
        fail(f'warmup_iters = {warmup_iters} should not exceed lr_decay_iters = {lr_decay_iters}')


def build_model(start, resuming, meta):
    """(model, where the run stands): the step, the best validation loss so far and its step, an id of the run, and how many
    steps ahead the rows are, as some were passed over.
    """
    state = dict(step=0, best_val_loss=None, best_step=0, run=os.urandom(4).hex(), rows_skipped=0)
    if start == 'scratch':
        names = ('block_size', 'n_layer', 'n_head', 'n_kv_head', 'n_embd', 'bigrams', 'dropout', 'bias')
        shape = {name: globals()[name] for name in names}
        with runtime.user_errors():
            model = Transformer(Config(vocab_size=meta['vocab_size'], **shape, **ARCHITECTURES[arch]))
    elif Path(start, 'state.json').exists():
        saved = checkpoint.read_state(start)
        if saved['tokenizer_hash'] != meta['tokenizer_hash']:
            fail(f'{start} was trained with another vocabulary than the one of data/{dataset}')
        if resuming:
            state = {name: saved[name] for name in state}
        model = checkpoint.load_model(start, block_size=block_size, dropout=dropout)
    else:
        model = checkpoint.load_model(start, block_size=block_size, dropout=dropout)
        # prepare.py's special tokens may lie in the padding rows, as those of gpt2 do
        fits = model.config.vocab_size <= meta['vocab_size'] <= model.config.padded_vocab_size
        if not fits or (
            init_from in PRETRAINED and init_from.startswith('gpt2') and meta.get('tokenizer') != 'gpt2'
        ):
            fail(
                f'{init_from} has a vocabulary of its own ({model.config.vocab_size:,} tokens), data/{dataset} another '
                f'({meta["vocab_size"]:,}); prepare the data with the --tokenizer of the model'
            )
    model.recompute = activation_checkpointing
    if model.config.causal != (objective == 'causal'):
        kind = 'a causal model' if model.config.causal else 'a masked model'
        fail(
            f'objective = {objective!r} does not fit {kind}: GPT is causal (arch=gpt2), BERT is masked (arch=bert)'
        )
    return model, state


def describe_run(where, precision, world_size, ranks):
    """What --estimate prints, as text. Where there are no data yet it supposes GPT-2's vocabulary."""
    known = Path('data', dataset, 'meta.json').exists() or ':' in dataset
    start, resuming = faults.choose_start(init_from, out_dir)
    with torch.device('meta') if start == 'scratch' else nullcontext():  # which needs no memory
        model, _ = build_model(start, resuming, read_meta(dataset) if known else dict(vocab_size=50257))
    if batch_size == 'auto':
        globals().update(fit_batch(model, where, precision, ranks))
    work = (batch_size, hidden_in_row(), gradient_accumulation_steps, max_iters)
    machine = (where, precision, optimizer, world_size, ranks, fsdp, tp, compile)
    return describe(model, *work, *machine, make_optimizers)


def hidden_in_row():
    """How many tokens of a row are predicted by a masked model; 0 for a causal one, which predicts all."""
    return max(1, round(mask_ratio * block_size)) if objective == 'masked' else 0


def fit_batch(model, where, precision, ranks):
    """What batch_size = 'auto' means, as settings: the rows of a step, in as few micro-batches as memory allows."""
    rows = gradient_accumulation_steps
    fit = rows_that_fit(model, rows, hidden_in_row(), where, precision, optimizer, ranks, fsdp, tp)
    return dict(batch_size=fit, gradient_accumulation_steps=rows // fit)


def make_optimizers(model, precision):
    """AdamW (Loshchilov & Hutter 2019), with weight decay on matrices and embeddings, not on biases and norms; before it
    Muon for the matrices of the blocks, if that is chosen.
    """
    muon = muon_groups(model) if optimizer == 'muon' else []
    taken = {id(p) for group in muon for p in group['params']}
    left = [p for p in model.parameters() if id(p) not in taken]
    decayed, others = [p for p in left if p.dim() > 1], [p for p in left if p.dim() <= 1]
    groups = [dict(params=decayed, weight_decay=weight_decay), dict(params=others, weight_decay=0.0)]
    made = [torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2), fused=True)]
    if muon:
        products = torch.bfloat16 if precision == torch.bfloat16 else torch.float32
        made.insert(0, Muon(muon, lr=muon_learning_rate, weight_decay=weight_decay, dtype=products))
    for group in (group for each in made for group in each.param_groups):
        group['initial_lr'] = group['lr']
    return made


def compile_model(model, where, layout, log):
    """The model as it is called in the loop: compiled if that is asked for and possible; layer by layer if it is dealt out."""
    if not compile:
        return model
    if reason := runtime.why_not_compile(where):
        log(f'not compiled: {reason}')
        return model
    log('compiling: the first step takes longer')
    if layout.shares:
        for layer in (layer for block in model.blocks for layer in (block.attn, block.mlp)):
            layer.forward = torch.compile(layer.forward, dynamic=False)
        return model
    return torch.compile(model, dynamic=False)  # every batch has the same shape


def learning_rate_at(step):
    """The learning rate of a step: warm-up from near 0, then the schedule."""
    if not decay_lr:
        return learning_rate
    if step < warmup_iters:
        return learning_rate * (step + 1) / (warmup_iters + 1)
    if schedule == 'constant':
        return learning_rate
    begin = warmup_iters if schedule != 'wsd' else lr_decay_iters * (1 - wsd_decay)
    # 0 where the decay begins, 1 where it ends
    done = min(max((step - begin) / max(lr_decay_iters - begin, 1), 0), 1)
    left = 0.5 * (1 + math.cos(math.pi * done)) if schedule == 'cosine' else 1 - done
    return min_lr + left * (learning_rate - min_lr)


def step_batches(data, meta, where, layout, step):
    """{number: batch} of the micro-batches of a step that are this process's: numbered through the run, dealt out in turn."""
    first = step * gradient_accumulation_steps
    numbers = range(first + layout.rank, first + gradient_accumulation_steps, layout.ranks)
    return {number: runtime.pin(make_batch(data['train'], number, seed, meta), where) for number in numbers}


def make_batch(parts, number, seed, meta, hidden=None):
    """Micro-batch `number` of a split's parts, counted from the beginning of the run: its rows, made what the model takes."""
    numbers = range(number * batch_size, (number + 1) * batch_size)
    rows = mixed_rows(parts, block_size, numbers, seed)
    if objective == 'causal':
        return objectives.causal(rows)
    return objectives.masked(rows, numbers, seed, meta['special'], meta['vocab_size'], hidden or mask_ratio)


def check_ids(batch, meta):
    """End the program where a batch holds an id that is not in the vocabulary, and so has no row in the embedding."""
    highest = max(int(batch['inputs'].max()), int(batch['targets'].max()))
    if highest >= meta['vocab_size']:
        words = (
            f'data/{dataset} holds the id {highest}, its vocabulary has {meta["vocab_size"]}; make it again'
        )
        fail(words, mine=True)


@torch.no_grad()
def estimate_losses(model, data, meta, where, precision, layout, stop):
    """The mean loss on the same eval_iters batches of each split every time, divided among the processes.

    stop: what all of them ask before each batch; where it is true, they return None.
    """
    losses = {}
    model.eval()
    for split, parts in data.items():
        # the rows after which every part has been seen once
        whole = max(windows(tokens, block_size) / share for tokens, share in parts)
        count = min(eval_iters, max(1, int(whole / batch_size)))
        total = torch.zeros(2, device=where)  # sum of the losses, tokens predicted
        for number in range(layout.rank, count + layout.rank, layout.ranks):
            if stop():
                model.train()
                return None
            # where there are too few the last is taken again, for nothing: all must go through a model that is dealt out
            counts = number < count
            batch = make_batch(parts, min(number, count - 1), 0, meta, hidden=0.15)
            check_ids(batch, meta)
            batch = runtime.to_device(batch, where)
            with runtime.autocast(where, precision):
                total[0] += counts * model(**batch)
            total[1] += counts * (batch['targets'] != -100).sum()
        loss, predicted = runtime.all_reduce_sum(total, layout.group).tolist()
        losses[split] = loss / predicted
    model.train()
    return losses


def log_line(record, tokens_per_step):
    """One dense line of a step, its record made readable."""
    parts = [f'step {record["step"]}/{max_iters}', f'loss {record["loss"]:.4f}', f'norm {record["norm"]:.3f}']
    parts.append(f'lr {record["lr"]:.2e}')
    if 'left_out' in record:
        parts.append(f'{record["left_out"]} steps left out')
    if 'spike' in record:
        parts.append(f'spike of {record["spike"]:.1f} standard deviations')
    if rate := record.get('tokens_per_second'):
        parts.append(f'{rate:,.0f} tok/s')
        if 'utilisation' in record:
            parts.append(f'{record["utilisation"]:.1%} of peak')
        parts.append(f'{clock((max_iters - record["step"]) * tokens_per_step / rate)} left')
    return ' | '.join(parts)


if __name__ == '__main__':
    raise SystemExit(main(configure(globals(), auto=['batch_size'])))
