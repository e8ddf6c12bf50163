"""Sources of text: named corpora, local files, URLs, data sets of the hub, as units of work.

`find_files` finds the files of a source, `units` cuts them into units of similar size, formats.documents reads a unit:

    inputs, origin = find_files('books/**/*.txt')     # or hub='OWNER/NAME'
    for unit in units(inputs):                        # in any order, on any machine
        for place, document in documents(unit):       # ('walden.txt:1', 'When I wrote the following pages, ...')
"""

import glob
import os
import re
import sysconfig
import urllib.parse

from common import fail, need, reason
from corpus.formats import CODE_ERRORS, decompress, hub_filesystem, open_input, retry, splittable

COMMON_CRAWL = 'https://data.commoncrawl.org/'
SHAKESPEARE = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'


# --- named corpora --------------------------------------------------------------


# Repositories that hold plain data files: the older names of several need a loading script, which is downloaded code.
# Curated corpora need little cleaning and no search for near duplicates.
TABLE = f"""
name             | size   | licence       | what                                            | val_fraction | from
python           | 12 MB  | PSF           | the standard library that runs this             | 0.1    | python
shakespeare      | 1.1 MB | public domain | plays                                           | 0.1    | {SHAKESPEARE}
shakespeare_char | 1.1 MB | public domain | plays, letter by letter                         | 0.1    | {SHAKESPEARE}
wikitext-2       | 8 MB   | CC BY-SA 3.0  | 600 articles of Wikipedia that it calls good    | 0.01   | Salesforce/wikitext wikitext-2-raw-v1
wikitext         | 310 MB | CC BY-SA 3.0  | WikiText-103: 28,000 of them                    | 0.01   | Salesforce/wikitext wikitext-103-raw-v1
tinystories      | 1 GB   | CDLA-Sharing  | stories in the words of small children          | 0.01   | roneneldan/TinyStories
minipile         | 3 GB   | various       | a million documents of The Pile                 | 0.01   | JeanKaddour/minipile
wikipedia        | 12 GB  | CC BY-SA 3.0  | all of the English one, November 2023           | 0.001  | wikimedia/wikipedia 20231101.en
gutenberg        | 14 GB  | public domain | English books, instead of bookcorpus            | 0.001  | manu/project_gutenberg
openwebtext      | 24 GB  | CC0           | pages linked from Reddit, like GPT-2's          | 0.0005 | Skylion007/openwebtext
fineweb          | 28 GB  | ODC-By        | the web cleaned; all: --hub_config=default      | 0.0005 | HuggingFaceFW/fineweb sample-10BT
fineweb-edu      | 28 GB  | ODC-By        | its educational part; more: sample-100BT        | 0.0005 | HuggingFaceFW/fineweb-edu sample-10BT
open-web-math    | 27 GB  | ODC-By        | mathematics on the web                          | 0.0005 | open-web-math/open-web-math
finemath         | 18 GB  | ODC-By        | mathematics explained well                      | 0.0005 | HuggingFaceTB/finemath finemath-4plus
cosmopedia       | 122 GB | ODC-By        | textbooks and stories that a model wrote        | 0.0005 | HuggingFaceTB/smollm-corpus cosmopedia-v2
c4               | 305 GB | ODC-By        | the web of April 2019, made for T5              | 0.0005 | allenai/c4 en
pile             | 335 GB | various       | The Pile without what may not be shared         | 0.0005 | monology/pile-uncopyrighted
climbmix         | 600 GB | CC BY-NC 4.0  | NVIDIA's mixture of the web, nanochat's order   | 0.0005 | karpathy/climbmix-400b-shuffle
slimpajama       | 895 GB | various       | RedPajama without its near copies               | 0.0005 | cerebras/SlimPajama-627B
dclm             | 7 TB   | CC BY 4.0     | the web chosen by a learned filter              | 0.0005 | mlfoundations/dclm-baseline-1.0
codeparrot       | 13 GB  | of each file  | Python on GitHub                                | 0.001  | codeparrot/codeparrot-clean
starcoder        | 311 GB | of each file  | 86 programming languages; ask for access        | 0.0005 | bigcode/starcoderdata
the-stack        | 1.5 TB | of each file  | 358 programming languages; ask for access       | 0.0005 | bigcode/the-stack-dedup
common-crawl     | 7 TB   | terms of use  | a month of the web as it is, text only          | 0.0005 | {COMMON_CRAWL}crawl-data/CC-MAIN-2025-05/wet.paths.gz
"""
CODE = dict(text_field='content', clean='code', dedup='near')
EXCEPTIONS = {
    'python': dict(tokenizer='bpe', vocab_size=4096, dedup='near'),
    'shakespeare': dict(clean='none'),  # so that its characters are nanoGPT's
    'shakespeare_char': dict(tokenizer='char', clean='none'),
    'gutenberg': dict(hub_split='en'),
    'codeparrot': CODE,
    'starcoder': CODE,
    'the-stack': CODE,
    'common-crawl': dict(clean='web', dedup='near'),
}
ROWS = [[cell.strip() for cell in line.split('| ')] for line in TABLE.strip().splitlines()]


