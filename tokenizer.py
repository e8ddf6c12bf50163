"""Vocabularies: learned from text or built in, one interface for all.

    python tokenizer.py train --files='books/*.txt' --kind=bpe --vocab_size=8192 --out_dir=data/books-bpe
    python tokenizer.py compare --files='docs/**/*.txt' gpt2 data/books-bpe unigram char
    python prepare.py books --files='books/*.txt' --tokenizer=data/books-bpe

A learned vocabulary is a Hugging Face `tokenizer.json`, which transformers reads; `gpt2`, `cl100k_base` and
`o200k_base` are tiktoken's. Text never becomes a special token by spelling one: only `encode(..., special=True)`
reads `<|endoftext|>` or `[MASK]` as what they stand for.
"""

import base64
import hashlib
import itertools
import json
import os
import re
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np

from common import fail, need, progress, reason
from configurator import configure
from corpus import formats, sources
from corpus.filters import normalize as repaired

# -----------------------------------------------------------------------------
command = ''  # what to do: train, or compare the vocabularies named after it
vocabularies = ()  # to compare: names and directories as prepare.py's tokenizer takes them, or kinds to learn
files = ''  # what to learn from, or compare on: a glob, URL or list of paths, as in prepare.py
hub = ''  # or OWNER/NAME of a data set on the Hugging Face hub, with its configuration and split
hub_config = ''
hub_split = 'train'
text_field = 'text'  # the field of rows that holds the text
kind = 'bpe'  # bpe | wordpiece | unigram | word | char | byte
vocab_size = 8192  # special tokens included; char and byte have what they have
normalize = ''  # fold text before it is split: '', 'lower', 'accents' (removes them) or 'lower,accents'
max_chars = 1_000_000_000  # learn from at most this many characters
out_dir = ''  # the directory that gets tokenizer.json
# -----------------------------------------------------------------------------

# tiktoken's name of each built-in vocabulary; r50k_base has gpt2's ids and is one file instead of two
BUILT_IN = {'gpt2': 'r50k_base', 'cl100k_base': 'cl100k_base', 'o200k_base': 'o200k_base'}
KINDS = ('bpe', 'wordpiece', 'unigram', 'word', 'char', 'byte')
# what each special token may be called, in order of preference; the first is added where a vocabulary has none
SPECIAL = {
    'eot': ('<|endoftext|>', '<|end_of_text|>', '</s>', '[SEP]'),
    'pad': ('[PAD]', '<pad>'),
    'unk': ('[UNK]', '<unk>'),
    'cls': ('[CLS]', '<s>'),
    'sep': ('[SEP]', '</s>'),
    'mask': ('[MASK]', '<mask>'),
}
SPLITS = {'r50k_base': 'gpt2', 'cl100k_base': 'gpt4', 'o200k_base': 'o200k'}  # tiktoken's -> gigatoken's name
SAMPLE = 20_000_000  # characters that vocabularies are compared on


