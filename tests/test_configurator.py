"""Settings: files and flags over a script's globals; every mistake is one line and exit code 2."""

import ast
import importlib
import math
import re
import runpy
import subprocess
import sys
from dataclasses import asdict

import pytest
from conftest import ROOT, one_line, run, settings_of
from hypothesis import assume, example, given
from hypothesis import strategies as st

import common
import configurator
from corpus import sources
from model import ARCHITECTURES, Config

SCRIPT = '''"""A script.

    python script.py
"""
import math

from configurator import configure

outside = 1
# -----------------------------------------------------------------------------
# the run
start = 'once'  # where it begins
steps = 10  # how many
rate = 0.5  # how fast
loud = False  # say it
quiet = True
betas = (0.9, 0.95)  # of the moving averages [0, 1)
size: int = 2  # how large; 'auto': as it fits [1, 8]
# -----------------------------------------------------------------------------
after = 1
'''

SHAPE = """class Shape:
    # -----------------------------------------------------------------------------
    depth: int = 12  # layers [1, inf)
    width: float = 2.0  # (0, 1e12]
    tied: bool = False
    name: str = 'a'  # of it
    # -----------------------------------------------------------------------------
    vocabulary: int = 5

raise RuntimeError('it is read, not imported')
"""


@pytest.fixture
def settle(tmp_path):
    """settle(argv...) runs configure() on SCRIPT -> the settings; each call starts afresh."""
    (tmp_path / 'script.py').write_text(SCRIPT)
    (tmp_path / 'shape.py').write_text(SHAPE)

    def settle(*argv, **keywords):
        script = runpy.run_path(str(tmp_path / 'script.py'))
        settle.path = tmp_path
        settle.script = script | {'__file__': str(tmp_path / 'script.py')}
        return configurator.configure(settle.script, list(argv), **keywords)

    return settle


@pytest.fixture
def refused(settle, capfd):
    """refused(words, argv...) -> the one line that configure() ends with, which must hold the words."""

    def refused(words, *argv, **keywords):
        with pytest.raises(SystemExit) as end:
            settle(*argv, **keywords)
        assert end.value.code == 2
        out, err = capfd.readouterr()
        assert out == '' and err.startswith('error: ') and err.count('\n') == 1, err
        for word in words:
            assert word in err, err
        return err

    return refused


@pytest.fixture
def write(tmp_path):
    def write(text, name='changes.py'):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_settings_are_the_names_of_the_block_and_reach_the_globals(settle):
    assert settle('--steps=3') == dict(
        start='once', steps=3, rate=0.5, loud=False, quiet=True, betas=(0.9, 0.95), size=2
    )
    assert settle.script['steps'] == 3 and settle.script['after'] == 1


def test_files_come_before_flags_wherever_they_stand_and_later_ones_win(settle, write):
    first, second = write('steps = 1\nrate = 0.1\nstart = "a"'), write('steps = 2\nrate = 0.2', 'second.py')
    settings = settle('--steps=3', first, second)
    assert (settings['steps'], settings['rate'], settings['start']) == (3, 0.2, 'a')
    assert settle(second, first)['steps'] == 1
    assert settle('--steps=3', '--steps=4')['steps'] == 4


@pytest.mark.parametrize(
    'flag, value',
    [
        ('--steps=-7', -7),
        ('--rate=1', 1.0),
        ('--rate=1e-3', 0.001),
        ('--loud=True', True),
        ('--loud', True),
        ('--betas=(0.9, 0.99)', (0.9, 0.99)),
        ('--start=a=b=c', 'a=b=c'),
        ('--start=', ''),
        ('--start=123', '123'),
        ('--start=None', 'None'),
        ('--start="two words"', 'two words'),
        ("--start='123'", '123'),
        ('--start=--help me', '--help me'),
        ('--start=config/x.py', 'config/x.py'),
    ],
)
def test_flag_becomes(settle, flag, value):
    name = flag.lstrip('-').partition('=')[0]
    got = settle(flag)[name]
    assert got == value and type(got) is type(value)


def test_bare_words_fill_positional_settings_and_a_tuple_takes_the_rest(settle, write):
    changes = write('steps = 3')
    settings = settle('a', 'b', changes, '--rate=1', 'c', positional=['start', 'betas'])
    assert (settings['start'], settings['steps'], settings['betas']) == ('a', 3, (0.9, 0.95, 'b', 'c'))


