"""model.py against transformers, slow versions, and what the architectures promise."""

import json
import math

import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from generate import Cache, generate, prepare_model, sample
from model import ARCHITECTURES, Config, Transformer

SMALL = dict(vocab_size=101, block_size=16, n_layer=2, n_head=3, n_embd=24)


def small(arch='gpt2', seed=0, **changes):
    """A model whose weights are far from those of a fresh one, so that every part of it matters."""
    torch.manual_seed(seed)
    model = Transformer(Config(**(ARCHITECTURES[arch] | dict(bias=True) | SMALL | changes))).eval()
    scramble(model)
    return model


@torch.no_grad()
def scramble(model):
    for name, p in model.named_parameters():
        is_norm = p.dim() == 1 and name.endswith('weight')
        p.normal_(mean=float(is_norm), std=0.3)


def tokens(*shape, vocab_size=101, seed=0):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope='module')
def gpt2(tmp_path_factory):
    """(a GPT-2 of transformers, of odd sizes, the directory that it saved itself in)."""
    torch.manual_seed(0)
    shape = dict(vocab_size=203, n_positions=37, n_layer=3, n_head=5, n_embd=60, layer_norm_epsilon=1e-3)
    return saved(transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)), tmp_path_factory)


@pytest.fixture(scope='module')
def bert(tmp_path_factory):
    """(a BERT of transformers, of odd sizes, the directory that it saved itself in)."""
    torch.manual_seed(0)
    shape = dict(vocab_size=203, max_position_embeddings=37, num_hidden_layers=3, num_attention_heads=5)
    config = transformers.BertConfig(hidden_size=60, intermediate_size=240, type_vocab_size=3, **shape)
    return saved(transformers.BertForMaskedLM(config), tmp_path_factory)


def saved(model, tmp_path_factory):
    model.eval()
    scramble(model)
    where = tmp_path_factory.mktemp(model.config.model_type)
    model.save_pretrained(where)
    return model, where


# --- the same numbers as transformers ------------------------------------------