class Tokenizer:
    """Base of both kinds. `special` maps eot, pad, unk, cls, sep and mask to ids; `spelled` maps their spellings.

    `encoding` is the tiktoken.Encoding that runs it, or None.
    """

    def encode(self, text, special=False):
        """text -> list of ids; with `special`, the spellings of special tokens become those tokens."""
        parts = re.split('|'.join(f'({re.escape(s)})' for s in self.spelled), text) if special else [text]
        ids = []
        for part in filter(None, parts):
            if special and part in self.spelled:
                ids.append(self.spelled[part])
            else:
                ids += self.encode_batch([part])[0].tolist()
        return ids

    def encode_batch(self, texts):
        """list of texts -> list of arrays of ids (`self.dtype`); special spellings are ordinary text."""
        cut = [list(pieces(text)) for text in texts]
        encoded = iter(self.encode_pieces([piece for text in cut for piece in text]))
        return [
            np.concatenate([next(encoded) for _ in text], dtype=self.dtype, casting='unsafe') for text in cut
        ]

    def encode_pieces(self, texts):
        return [self.run(text) for text in texts]

    def run(self, text):
        return self.encoding.encode_to_numpy(text, disallowed_special=())

    @property
    def dtype(self):
        """The smallest of uint16 and uint32 that holds every id: what token files are written in."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)


class BuiltIn(Tokenizer):
    """One of tiktoken's vocabularies; the special tokens it lacks take the ids above its own."""

    def __init__(self, name):
        tiktoken = need('tiktoken')
        self.name = name
        try:
            self.encoding = tiktoken.get_encoding(BUILT_IN[name])
        except Exception as e:  # requests' many errors, or tiktoken's own for a damaged file
            fail(
                f'cannot load the vocabulary {name} ({type(e).__name__}); connect to the network once, or set '
                f"TIKTOKEN_CACHE_DIR to a directory that holds tiktoken's {BUILT_IN[name]} file"
            )
        self.spelled = dict(self.encoding._special_tokens)
        self.vocab_size, self.special = self.encoding.n_vocab, {}
        for role, (spelling, *_) in SPECIAL.items():
            if spelling not in self.spelled:
                self.spelled[spelling] = self.vocab_size
                self.vocab_size += 1
            self.special[role] = self.spelled[spelling]
        self.hash = hashlib.sha256(name.encode()).hexdigest()

    def decode(self, ids):
        """ids -> text; bytes that are no UTF-8 become U+FFFD, special tokens their spelling."""
        special = {i: spelling.encode() for spelling, i in self.spelled.items()}
        single = self.encoding.decode_single_token_bytes
        return b''.join(special[i] if i in special else single(i) for i in map(int, ids)).decode(
            errors='replace'
        )

    def save(self, directory):
        """Write the name into `directory`/tokenizer.txt."""
        Path(directory, 'tokenizer.txt').write_text(self.name + '\n')


class Learned(Tokenizer):
    """A Hugging Face tokenizer, from the text of its `tokenizer.json`."""

    def __init__(self, json):
        from tokenizers import Tokenizer as HFTokenizer

        self.name = 'tokenizer.json'
        self.hf = HFTokenizer.from_str(json)
        self.hf.no_padding()
        self.hf.no_truncation()
        self.special = {}
        for role, spellings in SPECIAL.items():
            known = [s for s in spellings if self.hf.token_to_id(s) is not None]
            spelling = known[0] if known else spellings[0]
            self.hf.add_special_tokens([spelling])  # gives an id to what has none, leaves the others theirs
            self.special[role] = self.hf.token_to_id(spelling)
        self.spelled = {t.content: i for i, t in self.hf.get_added_tokens_decoder().items() if t.special}
        self.hf.encode_special_tokens = True  # the library's name for: text that spells one is ordinary text
        ids = self.hf.get_vocab().values()
        self.vocab_size = max(ids) + 1
        if len(set(ids)) < self.vocab_size:  # the library would give added tokens the ids of others
            raise ValueError('some ids have no token, or two')
        self.hash = hashlib.sha256(self.hf.to_str().encode()).hexdigest()
        self.encoding = tiktoken_twin(self.hf)

    def encode_pieces(self, texts):
        if self.encoding:
            return super().encode_pieces(texts)
        ids = []
        # not all at once: in the library's own form a token takes 70 bytes
        for i in range(0, len(texts), 64):
            encoded = self.hf.encode_batch_fast(texts[i : i + 64], add_special_tokens=False)
            ids += [np.array(e.ids, dtype=self.dtype) for e in encoded]
        return ids

    def decode(self, ids):
        """ids -> text; bytes that are no UTF-8 become U+FFFD, special tokens their spelling."""
        return self.hf.decode([int(i) for i in ids], skip_special_tokens=False)

    def save(self, directory):
        """Write `directory`/tokenizer.json."""
        self.hf.save(str(Path(directory, 'tokenizer.json')))


# Where no token lies across, in any vocabulary that splits text into words first: before a single space that
# begins a word, and after a single line end that a word follows.
WORD_GAP = re.compile(r'(?<=\S)(?= \w)|(?<=\S\n)(?=\w)')