def settings_of(name, size, licence, about, val_fraction, origin):
    """What `python prepare.py NAME` reads and the defaults of its settings, from a row of the table."""
    hub, _, hub_config = origin.partition(' ')
    is_hub = '://' not in origin and origin != 'python'
    source = dict(hub=hub, hub_config=hub_config) if is_hub else dict(files=origin)
    settings = dict(tokenizer='gpt2', val_fraction=float(val_fraction), clean='basic', dedup='exact')
    return source | settings | dict(licence=licence, size=size, about=about) | EXCEPTIONS.get(name, {})


SOURCES = {row[0]: settings_of(*row) for row in ROWS[1:]}


def listing():
    """What `python prepare.py --list` prints."""
    return '\n'.join(
        f'{name:<17} {size:>7}  {licence:<14} {about:<46} {origin}'
        for name, size, licence, about, _, origin in ROWS
    )


# --- which files ----------------------------------------------------------------


def find_files(files, hub='', hub_config='', hub_split='train'):
    """Find the files of a source -> ([(path, size in bytes or 0 if unknown), ...], their origin for meta.json).

    files: a glob, in which ** goes into folders; 'python', the standard library of the Python that runs this; a URL;
    or a list of paths: a file or URL ending in .paths or .paths.gz. hub: OWNER/NAME, or a local directory laid out
    like one. Sorted, no file twice. Ends the program with one line if there is none.
    """
    if hub:
        return hub_files(hub, hub_config, hub_split)
    if files == 'python':
        paths = standard_library()
    elif re.search(r'\.paths(\.gz)?$', files):
        paths = listed(os.path.expanduser(files))
    else:
        paths = [files] if '://' in files else local_files(os.path.expanduser(files))
    unique = {}  # a file can have several names, by links
    for path in sorted(paths):
        if '://' in path and not path.startswith(('http://', 'https://', 'hf://')):
            fail(f'{path} cannot be read: http://, https://, hf:// and local paths can')
        unique.setdefault(path if '://' in path else os.path.realpath(path), path)
    try:
        inputs = [(path, 0 if '://' in path else os.path.getsize(path)) for path in unique.values()]
    except OSError as e:
        fail(f'cannot read {e.filename}: {reason(e)}')
    return inputs, {'files': files, 'count': len(inputs)}


def standard_library():
    """Source files of the running Python's standard library: 700 of them, 12 MB, on every machine; without its tests."""
    root = sysconfig.get_paths()['stdlib']
    left_out = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__'}
    paths = []
    for folder, folders, names in os.walk(root):
        folders[:] = set(folders) - left_out
        paths += [os.path.join(folder, name) for name in names if name.endswith('.py')]
    return paths or fail(f'this Python has no source files in {root}')


