"""sample.py: what is printed, as a person sees it."""

import re

import pytest
import torch
from conftest import ends_in_one_line, run, settings_of

import sample
import tokenizer
from generate import generate, stream
from infra import checkpoint
from model import Config, Transformer

EXACT = '--device=cpu --dtype=float32'
RULE = '---------------\n'


@pytest.fixture
def cwd(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


def text(capsys, *flags, out_dir='out-gpt'):
    """What sample.py prints."""
    capsys.readouterr()
    with settings_of(sample, [*EXACT.split(), f'--out_dir={out_dir}', '--max_new_tokens=60', *flags]):
        sample.main()
    return capsys.readouterr().out


def samples(capsys, *flags, **where):
    return text(capsys, *flags, **where).split('\n' + RULE)[:-1]


def continued(prompt_ids, seed=0, **sampling):
    """What the model of out-gpt makes of a prompt, as text."""
    model, vocabulary = checkpoint.load('resume', 'out-gpt')
    torch.manual_seed(seed)
    made = generate(model.eval(), torch.tensor([prompt_ids]), 60, **sampling)[0].tolist()
    return vocabulary.decode(made)


def test_greedy_prints_the_likeliest_continuation_again_and_again(cwd, capsys):
    vocabulary = tokenizer.load('data/tiny')
    made = samples(capsys, '--start=def f(', '--temperature=0', '--num_samples=3')
    expected = continued(vocabulary.encode('def f('), temperature=0, stop=vocabulary.special['eot'])
    assert made == [expected.removesuffix('<|endoftext|>')] * 3 and len(expected) > 20


def test_a_seed_repeats_exactly_and_samples_differ(cwd, capsys):
    flags = ['--start=def f(', '--num_samples=3', '--temperature=1']
    first = samples(capsys, *flags, '--seed=5')
    assert len(set(first)) == 3 and all(s.startswith('def f(') for s in first)
    assert samples(capsys, *flags, '--seed=5') == first
    assert samples(capsys, *flags, '--seed=6') != first


def test_few_likely_tokens_are_greedy(cwd, capsys):
    greedy = text(capsys, '--temperature=0', '--num_samples=2')
    assert text(capsys, '--top_k=1', '--num_samples=2') == greedy
    assert text(capsys, '--top_p=1e-9', '--num_samples=2') == greedy
    assert text(capsys, '--top_k=0', '--num_samples=2', '--temperature=2') != greedy


def test_a_prompt_may_stand_in_a_file(cwd, capsys, tmp_path):
    prompt = 'class Größe:\n    """x=1"""\n'
    (tmp_path / 'prompt.txt').write_text(prompt, encoding='utf-8')
    assert text(capsys, f'--start=FILE:{tmp_path}/prompt.txt') == text(capsys, f'--start={prompt}')


def test_lines_of_a_file_are_prompts_that_are_continued_together(cwd, capsys, tmp_path):
    prompts = ['def f(', 'class Größe:', 'import json, re']
    (tmp_path / 'prompts.txt').write_text('\n'.join(prompts) + '\n', encoding='utf-8')
    flags = ['--temperature=0', '--num_samples=1']
    together = samples(capsys, f'--start=LINES:{tmp_path}/prompts.txt', *flags)
    assert together == [samples(capsys, f'--start={prompt}', *flags)[0] for prompt in prompts]
    twice = samples(capsys, f'--start=LINES:{tmp_path}/prompts.txt', '--temperature=0', '--num_samples=2')
    assert sorted(twice) == sorted(together * 2)


def test_a_special_token_in_the_prompt_is_that_token(cwd, capsys):
    vocabulary = tokenizer.load('data/tiny')
    ids = [*vocabulary.encode('import '), vocabulary.special['eot']]
    flags = ['--temperature=3', '--top_k=0', '--num_samples=1', '--seed=3']
    (made,) = samples(capsys, '--start=import <|endoftext|>', *flags)
    expected = continued(ids, seed=3, temperature=3, stop=vocabulary.special['eot'])
    assert made == expected.removesuffix('<|endoftext|>')
    as_text = vocabulary.encode('import <|endoftext|>')
    assert len(as_text) > len(ids) and made != continued(as_text, seed=3, temperature=3)


def test_what_streams_is_what_was_made_whole_characters_only(cwd, capsys):
    """At a temperature so high that much of what is made is no UTF-8, or cut in the middle of it."""
    where = checkpoint.best('out-gpt')
    (made,) = samples(capsys, '--start=é', '--temperature=50', '--num_samples=1', '--seed=3', '--top_k=0')
    model, vocabulary = checkpoint.load_model(where).eval(), tokenizer.load(str(where))
    torch.manual_seed(3)
    ids = torch.tensor([vocabulary.encode('é')])
    tokens = list(stream(model, ids, 60, temperature=50, stop=vocabulary.special['eot']))
    tokens = [t.item() for t in tokens if t.item() != vocabulary.special['eot']]
    assert made == 'é' + vocabulary.decode(tokens) and '\ufffd' in made


@pytest.fixture
def ends_at_once(cwd, tmp_path):
    """A directory with a model that always predicts the end of text, whatever it saw."""
    vocabulary = tokenizer.load('data/tiny')
    model = Transformer(Config(vocab_size=512, block_size=32, n_layer=1, n_head=1, n_embd=8, bias=True))
    with torch.no_grad():
        model.final_norm.weight.zero_()
        model.final_norm.bias.fill_(9.0)
        model.token_embedding.weight[vocabulary.special['eot']] = 9.0
    model.save(tmp_path)
    vocabulary.save(tmp_path)
    return tmp_path


def test_a_sample_stops_at_the_end_of_text_which_is_not_printed(ends_at_once, capsys):
    shown = text(capsys, f'--init_from={ends_at_once}', '--start=the end', '--num_samples=2')
    assert shown == ('the end\n' + RULE) * 2


def test_an_empty_prompt_begins_a_document(cwd, capsys):
    eot = tokenizer.load('data/tiny').special['eot']
    (made,) = samples(capsys, '--start=', '--temperature=0', '--num_samples=1')
    assert made.removeprefix('<|endoftext|>') == continued([eot], temperature=0, stop=eot).replace(
        '<|endoftext|>', ''
    )


def test_a_masked_model_lists_the_likeliest_fillings(cwd, capsys):
    prompt = 'def [MASK](self, [MASK]):'
    shown = text(capsys, f'--start={prompt}', out_dir='out-bert')
    model, vocabulary = checkpoint.load('resume', 'out-bert')
    special, middle = vocabulary.special, vocabulary.encode('](self, '[1:])
    mask = [special['mask']]
    ids = [special['cls'], *vocabulary.encode('def '), *mask, *middle, *mask, *vocabulary.encode('):')]
    with torch.no_grad():
        probabilities = model.eval()(torch.tensor([[*ids, special['sep']]]))[0].softmax(-1)
    assert prompt in shown
    lines = [line for line in shown.splitlines() if '%' in line]
    for line, position in zip(lines, [i for i, token in enumerate(ids) if token in mask], strict=True):
        likeliest = probabilities[position].argsort(descending=True)[:5]
        expected = [f'{vocabulary.decode([i])!r} {probabilities[position, i]:.1%}' for i in likeliest]
        assert line.endswith(', '.join(expected)) and re.search(rf'\b{position}\b', line)


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--out_dir=nowhere'], ['no checkpoint', 'nowhere']),
        (['--start=FILE:nowhere.txt'], ['nowhere.txt']),
        (['--temperature=-1'], ['temperature']),
        (['--top_p=0'], ['top_p']),
        (['--top_p=1.5'], ['top_p']),
        (['--top_k=-1'], ['top_k']),
        (['--max_new_tokens=-1'], ['max_new_tokens']),
        (['--device=tpu9'], ['tpu9']),
        (['--dtype=float8'], ['float8']),
        (['--init_from=gpt5'], ['gpt5']),
        (['--out_dir=out-bert', '--start=no blank'], ['[MASK]']),
        (['--out_dir=out-bert', '--start=[MASK]' + 'x ' * 40], ['32']),
    ],
)
def test_a_mistake_ends_in_one_line(cwd, capsys, flags, words):
    with ends_in_one_line(capsys, *words):
        text(capsys, *flags)


def test_the_command_prints_samples(cwd, capsys):
    flags = ['--start=import', '--num_samples=2', '--max_new_tokens=5', '--out_dir=out-gpt']
    stdout, _ = run(['sample.py', *flags, *EXACT.split()], cwd)
    assert stdout == text(capsys, *flags)