def pieces(text, longest=1 << 16):
    """Cut a text into pieces of at most `longest` characters, so that one long document cannot take all memory.

    The cuts fall where no token lies across; text without a gap between words in a quarter of `longest`
    characters is cut anywhere, which also bounds the time that a run of one character takes.
    """
    start = 0
    while len(text) - start > longest:
        end = start + longest
        gaps = [match.start() for match in WORD_GAP.finditer(text, end - longest // 4, end)]
        yield text[start : (end := gaps[-1] if gaps else end)]
        start = end
    yield text[start:]


def tiktoken_twin(hf):
    """The same vocabulary as a tiktoken.Encoding, which is faster; None unless every text gets the same ids.

    It does where text is split and spelled as for GPT-2, ids grow with the order of merges, and the bytes of every token
    merge into that token. tiktoken merges neighbours whose bytes together are a token, the lowest id first, without
    asking which pair was learned; but by induction over the merges it can only ever meet the learned one.
    """
    whole = json.loads(hf.to_str())
    model, split = whole['model'], whole['pre_tokenizer'] or {}
    gpt2 = dict(type='ByteLevel', add_prefix_space=False, use_regex=True)
    refused = ('dropout', 'continuing_subword_prefix', 'end_of_word_suffix', 'byte_fallback', 'ignore_merges')
    if (
        model['type'] != 'BPE'
        or any(model[option] for option in refused)
        or split | gpt2 != split
        or whole['normalizer']
        or not all(token['special'] for token in whole['added_tokens'])
    ):
        return None
    byte = {c: b for b, c in enumerate(byte_characters())}
    order = {a + b: i for i, (a, b) in enumerate(model['merges'])}
    ids = [model['vocab'][token] for token in order]
    if (
        not byte.keys() <= model['vocab'].keys()
        or not set(''.join(order)) <= byte.keys()
        or len(order) < len(model['merges'])
        or any(a >= b for a, b in itertools.pairwise(ids))
        or any(order.get(part, -1) >= i for i, pair in enumerate(model['merges']) for part in pair)
        or any(len(hf.model.tokenize(token)) > 1 for token in order)
    ):
        return None
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    ranks = {bytes(map(byte.get, token)): model['vocab'][token] for token in [*byte, *order]}
    return tiktoken.Encoding('r50k_base', pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})


def run_by_gigatoken(vocabulary):
    """Encode by the package gigatoken, some 20 times as fast as tiktoken; ids other than tiktoken's end the program.

    The first million characters are checked: each process that encodes checks its own. Text with a character that this
    Python's Unicode lacks is left to tiktoken: a letter of the newest Unicode is a letter to only one of the two.
    """
    gigatoken = need('gigatoken')
    if not vocabulary.encoding:
        fail(
            f'gigatoken runs {", ".join(BUILT_IN)} and byte-level bpe alone; leave the engine to this vocabulary'
        )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, 'ranks.tiktoken')
        ranks = sorted(vocabulary.encoding._mergeable_ranks.items(), key=lambda pair: pair[1])
        path.write_text(''.join(f'{base64.b64encode(token).decode()} {i}\n' for token, i in ranks))
        try:
            fast = gigatoken.Tokenizer.from_tiktoken(path, SPLITS[vocabulary.encoding.name], {})
        except Exception as e:  # it wants ids without gaps, from 0
            fail(f'gigatoken cannot run this vocabulary: {reason(e)}; leave the engine to it')
    codes = map(chr, range(sys.maxunicode + 1))
    runs = [[*run] for new, run in itertools.groupby(codes, lambda c: unicodedata.category(c) == 'Cn') if new]
    newer = re.compile(f'[{"".join(f"{run[0]}-{run[-1]}" for run in runs)}]')
    unchecked, slow = 1_000_000, vocabulary.run

    def run(text):
        nonlocal unchecked
        if not text.isascii() and newer.search(text):
            return slow(text)
        ids = fast.encode(text)
        if unchecked > 0:
            unchecked -= len(text) + 1
            if not np.array_equal(ids, slow(text)):
                fail(
                    f'gigatoken gives other ids than tiktoken for the text that begins {text[:50]!r}; do without it'
                )
        return ids

    vocabulary.run = run


