"""Settings: a script's own globals, overridden by Python files and by flags; the only code that writes them.

    python train.py config/gpt2_124m.py --batch_size=8 --compile=False
    python train.py --help                       # prints the block, its comments included

The settings of a script stand in a block between two ruled lines (`# -----`), one a line, its reason in a comment. Files
are read first, then flags; later ones win. A number's range ends its comment, as an interval that is checked:

    eval_interval = 2000  # steps between evaluations [1, inf)
    beta1: float = 0.9  # of AdamW [0, 1)

NaN is always refused, and so are integers of 2**31 or more, unless the range has a higher end, as in `[1, 1e12]`.
"""

import ast
import difflib
import functools
import math
import re
import sys
import textwrap
import types
from pathlib import Path

from common import fail, reason

NUMBER = r'-?(?:\d[\d.e]*|inf)'
RANGE = re.compile(rf'(?P<open>[\[(])(?P<low>{NUMBER}), (?P<high>{NUMBER})(?P<close>[\])])$')


def quiet_on_interrupt(kind, error, trace):
    """sys.excepthook: whoever presses Ctrl-C wants no traceback."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


def answer_help(script, argv=None, others=()):
    """Print a script's docstring and settings, and end, if the command line asks for help.

    others: further files whose settings it takes, relative to the script; they are only read, not imported.
    """
    argv = sys.argv[1:] if argv is None else argv
    if '--help' in argv or '-h' in argv:
        path = Path(script['__file__'])
        print(script['__doc__'].strip(), settings_block(path), sep='\n\n')
        for other in others:
            print(f'\n# --- {Path(other).name}', settings_block(path.parent / other), sep='\n')
        raise SystemExit(0)


def configure(script, argv=None, positional=(), parts=(), auto=(), dataclass=None):
    """Override a script's settings and return them all as a dict.

    script: the `globals()` of the caller; the names assigned in its ruled block are its settings.
    argv: the command line without the program; `sys.argv[1:]` unless given.
    positional: settings that bare words fill in this order (`prepare.py NAME`), a tuple takes all that are left;
    other bare words are config files.
    parts: modules whose own settings are overridden too. auto: settings that may be 'auto' whatever their type.
    dataclass: a file, relative to the script, read, not imported, whose block holds fields of a dataclass. They are
    settings too, but no globals: in the dict they are None unless given.
    Ends the program with one line for an unknown name, a wrong type, a number out of range or an unreadable file.
    """
    sys.excepthook = quiet_on_interrupt
    argv = sys.argv[1:] if argv is None else argv
    fields = [Path(script['__file__']).parent / dataclass] if dataclass else []
    answer_help(script, argv, [*(part.__file__ for part in parts), *fields])
    scripts = [script, *map(vars, parts)]
    blocks = [own_settings(each) for each in scripts]
    blocks += [{name: ast.literal_eval(v) for name, (v, _) in read_block(path).items()} for path in fields]
    defaults = {name: value for block in blocks for name, value in block.items()}
    assert len(defaults) == sum(map(len, blocks)), 'two blocks have a setting of the same name'
    settings = defaults | dict.fromkeys(blocks[-1] if dataclass else ())
    files = [*(each['__file__'] for each in scripts), *fields]
    ranges = {name: interval for path in files for name, (_, interval) in read_block(path).items()}

    def assign(name, value, source):
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1)
            advice = f'did you mean {near[0]}?' if near else '--help lists them'
            fail(f'{source}: there is no setting {name!r}; {advice}')
        if wrong := out_of_range(name, value, ranges[name]):
            fail(f'{source}: {wrong}')
        default = defaults[name]
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(default) and not (value == 'auto' and name in auto):
            fail(f'{source}: {name} should be {type(default).__name__}, such as {default!r}, not {value!r}')
        settings[name] = value

    unfilled = list(positional)
    for word in (a for a in argv if not a.startswith('-')):
        if unfilled and not word.endswith('.py'):
            if isinstance(defaults[unfilled[0]], tuple):
                settings[unfilled[0]] += (word,)
            else:
                settings[unfilled.pop(0)] = word
        else:
            for name, value in read_config_file(word, settings, defaults).items():
                assign(name, value, word)
    for flag in (a for a in argv if a.startswith('-')):
        name, equals, text = flag.lstrip('-').partition('=')  # at the first: a value may hold more of them
        default = defaults.get(name)
        now = default if settings.get(name) is None else settings[name]
        if not equals and now is False:
            text = 'True'  # --json is short for --json=True
        elif name in defaults and not (equals and flag.startswith('--')):
            fail(f'{flag} should be written --{name}=VALUE, such as --{name}={now!r}')
        assign(name, literal(text, default), 'the command line')
    for each, block in zip(scripts, blocks, strict=False):
        each.update({name: settings[name] for name in block})
    return settings


def own_settings(script):
    """The settings of a script's block as they stand, from its `globals()`."""
    return {name: script[name] for name in read_block(script['__file__'])}


