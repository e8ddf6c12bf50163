"""Speed of training and generation beside nanoGPT and transformers: in one run, in turns, as ratios.

    python -m bench.speed --nanogpt=../nanoGPT --shakespeare=FILE      # all parts; run it in the repository's root
    python -m bench.speed train generate --nanogpt=../nanoGPT
    python -m bench.speed train generate batch --steps=60 --nanogpt=../nanoGPT --n_layer=12 --n_head=12 --n_embd=768
        --block_size=1024 --batch_size=16 --vocab_size=50304           # GPT-2 124M on one GPU; in one line

Each project runs as it is shipped, on the same tokens: training is the real train.py, started as a user starts it.
bench.data measures the preparation of data.
"""

import functools
import importlib.util
import json
import pickle
import re
import statistics
import sys
import time
from pathlib import Path

from configurator import answer_help, configure

if __name__ == '__main__':
    answer_help(globals())  # before torch is imported, which takes seconds

import numpy as np
import torch
import transformers

import generate
from bench.measure import ROOT, run_parts, run_script, take_turns
from infra import runtime
from model import Transformer

# -----------------------------------------------------------------------------
what = ()  # the parts to run: loss, train, bert, memory, generate, batch; none: all of them
nanogpt = ''  # a checkout of nanoGPT to run beside
shakespeare = ''  # a file with the text of tinyshakespeare, for 'loss'
rounds = 3  # turns of each side
steps = 12  # of training in a turn; the first 3, which compile, are not counted
n_layer = 6
n_head = 6
n_embd = 384
block_size = 256
batch_size = 8
vocab_size = 4096
new_tokens = 256  # generated, in one sample
device = 'auto'  # as in train.py
# -----------------------------------------------------------------------------

NANOGPT_CPU = dict(  # the CPU command of its README
    compile=False, eval_iters=20, log_interval=1, block_size=64, batch_size=12, n_layer=4, n_head=4, n_embd=128,
    max_iters=2000, lr_decay_iters=2000, dropout=0.0,
)  # fmt: skip
BABY_GPT = dict(  # our recipe at the size of its GPU command, in a fifth of its steps
    compile=True, eval_interval=100, eval_iters=50, block_size=256, batch_size=64, n_layer=6, n_head=6, n_embd=384,
    max_iters=1000, dropout=0.2, learning_rate=5e-3, muon_learning_rate=0.02,
)  # fmt: skip
SAMPLING = dict(temperature=0.8, top_k=200)


def train_barelm(work, *words, **flags):
    flags = dict(device=torch_device.type, out_dir='out') | flags
    return run_script(work, ROOT / 'train.py', *words, **flags)


def train_nanogpt(work, *words, dataset, **flags):
    """In its own directory, where it looks for its config files; beside the tokens it looks for meta.pkl."""
    meta = json.loads((work / 'data' / dataset / 'meta.json').read_text())
    (work / 'data' / dataset / 'meta.pkl').write_bytes(pickle.dumps(dict(vocab_size=meta['vocab_size'])))
    flags = dict(device=torch_device.type) | flags
    flags |= dict(dataset=work / 'data' / dataset, out_dir=work / 'out-nanogpt')
    return run_script(nanogpt, Path(nanogpt, 'train.py').resolve(), *words, **flags)


def nanogpt_model(**settings):
    spec = importlib.util.spec_from_file_location('nanogpt_model', Path(nanogpt, 'model.py'))
    module = importlib.util.module_from_spec(spec)
    sys.modules['nanogpt_model'] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    settings = settings or shape() | dict(vocab_size=vocab_size, bias=False, dropout=0.0)
    return module.GPT(module.GPTConfig(**settings)).to(torch_device)


def shape():
    return dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=block_size)


# --- whole training runs --------------------------------------------------------