@given(st.text())
@example('{[]}')  # a literal in form, but no value: sets of lists cannot be
@example('{{}}: a template')
@example('[' * 500)
@example('1_0')
def test_text_that_is_no_quoted_string_is_kept_as_it_stands(text):
    try:
        assume(not isinstance(ast.literal_eval(text), str))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        pass
    assert configurator.literal(text, 'default') == text


@pytest.mark.parametrize(
    'words, argv',
    [
        (['stpes', 'steps?'], ['--stpes=3']),
        (["'zzzzzz'", '--help'], ['--zzzzzz=3']),
        (["'outside'"], ['--outside=3']),  # a global, but not in the block
        (['steps', 'int', '2.5'], ['--steps=2.5']),
        (['steps', 'int', 'True'], ['--steps=True']),
        (['rate', 'float', "'fast'"], ['--rate=fast']),
        (['loud', 'bool', '1'], ['--loud=1']),
        (['betas', 'tuple'], ['--betas=0.5']),
        (['size = 0', '[1, 8]'], ['--size=0']),
        (['size', 'int', "'auto'"], ['--size=auto']),  # of another script
        (['betas = (0.9, 1)', '[0, 1)'], ['--betas=(0.9, 1)']),
        (['steps', '2 ** 31'], ['--steps=2147483648']),
        (['steps', '2 ** 31'], ['--steps=-2147483648']),
        (['--quiet=VALUE'], ['--quiet']),
        (['config file 3', '--name=value'], ['--steps', '3']),  # a value set apart is taken for a file
        (['--steps=VALUE'], ['-steps=3']),
        (['missing.py'], ['missing.py']),
        (['config file steps=3', '--name=value'], ['steps=3']),  # the dashes forgotten
    ],
)
def test_mistakes_on_the_command_line(refused, words, argv):
    refused(words, *argv)


@pytest.mark.parametrize(
    'text, words',
    [
        ('stpes = 3', ['stpes', 'did you mean steps?']),
        ('steps = "3"', ['steps', 'int', "'3'"]),
        ('start = int', ['start', 'str']),  # a class is a value of the wrong type, not an import to pass over
        ('a = 1\nsteps = = 3', ['line 2', 'syntax']),
        ('steps = 1 / 0', ['ZeroDivisionError']),
        ('size = 9', ['size = 9 should lie in [1, 8]']),
        ('rate = float("nan")', ['rate = nan should lie in [-inf, inf]']),
        ('rate = 10 ** 5000', ['rate', '2 ** 31']),
        ('import no_such_module', ['ModuleNotFoundError', 'no_such_module']),
    ],
)
def test_mistakes_in_a_config_file_name_the_file(refused, write, text, words):
    refused(['changes.py', *words], write(text))


def test_a_config_file_that_is_not_utf8_or_a_directory(refused, tmp_path):
    (tmp_path / 'latin.py').write_bytes('start = "é"'.encode('latin-1'))
    refused(['latin.py'], str(tmp_path / 'latin.py'))
    refused([str(tmp_path)], str(tmp_path))


def test_a_config_file_computes_reads_settings_imports_and_keeps_private_names(settle, write):
    text = 'import time\nfrom math import sqrt\n_half = steps // 2\nsteps = _half + 1\nrate = sqrt(4)\nstart = str(time.time())\n'
    settings = settle(write(text))
    assert settings['steps'] == 6 and settings['rate'] == 2.0 and float(settings['start']) > 0
    assert set(settings) == {'start', 'steps', 'rate', 'loud', 'quiet', 'betas', 'size'}


def test_a_config_file_may_build_on_another(settle, write):
    base, derived = (
        write('steps = 7\nrate = 0.7', 'base.py'),
        write('rate = 0.8\nsteps = steps * 2', 'two.py'),
    )
    assert settle(base, derived)['steps'] == 14


def test_bare_words_fill_positional_settings_before_files(settle, write):
    settings = settle('never', write('steps = 2'), positional=['start'])
    assert settings['start'] == 'never' and settings['steps'] == 2


def test_an_annotated_setting_is_one_and_auto_has_no_range(settle):
    assert settle('--size=3')['size'] == 3 and settle.script['size'] == 3
    assert settle('--size=auto', auto=['size'])['size'] == 'auto'


