"""What stands between a script and the person who runs it: settings in, progress and clean errors out.

A script's settings are its own globals, in a block between two ruled lines at its top. They are overridden by
Python files and by flags, files first, later ones winning:

    python train.py config/gpt2_124m.py --batch_size=8 --compile=False
    python train.py --help                       # prints the block, its comments included
"""

import ast
import difflib
import sys
import types

from common import fail, reason


def quiet_on_interrupt(kind, error, trace):
    """sys.excepthook: whoever presses Ctrl-C wants no traceback."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


def answer_help(script, argv=None, parts=()):
    """Print a script's docstring and settings, and end, if the command line asks for help. Arguments as of `configure`."""
    argv = sys.argv[1:] if argv is None else argv
    if '--help' in argv or '-h' in argv:
        files = [each['__file__'] for each in (script, *map(vars, parts))]
        print(script['__doc__'].strip(), *map(settings_block, files), sep='\n\n')
        raise SystemExit(0)


def configure(script, argv=None, positional=(), parts=(), auto=()):
    """Override a script's settings and return them all as a dict.

    script: the `globals()` of the caller; the names assigned in its ruled block are its settings.
    argv: the command line without the program; `sys.argv[1:]` unless given.
    positional: settings that bare words fill in this order (`prepare.py NAME`), a tuple takes all that are left;
    other bare words are config files.
    parts: modules whose own settings are overridden together with the script's.
    auto: settings that may be 'auto' whatever their type.
    Ends the program with one line for an unknown name, a wrong type or an unreadable file.
    """
    sys.excepthook = quiet_on_interrupt
    argv = sys.argv[1:] if argv is None else argv
    answer_help(script, argv, parts)
    scripts = [script, *map(vars, parts)]
    settings = {name: value for each in scripts for name, value in own_settings(each).items()}
    defaults = dict(settings)
    words = [a for a in argv if not a.startswith('-')]
    flags = [a for a in argv if a.startswith('-')]
    unfilled = list(positional)
    for word in words:
        if unfilled and not word.endswith('.py'):
            if isinstance(settings[unfilled[0]], tuple):
                settings[unfilled[0]] += (word,)
            else:
                settings[unfilled.pop(0)] = word
        else:
            read_config_file(word, settings, defaults, auto)
    for flag in flags:
        name, equals, value = flag.lstrip('-').partition('=')  # at the first: a value may hold more of them
        check_known(name, settings, 'the command line')
        if not equals and settings[name] is False:
            value = 'True'  # --json is short for --json=True
        elif not equals or not flag.startswith('--'):
            fail(f'{flag} should be written --{name}=VALUE, such as --{name}={settings[name]!r}')
        value = literal(value, defaults[name])
        settings[name] = checked(name, value, defaults[name], auto, 'the command line')
    for each in scripts:
        each.update({name: settings[name] for name in own_settings(each)})
    return settings


def own_settings(script):
    """The settings of a script's ruled block as they stand, from its `globals()`."""
    return {name: script[name] for name in assigned_names(settings_block(script['__file__']))}


def settings_block(path):
    """The text between the first two ruled lines (`# ----`) of a script."""
    with open(path, encoding='utf-8') as f:
        lines = f.read().splitlines()
    first, second = [i for i, line in enumerate(lines) if line.startswith('# -----')][:2]
    return '\n'.join(lines[first + 1 : second])


def assigned_names(source):
    """Names assigned at the top level of a piece of Python, in order."""
    return [t.id for node in ast.parse(source).body if isinstance(node, ast.Assign) for t in node.targets]


def read_config_file(path, settings, defaults, auto):
    """Run a Python file whose assignments replace settings; it may read the settings, import, and keep _private names."""
    try:
        with open(path, encoding='utf-8') as f:
            code = compile(f.read(), path, 'exec')
    except (OSError, UnicodeDecodeError) as e:
        fail(f'cannot read the config file {path}: {reason(e)}; settings are written --name=value')
    except SyntaxError as e:
        fail(f'{path}, line {e.lineno}: {e.msg}')
    except (ValueError, MemoryError, RecursionError) as e:  # null bytes, a thousand brackets
        fail(f'{path}: {reason(e)}')
    namespace = dict(settings, __name__='__config__', __file__=path)
    try:
        exec(code, namespace)
    except Exception as e:
        fail(f'{path} stops with {type(e).__name__}: {e}')
    for name, value in namespace.items():
        if name.startswith('_') or (
            name not in settings and (isinstance(value, types.ModuleType) or callable(value))
        ):
            continue
        check_known(name, settings, path)
        settings[name] = checked(name, value, defaults[name], auto, path)


def check_known(name, settings, where):
    if name not in settings:
        near = difflib.get_close_matches(name, settings, n=1)
        advice = f'did you mean {near[0]}?' if near else '--help lists them'
        fail(f'{where}: there is no setting {name!r}; {advice}')


def literal(text, default):
    """A flag's value: a Python literal; for a setting that holds text, the text as it stands (quotes may surround it)."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, str) or not isinstance(default, str) else text


def checked(name, value, default, auto, where):
    """The value, made a float where one belongs; anything else of another type than the default ends the program."""
    if value == 'auto' and name in auto:
        return value
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        fail(f'{where}: {name} should be {type(default).__name__}, such as {default!r}, not {value!r}')
    return value