def bench_loss(work):
    """Seconds of whole commands on Shakespeare: nanoGPT's own, and ours to the same loss.

    Then the loss of both over the validation split, in windows of block_size that do not overlap.
    """
    if not shakespeare:
        return print('loss: left out, name a file with tinyshakespeare by --shakespeare=FILE')
    small, name = torch_device.type == 'cpu', 'shakespeare_char'
    window, theirs, ours = (64, NANOGPT_CPU, {}) if small else (256, {}, BABY_GPT)
    made = dict(tokenizer='char', val_fraction=0.1, clean='none')
    run_script(work, ROOT / 'prepare.py', name, files=Path(shakespeare).resolve(), **made)
    config = ROOT / 'config' / 'modern_tiny_cpu.py'
    sides = {'barelm': lambda: train_barelm(work, config, **ours).seconds}
    if nanogpt:
        baby = 'config/train_shakespeare_char.py'
        sides['nanoGPT'] = lambda: train_nanogpt(work, baby, dataset=name, **theirs).seconds
    take_turns('whole runs on Shakespeare', 's', sides, rounds)
    flags = dict(out_dir='out', stride=window, train_tokens=0, json=True)
    scores = json.loads(run_script(work, ROOT / 'eval.py', **flags).stdout)
    print(f'  loss: barelm {scores["val"]["loss"]:.4f}')
    if nanogpt:
        print(f'  loss: nanoGPT {nanogpt_loss(work, name, window):.4f}')