def test_fields_of_a_dataclass_are_settings_that_are_none_unless_given(settle, write, refused, capfd):
    fields = dict(depth=None, width=None, tied=None, name=None)
    settings = settle('--steps=3', dataclass='shape.py')
    assert {name: settings[name] for name in fields} == fields and 'depth' not in settle.script
    assert 'vocabulary' not in settings and settings['steps'] == 3
    settings = settle('--depth=3', '--width=3', '--tied', dataclass='shape.py')
    assert settings.items() >= dict(depth=3, width=3.0, tied=True, name=None).items()
    assert settle('--width=1_000_000_000_000', dataclass='shape.py')['width'] == 1e12  # as its range says
    # a file reads the default, and gives it by assigning it; what it only reads is not given
    settings = settle(write('steps = depth\ndepth = 12'), write('rate = width', 'b.py'), dataclass='shape.py')
    assert settings.items() >= dict(depth=12, steps=12, width=None, rate=2.0).items()
    refused(['depth = 0', '[1, inf)'], '--depth=0', dataclass='shape.py')
    refused(['dpeth', 'did you mean depth?'], '--dpeth=1', dataclass='shape.py')
    refused(['depth'], '--depth=1')
    with pytest.raises(SystemExit):
        settle('--help', dataclass='shape.py')
    assert 'depth: int = 12  # layers [1, inf)\n' in capfd.readouterr().out
    (settle.path / 'shape.py').write_text(SHAPE.replace('depth', 'steps'))
    configurator.read_block.cache_clear()
    with pytest.raises(AssertionError, match='same name'):
        settle(dataclass='shape.py')


def test_values_from_elsewhere_are_checked_against_the_ranges_of_a_block(tmp_path):
    (tmp_path / 'ranges.py').write_text(SHAPE)
    for wrong in (dict(depth=0), dict(depth=math.nan), dict(width=0), dict(width=1e13), dict(depth=2**31)):
        with pytest.raises(ValueError, match=f'^{list(wrong)[0]} '):
            configurator.check_ranges(dict(depth=1, width=1.0) | wrong, str(tmp_path / 'ranges.py'))
    configurator.check_ranges(dict(depth=1, other=-1, width='wide', tied=None), str(tmp_path / 'ranges.py'))


def test_only_the_first_process_of_a_machine_speaks(settle, monkeypatch, capfd):
    for rank, lines in (('0', 1), ('1', 0)):
        monkeypatch.setenv('LOCAL_RANK', rank)
        with pytest.raises(SystemExit) as end:
            settle('--stpes=3')
        assert end.value.code == 2 and capfd.readouterr().err.count('\n') == lines


def test_debug_shows_where_a_mistake_was_found(settle, monkeypatch, capfd):
    monkeypatch.setenv('DEBUG', '1')
    with pytest.raises(common.UserError) as end:
        settle('--stpes=3')
    err = capfd.readouterr().err
    assert 'in configure' in err and err.splitlines()[-1] == f'error: {end.value}'


def test_help_prints_the_block_with_its_comments_and_ends_well(settle, capsys):
    with pytest.raises(SystemExit) as end:
        settle('--steps=nonsense', '--help')
    assert end.value.code == 0
    out = capsys.readouterr().out
    block = SCRIPT.split('# ' + '-' * 77 + '\n')[1]
    assert block.strip() in out and 'python script.py' in out and 'after' not in out and 'outside' not in out


SCRIPTS = (
    'train.py',
    'eval.py',
    'sample.py',
    'prepare.py',
    'tokenizer.py',
    'bench/speed.py',
    'bench/data.py',
)


@pytest.mark.parametrize('path', SCRIPTS)
def test_help_of_every_script_explains_its_settings(path, capsys):
    module = importlib.import_module(path.removesuffix('.py').replace('/', '.'))
    with pytest.raises(SystemExit):
        configurator.configure(dict(vars(module)), ['--help'])
    out = capsys.readouterr().out
    for name, value in configurator.configure(dict(vars(module)), []).items():
        assert re.search(rf'^{name}(: \w+)? = ', out, re.MULTILINE), name
        assert isinstance(value, str | int | float | bool | tuple)


@pytest.mark.parametrize('path', [*SCRIPTS, 'corpus/filters.py'])
def test_each_setting_stands_on_one_line_and_its_default_within_its_range(path):
    for node in ast.parse(configurator.settings_block(ROOT / path)).body:
        assert node.lineno == node.end_lineno
    for line in configurator.settings_block(ROOT / path).splitlines():
        assert not line or line.startswith('#') or re.match(r'\w+(: \w+)? = ', line), line
    for name, (expression, interval) in configurator.read_block(ROOT / path).items():
        value = eval(compile(ast.Expression(expression), path, 'eval'))
        assert not configurator.out_of_range(name, value, interval)
        if path in ('train.py', 'eval.py', 'sample.py') and type(value) in (int, float):
            assert interval[0] != '[-inf, inf]', f'{name} has no range'


