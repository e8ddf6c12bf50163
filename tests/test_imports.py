"""Imports: no file imports one that comes after it. Names: none that the design has replaced."""

import ast
import fnmatch
import subprocess
import sys

from conftest import ROOT

# each file imports only files before it, in the same row or above
ORDER = """
common
configurator
corpus/formats corpus/sources corpus/words corpus/filters corpus/dedup
tokenizer
chat
corpus/shard corpus/parallel corpus/merge corpus/report
loader prepare
pretrained
loss kernels
model
lora quantize
infra/runtime infra/mesh infra/checkpoint infra/faults infra/monitor
objectives optim estimate
generate
tasks
train
eval compare tune
sample serve export
"""
FOLDERS = ('.', 'corpus', 'infra', 'bench', 'config')
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob('*.py'))
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in FILES}


def imports(tree):
    """The files of ours that a file imports, also within functions, without .py."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module, *(f'{node.module}.{alias.name}' for alias in node.names)]
    files = {name.replace('.', '/') for name in names}
    return sorted(file for file in files if f'{file}.py' in TREES)


def test_imports_point_up_the_list_and_so_never_in_a_circle():
    order, wrong = ORDER.split(), []
    for file, tree in TREES.items():
        name, found = file.removesuffix('.py'), imports(tree)
        if file.startswith('config/') or name.endswith('/__init__'):
            wrong += [f'{file} imports {other}' for other in found]
        elif not file.startswith('bench/'):
            assert name in order, f'{file}: give it a place in ORDER'
            wrong += [f'{file} imports {other}' for other in found if order.index(other) >= order.index(name)]
    assert not wrong


def test_training_does_not_import_the_preparation_of_text():
    code = 'import sys, loader, infra.checkpoint; print([name for name in sys.modules if name.startswith("corpus")])'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == '[]\n'


OLD_NAMES = {  # files (patterns) -> the names that were replaced there; Class.name: of this class only
    '*': 'told judged sketched relatives sketch sketches deal_out share_block replica averaging by_rank_0 join_processes '
    'highest_of_processes go_back way_back first_whole Watch.asked Watch.moved Watch.leave Health.judge Health.read '
    'Health.height Layout.rank Layout.ranks Layout.group Layout.shares',
    'model.py kernels.py generate.py objectives.py train.py eval.py sample.py estimate.py bench/*': 'where',
    'infra/runtime.py infra/mesh.py infra/checkpoint.py infra/monitor.py': 'where',
    'corpus/merge.py prepare.py': 'decide join places',
    'infra/mesh.py': 'share whole part',
    'infra/runtime.py': 'fresh',
    'infra/faults.py train.py': 'changes',
    'infra/checkpoint.py': 'seal damage every find',
    'model.py kernels.py pretrained.py': 'output head angles past before padding',
    'generate.py': 'ready read past before',
    'train.py': 'ahead mark share',
}


NAMED_BY = {ast.FunctionDef: 'name', ast.ClassDef: 'name', ast.arg: 'arg', ast.alias: 'asname'}


def defined_names(tree, owner=''):
    """(name, line) of definitions, parameters, assigned variables and attributes; within a class also as Class.name."""
    for node in ast.iter_child_nodes(tree):
        kind = NAMED_BY.get(type(node))
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            kind = 'id' if isinstance(node, ast.Name) else 'attr'
        if kind and (name := getattr(node, kind)):
            yield name, node.lineno
            yield f'{owner}.{name}', node.lineno
        yield from defined_names(node, node.name if isinstance(node, ast.ClassDef) else owner)


def test_no_old_name_is_left():
    left = []
    for file, tree in TREES.items():
        old = set()
        for patterns, names in OLD_NAMES.items():
            if any(fnmatch.fnmatch(file, pattern) for pattern in patterns.split()):
                old.update(names.split())
        left += [f'{file}:{line}: {name}' for name, line in defined_names(tree) if name in old]
    assert not left, '\n' + '\n'.join(left)