def local_files(pattern):
    if os.path.isfile(pattern):  # its name may hold [ or *
        return [pattern]
    if os.path.basename(pattern) == '**':
        pattern += '/*'
    paths = [path for path in matches(pattern) if os.path.isfile(path)]
    advice = 'quote a pattern so that the shell leaves it alone, ** goes into folders'
    return paths or fail(f'no file matches {pattern!r}; {advice}')


def matches(pattern):
    """Like glob.glob, but ** enters neither hidden folders nor links to folders, which may lead back up."""
    deep = re.fullmatch(r'((?:.*?/)?)\*\*/(.*)', pattern, re.DOTALL)
    if not deep:
        return glob.glob(pattern)
    found = []
    for root in glob.glob(deep[1] or './'):
        for folder, folders, _ in os.walk(root):
            folders[:] = [name for name in folders if not name.startswith('.')]
            found += matches(os.path.join(glob.escape(folder), deep[2]))
    return found


def listed(listing):
    """The paths in a listing, one a line; a relative one begins at the listing's host or folder."""
    with open_input(listing) as file:
        lines = decompress(file, listing).read().decode().split('\n')
    paths = [absolute(line.strip(), listing) for line in lines if line.strip()]
    return paths or fail(f'{listing} lists nothing')


def absolute(path, listing):
    if '://' in path:
        return path
    if '://' in listing:
        return urllib.parse.urljoin(listing, '/' + path.lstrip('/'))
    if path.startswith('crawl-data/'):  # a listing of Common Crawl's that was downloaded
        return COMMON_CRAWL + path
    return os.path.join(os.path.dirname(listing), path)


def hub_files(hub, config, split):
    """`find_files` for a data set of the hub, pinned to its latest commit; its own library says which files."""
    datasets = need('datasets')
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    filesystem = hub_filesystem()
    datasets.disable_progress_bars()
    local, name, pinned = os.path.isdir(hub), f'{hub} {config}'.strip(), {}
    try:
        if not local:
            pinned = {'revision': retry(HfApi().dataset_info, hub, timeout=30).sha}
        splits = retry(datasets.load_dataset_builder, hub, config or None, **pinned).config.data_files or {}
        if split not in splits:
            names = ', '.join(map(str, splits))
            fail(f'the data set {name} has no split {split!r}, only {names}; name one with --hub_split')
        paths, sizes = sorted(set(splits[split])), {}
        for folder in () if local else {os.path.dirname(path) for path in paths}:  # a request each
            sizes |= {'hf://' + entry['name']: entry['size'] for entry in filesystem.ls(folder)}
        inputs = [(path, os.path.getsize(path) if local else sizes.get(path, 0)) for path in paths]
    except RepositoryNotFoundError:
        fail(f'the hub has no data set {hub}, or a private one: then set HF_TOKEN; local text: --files=GLOB')
    except CODE_ERRORS:
        raise
    except Exception as e:  # of the hub, the network and the library
        fail(f'cannot read the data set {name}: {" ".join(str(e).split())[:500] or reason(e)}')
    return inputs, {'hub': hub, 'config': config, 'split': split, 'revision': pinned.get('revision', 'local')}


# --- units of work --------------------------------------------------------------


def units(inputs, target=16 << 20):
    """Cut files into units of work of about `target` bytes: [[(path, start, stop), ...], ...], stop None for the end.

    Small files are put together, large ones are cut if they can be read from the middle. A range holds the lines, row
    groups or texts that begin in its bytes, so that nothing need be read to plan.
    """
    done, unit, size = [], [], 0
    for path, length in inputs:
        alone = length > target or not length and '://' in path  # of unknown size
        if unit and (alone or size + length > target):
            done.append(unit)
            unit, size = [], 0
        if length > target and splittable(path):
            done += [[(path, start, min(start + target, length))] for start in range(0, length, target)]
        elif alone:
            done.append([(path, 0, None)])
        else:
            unit.append((path, 0, None))
            size += length
    return done + [unit] * bool(unit)
