"""Training: the one loop of the project. Every model, objective and starting point goes through it.

    python train.py config/quickstart.py                                  # this machine
    python train.py config/train_shakespeare_char.py --batch_size=32 --compile=False
    torchrun --standalone --nproc_per_node=8 train.py config/gpt2_124m.py  # 8 GPUs of one machine
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 train.py config/gpt2_124m.py
    python train.py config/quickstart.py --init_from=resume               # go on after Ctrl-C or a crash
    python train.py config/gpt2_124m.py --estimate                        # memory, time and money it takes, before it runs

Writes checkpoints, metrics.jsonl and loss.png into out_dir. Ctrl-C, SIGTERM and SIGUSR1 finish the step, save and say how
to go on. Exit codes: 0 done, or stopped by Ctrl-C; 2 a mistake of the user, or a disk that is full; 75 stopped by another
signal or by the loss of a process: the same command goes on.
"""

import functools
import gc
import math
import os
import signal
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from common import clock, fail, reason, size
from configurator import answer_help, configure, own_settings

if __name__ == '__main__':
    # before torch is imported, which takes seconds
    answer_help(globals(), others=('objectives.py', 'model.py'))

import torch

import objectives
from estimate import Run, describe, rows_that_fit
from infra import checkpoint, faults, mesh, runtime
from infra.monitor import Log, Monitor, Speed
from loader import DataError, Prefetch, read_meta, unread_columns, verify
from model import ARCHITECTURES, Config, Transformer
from objectives import OBJECTIVES, Batches
from optim import Muon, muon_groups, set_rates
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
wandb_project = 'barelm'
wandb_run_name = ''  # '': out_dir
# data
dataset = 'openwebtext'  # data/DATASET, made by prepare.py; 'a:0.7,b:0.3' takes 70 % of the rows from a, 30 % from b
batch_size = 12  # rows in a micro-batch; 'auto': gradient_accumulation_steps a step, as many as fit [1, inf)
gradient_accumulation_steps = 5 * 8  # micro-batches in a step, over all processes [1, inf)
verify_data = False  # compare the hashes in meta.json first; sizes and ids are always checked
# what is trained: its settings are those of objectives.py and of model.py, which --help prints too
objective = 'causal'  # the next token (GPT); 'packed': in whole documents; 'masked': the hidden ones (BERT)
arch = 'gpt2'  # 'bert', 'bert_prenorm', 'llama', 'modern', 'modern_bert': ARCHITECTURES of model.py
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
lr_decay_iters = 0  # where the decay ends; 0: at max_iters [0, inf)
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


def load_settings(argv=None):
    """All settings as a dict, from a command line; those of the model are None unless given."""
    return configure(globals(), argv, parts=[objectives], auto=['batch_size'], dataclass='model.py')


def main(settings):
    """Train as the settings say -> exit code. However it ends, log.txt says how, and Python is as it was."""
    log = Log()
    saver = checkpoint.Saver(log)
    with log, faults.Watch(hang_timeout, saver, log) as watch:
        try:
            return train(settings, log, saver, watch)
        except OSError as e:  # a full disk, most often
            fail(f'{e.filename or out_dir}: {reason(e)}', mine=True)
        except DataError as e:
            fail(e, mine=True)
        except torch.OutOfMemoryError:
            fail('out of GPU memory: halve batch_size and double gradient_accumulation_steps')
        finally:
            gc.enable()
            gc.unfreeze()