def learn(kind, texts, vocab_size, normalize=''):
    """Learn a vocabulary from an iterator of texts -> Tokenizer. The special tokens come last.

    kind       tokens                                           text never seen        decode(encode(text)) == text
    bpe        byte pairs (Sennrich et al. 2016), bytes and     bytes, down to one     always
               word splits as GPT-2 (Radford et al. 2019)
    wordpiece  BERT's: words split, `##` goes on with one       unk, the whole word    no: spaces and lines are lost
    unigram    SentencePiece's (Kudo 2018), `▁` is the space    unk, runs as one       but for unk and `▁` itself
    word       words and punctuation, the most frequent         unk, the whole word    no: joined by spaces
    char       the characters seen, sorted                      unk, each character    but for unk
    byte       the 256 bytes, their ids 0 to 255                bytes                  always

    normalize: 'lower', 'accents' or both: text is folded first, and what comes back is folded text. wordpiece and
    unigram know the most frequent characters of the first 16M, a quarter of vocab_size at most.
    The same texts give the same vocabulary.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as HFTokenizer

    if kind not in KINDS:
        fail(f'there is no kind of vocabulary {kind!r}: choose one of {", ".join(KINDS)}')
    smallest = len(SPECIAL) + {'bpe': 256, 'char': 0, 'byte': 0}.get(kind, 16)
    if vocab_size < smallest and kind not in ('char', 'byte'):
        what = 'the 256 bytes' if kind == 'bpe' else 'some letters'
        fail(
            f'vocab_size = {vocab_size} is too small for {kind}: {smallest} is {what} and the special tokens'
        )
    unk, fold = SPECIAL['unk'][0], folding(normalize)
    options = dict(vocab_size=vocab_size - len(SPECIAL), show_progress=False)
    if fold:
        texts = map(fold.normalize_str, texts)
    if kind in ('wordpiece', 'unigram'):
        alphabet, texts = most_frequent(texts, options['vocab_size'] // 4)

    if kind == 'bpe':
        tokenizer = HFTokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=byte_characters(), **options)
        tokenizer.train_from_iterator(batches(texts), trainer)
    elif kind == 'wordpiece':
        tokenizer = HFTokenizer(models.WordPiece(unk_token=unk))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        # the trainer would number the letters within words in the random order of its hash table
        inner = ['##' + c for c in alphabet]
        trainer = trainers.WordPieceTrainer(initial_alphabet=alphabet, special_tokens=inner, **options)
        tokenizer.train_from_iterator(batches(texts), trainer)
        vocab = tokenizer.get_vocab()
        tokenizer = HFTokenizer(models.WordPiece(vocab | {unk: len(vocab)}, unk_token=unk))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece(cleanup=False)
    elif kind == 'unigram':
        tokenizer = HFTokenizer(models.Unigram())
        # as SentencePiece: pieces stay within a word, its letters apart from digits and signs
        words = pre_tokenizers.Split(Regex(r' ?[\p{L}\p{M}]+| ?[^\s\p{L}\p{M}]+|\s'), 'isolated')
        spaces = pre_tokenizers.Metaspace(prepend_scheme='never', split=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, spaces])
        tokenizer.decoder = decoders.Metaspace(prepend_scheme='never')
        tokenizer.train_from_iterator(batches(texts), trainers.UnigramTrainer(**options))
        scores = steady_scores(json.loads(tokenizer.to_str())['model']['vocab'])
        # so unlikely that text never becomes unk by spelling it
        tokenizer.model = models.Unigram([*scores, (unk, -1000.0)], unk_id=len(scores))
    elif kind == 'word':
        tokenizer = HFTokenizer(models.WordLevel(unk_token=unk))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.train_from_iterator(batches(texts), trainers.WordLevelTrainer(**options))
        vocab = tokenizer.get_vocab()
        tokenizer.model = models.WordLevel(vocab | {unk: len(vocab)}, unk_token=unk)
    elif kind == 'char':
        seen = set()
        for text in texts:
            seen.update(text)
        vocab = {c: i for i, c in enumerate([*sorted(seen), unk])}
        tokenizer = HFTokenizer(models.BPE(vocab, [], unk_token=unk, fuse_unk=False))  # that merges nothing
        tokenizer.decoder = decoders.Fuse()
    elif kind == 'byte':
        tokenizer = HFTokenizer(models.BPE({c: b for b, c in enumerate(byte_characters())}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
    if fold:
        tokenizer.normalizer = fold
    return Learned(tokenizer.to_str())


def folding(normalize):
    """The Hugging Face normalizer of 'lower', 'accents', both, or None of ''.

    Accents are the combining diacritical marks, U+0300 to U+036F: the vowels of Hindi, Thai or Hebrew stay.
    """
    from tokenizers import Regex, normalizers

    names = normalize.split(',') if normalize else []
    if not {*names} <= {'lower', 'accents'}:
        fail(f"normalize = {normalize!r} should be '', 'lower', 'accents' or 'lower,accents'")
    steps = [normalizers.Lowercase()] if 'lower' in names else []
    if 'accents' in names:
        accents = normalizers.Replace(Regex(r'[\u0300-\u036f]'), '')
        steps += [normalizers.NFD(), accents, normalizers.NFC()]
    return normalizers.Sequence(steps) if steps else None


def batches(texts, size=1 << 20):
    """Texts in pieces and lists of some `size` characters: less waiting for Python, and less memory for long ones."""
    batch, length = [], 0
    for piece in itertools.chain.from_iterable(map(pieces, texts)):
        batch.append(piece)
        length += len(piece)
        if length >= size:
            yield batch
            batch, length = [], 0
    yield batch


def most_frequent(texts, most):
    """The `most` frequent characters of the first 16M, and the texts with a space for every other one."""
    texts, first, counts = iter(texts), [], Counter()
    while counts.total() < 1 << 24 and (text := next(texts, None)) is not None:
        first.append(text)
        counts.update(text)
    alphabet = sorted(counts.keys() - {' ', '\n', '\t'}, key=lambda c: (-counts[c], c))[:most]
    rare = re.compile(f'[^ \n\t{re.escape("".join(alphabet))}]')
    return alphabet, (rare.sub(' ', text) for text in itertools.chain(first, texts))


def steady_scores(scores):
    """[(piece, score), ...] without what comes from the random order of the trainer's hash table.

    That is the last digits of sums, and who of the characters that no piece was left for is the last but one: they
    got the lowest score and 0.0001 more for each.
    """
    lowest = min(score for _, score in scores)
    missing = lowest + 0.0001 * sum(len(piece) == 1 for piece, _ in scores)
    steady = [(p, round(lowest if len(p) == 1 and s <= missing else s, 6)) for p, s in scores]
    return sorted(steady, key=lambda pair: (-pair[1], pair[0]))


def byte_characters():
    """The visible character that stands for each byte 0 to 255 in GPT-2's vocabulary file and all byte-level ones since."""
    visible = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
    others = [b for b in range(256) if b not in visible]
    return [chr(b) if b in visible else chr(256 + others.index(b)) for b in range(256)]


