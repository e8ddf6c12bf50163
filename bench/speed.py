"""How fast this project trains and generates, beside nanoGPT and transformers in the same run, as ratios.

    python bench.py --nanogpt=../nanoGPT --shakespeare=FILE  # all, against a checkout of nanoGPT
    python bench.py gpu --nanogpt=../nanoGPT --shakespeare=FILE  # what to measure on one GPU, in its own sizes
    python bench.py train --n_layer=12 --n_head=12 --n_embd=768 --block_size=1024 --batch_size=16 --vocab_size=50304

Both sides run as shipped: the real train.py as a user starts it, on the same tokens. bench_data.py measures preparing data.
"""

import importlib.util
import json
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import fail, size
from configurator import answer_help, configure

if __name__ == '__main__':
    answer_help(globals())  # before torch is imported, which takes seconds

import numpy as np
import torch

import generate
from bench.measure import run_measuring_memory, run_script, some_sources, take_turns
from infra import runtime
from model import ARCHITECTURES, Config, Transformer

# -----------------------------------------------------------------------------
what = 'all'  # or 'gpu', or one of the parts: see `main`
nanogpt = ''  # a checkout of nanoGPT to run beside
rounds = 3  # how often each side has its turn
steps = 12  # of training in a round; the first 3 are not counted
n_layer = 6
n_head = 6
n_embd = 384
block_size = 256
batch_size = 8
vocab_size = 4096
new_tokens = 256  # generated, in one sample
megabytes = 100  # of Python source, for 'budget'
shakespeare = ''  # a file that holds tinyshakespeare, for 'loss'
minutes = 20  # of nanoGPT's training, for 'budget'
device = 'auto'  # as in train.py
# -----------------------------------------------------------------------------

HERE = Path(__file__).parent.parent.resolve()


def main():
    parts = {
        'loss': bench_loss,
        'curve': bench_curve,
        'budget': bench_budget,
        'memory': bench_memory,
        'train': bench_training,
        'peak': bench_peak,
        'bert': bench_bert,
        'generate': bench_generation,
        'batch': bench_batch,
    }
    if what not in ('all', 'gpu', *parts):
        fail(f'{what!r} is none of all, gpu, {", ".join(parts)}')
    if nanogpt and not Path(nanogpt, 'train.py').exists():
        fail(f'there is no nanoGPT checkout in {nanogpt}')
    if what == 'gpu':
        return on_gpu()
    where = runtime.choose_device(device)
    model = Transformer(model_config())
    print(
        f'{size(model.num_params())} parameters, rows of {block_size}, {batch_size} a batch, on {where.type}'
    )
    for dtype in (torch.float32, torch.bfloat16):
        print(f'  peak in {str(dtype)[6:]}: {size(runtime.peak_flops(where, dtype), "G")} FLOP/s')
    for name, bench in parts.items():
        if what in ('all', name):
            with tempfile.TemporaryDirectory() as work:
                bench(Path(work), where)


def on_gpu():
    """The parts that tell on a GPU, each at its size, in a process of its own."""
    gpt2 = '--n_layer=12 --n_head=12 --n_embd=768 --block_size=1024 --batch_size=16 --vocab_size=50304 --steps=60'
    bert = (
        '--n_layer=12 --n_head=12 --n_embd=768 --block_size=512 --batch_size=32 --vocab_size=30522 --steps=60'
    )
    given = [
        f'--nanogpt={nanogpt}',
        f'--shakespeare={shakespeare}',
        f'--rounds={rounds}',
        f'--device={device}',
    ]
    for command in (f'train {gpt2}', f'bert {bert}', f'generate {gpt2}', f'batch {gpt2}', 'loss'):
        print(f'--- bench.py {command}', flush=True)
        subprocess.run([sys.executable, '-m', 'bench.speed', *command.split(), *given])