@torch.no_grad()
def test_gpt2_gives_the_logits_and_the_loss_of_transformers(gpt2):
    theirs, where = gpt2
    ours = Transformer.from_pretrained(where).eval()
    ids = tokens(3, 37, vocab_size=203)
    expected = theirs(ids, labels=ids)
    logits = ours(ids)
    assert expected.logits.std(1).mean() > 1  # positions differ
    torch.testing.assert_close(logits[..., :203], expected.logits, atol=1e-4, rtol=0)
    assert (logits[..., 203:] == -math.inf).all()
    loss = ours(ids[:, :-1], ids[:, 1:]) / ids[:, 1:].numel()
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_bert_gives_the_logits_and_the_loss_of_transformers_with_padding_and_segments(bert):
    theirs, where = bert
    ours = Transformer.from_pretrained(where).eval()
    ids, types = tokens(3, 37, vocab_size=203), tokens(3, 37, vocab_size=3, seed=1)
    seen = torch.arange(37) < torch.tensor([[37], [20], [1]])  # (3, 37)
    labels = torch.where(seen & (tokens(3, 37, vocab_size=2, seed=2) == 1), ids, -100)
    expected = theirs(ids, attention_mask=seen.long(), token_type_ids=types, labels=labels)
    logits = ours(ids, token_types=types, document=seen.long())
    assert expected.logits[0].std(0).mean() > 0.5  # positions differ
    torch.testing.assert_close(logits[seen][:, :203], expected.logits[seen], atol=1e-4, rtol=0)
    assert (logits[..., 203:] == -math.inf).all()
    loss = ours(ids, labels, token_types=types, document=seen.long()) / (labels != -100).sum()
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_bert_without_segments_and_mask_sees_everything_as_segment_0(bert):
    theirs, where = bert
    ids = tokens(2, 11, vocab_size=203)
    logits = Transformer.from_pretrained(where).eval()(ids)[..., :203]
    torch.testing.assert_close(logits, theirs(ids).logits, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize('prefix', ['bert.', ''])
def test_bert_weights_may_have_the_names_of_older_checkpoints(bert, tmp_path, prefix):
    theirs, where = bert
    renamed = {'bert.pooler.dense.weight': torch.zeros(60, 60), 'cls.seq_relationship.bias': torch.zeros(2)}
    for name, w in load_file(where / 'model.safetensors').items():
        name = name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta')
        renamed[prefix + name.removeprefix('bert.') if name.startswith('bert.') else name] = w
    assert any('gamma' in name for name in renamed)
    save_file(renamed, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text((where / 'config.json').read_text())
    ids = tokens(2, 37, vocab_size=203)
    logits = Transformer.from_pretrained(tmp_path).eval()(ids)[..., :203]
    torch.testing.assert_close(logits, theirs(ids).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_gpt2_weights_may_come_in_half_precision_without_prefix_and_with_mask_buffers(gpt2, tmp_path):
    """As the files of the hub do."""
    theirs, where = gpt2
    weights = load_file(where / 'model.safetensors')
    renamed = {name.removeprefix('transformer.'): w.bfloat16() for name, w in weights.items()}
    renamed['h.0.attn.bias'] = torch.ones(1, 1, 37, 37).tril()
    save_file(renamed, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text((where / 'config.json').read_text())
    ours = Transformer.from_pretrained(tmp_path)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert torch.equal(ours.token_embedding.weight[:203], theirs.transformer.wte.weight.bfloat16().float())


def test_parameter_counts_are_those_of_the_papers_models():
    with torch.device('meta'):
        gpt2 = Transformer(Config(bias=True))
        bert = Transformer(Config(vocab_size=30522, block_size=512, bias=True, **ARCHITECTURES['bert']))
    assert gpt2.num_params() == 124_439_808
    assert bert.num_params() == 109_514_298


def test_parameter_counts_are_those_of_transformers(gpt2, bert):
    for theirs, where in (gpt2, bert):
        assert Transformer.from_pretrained(where).num_params() == theirs.num_parameters()


def test_greedy_generation_is_that_of_transformers(gpt2):
    theirs, where = gpt2
    prompt = tokens(4, 5, vocab_size=203)
    never = dict(do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=30, **never)
    ours = Transformer.from_pretrained(where).eval()
    assert torch.equal(generate(ours, prompt, 30, temperature=0), expected)


# --- what cannot be read --------------------------------------------------------


def copy(where, target, **changes):
    """A directory with the weights of another one and its config changed; None takes a setting away."""
    config = json.loads((where / 'config.json').read_text()) | changes
    (target / 'config.json').write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    (target / 'model.safetensors').write_bytes((where / 'model.safetensors').read_bytes())
    return target


@pytest.mark.parametrize(
    'change',
    [
        dict(activation_function='relu'),
        dict(scale_attn_by_inverse_layer_idx=True),
        dict(scale_attn_weights=False),
        dict(tie_word_embeddings=False),
        dict(add_cross_attention=True),
        dict(n_inner=100),
        dict(model_type='gpt_neo'),
        dict(n_layer=4),
        dict(n_layer=None),
        dict(vocab_size=1000),
        dict(vocab_size=100),
        dict(n_head=7),
    ],
    ids=str,
)
def test_a_gpt2_of_another_kind_is_refused(gpt2, tmp_path, change):
    with pytest.raises(ValueError):
        Transformer.from_pretrained(copy(gpt2[1], tmp_path, **change))


@pytest.mark.parametrize(
    'change',
    [
        dict(hidden_act='relu'),
        dict(position_embedding_type='relative_key'),
        dict(intermediate_size=100),
        dict(tie_word_embeddings=False),
        dict(is_decoder=True),
        dict(num_hidden_layers=4),
        dict(hidden_size=None),
    ],
    ids=str,
)
def test_a_bert_of_another_kind_is_refused(bert, tmp_path, change):
    with pytest.raises(ValueError):
        Transformer.from_pretrained(copy(bert[1], tmp_path, **change))


def test_a_bert_without_its_masked_head_is_refused(bert, tmp_path):
    bert[0].bert.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='head'):
        Transformer.from_pretrained(tmp_path)


@pytest.mark.parametrize('left', [0, 4, 1000, -1])
def test_cut_off_weights_are_refused(gpt2, tmp_path, left):
    copy(gpt2[1], tmp_path)
    whole = (tmp_path / 'model.safetensors').read_bytes()
    (tmp_path / 'model.safetensors').write_bytes(whole[:left])
    with pytest.raises(ValueError, match='damaged'):
        Transformer.from_pretrained(tmp_path)


def test_a_missing_weight_is_refused(gpt2, tmp_path):
    weights = load_file(copy(gpt2[1], tmp_path) / 'model.safetensors')
    del weights['transformer.h.1.ln_2.weight']
    save_file(weights, tmp_path / 'model.safetensors')
    with pytest.raises(ValueError):
        Transformer.from_pretrained(tmp_path)


def test_a_damaged_config_and_missing_weights_are_refused(gpt2, tmp_path):
    copy(gpt2[1], tmp_path)
    (tmp_path / 'config.json').write_text('{"model_type": "gpt2"')
    with pytest.raises(ValueError):
        Transformer.from_pretrained(tmp_path)
    copy(gpt2[1], tmp_path)
    (tmp_path / 'model.safetensors').unlink()
    with pytest.raises(ValueError, match='no .safetensors'):
        Transformer.from_pretrained(tmp_path)


def test_a_name_that_is_no_model_is_refused():
    with pytest.raises(ValueError, match='gpt2-medium'):
        Transformer.from_pretrained('gpt2-tiny')


@torch.no_grad()
def test_from_pretrained_can_keep_fewer_positions_but_not_more(gpt2):
    _, where = gpt2
    ids = tokens(2, 9, vocab_size=203)
    short = Transformer.from_pretrained(where, block_size=9).eval()
    assert short.config.block_size == 9
    assert torch.equal(short(ids), Transformer.from_pretrained(where).eval()(ids))
    with pytest.raises(ValueError):
        short(tokens(1, 10))
    with pytest.raises(ValueError, match='38'):
        Transformer.from_pretrained(where, block_size=38)


@torch.no_grad()
@pytest.mark.parametrize('arch', ARCHITECTURES)
@pytest.mark.parametrize('bias', [True, False])
def test_a_saved_model_comes_back_equal(tmp_path, arch, bias):
    model = small(arch, bias=bias)
    model.save(tmp_path)
    again = Transformer.from_pretrained(tmp_path, dropout=0.25)
    assert again.config == Config(**(vars(model.config) | dict(dropout=0.25)))
    assert torch.equal(again.eval()(tokens(2, 16)), model(tokens(2, 16)))


@torch.no_grad()
@pytest.mark.parametrize('kv_heads', [6, 2])
def test_llama_is_that_of_transformers(kv_heads):
    torch.manual_seed(0)
    shape = dict(vocab_size=203, hidden_size=48, num_hidden_layers=3, num_attention_heads=6)
    shape |= dict(num_key_value_heads=kv_heads, intermediate_size=128, max_position_embeddings=37)
    config = transformers.LlamaConfig(tie_word_embeddings=True, rms_norm_eps=1e-5, **shape)
    theirs = transformers.LlamaForCausalLM(config).eval()
    scramble(theirs)
    shape = dict(
        vocab_size=203, block_size=37, n_layer=3, n_head=6, n_kv_head=kv_heads, n_embd=48, bias=False
    )
    ours = Transformer(Config(**shape, **ARCHITECTURES['llama'])).eval()
    ours.token_embedding.weight[:203] = theirs.model.embed_tokens.weight
    ours.final_norm.weight[:] = theirs.model.norm.weight
    for block, layer in zip(ours.blocks, theirs.model.layers, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        for name in ('q_proj', 'k_proj', 'v_proj', 'o_proj'):
            getattr(block.attn, name).weight[:] = getattr(attention, name).weight
        for name in ('gate_proj', 'up_proj', 'down_proj'):
            getattr(block.mlp, name).weight[:] = getattr(mlp, name).weight
        block.norm1.weight[:] = layer.input_layernorm.weight
        block.norm2.weight[:] = layer.post_attention_layernorm.weight
    ids = tokens(2, 37, vocab_size=203)
    torch.testing.assert_close(ours(ids)[..., :203], theirs(ids).logits, atol=1e-4, rtol=1e-4)


# --- what an architecture promises ----------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_only_bert_looks_ahead(arch):
    looks_ahead = 'bert' in arch
    model, before = small(arch), tokens(2, 16)
    after = before.clone()
    after[:, 10] = (after[:, 10] + 1) % 101
    moved = (model(before) - model(after))[..., :101].abs().amax(dim=(0, 2))  # (T,)
    assert (moved[10:] > 1e-3).all()
    assert (moved[:10] > 1e-3).all() if looks_ahead else (moved[:10] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_norms_stand_where_the_flag_says(arch):
    """Layers that add nothing: with norms before them the embedding goes through; with norms after, it is normed."""
    model = small(arch)
    for name, p in model.named_parameters():
        if 'o_proj.' in name or 'down_proj.' in name:
            p.zero_()
    ids = tokens(2, 16)
    x = model.token_embedding(ids)
    if arch in ('gpt2', 'bert', 'bert_prenorm'):
        x = x + model.position_embedding.weight
    if arch in ('bert', 'bert_prenorm'):
        x = x + model.type_embedding.weight[0]
    if arch not in ('gpt2', 'llama'):
        x = model.embedding_norm(x)
    if arch == 'bert':
        for block in model.blocks:
            x = block.norm2(block.norm1(x))
    else:
        x = model.final_norm(x)
    torch.testing.assert_close(model.hidden(ids), x)


@torch.no_grad()
@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_predicting_at_chosen_positions_gives_the_loss_of_all_positions(arch):
    model, ids = small(arch), tokens(3, 16)
    at = torch.stack([torch.randperm(16)[:5] for _ in range(3)])  # (B, K)
    targets = torch.full_like(ids, -100).scatter(1, at[:, :4], tokens(3, 4, seed=1))
    torch.testing.assert_close(model(ids, targets, predict_at=at), model(ids, targets))
    expected = model(ids).gather(1, at[..., None].expand(-1, -1, 128))
    torch.testing.assert_close(model(ids, predict_at=at), expected)


@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_padding_rows_get_no_gradient_and_the_others_do(arch):
    model = small(arch)
    model(tokens(2, 16), tokens(2, 16, seed=1)).backward()
    gradient = model.lm_head.weight.grad
    assert gradient.shape == (128, 24) and gradient.isfinite().all()
    assert (gradient[101:] == 0).all() and (gradient[:101].abs().sum(1) > 0).all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_fresh_weights_follow_the_table(arch):
    torch.manual_seed(0)
    shape = dict(vocab_size=640, block_size=128, n_layer=8, n_head=2, n_embd=128)
    model = Transformer(Config(**ARCHITECTURES[arch], **shape))
    for name, p in model.named_parameters():
        if p.dim() > 1:
            std = (
                0.02 / 4 if name.endswith(('o_proj.weight', 'down_proj.weight')) and arch != 'bert' else 0.02
            )
            tolerance = 5 / math.sqrt(2 * p.numel())  # five standard errors
            assert abs(p.std().item() / std - 1) < tolerance, name
            assert abs(p.mean().item()) < 5 * std / math.sqrt(p.numel()), name
        else:
            assert (p == (1 if 'norm' in name and name.endswith('weight') else 0)).all(), name


@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_a_fresh_model_guesses_evenly(arch):
    model = small(arch)
    model.init_weights()
    for name, p in model.named_parameters():  # scrambled by small()
        if 'norm' in name and name.endswith('weight'):
            torch.nn.init.ones_(p)
    loss = model(tokens(8, 16), tokens(8, 16, seed=1)).item() / 128
    assert abs(loss - math.log(101)) < 0.05


def test_dropout_acts_in_training_only():
    model, ids = small(dropout=0.5), tokens(2, 16)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


@pytest.mark.parametrize(
    'wrong',
    [
        dict(n_head=5),
        dict(n_kv_head=2),
        dict(n_kv_head=-1),
        dict(bigrams=-1),
        dict(n_embd=27, rope_theta=1e4),
        dict(vocab_size=0),
        dict(n_layer=0),
        dict(block_size=-1),
        dict(dropout=1.0),
    ],
    ids=str,
)
def test_a_shape_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Config(**(SMALL | wrong))


@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_padding_rows_are_no_parameters(arch):
    counts = [small(arch, vocab_size=size).num_params() for size in (101, 102, 128)]
    assert counts[2] - counts[0] == 27 * (counts[1] - counts[0]) > 0  # all three have 128 rows


def test_flops_are_those_of_a_hand_count():
    gpt = Transformer(Config(vocab_size=100, block_size=16, n_layer=2, n_head=2, n_embd=8))
    layer = 8 * 24 + 8 * 8 + 8 * 32 + 32 * 8  # qkv, proj, fc, proj
    assert gpt.flops_per_token(16) == 6 * (2 * layer + 128 * 8) + 12 * 2 * 8 * 16
    bert = Transformer(
        Config(vocab_size=100, block_size=16, n_layer=2, n_head=2, n_embd=8, **ARCHITECTURES['bert'])
    )
    head = 8 * 8 + 128 * 8  # dense, decoder
    assert bert.flops_per_token(16, 0.25) == 6 * (2 * layer + 0.25 * head) + 12 * 2 * 8 * 16


# --- generation -----------------------------------------------------------------


@torch.no_grad()
def slowly(model, ids, count, temperature):
    """Generation without a cache, as nanoGPT has it."""
    for _ in range(count):
        logits = model(ids[:, -model.config.block_size :])[:, -1]
        if temperature == 0:
            token = logits.argmax(-1, keepdim=True)
        else:
            token = torch.multinomial((logits / temperature).softmax(-1), 1)
        ids = torch.cat((ids, token), dim=1)
    return ids


@pytest.mark.parametrize('temperature', [0, 1.0, 3.0])
@pytest.mark.parametrize('prompt_length', [1, 7, 15, 16, 40])  # of 16 positions
@pytest.mark.parametrize(
    'arch, changes', [('gpt2', {}), ('modern', {}), ('llama', dict(n_kv_head=1))], ids=str
)
def test_cached_generation_is_uncached_generation_token_for_token(temperature, prompt_length, arch, changes):
    model, prompt = small(arch, seed=1, **changes), tokens(3, prompt_length)
    torch.manual_seed(5)
    expected = slowly(model, prompt, 40, temperature)
    torch.manual_seed(5)
    assert torch.equal(generate(model, prompt, 40, temperature=temperature), expected)


def test_cached_generation_knows_the_token_before_each():
    model, prompt = small('modern', seed=1, bigrams=50, block_size=64), tokens(3, 7)
    assert torch.equal(generate(model, prompt, 57, temperature=0), slowly(model, prompt, 57, temperature=0))
    again = model.hidden(prompt[:, 3:], prev_token=prompt[:, 2:3])
    assert torch.equal(again, model.hidden(prompt[:, 3:], prev_token=prompt[:, :3][:, -1:]))
    assert not torch.equal(again, model.hidden(prompt[:, 3:]))


def test_a_prompt_is_continued_the_same_alone_and_in_a_batch():
    model, prompts = small(), tokens(5, 6)
    together = generate(model, prompts, 30, temperature=0)
    for i in range(5):
        assert torch.equal(generate(model, prompts[i : i + 1], 30, temperature=0)[0], together[i])


@pytest.mark.parametrize(
    'arch, changes', [('gpt2', {}), ('modern', dict(bigrams=50)), ('llama', dict(n_kv_head=1))], ids=str
)
@pytest.mark.parametrize('count', [9, 40])  # to 16 positions, and past them
def test_prompts_of_different_lengths_are_continued_as_each_alone(arch, changes, count):
    model = small(arch, seed=1, **changes)
    lengths = torch.tensor([3, 1, 7, 5])
    prompts = tokens(4, 7)  # what lies behind a prompt does not matter
    together = generate(model, prompts, count, lengths, temperature=0)
    for prompt, length, row in zip(prompts, lengths.tolist(), together, strict=True):
        alone = generate(model, prompt[None, :length], count, temperature=0)
        assert torch.equal(row[: length + count], alone[0])


@pytest.mark.parametrize('arch', ['gpt2', 'modern'])
def test_a_compiled_step_makes_the_same_tokens(arch):
    model, prompts = small(arch, seed=1), tokens(3, 5)
    expected = generate(model, prompts, 30, temperature=0)
    prepare_model(model, torch.device('cpu'), 'float32', compile=True)
    assert torch.equal(generate(model, prompts, 30, temperature=0, compile=True), expected)


@pytest.mark.parametrize('arch', ['gpt2', 'modern'])
def test_layers_computed_again_have_the_same_gradients_and_keep_less(arch):
    gradients, kept = [], []
    for again in (False, True):
        model, ids = small(arch, seed=3, dropout=0.2, n_layer=4).train(), tokens(2, 16)
        model.gradient_checkpointing_enable() if again else None
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t
        )
        torch.manual_seed(0)
        with hooks:
            loss = model(ids, ids)
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
        kept.append(sum(sizes))
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)
    assert kept[1] < kept[0] / 4


def test_no_new_tokens_leave_the_prompt():
    assert torch.equal(generate(small(), tokens(2, 6), 0), tokens(2, 6))


def test_padding_rows_are_never_sampled_and_all_others_are():
    model = small(vocab_size=65)
    torch.manual_seed(0)
    made = generate(model, tokens(600, 1, vocab_size=65), 8, temperature=1e9)
    assert set(made[:, 1:].unique().tolist()) == set(range(65))
    made = generate(model, tokens(100, 1, vocab_size=65), 8, temperature=1e9, top_k=128)
    assert made.max() < 65
    made = generate(model, tokens(100, 1, vocab_size=65), 8, temperature=1e9, top_p=0.9999)
    assert made.max() < 65


def test_the_likeliest_token_alone_is_greedy():
    model, prompt = small(), tokens(3, 4)
    greedy = generate(model, prompt, 20, temperature=0)
    assert torch.equal(generate(model, prompt, 20, temperature=2.0, top_k=1), greedy)
    assert torch.equal(generate(model, prompt, 20, temperature=2.0, top_p=1e-6), greedy)


@settings(max_examples=40, deadline=None)
@given(
    order=st.integers(2, 8).flatmap(lambda n: st.permutations(range(n))),
    top_k=st.integers(0, 10),
    top_p=st.floats(0.02, 1),
)
def test_top_k_and_top_p_keep_the_smallest_set_that_reaches_p_of_the_k_likeliest(order, top_k, top_p):
    logits = 0.3 * torch.tensor(order, dtype=torch.float32)  # all kept ones come up in 4000 draws
    ranked = logits.argsort(descending=True).tolist()[: top_k or None]
    weights = [math.exp(logits[i]) for i in ranked]
    kept, reached = [], 0.0
    for i, weight in zip(ranked, weights, strict=True):
        assume(abs(reached - top_p) > 1e-5)
        if reached >= top_p:
            break
        kept.append(i)
        reached += weight / sum(weights)
    torch.manual_seed(0)
    drawn = sample(logits.expand(4000, -1), 1.0, top_k, top_p)
    assert set(drawn.tolist()) == set(kept)


def test_samples_follow_the_models_probabilities():
    logits = torch.tensor([0.0, 1.0, 2.0])
    torch.manual_seed(0)
    for top_k in (0, 3):  # the two ways through
        drawn = sample(logits.expand(40000, -1), 0.5, top_k, 1.0)
        rates = torch.bincount(drawn, minlength=3) / 40000
        torch.testing.assert_close(rates, (logits / 0.5).softmax(-1), atol=0.012, rtol=0)


def test_rows_end_at_the_stop_token_and_generation_when_all_have():
    model, prompts = small(seed=2), tokens(3, 4)
    free = generate(model, prompts, 40, temperature=0)[:, 4:].tolist()
    for stop in {token for row in free for token in row}:
        firsts = [row.index(stop) if stop in row else 40 for row in free]
        length = min(max(firsts) + 1, 40)
        expected = [row[:first] + [stop] * (length - first) for row, first in zip(free, firsts, strict=True)]
        made = generate(model, prompts, 40, temperature=0, stop=stop)[:, 4:]
        assert made.tolist() == [row[:length] for row in expected]


@pytest.mark.parametrize('dtype, rows, error', [('auto', 1, 0.01), ('auto', 2, 0.15), ('int8', 1, 0.15)])
def test_rounded_weights_change_logits_by_little_and_no_padding_row_is_sampled(dtype, rows, error):
    torch.manual_seed(0)
    shape = dict(vocab_size=100, block_size=32, n_layer=2, n_head=2, n_embd=64, bias=True)
    model = Transformer(Config(**shape)).eval()
    for p in model.parameters():
        if p.dim() > 1:
            p.data.mul_(10)  # sharp logits, so that differences would show
    inputs = torch.randint(100, (2, 32))
    with torch.no_grad():
        before = model(inputs)[..., :100]
        prepare_model(model, torch.device('cpu'), dtype, rows=rows)
        after = model(inputs).float()
    assert (after[..., :100] - before).abs().max() < error * before.std()
    assert (after[..., 100:] == -torch.inf).all()


# --- packed documents ---------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize('arch', ['gpt2', 'modern', 'llama', 'bert'])
def test_documents_in_a_row_are_as_each_alone(arch):
    """Attention, positions and pairs of tokens end where a document does."""
    model, lengths = small(arch, bigrams=50, vocab_size=101), [5, 1, 7]
    documents = [tokens(1, n, seed=n) for n in lengths]
    row = torch.cat([*documents, tokens(1, 3)], dim=1)  # and padding
    document = torch.repeat_interleave(torch.tensor([0, 1, 2, -1]), torch.tensor([*lengths, 3]))[None]
    position_ids = torch.cat([torch.arange(n) for n in [*lengths, 3]])[None]
    packed = model(row, document=document, position_ids=position_ids)
    alone = torch.cat([model(each) for each in documents], dim=1)
    torch.testing.assert_close(packed[:, :13], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_prompt_may_come_in_pieces_and_a_row_of_the_cache_can_be_copied():
    model, prompt = small('modern', bigrams=50, n_kv_head=1), tokens(2, 12)
    caches = [Cache(model, 2, 16) for _ in model.blocks]
    expected = model.hidden(prompt)
    x = []
    for start, stop in ((0, 4), (4, 9), (9, 12)):
        for cache in caches:
            cache.seen = stop
        prev_token = prompt[:, start - 1 : start] if start else None
        x.append(model.hidden(prompt[:, start:stop], caches=caches, start_pos=start, prev_token=prev_token))
    torch.testing.assert_close(torch.cat(x, dim=1), expected, atol=1e-5, rtol=1e-5)
    for cache in caches:
        cache.copy_row(0, 1)
        cache.seen = 13
    token = tokens(1, 1, seed=9).expand(2, 1)
    next_one = model.hidden(token, caches=caches, start_pos=12, prev_token=prompt[:1, -1:].expand(2, 1))
    assert torch.equal(next_one[0], next_one[1])
    alone = model.hidden(torch.cat((prompt[:1], token[:1]), dim=1))[:, -1:]
    torch.testing.assert_close(next_one[:1], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('qk_norm', ['plain', 'rms'])
def test_qwen3s_head_size_and_norms_are_those_of_transformers(qk_norm):
    torch.manual_seed(0)
    shape = dict(vocab_size=203, hidden_size=40, num_hidden_layers=2, num_attention_heads=4, head_dim=16)
    shape |= dict(num_key_value_heads=2, intermediate_size=72, max_position_embeddings=37)
    theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(tie_word_embeddings=True, **shape)).eval()
    scramble(theirs)
    config = dict(vocab_size=203, block_size=37, n_layer=2, n_head=4, n_kv_head=2, n_embd=40, head_size=16)
    given = dict(mlp_width=72, qk_norm=qk_norm, norm_eps=1e-6)
    ours = Transformer(Config.of_arch('llama', **config, **given)).eval()
    names = dict(zip(['q_proj', 'k_proj', 'v_proj', 'o_proj'], [''] * 4, strict=True))
    weights = dict(theirs.named_parameters())
    for i, block in enumerate(ours.blocks):
        layer = f'model.layers.{i}.'
        for name in [*names, *(['q_norm', 'k_norm'] if qk_norm == 'rms' else [])]:
            getattr(block.attn, name).weight[:] = weights[f'{layer}self_attn.{name}.weight']
        for name in ('gate_proj', 'up_proj', 'down_proj'):
            getattr(block.mlp, name).weight[:] = weights[f'{layer}mlp.{name}.weight']
        block.norm1.weight[:] = weights[f'{layer}input_layernorm.weight']
        block.norm2.weight[:] = weights[f'{layer}post_attention_layernorm.weight']
    ours.token_embedding.weight[:203] = weights['model.embed_tokens.weight']
    ours.final_norm.weight[:] = weights['model.norm.weight']
    ids = tokens(2, 37, vocab_size=203)
    close = torch.allclose(ours(ids)[..., :203], theirs(ids).logits, atol=1e-3)
    assert close == (qk_norm == 'rms')


@pytest.mark.parametrize(
    'wrong', [dict(mlp='gelo'), dict(norm='batch'), dict(qk_norm='yes'), dict(norm_eps=math.nan)], ids=str
)
def test_a_kind_that_is_unknown_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Config(**(SMALL | wrong))