def load(source, engine=''):
    """A vocabulary by its built-in name, by a directory or file that holds it, or by a repository of the hub.

    engine: 'gigatoken' encodes by that package if it is installed, and checks its ids on the first documents.
    """
    vocabulary = open_vocabulary(source)
    if engine == 'gigatoken':
        run_by_gigatoken(vocabulary)
    elif engine:
        fail(f"there is no engine {engine!r}: '' or 'gigatoken'")
    return vocabulary


def open_vocabulary(source):
    path = Path(source).expanduser()
    if source in BUILT_IN:
        return BuiltIn(source)
    if (path / 'tokenizer.txt').exists():
        name = (path / 'tokenizer.txt').read_text().strip()
        if name not in BUILT_IN:
            fail(f'{path}/tokenizer.txt names {name!r}, which is no built-in vocabulary')
        return BuiltIn(name)
    if path.is_dir():
        path = path / 'tokenizer.json'
    if not path.exists():
        if source.startswith(('.', '/', '~')) or source.count('/') > 1 or path.suffix == '.json':
            fail(f'there is no vocabulary at {path}')
        path = Path(download_tokenizer(source))
    try:
        return Learned(path.read_text(encoding='utf-8'))
    except Exception as e:  # tokenizers raises a bare Exception for a file it cannot parse
        fail(f'{path} is not a Hugging Face tokenizer: {e}')