def model_config():
    shape = dict(vocab_size=vocab_size, block_size=block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    with runtime.user_errors():
        return Config(**shape, bias=False, **ARCHITECTURES['gpt2'])


# --- time to a loss -------------------------------------------------------------


NANOGPT_CPU = dict(  # the command of its README
    device='cpu', compile=False, eval_iters=20, log_interval=1, block_size=64, batch_size=12, n_layer=4, n_head=4,
    n_embd=128, max_iters=2000, lr_decay_iters=2000, dropout=0.0,
)  # fmt: skip


def bench_loss(work, where):
    """Seconds from the start of the process to its end, of nanoGPT's CPU run on Shakespeare and of ours to the same loss.

    Both validation losses are over the same text whole, in windows of 64 letters that do not overlap.
    """
    if not prepare_shakespeare(work):
        return
    small = where.type == 'cpu'
    recipe, window = ('modern_tiny_cpu', 64) if small else ('modern_shakespeare_char', 256)
    flags = dict(out_dir='out-barelm', device=where.type)
    ours = HERE / 'config' / f'{recipe}.py'
    sides = {'barelm': lambda: timed_run(work, HERE / 'train.py', ours, **flags)}
    if nanogpt:
        link_nanogpt(work, 'shakespeare_char')
        config = Path(nanogpt, 'config', 'train_shakespeare_char.py').resolve()
        sides['nanoGPT'] = lambda: timed_run(
            work, work / 'train.py', config, **(NANOGPT_CPU if small else {})
        )
    take_turns('a run on Shakespeare by letters', 's', sides, rounds)
    print_losses(work, 'shakespeare_char', 'out-shakespeare-char', window, window)


def prepare_shakespeare(work):
    if not shakespeare:
        print('Shakespeare: left out, name the text with --shakespeare=FILE')
        return False
    flags = dict(files=shakespeare, tokenizer='char', val_fraction=0.1, clean='none')
    run_script(HERE / 'prepare.py', work, 'shakespeare_char', **flags)
    return True


def bench_curve(work, where):
    """Validation loss over the seconds since the command: nanoGPT's CPU run on Shakespeare, three times as long; ours of two sizes.

    Each estimates it itself, over 20 random batches or, ours, over as many that stay the same. Draws curve.png.
    """
    if not prepare_shakespeare(work):
        return
    tiny = HERE / 'config' / 'modern_tiny_cpu.py'
    larger = dict(
        n_layer=4, n_embd=256, block_size=128, batch_size=32, compile=True, max_iters=300, lr_decay_iters=300
    )
    sides = {
        'barelm, modern_tiny_cpu.py': (HERE / 'train.py', tiny, dict(eval_interval=44)),
        'barelm, 4 layers of 256': (HERE / 'train.py', tiny, larger | dict(eval_interval=50, eval_iters=10)),
    }
    if nanogpt:
        link_nanogpt(work, 'shakespeare_char')
        config = Path(nanogpt, 'config', 'train_shakespeare_char.py').resolve()
        longer = NANOGPT_CPU | dict(max_iters=6000, lr_decay_iters=6000, eval_interval=500)
        sides['nanoGPT'] = (work / 'train.py', config, longer)
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    for name, (script, config, flags) in sides.items():
        points = loss_curve(script, work, config, flags)
        print(f'  {name}: ' + ', '.join(f'{loss:.3f} at {seconds:.0f} s' for seconds, loss in points))
        axes.plot(*zip(*points[1:], strict=True), marker='o', markersize=3, label=name)
    axes.set(xlabel='seconds since the command', ylabel='validation loss (nats per letter)', xscale='log')
    axes.set_xticks([5, 10, 20, 50, 100, 200], ['5', '10', '20', '50', '100', '200'])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig('curve.png')


def loss_curve(script, work, config, flags):
    """(seconds since the command, validation loss) at each evaluation, as either project prints it."""
    words = [f'--{name}={value}' for name, value in flags.items()]
    began, points = time.perf_counter(), []
    command = [sys.executable, '-u', str(script), str(config), *words]
    process = subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if found := re.match(r'step \d+: train loss .*val loss ([\d.]+)', line):
            points.append((time.perf_counter() - began, float(found[1])))
    return points


def bench_budget(work, where):
    """nanoGPT's baby GPT after so many `minutes` on Python source of this machine; ours, of as many parameters, to its loss."""
    if not nanogpt:
        return print('budget: left out, it needs --nanogpt')
    (work / 'src').mkdir()
    for number, file in enumerate(some_sources(megabytes)):
        (work / 'src' / f'{number}.py').write_bytes(file.read_bytes())
    flags = dict(files=work / 'src' / '*.py', tokenizer='bpe', vocab_size=4096, val_fraction=0.01)
    run_script(HERE / 'prepare.py', work, 'code', **flags)
    link_nanogpt(work, 'code')
    config = Path(nanogpt, 'config', 'train_shakespeare_char.py').resolve()
    shape = dict(
        dataset='code', out_dir='out-nano', device=where.type, compile=where.type != 'cpu', batch_size=8, block_size=256,
        n_layer=6, n_head=6, n_embd=384, dropout=0.0, eval_iters=20,
    )  # fmt: skip
    trial = run_script(work / 'train.py', work, config, **shape, max_iters=12, eval_interval=1000)
    milliseconds = [float(ms) for ms in re.findall(r'time ([\d.]+)ms', trial)][4:11]
    their_steps = int(minutes * 60_000 / statistics.median(milliseconds))
    ends = dict(max_iters=their_steps, lr_decay_iters=their_steps, eval_interval=their_steps // 3)
    seconds = {'nanoGPT': timed_run(work, work / 'train.py', config, **shape, **ends)}
    our_steps = int(130 * minutes / 20)
    ours = dict(dataset='code', out_dir='out-barelm', n_embd=256, bigrams=24576, device=where.type)
    ends = dict(max_iters=our_steps, lr_decay_iters=our_steps, eval_interval=our_steps)
    quickstart = HERE / 'config' / 'quickstart.py'
    seconds['barelm'] = timed_run(work, HERE / 'train.py', quickstart, **ours, **ends)
    print(f'the loss of nanoGPT after {minutes} minutes of {megabytes} MB of source')
    print(f'  barelm {seconds["barelm"]:.1f} s, nanoGPT {seconds["nanoGPT"]:.1f} s')
    print_losses(work, 'code', 'out-nano', 128, 256)


def timed_run(work, script, config, **flags):
    """Seconds of a whole command."""
    began = time.perf_counter()
    run_script(script, work, config, **flags)
    return time.perf_counter() - began


def print_losses(work, dataset, nanogpt_dir, window, their_window):
    """The losses of both over the whole validation split, in windows that do not overlap."""
    flags = dict(out_dir='out-barelm', stride=window, train_tokens=0, json=True)
    print(f'  loss: barelm {json.loads(run_script(HERE / "eval.py", work, **flags))["val"]["loss"]:.4f}')
    if nanogpt:
        print(f'  loss: nanoGPT {loss_of_nanogpt(work, dataset, nanogpt_dir, their_window):.4f}')


def link_nanogpt(work, dataset):
    """nanoGPT's scripts in the directory, and what they look for beside our token files."""
    for script in ('train.py', 'model.py', 'configurator.py'):
        (work / script).unlink(missing_ok=True)
        (work / script).symlink_to(Path(nanogpt, script).resolve())
    meta = json.loads((work / 'data' / dataset / 'meta.json').read_text())
    sizes = pickle.dumps(dict(vocab_size=meta['vocab_size']))
    (work / 'data' / dataset / 'meta.pkl').write_bytes(sizes)


@torch.inference_mode()
def loss_of_nanogpt(work, dataset, out_dir, window):
    """The loss of its checkpoint. Its optimizer is left out, its settings are plain values."""
    saved = torch.load(work / out_dir / 'ckpt.pt', weights_only=True, map_location='cpu')
    module = nanogpt_module()
    model = module.GPT(module.GPTConfig(**saved['model_args'])).eval()
    weights = {name.removeprefix('_orig_mod.'): value for name, value in saved['model'].items()}
    model.load_state_dict(weights)
    tokens = torch.from_numpy(np.fromfile(work / 'data' / dataset / 'val.bin', np.uint16).astype(np.int64))
    rows = tokens[: (len(tokens) - 1) // window * window + 1].unfold(0, window + 1, window)
    losses = [model(some[:, :-1], some[:, 1:])[1].item() * len(some) for some in rows.split(83)]
    return sum(losses) / len(rows)


# --- training -------------------------------------------------------------------


def bench_training(work, where):
    """Tokens a second of train.py, from its own log; the first steps, which compile, are left out."""
    write_random_tokens(work / 'data' / 'bench', vocab_size)

    def theirs(**flags):
        ends = dict(eval_interval=steps * 2, out_dir=str(work / 'out-nano'))
        out = run_script(work / 'train.py', work, **training_shape(where), **ends, **flags)
        times = [float(ms) for ms in re.findall(r'time ([\d.]+)ms', out)][3:steps]
        return batch_size * block_size / statistics.median(times) * 1000

    sides = {
        'barelm, float32, eager': lambda: our_rate(work, where, dtype='float32', compile=False),
        'barelm, defaults': lambda: our_rate(work, where),
        'barelm, modern and Muon': lambda: our_rate(work, where, arch='modern', optimizer='muon'),
    }
    if nanogpt:
        link_nanogpt(work, 'bench')
        eager = where.type == 'cpu'  # as its README says for a CPU
        sides['nanoGPT, as shipped' + (', float32, eager' if eager else '')] = lambda: theirs(
            compile=not eager
        )
        their_model = load_nanogpt().to(where)
        compiled = torch.compile(their_model)
        sides['nanoGPT, its model, bfloat16, compiled'] = lambda: plain_rate(
            their_model, lambda inputs, targets: compiled(inputs, targets)[1], where
        )
    take_turns('training', 'tokens/s', sides, rounds)


def training_shape(where):
    return dict(
        dataset='bench', n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=block_size, batch_size=batch_size,
        gradient_accumulation_steps=1, max_iters=steps, log_interval=1, eval_iters=1, device=where.type,
    )  # fmt: skip


def our_rate(work, where, what='tokens_per_second', **flags):
    """The median of what train.py logs of its steps, but the first three."""
    ends = dict(eval_interval=steps * 2, out_dir=str(work / 'out'))
    run_script(HERE / 'train.py', work, **(training_shape(where) | ends | flags))
    records = map(json.loads, (work / 'out' / 'metrics.jsonl').read_text().splitlines())
    return statistics.median(r[what] for r in records if what in r and r['step'] >= 3)


def plain_rate(model, loss_of, where, batches=None):
    """Tokens a second of a peer's model in the plainest loop: bf16, AdamW, the norm of the gradient clipped."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    rows = torch.randint(vocab_size, (batch_size, block_size + 1), device=where)
    batch = batches or (rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        with torch.autocast(where.type, dtype=torch.bfloat16):
            loss = loss_of(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for a GPU
        times.append(time.perf_counter() - began)
    return batch_size * block_size / statistics.median(times[3:])


def bench_peak(work, where):
    """The part of the machine's measured peak in bf16 that training GPT-2 124M reaches, 8 rows of 512, in percent."""
    write_random_tokens(work / 'data' / 'bench', 50257)
    shape = dict(n_layer=12, n_head=12, n_embd=768, block_size=512, batch_size=8, max_iters=8)
    sides = {'barelm, GPT-2': lambda: 100 * our_rate(work, where, 'utilisation', **shape)}
    take_turns('training GPT-2 124M, 8 x 512, of the peak in bfloat16', '%', sides, rounds)


def bench_bert(work, where):
    """Tokens a second of training BERT, 15 % masked; transformers' BertForMaskedLM of the same size by a plain loop in bf16."""
    write_random_tokens(work / 'data' / 'bench', vocab_size)
    bert = dict(objective='masked', arch='bert', bias=True, dtype='bfloat16')
    sides = {'barelm, compiled': lambda: our_rate(work, where, **bert)}
    sides['barelm, eager'] = lambda: our_rate(work, where, **bert, compile=False)
    if importlib.util.find_spec('transformers'):
        import transformers

        settings = transformers.BertConfig(
            vocab_size=vocab_size, max_position_embeddings=block_size, hidden_size=n_embd, num_hidden_layers=n_layer,
            num_attention_heads=n_head, intermediate_size=4 * n_embd, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        model = transformers.BertForMaskedLM(settings).train().to(where)
        inputs = torch.randint(vocab_size, (batch_size, block_size), device=where)
        hidden = torch.rand(batch_size, block_size, device=where) < 0.15
        batch = (inputs, inputs.where(hidden, -100))
        for name, forward in (('', model), (', compiled', torch.compile(model))):
            sides['transformers' + name] = lambda forward=forward: plain_rate(
                model, lambda inputs, labels: forward(inputs, labels=labels).loss, where, batch
            )
    take_turns('training BERT', 'tokens/s', sides, rounds)


def bench_memory(work, where):
    """Peak memory of the process in three training steps of GPT-2 124M, 8 rows of 1024, as both have it on a CPU."""
    vocabulary = 50257
    write_random_tokens(work / 'data' / 'bench', vocabulary)
    shape = dict(
        dataset='bench', n_layer=12, n_head=12, n_embd=768, block_size=1024, batch_size=8, gradient_accumulation_steps=1,
        max_iters=3, eval_interval=10, eval_iters=1, device='cpu', compile=False,
    )  # fmt: skip

    def measured(script, out_dir):
        flags = [f'--{name}={value}' for name, value in (shape | dict(out_dir=str(work / out_dir))).items()]
        return run_measuring_memory([script, *flags], work) / 1e9

    sides = {'barelm': lambda: measured(HERE / 'train.py', 'out')}
    if nanogpt:
        link_nanogpt(work, 'bench')
        sides['nanoGPT'] = lambda: measured(work / 'train.py', 'out-nano')
    take_turns('memory of training GPT-2 124M, 8 x 1024', 'GB', sides, rounds)


def write_random_tokens(directory, vocab_size, count=1_000_000):
    """Token files that both projects read: uniform random ids."""
    directory.mkdir(parents=True)
    ids = np.random.default_rng(0).integers(vocab_size, size=count, dtype=np.uint16)
    for split in ('train', 'val'):
        ids.tofile(directory / f'{split}.bin')
    counts = dict(documents=1, tokens=count, bytes=count)
    special = {name: 0 for name in ('eot', 'pad', 'unk', 'cls', 'sep', 'mask')}
    meta = dict(
        train=counts, val=counts, dtype='uint16', vocab_size=vocab_size, tokenizer_hash='', special=special
    )
    (directory / 'meta.json').write_text(json.dumps(meta))


# --- generation -----------------------------------------------------------------


def bench_generation(work, where):
    """Tokens a second of one sample, random weights: ours as sample.py runs it, the others in fp32 on a CPU."""
    prompt = torch.zeros(1, 1, dtype=torch.long, device=where)
    settings = dict(temperature=0.8, top_k=200)

    def ours(dtype, compile=False):
        model = generate.ready(Transformer(model_config()), where, dtype, compile)
        return rate_of(lambda n: generate.generate(model, prompt, n, **settings).tolist())

    sides = {
        'barelm, float32': lambda: ours('float32'),
        'barelm, bfloat16': lambda: ours('bfloat16'),
        'barelm, defaults': lambda: ours('auto'),
        'barelm, defaults, compiled': lambda: ours('auto', compile=True),
        'barelm, int8, compiled': lambda: ours('int8', compile=True),
    }
    if nanogpt:
        their_model = load_nanogpt().to(where).eval()
        context = torch.autocast(where.type, dtype=torch.bfloat16, enabled=where.type == 'cuda')

        def theirs(n):
            with torch.no_grad(), context:
                return their_model.generate(prompt, n, **settings).tolist()

        sides['nanoGPT'] = lambda: rate_of(theirs)
    if importlib.util.find_spec('transformers'):
        sides['transformers, float32'] = lambda: rate_of(transformers_generate(prompt, where, settings))
        if where.type == 'cuda':
            static = settings | dict(cache_implementation='static')
            sides['transformers, bfloat16, static cache, compiled'] = lambda: rate_of(
                transformers_generate(prompt, where, static, torch.bfloat16)
            )
    take_turns(f'generation of {new_tokens} tokens, one sample', 'tokens/s', sides, rounds)
    print_bandwidth(where)


def rate_of(generated):
    """Tokens a second of generated(n), all but the first one, which may compile."""
    generated(new_tokens)
    began = time.perf_counter()
    generated(new_tokens)  # its last token is on the CPU before it returns
    return new_tokens / (time.perf_counter() - began)


def transformers_generate(prompt, where, settings, dtype=torch.float32):
    import transformers

    shape = dict(n_positions=block_size * 2, n_embd=n_embd, n_layer=n_layer, n_head=n_head)
    config = transformers.GPT2Config(vocab_size=vocab_size, **shape)
    model = transformers.GPT2LMHeadModel(config).eval().to(where, dtype)
    never = dict(do_sample=True, attention_mask=torch.ones_like(prompt), pad_token_id=0)
    return lambda n: model.generate(prompt, max_new_tokens=n, min_new_tokens=n, **never, **settings).tolist()


def print_bandwidth(where):
    """The most tokens a second that reading all weights once a token allows, from the rate at which this machine reads."""
    numbers = torch.ones(64_000_000, device=where)
    numbers.sum().item()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        numbers.sum().item()
        times.append(time.perf_counter() - began)
    bandwidth = numbers.nbytes / min(times)
    weights = Transformer(model_config()).num_params()
    limits = ', '.join(
        f'{bandwidth / weights / n:,.0f} in {name}' for name, n in (('int8', 1), ('fp16', 2), ('fp32', 4))
    )
    print(f'  at the {size(bandwidth, "G")}B/s this machine reads, weights allow {limits} tokens/s')


def bench_batch(work, where):
    """Tokens a second of 16 prompts of different lengths, together and one by one."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, block_size // 4, (16,), generator=draw).to(where)
    prompts = torch.randint(vocab_size, (16, int(lengths.max())), generator=draw).to(where)
    settings, count = dict(temperature=0.8, top_k=200), block_size // 2

    def one_by_one():
        model = generate.ready(Transformer(model_config()), where, 'auto')
        return made_by(
            lambda n: [
                generate.generate(model, p[None, :k], n, **settings).tolist()
                for p, k in zip(prompts, lengths.tolist(), strict=True)
            ]
        )

    def together():
        model = generate.ready(Transformer(model_config()), where, 'auto', rows=16)
        return made_by(lambda n: generate.generate(model, prompts, n, lengths, **settings).tolist())

    def made_by(generated):
        generated(4)
        began = time.perf_counter()
        generated(count)
        return 16 * count / (time.perf_counter() - began)

    take_turns(
        f'16 prompts, {count} tokens each',
        'tokens/s',
        {'barelm, together': together, 'one by one': one_by_one},
        rounds,
    )


def nanogpt_module():
    spec = importlib.util.spec_from_file_location('nanogpt_model', Path(nanogpt, 'model.py'))
    module = importlib.util.module_from_spec(spec)
    sys.modules['nanogpt_model'] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def load_nanogpt():
    module = nanogpt_module()
    names = ('block_size', 'vocab_size', 'n_layer', 'n_head', 'n_embd', 'dropout', 'bias')
    return module.GPT(module.GPTConfig(**{name: getattr(model_config(), name) for name in names}))


if __name__ == '__main__':
    configure(globals(), positional=['what'])
    main()