def settings_block(path):
    """The text between the first two ruled lines (`# -----`) of a script, which may be indented, in a class."""
    lines = Path(path).read_text(encoding='utf-8').splitlines()
    first, second = [i for i, line in enumerate(lines) if line.lstrip().startswith('# -----')][:2]
    return textwrap.dedent('\n'.join(lines[first + 1 : second]))


@functools.cache
def read_block(path):
    """{name: (expression assigned, match of RANGE for the interval of its numbers)} of the block of a file, in order."""
    block = settings_block(path)
    lines, found = block.splitlines(), {}
    for node in ast.parse(block).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            comment = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            interval = RANGE.search(comment.rstrip()) or RANGE.search('[-inf, inf]')
            found |= {target.id: (node.value, interval) for target in targets}
    return found


def read_config_file(path, settings, defaults):
    """Run a Python file -> the settings that it assigns. It may read settings, import, and keep _private names."""
    try:
        tree = ast.parse(Path(path).read_text(encoding='utf-8'), path)
        code = compile(tree, path, 'exec')
    except SyntaxError as e:
        fail(f'{path}, line {e.lineno}: {e.msg}')
    except (OSError, ValueError, MemoryError, RecursionError) as e:  # null bytes, a thousand brackets
        fail(f'cannot read the config file {path}: {reason(e)}; settings are written --name=value')
    before = {name: defaults[name] if value is None else value for name, value in settings.items()}
    namespace = dict(before, __name__='__config__', __file__=path)
    try:
        exec(code, namespace)
    except Exception as e:
        fail(f'{path} stops with {type(e).__name__}: {e}')
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    assigned = {node.id for node in names if isinstance(node.ctx, ast.Store)}

    def is_setting(name, value):
        if name in before:
            return name in assigned or value is not before[name]  # maybe the value that was there
        return not (name.startswith('_') or isinstance(value, types.ModuleType) or callable(value))

    return {name: value for name, value in namespace.items() if is_setting(name, value)}


def literal(text, default):
    """A flag's value: a Python literal; for a setting that holds text, the text as it stands (quotes may surround it)."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, str) or not isinstance(default, str) else text


def out_of_range(name, value, interval):
    """What is wrong with a number, or the first such number of a tuple, in words; '' if nothing is."""
    low, high = float(interval['low']), float(interval['high'])
    for number in value if isinstance(value, tuple) else (value,):
        if type(number) not in (int, float):
            continue
        if type(number) is int and abs(number) >= 2**31 and not 2**31 < high < math.inf:
            return f'{name} should be less than 2 ** 31'
        at_end = (number == low and interval['open'] == '(') or (number == high and interval['close'] == ')')
        if at_end or not low <= number <= high:  # NaN is in none
            return f'{name} = {value!r} should lie in {interval[0]}'
    return ''


def check_ranges(values, path):
    """Raise ValueError for the first of some values (name -> value) outside of the range that the block of a file states."""
    for name, (_, interval) in read_block(path).items():
        if name in values and (wrong := out_of_range(name, values[name], interval)):
            raise ValueError(wrong)