# --- config files ---------------------------------------------------------------


def train_settings(*argv):
    """The settings of train.py, those of the model as `arch` says where they are not given."""
    import train

    with settings_of(train, [str(a) for a in argv]) as settings:
        given = {name: settings[name] for name in asdict(Config()) if name in settings}
        return settings | asdict(Config.of_arch(settings['arch'], **given))


@pytest.mark.parametrize(
    'path', sorted(p for p in (ROOT / 'config').glob('*.py') if p.stem != '__init__'), ids=lambda p: p.stem
)
def test_our_config_files_load_and_make_sense(path):
    settings = train_settings(path)
    assert settings['dataset'] in sources.SOURCES
    assert settings['n_embd'] % settings['n_head'] == 0
    end = settings['lr_decay_iters'] or settings['max_iters']
    assert settings['warmup_iters'] < end or not settings['decay_lr']
    causal = Config(**ARCHITECTURES[settings['arch']]).causal
    assert settings['objective'] == ('causal' if causal else 'masked')
    named = re.findall(r'config/\w+\.py', path.read_text().split('\n\n')[0])
    assert set(named) == {f'config/{path.name}'}  # the command at its top runs this file


# What nanoGPT's own config files assign, written as they write it.
NANOGPT = {
    'train_shakespeare_char': """
out_dir = 'out-shakespeare-char'
eval_interval = 250 # keep frequent because we'll overfit
eval_iters = 200
log_interval = 10 # don't print too too often

# we expect to overfit on this small dataset, so only save when val improves
always_save_checkpoint = False

wandb_log = False # override via command line if you like
wandb_project = 'shakespeare-char'
wandb_run_name = 'mini-gpt'

dataset = 'shakespeare_char'
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256 # context of up to 256 previous characters

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

learning_rate = 1e-3 # with baby networks can afford to go a bit higher
max_iters = 5000
lr_decay_iters = 5000 # make equal to max_iters usually
min_lr = 1e-4 # learning_rate / 10 usually
beta2 = 0.99 # make a bit bigger because number of tokens per iter is small

warmup_iters = 100 # not super necessary potentially

# device = 'cpu'  # run on cpu only
# compile = False # do not torch compile the model
""",
    'finetune_shakespeare': """
import time

out_dir = 'out-shakespeare'
eval_interval = 5
eval_iters = 40
wandb_log = False # feel free to turn on
wandb_project = 'shakespeare'
wandb_run_name = 'ft-' + str(time.time())

dataset = 'shakespeare'
init_from = 'gpt2-xl' # this is the largest GPT-2 model

always_save_checkpoint = False

batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20

learning_rate = 3e-5
decay_lr = False
""",
    'train_gpt2': """
wandb_log = True
wandb_project = 'owt'
wandb_run_name='gpt2-124M'

# 12 batch size * 1024 block size * 5 gradaccum * 8 GPUs = 491,520
batch_size = 12
block_size = 1024
gradient_accumulation_steps = 5 * 8

# this makes total number of tokens be 300B
max_iters = 600000
lr_decay_iters = 600000

eval_interval = 1000
eval_iters = 200
log_interval = 10

weight_decay = 1e-1
""",
    'eval_gpt2': """
batch_size = 8
eval_iters = 500 # use more iterations to get good estimate
eval_only = True
wandb_log = False
init_from = 'gpt2'
""",
}

# what nanoGPT's train.py has before any of them, and this train.py must therefore have too; `device`, `dtype` and
# `backend` stand here by the hardware instead
NANOGPT_DEFAULTS = dict(
    out_dir='out',
    eval_interval=2000,
    log_interval=1,
    eval_iters=200,
    eval_only=False,
    always_save_checkpoint=True,
    init_from='scratch',
    wandb_log=False,
    wandb_project='owt',
    wandb_run_name='gpt2',
    dataset='openwebtext',
    gradient_accumulation_steps=40,
    batch_size=12,
    block_size=1024,
    n_layer=12,
    n_head=12,
    n_embd=768,
    dropout=0.0,
    bias=False,
    learning_rate=6e-4,
    max_iters=600000,
    weight_decay=1e-1,
    beta1=0.9,
    beta2=0.95,
    grad_clip=1.0,
    decay_lr=True,
    warmup_iters=2000,
    lr_decay_iters=600000,
    min_lr=6e-5,
    compile=True,
)