def download_tokenizer(repository):
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(repository, 'tokenizer.json')
        if isinstance(cached, str):
            return cached
        # without network this fails at once, a download after 24 s
        HfApi().model_info(repository, timeout=30)
        return hf_hub_download(repository, 'tokenizer.json')
    except Exception as e:  # the hub's errors and the network's
        fail(
            f'there is no vocabulary {repository!r}: not built in ({", ".join(BUILT_IN)}), not learned '
            f'({", ".join(KINDS)}), no such directory, and the hub says: {reason(e)}'
        )


def texts(bar):
    """The documents of the settings' source, as prepare.py stores them, until `max_chars` characters are through."""
    inputs, _ = sources.find(files, hub, hub_config, hub_split)
    bar.total = sum(size for _, size in inputs) or None
    left = max_chars
    for unit in sources.units(inputs):
        for _, text in formats.documents(unit, text_field, done=bar.update):
            yield repaired(text[:left], Counter())
            left -= len(text)
            if left <= 0:
                return


def train():
    with progress('reading', 0, 'B') as bar:
        vocabulary = learn(kind, texts(bar), vocab_size, normalize)
    try:
        os.makedirs(out_dir, exist_ok=True)
        vocabulary.save(out_dir)
    except OSError as e:
        fail(f'cannot write {out_dir}: {reason(e)}')
    print(
        f'{kind} vocabulary of {vocabulary.vocab_size:,} tokens, special ones included, in {out_dir}/tokenizer.json'
    )


def compare():
    """Print a row of figures for each vocabulary; kinds are learned on the sample itself."""
    global max_chars
    max_chars = min(max_chars, SAMPLE)
    with progress('reading', 0, 'B') as bar:
        sample = [text for text in texts(bar) if text.strip()]
    size, words = sum(len(text.encode()) for text in sample), sum(len(text.split()) for text in sample)
    if not size:
        fail(f'{files or hub} holds no text')
    learned = [learn(v, sample, vocab_size, normalize) if v in KINDS else load(v) for v in vocabularies]
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # prepare.py's processes run one thread each
    print(f'{len(sample):,} documents, {size:,} bytes, {words:,} words')
    print('vocabulary               tokens  bytes/token  tokens/word   unk %    MB/s  exact %')
    for name, vocabulary in zip(vocabularies, learned, strict=True):
        began = time.perf_counter()
        encoded = vocabulary.encode_batch(sample)
        seconds = time.perf_counter() - began
        tokens = sum(map(len, encoded))
        unknown = sum(int((ids == vocabulary.special['unk']).sum()) for ids in encoded)
        exact = sum(vocabulary.decode(ids) == text for ids, text in zip(encoded, sample, strict=True))
        print(
            f'{name:<22} {vocabulary.vocab_size:>8,} {size / tokens:>12.2f} {tokens / words:>12.2f} '
            f'{unknown / tokens:>7.2%} {size / 1e6 / seconds:>7.3g} {exact / len(sample):>8.2%}'
        )


def main():
    if command == 'train' and (files or hub) and out_dir and not vocabularies:
        train()
    elif command == 'compare' and (files or hub) and vocabularies:
        compare()
    else:
        fail(
            "usage: python tokenizer.py train --files='GLOB' --out_dir=DIRECTORY, or "
            "python tokenizer.py compare --files='GLOB' VOCABULARY ...; --help lists the settings"
        )


if __name__ == '__main__':
    configure(globals(), positional=['command', 'vocabularies'])
    main()