def train(settings, log, saver, watch):
    # The machine, the data and the model: what can be wrong is found before the first expensive step.
    torch_device = runtime.choose_device(device)
    precision = runtime.choose_dtype(dtype, torch_device)
    if torch_device.type == 'cpu':
        runtime.keep_freed_memory()
    rank, world_size = runtime.init_distributed(backend, torch_device, hang_timeout)
    check_settings()
    # the question of --estimate may be put to one process, about many
    asked_about = mesh.Layout(dp_size=max(world_size, fsdp * tp) // tp, fsdp=fsdp, tp=tp)
    layout = asked_about if estimate else mesh.make_layout(torch_device, world_size, fsdp, tp)
    torch.manual_seed(seed)
    start, resuming = runtime.run_on_rank0(faults.choose_start, init_from, out_dir, log)
    run, state = plan_run(settings, start, resuming, torch_device, precision, layout, log)
    if estimate:
        log(describe(run))
        return 0
    goal, model, meta, block_size = run.objective, run.model, run.meta, run.model.config.block_size
    if verify_data:
        runtime.run_on_rank0(verify, dataset)
    batches = Batches(goal, dataset, 'train', run.rows, seed, meta, model.config)
    evaluation = {}  # always the same rows, whatever the seed
    for split in ('train', 'val'):
        evaluation[split] = Batches(goal, dataset, split, run.rows, 0, meta, model.config, training=False)
    rows = run.rows * run.micro_batches  # of a step: which ones depends on this number alone
    if resuming:
        log(f'going on from {start}{faults.check_resume(start, settings, FIXED, meta, rows)}')

    # The model is built whole on the CPU, then copied to the device or sharded over many.
    compiled = compile_model(model, torch_device, layout, log)
    if layout.is_sharded:
        mesh.shard_model(model, layout.mesh, precision)
    else:
        model.to(torch_device)
    forward = mesh.wrap_ddp(compiled, layout, torch_device)  # averages gradients during the backward pass
    optimizers = make_optimizers(model, precision)
    scaler = torch.amp.GradScaler(torch_device.type, enabled=precision == torch.float16)
    if resuming:
        checkpoint.load_optimizers(start, optimizers, scaler)
    if not eval_only:
        runtime.run_on_rank0(faults.make_out_dir, out_dir, state['run'])
        log.open(out_dir)
    flops_per_token = model.flops_per_token(block_size, run.predicted())
    peak = runtime.peak_flops(torch_device, precision) * world_size
    announce(run, batches, rows * block_size, flops_per_token, peak, log)
    monitor = Monitor(out_dir, state['step'], settings, active=rank == 0 and not eval_only, log=log)
    speed, health = Speed(rows * block_size), faults.Health(torch_device)
    facts = {name: meta[name] for name in ('tokenizer_hash', 'mixture', 'data_hash')}  # for checkpoints
    facts |= dict(rows=rows, settings=settings)
    prefetch = Prefetch(functools.partial(step_batches, batches, run), state['step'] + state['rows_skipped'])
    began, saved_step, rolled_back_to = time.time(), state['step'], None
    gc.collect()
    gc.freeze()
    gc.disable()  # it would stop each process at another moment, and a step leaves it nothing to find

    while True:
        # Evaluate, save and stop, each where it is due.
        step, val_loss = state['step'], None
        saving = bool(save_interval) and step % save_interval == 0
        if stopped := watch.stop_signal(step):  # to any process
            ending, saving = f'stopped at step {step} by {signal.Signals(stopped).name}; {faults.GO_ON}', True
        elif step % eval_interval == 0 or step >= max_iters or eval_only:
            val_loss = evaluate(compiled, evaluation, run, state, watch, monitor, log)
            if val_loss is None:  # asked to stop, which the next turn does
                continue
            saving |= state['best_step'] == step or always_save_checkpoint
            speed.reset()
        # weights that have just given what is not finite are no place to roll back to
        new = step > 0 and (step != saved_step or val_loss is not None)
        if saving and new and not eval_only and not health.in_a_row and math.isfinite(val_loss or 0):
            state['val_loss'], saved_step = val_loss, step
            vocabulary_dir = Path('data', next(iter(meta['mixture'])))  # the parts of a mixture share one
            saver.save(out_dir, state | facts, model, optimizers, scaler, vocabulary_dir, keep)
            speed.reset()
        if stopped:
            break
        if step >= max_iters or eval_only:
            ending = 'done'
            break
        if patience and val_loss is not None and step - state['best_step'] >= patience * eval_interval:
            ending = f'stopped early at step {step}: no better val loss since step {state["best_step"]}'
            break

        # One update. The loss is a sum over all that the whole global batch predicts, divided by how many that are, over
        # micro-batches and processes: a mean of means is wrong as soon as rows differ.
        set_rates(optimizers, lr_multiplier(step), momentum(step))
        micro_batches = prefetch.take()  # {number: batch} of this process
        counted = torch.tensor(float(sum(goal.count(batch) for batch in micro_batches.values())))
        counted = runtime.all_reduce_sum(counted, layout.dp_group).item()  # on the host: no GPU waits
        if not counted:
            fail(f'step {step}: in none of its {rows} rows is there anything to predict; look at the data')
        loss = torch.zeros((), device=torch_device)
        for number, batch in micro_batches.items():
            # dropout is a function of the micro-batch: it needs no state, and no other processes
            torch.manual_seed((seed * 1_000_003 + number) % 2**63)
            with mesh.grad_sync(forward, last=number == max(micro_batches)):
                with runtime.autocast(torch_device, precision):
                    part = goal.loss(forward, runtime.to_device(batch, torch_device)) / counted
                scaler.scale(part * layout.dp_size).backward()  # of which DDP and FSDP take the mean
            loss += part.detach()
        for opt in optimizers:
            scaler.unscale_(opt)
        norm = mesh.clip_grad_norm_(model.parameters(), grad_clip or torch.inf)
        loss = runtime.all_reduce_sum(loss, layout.dp_group)
        bad = health.is_bad(loss, norm)
        for opt in optimizers:
            opt.found_inf = bad  # 1.0 and it leaves everything as it is: nobody waits to know
            opt.step()
            opt.zero_grad(set_to_none=True)
        scaler.update()
        state['step'] += 1

        if step % log_interval == 0:
            record = dict(step=step, **health.metrics(loss, norm), lr=learning_rate * lr_multiplier(step))
            if rate := speed.rate(step):
                record['tokens_per_second'] = rate
                record |= dict(utilisation=rate * flops_per_token / peak) if peak else {}
            log(log_line(record, rows * block_size))
            monitor.write(**record)
            if health.streak >= max_bad_steps > 0:
                saver.wait()
                begun = (state, model, optimizers, scaler, log)
                rolled_back_to = faults.rollback(out_dir, rolled_back_to, health, *begun)
                log(f'{health.streak} bad steps in a row: back to {rolled_back_to}, on with the rows after')
                monitor.begin_at(state['step'])
                prefetch.seek(state['step'] + state['rows_skipped'])
                speed.reset()

    prefetch.thread.shutdown(cancel_futures=True)
    saver.wait()
    memory = size(runtime.memory_used(torch_device), 'G')
    log(f'{ending} ({clock(time.time() - began)}, peak memory {memory}B)')
    if rank == 0:  # of all who end well, one says so
        log.end(ending)
    if stopped == signal.SIGUSR1 and requeue and rank == 0:
        faults.requeue(log)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return faults.exit_code(stopped)


# --- before the loop --------------------------------------------------------------

# What cannot change when a run goes on, besides the model, the data and the rows of a step.
FIXED = ('seed', 'objective', 'optimizer', 'arch', *own_settings(vars(objectives)))


def check_settings():
    """Refuse what cannot be, in one line; ranges of numbers have been checked."""
    choices = dict(objective=OBJECTIVES, arch=ARCHITECTURES, optimizer=('adamw', 'muon'))
    choices |= dict(schedule=('cosine', 'linear', 'constant', 'wsd'))
    for setting, known in choices.items():
        if globals()[setting] not in known:
            fail(f'{setting} = {globals()[setting]!r} is none of {", ".join(known)}')
    if decay_lr and schedule != 'constant' and 0 < lr_decay_iters < warmup_iters:
        fail(f'warmup_iters = {warmup_iters} should not exceed lr_decay_iters = {lr_decay_iters}')


def plan_run(settings, start, resuming, torch_device, precision, layout, log):
    """(estimate.Run, where the run stands): data, model and batch. settings: those left open are filled in."""
    # --estimate needs no data, and supposes GPT-2's vocabulary where there are none
    known = Path('data', dataset, 'meta.json').exists() or ':' in dataset or not estimate
    meta = read_meta(dataset) if known else dict(vocab_size=50257)
    # nor memory: the meta device
    with torch.device('meta') if estimate and start == 'scratch' else nullcontext():
        model, state = build_model(start, resuming, settings, meta, log)
    sizes = (batch_size, gradient_accumulation_steps, max_iters)
    machine = (torch_device, precision, layout, compile, make_optimizers)
    run = Run(model, OBJECTIVES[objective], meta, *sizes, *machine)
    if run.micro_batches % layout.dp_size:
        fail(f'{gradient_accumulation_steps = } is not divisible by {layout.dp_size} processes')
    with runtime.user_errors():
        run.batch(1)  # an objective may refuse the shape of its rows
    if batch_size == 'auto':  # the rows of a step, in as few micro-batches as memory allows
        rows = runtime.run_on_rank0(rows_that_fit, run)
        run = run._replace(rows=rows, micro_batches=run.micro_batches // rows)
    settings |= asdict(model.config)
    settings |= dict(batch_size=run.rows, gradient_accumulation_steps=run.micro_batches)
    return run, state


def build_model(start, resuming, settings, meta, log):
    """(model, where the run stands); its rows_skipped are steps whose rows a rollback passed over."""
    given = {name: settings[name] for name in asdict(Config()) if name in settings}  # None: not given
    state = dict(step=0, best_val_loss=None, best_step=0, run=os.urandom(4).hex(), rows_skipped=0)
    if start == 'scratch':
        with runtime.user_errors():
            model = Transformer(Config.of_arch(arch, **given, vocab_size=meta['vocab_size']))
    else:
        keep_positions = 0 if resuming else given['block_size'] or 0
        model = checkpoint.load_model(start, block_size=keep_positions, dropout=given['dropout'] or 0.0)
        check_vocabulary(start, model, meta)
        for name, value in given.items():
            own = getattr(model.config, name)
            if value not in (None, own) and resuming and name != 'dropout':
                fail(f'{name} = {value!r} cannot change on resuming: {start} has {own!r}')
            if value not in (None, own):
                log(f'{name} = {value!r} is not used: {start} has {own!r}')
        if resuming:
            saved = checkpoint.read_state(start)
            state = {name: saved[name] for name in state}
    if activation_checkpointing:
        model.gradient_checkpointing_enable()
    goal = OBJECTIVES[objective]
    for flag, value in goal.flags.items():
        if getattr(model.config, flag) != value:
            fits = [name for name in ARCHITECTURES if getattr(Config.of_arch(name), flag) == value]
            fail(f'objective = {objective!r} needs {flag} = {value}, as --arch={" or ".join(fits)} has')
    for name in goal.special:
        if name not in meta.get('special', goal.special):
            fail(f'objective = {objective!r} needs the special token {name!r}, which data/{dataset} lacks')
    return model, state


def check_vocabulary(start, model, meta):
    """End the program where a model was not trained with the vocabulary of the data."""
    if Path(start, 'state.json').exists():
        if checkpoint.read_state(start)['tokenizer_hash'] != meta['tokenizer_hash']:
            fail(f'{start} was trained with another vocabulary than the one of data/{dataset}')
        return
    # prepare.py's special tokens may lie in the padding rows, as those of gpt2 do
    fits = model.config.vocab_size <= meta['vocab_size'] <= model.config.padded_vocab_size
    is_gpt2 = init_from in PRETRAINED and init_from.startswith('gpt2')
    if not fits or (is_gpt2 and meta.get('tokenizer') != 'gpt2'):
        fail(
            f'{init_from} has a vocabulary of its own ({model.config.vocab_size:,} tokens), data/{dataset} another '
            f'({meta["vocab_size"]:,}); prepare the data with the --tokenizer of the model'
        )


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


def compile_model(model, torch_device, layout, log):
    """The model as it is called in the loop: compiled if that is asked for and possible; layer by layer if it is sharded."""
    if not compile:
        return model
    if why := runtime.why_not_compile(torch_device):
        log(f'not compiled: {why}')
        return model
    log('compiling: the first step takes longer')
    if layout.is_sharded:
        for layer in (layer for block in model.blocks for layer in (block.attn, block.mlp)):
            layer.compile(dynamic=False)
        return model
    return torch.compile(model, dynamic=False)  # every batch has the same shape


def announce(run, batches, tokens_per_step, flops_per_token, peak, log):
    """Log what is trained, on what, and how often it will see the data."""
    model, meta, tokens = run.model, run.meta, tokens_per_step * max_iters
    epochs = [float(tokens * portion / len(part.tokens)) for part, portion in batches.rows.parts]
    log(
        f'{size(model.num_params())} parameters, {meta["vocab_size"]:,} tokens in the vocabulary; '
        f'{run.device.type} in {str(run.precision)[6:]}, {run.layout}\n'
        f'{size(tokens_per_step)} tokens a step, {size(tokens)} in all, '
        + ', '.join(f'{n:.2f} epochs of data/{name}' for n, name in zip(epochs, meta['mixture'], strict=True))
    )
    for path in unread_columns(dataset, run.objective.columns):
        log(f'{path} is not used: objective = {objective!r} does not read it')
    if peak:
        flops = f'{size(flops_per_token, "G")} FLOPs a token (6 N + 12 L C T)'
        log(f'utilisation is {flops} of {size(peak, "G")} FLOP/s')


# --- in the loop ------------------------------------------------------------------


def step_batches(batches, run, step):
    """{number: batch} of the micro-batches of a step that are this process's, numbered through the run."""
    first = step * run.micro_batches
    numbers = range(first + run.layout.dp_rank, first + run.micro_batches, run.layout.dp_size)
    return {number: runtime.pin(batches[number], run.device) for number in numbers}


def lr_multiplier(step):
    """The learning rates of a step as a part of the highest: warm-up from near 0, then the schedule."""
    if not decay_lr:
        return 1.0
    if step < warmup_iters:
        return (step + 1) / (warmup_iters + 1)
    if schedule == 'constant':
        return 1.0
    end = lr_decay_iters or max_iters
    begin = warmup_iters if schedule != 'wsd' else end * (1 - wsd_decay)
    # 0 where the decay begins, 1 where it ends
    done = min(max((step - begin) / max(end - begin, 1), 0), 1)
    left = 0.5 * (1 + math.cos(math.pi * done)) if schedule == 'cosine' else 1 - done
    lowest = min_lr / learning_rate if learning_rate else 0.0
    return lowest + left * (1 - lowest)


def momentum(step):
    """Muon's, which grows with the steps there are to remember."""
    return 0.95 - 0.1 * max(0, 1 - step / max(momentum_warmup_iters, 1))


@torch.no_grad()
def evaluate(model, evaluation, run, state, watch, monitor, log):
    """Log the mean losses on the same eval_iters batches of each split every time, divided among the processes.

    Returns the validation loss, noted in state where it is the best so far; None if a signal interrupts it.
    """
    gc.collect()
    step, layout, losses = state['step'], run.layout, {}
    model.eval()
    for split, batches in evaluation.items():
        count = min(eval_iters, max(1, int(batches.rows.rows_per_epoch / batches.size)))
        total = torch.zeros(2, device=run.device)  # sum of the losses, number of what is counted
        for number in range(layout.dp_rank, count + layout.dp_rank, layout.dp_size):
            if watch.stop_signal(step):  # the same in all processes
                model.train()
                return None
            # where there are too few the last is taken again, for nothing: all processes must go through a sharded model
            counts = number < count
            batch = runtime.to_device(batches[min(number, count - 1)], run.device)
            with runtime.autocast(run.device, run.precision):
                total[0] += counts * run.objective.loss(model, batch)
            total[1] += counts * run.objective.count(batch)
        loss, counted = runtime.all_reduce_sum(total, layout.dp_group).tolist()
        if not counted:
            fail(
                f'in {eval_iters} batches of the {split} split there is nothing to predict; look at the data'
            )
        losses[split] = loss / counted
    model.train()
    log(f'step {step}: train loss {losses["train"]:.4f}, val loss {losses["val"]:.4f}')
    monitor.write(step=step, train_loss=losses['train'], val_loss=losses['val'])
    monitor.plot()
    if math.isfinite(losses['val']) and losses['val'] < (state['best_val_loss'] or math.inf):
        state |= dict(best_val_loss=losses['val'], best_step=step)
    return losses['val']


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
    raise SystemExit(main(load_settings()))