@pytest.mark.parametrize('name', NANOGPT)
def test_nanogpts_config_files_mean_the_same_here(name, write):
    expected = dict(NANOGPT_DEFAULTS)
    exec(NANOGPT[name], {}, expected)  # as nanoGPT's configurator does
    expected.pop('time', None)
    settings = train_settings(write(NANOGPT[name]))
    run_name = expected.pop('wandb_run_name')
    # nanoGPT's own defaults, which these files do not set
    ours = dict(lr_decay_iters=(600000, 0), wandb_project=('owt', 'barelm'))
    for name_of, (theirs, here) in ours.items():
        if expected[name_of] == theirs and f'{name_of} =' not in NANOGPT[name]:
            expected[name_of] = here
    assert {key: settings[key] for key in expected} == expected
    expected_name = run_name[:3] if 'wandb_run_name' in NANOGPT[name] else ''
    assert settings['wandb_run_name'][:3] == expected_name  # finetune_shakespeare's holds the time


def test_nanogpts_cpu_command_line_is_understood(write):
    flags = (
        '--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 '
        '--n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0'
    )
    settings = train_settings(write(NANOGPT['train_shakespeare_char']), *flags.split())
    assert settings['device'] == 'cpu' and settings['compile'] is False and settings['beta2'] == 0.99
    assert (settings['n_embd'], settings['dropout'], settings['batch_size']) == (128, 0.0, 12)


def test_nanogpts_sampling_command_line_is_understood():
    import sample

    start = 'What is the answer to life, the universe, and everything?'
    argv = ['--init_from=gpt2-xl', f'--start={start}', '--num_samples=5', '--max_new_tokens=100']
    argv += [
        '--temperature=0.8',
        '--top_k=200',
        '--seed=1337',
        '--device=cpu',
        '--dtype=float32',
    ]
    settings = configurator.configure(dict(vars(sample)), argv)
    assert settings['start'] == start and settings['num_samples'] == 5 and settings['top_k'] == 200


def test_whole_command_with_a_misspelt_setting(tmp_path):
    one_line('prepare.py books --val_fracton=0.1', tmp_path, 'val_fracton', 'did you mean val_fraction?')
    (tmp_path / 'mine.py').write_text('val_fracton = 0.1')
    one_line('prepare.py books mine.py', tmp_path, 'mine.py', 'did you mean val_fraction?')
    assert 'val_fraction = ' in run('prepare.py --help', tmp_path)[0]


# --- figures for people -----------------------------------------------------------


@given(st.integers(0, 10**16))
@example(999)
@example(999_999)  # must not become 1e+03K
@example(989 * 10**12)  # an H100's FLOP/s
def test_size_reads_back_within_half_a_percent_and_is_short(n):
    text = common.size(n)
    number, unit = re.fullmatch(r'(\d+(?:\.\d+)?)([KMBTP]?)', text).groups()
    scale = dict(zip(['', *'KMBTP'], (1000.0**i for i in range(6)), strict=True))[unit]
    assert math.isclose(float(number) * scale, n, rel_tol=0.005) and len(text) <= 6


@given(st.floats(0, 10**7))
@example(59.6)
@example(3599.9)
@example(86399.7)
def test_clock_reads_back_within_its_smallest_unit(seconds):
    text = common.clock(seconds)
    parts = re.findall(r'(\d+)([dhms])', text)
    units = dict(d=86400, h=3600, m=60, s=1)
    assert ''.join(n + u for n, u in parts) == text and len(parts) <= 2
    assert abs(sum(int(n) * units[u] for n, u in parts) - seconds) <= units[parts[-1][1]]
    assert all(int(n) < {'h': 24, 'm': 60, 's': 60}.get(u, 1e9) for n, u in parts)


def test_progress_in_a_log_is_whole_lines_and_short_work_says_nothing(capfd):
    with common.progress('reading', 10, 'B') as bar:
        bar.update(10)
    assert capfd.readouterr().err == ''
    program = (
        'import sys, time; sys.path.insert(0, sys.argv[1]); import common\n'
        'bar = common.progress("reading", 10, "B"); bar.delay = 0; bar.mininterval = 0\n'
        'for _ in range(4): bar.update(1); time.sleep(0.01)\n'
    )
    done = subprocess.run([sys.executable, '-c', program, str(ROOT)], capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert lines and all(line.startswith('reading: ') and '\r' not in line for line in lines), done
