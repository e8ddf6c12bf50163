"""No tensor is left on the CPU by mistake: everything runs on the meta device, which has no numbers and refuses to mix.

No GPU runs the tests. What differs between one and the CPU is most often a tensor that was made on the wrong device.
"""

import itertools

import pytest
import torch
from conftest import settings_of

import train
from generate import Cache, decode_one_token, prefill, sample
from infra import faults, mesh, runtime
from model import ARCHITECTURES, Config, Transformer
from objectives import OBJECTIVES, example_batch
from optim import Muon, set_rates

META = torch.device('meta')
SHAPE = dict(vocab_size=60, block_size=16, n_layer=2, n_head=2, n_embd=16, dropout=0.1)
FITS = [
    (arch, name)
    for arch, (name, objective) in itertools.product(ARCHITECTURES, OBJECTIVES.items())
    if objective.flags.items() <= vars(Config.of_arch(arch)).items()
]


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    monkeypatch.setattr(
        torch, 'is_autocast_enabled', lambda kind: False
    )  # which does not know the meta device


def small(arch, **changes):
    return Transformer(Config.of_arch(arch, **SHAPE | changes)).to(META)


@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
@pytest.mark.parametrize('arch, name', FITS)
def test_a_step_of_training(arch, name, optimizer):
    objective = OBJECTIVES[name]
    model = small(arch, bigrams=40, n_kv_head=1)
    batch = runtime.to_device(example_batch(objective, 4, model.config, {}), META)
    with settings_of(train, f'--optimizer={optimizer}'):
        optimizers = train.make_optimizers(model, torch.bfloat16)
        set_rates(optimizers, train.lr_multiplier(3), train.momentum(3))
    loss = objective.loss(model, batch) / objective.count(batch)
    loss.backward()
    norm = mesh.clip_grad_norm_(model.parameters(), 1.0)
    bad = faults.Health(META).is_bad(loss.detach(), norm)
    for each in optimizers:
        for group in each.param_groups:
            group['fused'] = False  # there is no such kernel for the meta device
        if isinstance(each, Muon):
            each.found_inf = bad
        each.step()
    assert all(
        t.is_meta for t in (loss, norm, bad, *model.parameters(), *(p.grad for p in model.parameters()))
    )


@torch.no_grad()
@pytest.mark.parametrize('arch, name', FITS)
def test_an_evaluation(arch, name):
    model = small(arch, bigrams=40).eval()
    batch = runtime.to_device(example_batch(OBJECTIVES[name], 4, model.config, {}), META)
    total = torch.zeros(2, device=META)
    total[0] += OBJECTIVES[name].loss(model, batch)
    total[1] += OBJECTIVES[name].count(batch)
    batch.pop('targets'), batch.pop('predict_at', None)
    assert model.logits(model.hidden(**batch)).is_meta and total.is_meta


@torch.no_grad()
@pytest.mark.parametrize('arch', [arch for arch, _ in FITS if Config.of_arch(arch).causal])
@pytest.mark.parametrize('ragged', [False, True])
def test_a_cached_generation(arch, ragged):
    model = small(arch, bigrams=40, n_kv_head=1).eval()
    prompts = torch.zeros(3, 5, dtype=torch.long, device=META)
    lengths = prompts.new_full((3,), 5)
    caches = [Cache(model, 3, 12) for _ in model.blocks]
    last, logits = prefill(model, prompts, lengths, caches)
    for step in range(5, 8):
        token = sample(logits, 0.8, 10, 0.9)
        start_pos = lengths + step - 5 if ragged else step
        logits = decode_one_token(model, token, caches, start_pos, last)
        last = token
        assert token.is_meta and logits.is_meta