@torch.inference_mode()
def nanogpt_loss(work, dataset, window):
    """The validation loss of its checkpoint."""
    saved = torch.load(work / 'out-nanogpt' / 'ckpt.pt', weights_only=True, map_location='cpu')
    model = nanogpt_model(**saved['model_args']).eval()
    model.load_state_dict({name.removeprefix('_orig_mod.'): value for name, value in saved['model'].items()})
    ids = np.fromfile(work / 'data' / dataset / 'val.bin', np.uint16).astype(np.int64)
    tokens = torch.from_numpy(ids).to(torch_device)
    rows = tokens[: (len(tokens) - 1) // window * window + 1].unfold(0, window + 1, window)
    losses = [model(some[:, :-1], some[:, 1:])[1].item() * len(some) for some in rows.split(83)]
    return sum(losses) / len(rows)


# --- training speed and memory --------------------------------------------------


def bench_training(work):
    """Tokens a second of train.py, from its own log, and which part of the peak that is."""
    write_random_tokens(work, vocab_size)
    settings = {
        'barelm, float32, eager': dict(dtype='float32', compile=False),
        'barelm, defaults': dict(),
        'barelm, modern and Muon': dict(arch='modern', optimizer='muon'),
    }
    sides = {name: functools.partial(barelm_rate, work, name, **flags) for name, flags in settings.items()}
    if nanogpt:
        compile = torch_device.type != 'cpu'  # as its README says; on a CPU in float32 and eager
        sides['nanoGPT, as shipped'] = lambda: nanogpt_rate(work, compile)
        model = nanogpt_model()
        compiled = torch.compile(model)
        inputs = torch.randint(vocab_size, (2, batch_size, block_size), device=torch_device)
        sides['nanoGPT, its model, bf16, compiled'] = lambda: plain_rate(model, lambda: compiled(*inputs)[1])
    take_turns('training', 'tokens/s', sides, rounds)
    for name in settings:
        print(f'  {name}: {logged(work / name, "utilisation"):.1%} of the peak in its precision')


def bench_bert(work):
    """Tokens a second of training BERT, 15 % masked, beside transformers' BertForMaskedLM of the same size."""
    write_random_tokens(work, vocab_size)
    bert = dict(objective='masked', arch='bert', bias=True, dtype='bfloat16')
    config = transformers.BertConfig(
        vocab_size=vocab_size, max_position_embeddings=block_size, hidden_size=n_embd, num_hidden_layers=n_layer,
        num_attention_heads=n_head, intermediate_size=4 * n_embd, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = transformers.BertForMaskedLM(config).train().to(torch_device)
    compiled = torch.compile(model)
    inputs = torch.randint(vocab_size, (batch_size, block_size), device=torch_device)
    labels = inputs.where(torch.rand(inputs.shape, device=torch_device) < 0.15, -100)
    sides = {
        'barelm, compiled': lambda: barelm_rate(work, 'out', **bert),
        'barelm, eager': lambda: barelm_rate(work, 'out', **bert, compile=False),
        'transformers': lambda: plain_rate(model, lambda: model(inputs, labels=labels).loss),
        'transformers, compiled': lambda: plain_rate(model, lambda: compiled(inputs, labels=labels).loss),
    }
    take_turns('training BERT', 'tokens/s', sides, rounds)


def bench_memory(work):
    """Peak memory of the process in three training steps of GPT-2 124M on a CPU, 8 rows of 1024."""
    write_random_tokens(work, 50257)
    flags = dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, batch_size=8, max_iters=3)
    flags = training_flags() | flags | dict(device='cpu', compile=False, measure_memory=True)
    sides = {'barelm': lambda: train_barelm(work, **flags).peak_memory / 1e9}
    if nanogpt:
        sides['nanoGPT'] = lambda: train_nanogpt(work, **flags).peak_memory / 1e9
    take_turns('memory of training GPT-2 124M, 8 x 1024', 'GB', sides, rounds)


def training_flags():
    return shape() | dict(
        dataset='bench', batch_size=batch_size, gradient_accumulation_steps=1, max_iters=steps, log_interval=1,
        eval_iters=1, eval_interval=steps * 2,
    )  # fmt: skip


def barelm_rate(work, out_dir, **flags):
    train_barelm(work, **(training_flags() | flags), out_dir=out_dir)
    return logged(work / out_dir, 'tokens_per_second')


def logged(out_dir, name):
    """The median of a figure in metrics.jsonl, without the first three steps."""
    records = map(json.loads, (out_dir / 'metrics.jsonl').read_text().splitlines())
    return statistics.median(r[name] for r in records if name in r and r['step'] >= 3)


def nanogpt_rate(work, compile):
    printed = train_nanogpt(work, **training_flags(), compile=compile).stdout
    milliseconds = [float(ms) for ms in re.findall(r'time ([\d.]+)ms', printed)][3:steps]
    return batch_size * block_size / statistics.median(milliseconds) * 1000


def plain_rate(model, forward):
    """Tokens a second of a peer's model in the plainest loop: bf16, AdamW, gradients clipped. forward() returns the loss."""
    optimizer, seconds = torch.optim.AdamW(model.parameters(), fused=True), []
    for _ in range(steps):
        start = time.perf_counter()
        with torch.autocast(torch_device.type, dtype=torch.bfloat16):
            loss = forward()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return batch_size * block_size / statistics.median(seconds[3:])


def write_random_tokens(work, vocab_size, count=1_000_000):
    """data/bench, which both projects read: uniform random ids."""
    directory = work / 'data' / 'bench'
    directory.mkdir(parents=True)
    ids = np.random.default_rng(0).integers(vocab_size, size=count, dtype=np.uint16)
    for split in ('train', 'val'):
        ids.tofile(directory / f'{split}.bin')
    counts = dict(documents=1, tokens=count, bytes=count)
    meta = dict(dtype='uint16', vocab_size=vocab_size, tokenizer_hash='', train=counts, val=counts)
    meta['special'] = dict.fromkeys(('eot', 'pad', 'unk', 'cls', 'sep', 'mask'), 0)
    (directory / 'meta.json').write_text(json.dumps(meta))


# --- generation -----------------------------------------------------------------


def bench_generation(work):
    """Tokens a second of one sample: ours as sample.py makes it, the others in fp32 on a CPU."""
    make_model(work)
    prompt = torch.zeros(1, 1, dtype=torch.long, device=torch_device)
    sides = {
        'barelm, float32': dict(dtype='float32'),
        'barelm, bfloat16': dict(dtype='bfloat16'),
        'barelm, defaults': dict(),
        'barelm, defaults, compiled': dict(compile=True),
        'barelm, int8, compiled': dict(dtype='int8', compile=True),
    }
    ours = functools.partial(barelm_generation, work, [prompt], new_tokens)
    sides = {name: functools.partial(ours, **form) for name, form in sides.items()}
    if nanogpt:
        model = nanogpt_model().eval()
        context = torch.autocast(torch_device.type, torch.bfloat16, enabled=torch_device.type == 'cuda')

        def theirs():
            with torch.no_grad(), context:
                model.generate(prompt, new_tokens, **SAMPLING).tolist()

        sides['nanoGPT'] = lambda: generation_rate(theirs, new_tokens)
    sides['transformers, float32'] = lambda: transformers_generation(prompt, torch.float32)
    if torch_device.type == 'cuda':
        static = functools.partial(transformers_generation, cache_implementation='static')
        sides['transformers, bfloat16, static cache'] = lambda: static(prompt, torch.bfloat16)
    take_turns(f'generation of {new_tokens} tokens, one sample', 'tokens/s', sides, rounds)


def bench_batch(work):
    """Tokens a second of 16 prompts of different lengths, together and one by one."""
    make_model(work)
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, block_size // 4, (16,), generator=draw).to(torch_device)
    prompts = torch.randint(vocab_size, (16, int(lengths.max())), generator=draw).to(torch_device)
    singles = [row[None, :n] for row, n in zip(prompts, lengths.tolist(), strict=True)]
    count = block_size // 2
    sides = {
        'barelm, together': lambda: barelm_generation(work, [prompts], count, lengths=lengths),
        'one by one': lambda: barelm_generation(work, singles, count),
    }
    take_turns(f'16 prompts, {count} tokens each', 'tokens/s', sides, rounds)


def make_model(work):
    """Save a model of this size in out/, trained for a step."""
    write_random_tokens(work, vocab_size)
    train_barelm(work, **(training_flags() | dict(max_iters=1)), compile=False)


def barelm_generation(work, prompts, count, dtype='auto', compile=False, lengths=None):
    """Tokens a second of continuing each batch (B, T) of a list of prompts by `count` tokens."""
    model, rows = Transformer.from_pretrained(next((work / 'out').glob('step-*'))), len(prompts[0])
    generate.prepare_model(model, torch_device, dtype, compile, rows)

    def run():
        for batch in prompts:
            generate.generate(model, batch, count, lengths, compile=compile, **SAMPLING).tolist()

    return generation_rate(run, len(prompts) * rows * count)


def transformers_generation(prompt, dtype, **settings):
    sizes = dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_positions=block_size * 2)
    config = transformers.GPT2Config(vocab_size=vocab_size, **sizes)
    model = transformers.GPT2LMHeadModel(config).eval().to(torch_device, dtype)
    settings |= SAMPLING | dict(do_sample=True, pad_token_id=0, attention_mask=torch.ones_like(prompt))
    settings |= dict(min_new_tokens=new_tokens, max_new_tokens=new_tokens)
    return generation_rate(lambda: model.generate(prompt, **settings).tolist(), new_tokens)


def generation_rate(run, tokens):
    """Tokens a second of a function; it runs once before, which may compile."""
    run()
    start = time.perf_counter()
    run()  # its last token is on the CPU before it returns
    return tokens / (time.perf_counter() - start)


if __name__ == '__main__':
    configure(globals(), positional=['what'])
    torch_device = runtime.choose_device(device)
    parts = dict(loss=bench_loss, train=bench_training, bert=bench_bert, memory=bench_memory)
    run_parts(what, parts | dict(generate=bench_generation, batch=bench_batch), nanogpt)
