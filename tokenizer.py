"""Tokenizers: vocabularies that are learned, built in or loaded, with one interface.

    python tokenizer.py train --files='books/*.txt' --kind=bpe --vocab_size=8192 --out_dir=data/books-bpe
    python tokenizer.py compare --files='docs/**/*.txt' gpt2 data/books-bpe unigram char
    python prepare.py books --files='books/*.txt' --tokenizer=data/books-bpe

A learned vocabulary is a Hugging Face `tokenizer.json`, which transformers reads; `gpt2`, `cl100k_base` and
`o200k_base` are tiktoken's. Text never becomes a special token by spelling one: only `encode(..., special=True)`
reads `<|endoftext|>` or `[MASK]` as what they stand for.
"""

import functools
import hashlib
import itertools
import json
import os
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np

from common import fail, need, progress, reason
from configurator import configure

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
SAMPLE = 20_000_000  # characters that vocabularies are compared on


class Tokenizer:
    """Base of both kinds. `special` maps eot, pad, unk, cls, sep and mask to ids; `spelled` maps their spellings.

    `encoding` is the tiktoken.Encoding that encodes, or None.
    """

    def encode(self, text, special=False):
        """text -> list of ids; with `special`, the spellings of special tokens become those tokens."""
        pieces = re.split(f'({"|".join(map(re.escape, self.spelled))})', text) if special else [text]
        ids = []
        for piece in pieces:
            is_special = special and piece in self.spelled
            ids += [self.spelled[piece]] if is_special else self.encode_batch([piece])[0].tolist()
        return ids

    def encode_batch(self, texts):
        """list of texts -> list of arrays of ids (`self.dtype`); special spellings are ordinary text."""
        cut = [list(split_long(text)) for text in texts]
        encoded = iter(self.encode_pieces([piece for text in cut for piece in text]))
        return [
            np.concatenate([next(encoded) for _ in text], dtype=self.dtype, casting='unsafe') for text in cut
        ]

    def encode_pieces(self, texts):
        return [self.encoding.encode_to_numpy(text, disallowed_special=()) for text in texts]

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
        except (OSError, ValueError) as e:  # the network's errors, and for a damaged file
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
        tokens = [special[i] if i in special else single(i) for i in map(int, ids)]
        return b''.join(tokens).decode(errors='replace')

    def save(self, directory):
        """Write the name into `directory`/tokenizer.txt."""
        Path(directory, 'tokenizer.txt').write_text(self.name + '\n')


class Learned(Tokenizer):
    """A Hugging Face tokenizer, from the text of its `tokenizer.json`. ValueError if that cannot be one."""

    name = 'tokenizer.json'

    def __init__(self, json):
        from tokenizers import Tokenizer as HFTokenizer

        try:
            self.hf = HFTokenizer.from_str(json)
        except Exception as e:  # the library raises a bare one
            raise ValueError(e) from e
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
        # not all at once: in the library's own form a token takes 70 bytes
        groups = (texts[i : i + 64] for i in range(0, len(texts), 64))
        encoded = (self.hf.encode_batch_fast(group, add_special_tokens=False) for group in groups)
        return [np.array(e.ids, self.dtype) for e in itertools.chain.from_iterable(encoded)]

    def decode(self, ids):
        """ids -> text; bytes that are no UTF-8 become U+FFFD, special tokens their spelling."""
        return self.hf.decode([int(i) for i in ids], skip_special_tokens=False)

    def save(self, directory):
        """Write `directory`/tokenizer.json."""
        self.hf.save(str(Path(directory, 'tokenizer.json')))


# No token crosses these positions, in any vocabulary that splits text into words first: before a single space that
# begins a word, and after a single line end that a word follows.
WORD_GAP = re.compile(r'(?<=\S)(?= \w)|(?<=\S\n)(?=\w)')


def split_long(text, longest=1 << 16):
    """Split a text into pieces of at most `longest` characters, so that one long document cannot take all memory.

    No token crosses a cut; only text without a gap between words in a quarter of `longest` characters is cut
    anywhere, which also bounds the time that a run of one character takes.
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

    Every text does if text is split as for GPT-2, ids are in the order of merges, and the bytes of every token merge
    into that token. tiktoken merges any neighbours whose bytes form a token, the lowest id first, whichever pair was
    learned; by induction over the merges, these neighbours are always the learned pair.
    """
    spec = json.loads(hf.to_str())
    model, split = spec['model'], spec['pre_tokenizer'] or {}
    gpt2 = dict(type='ByteLevel', add_prefix_space=False, use_regex=True)
    refused = ('dropout', 'continuing_subword_prefix', 'end_of_word_suffix', 'byte_fallback', 'ignore_merges')
    if model['type'] != 'BPE' or any(map(model.get, refused)) or split | gpt2 != split or spec['normalizer']:
        return None
    vocab, byte = model['vocab'], {c: b for b, c in enumerate(byte_characters())}
    order = {a + b: i for i, (a, b) in enumerate(model['merges'])}
    ids = [vocab[token] for token in order]
    if (
        not all(token['special'] for token in spec['added_tokens'])
        or not byte.keys() <= vocab.keys()
        or not set(''.join(order)) <= byte.keys()
        or len(order) < len(model['merges'])
        or ids != sorted(ids)
        or any(order.get(half, -1) >= i for i, pair in enumerate(model['merges']) for half in pair)
        or any(len(hf.model.tokenize(token)) > 1 for token in order)
    ):
        return None
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    ranks = {bytes(map(byte.get, token)): vocab[token] for token in [*byte, *order]}
    return tiktoken.Encoding('r50k_base', pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})


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
    smallest = {'bpe': 256 + len(SPECIAL), 'char': 0, 'byte': 0}.get(kind, 16 + len(SPECIAL))
    if vocab_size < smallest:
        fail(f'vocab_size = {vocab_size} is too small for {kind}: give {smallest} or more')
    unk, fold = SPECIAL['unk'][0], folding(normalize)
    options = dict(vocab_size=vocab_size - len(SPECIAL), show_progress=False)
    if fold:
        texts = map(fold.normalize_str, texts)
    if kind in ('wordpiece', 'unigram'):
        alphabet, texts = most_frequent(texts, options['vocab_size'] // 4)

    def train(model, trainer):
        tokenizer = HFTokenizer(model)
        tokenizer.pre_tokenizer = split
        tokenizer.train_from_iterator(batches(texts), trainer)
        return tokenizer

    if kind == 'bpe':
        split, decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        model = train(models.BPE(), trainers.BpeTrainer(initial_alphabet=byte_characters(), **options)).model
    elif kind == 'wordpiece':
        split, decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=False)
        # the trainer would number the letters within words in the random order of its hash table
        inner = ['##' + c for c in alphabet]
        trainer = trainers.WordPieceTrainer(initial_alphabet=alphabet, special_tokens=inner, **options)
        vocab = train(models.WordPiece(unk_token=unk), trainer).get_vocab()
        model = models.WordPiece(vocab | {unk: len(vocab)}, unk_token=unk)
    elif kind == 'unigram':
        # as SentencePiece: pieces stay within a word, its letters apart from digits and signs
        words = pre_tokenizers.Split(Regex(r' ?[\p{L}\p{M}]+| ?[^\s\p{L}\p{M}]+|\s'), 'isolated')
        spaces = pre_tokenizers.Metaspace(prepend_scheme='never', split=False)
        split = pre_tokenizers.Sequence([words, spaces])
        decoder = decoders.Metaspace(prepend_scheme='never')
        learned = train(models.Unigram(), trainers.UnigramTrainer(**options))
        scores = steady_scores(json.loads(learned.to_str())['model']['vocab'])
        # so unlikely that text never becomes unk by spelling it
        model = models.Unigram([*scores, (unk, -1000.0)], unk_id=len(scores))
    elif kind == 'word':
        split, decoder = pre_tokenizers.BertPreTokenizer(), None
        vocab = train(models.WordLevel(unk_token=unk), trainers.WordLevelTrainer(**options)).get_vocab()
        model = models.WordLevel(vocab | {unk: len(vocab)}, unk_token=unk)
    elif kind == 'char':
        split, decoder = None, decoders.Fuse()
        characters = sorted(functools.reduce(set.union, texts, set()))
        vocab = {c: i for i, c in enumerate([*characters, unk])}
        model = models.BPE(vocab, [], unk_token=unk, fuse_unk=False)  # that merges nothing
    elif kind == 'byte':
        split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        decoder = decoders.ByteLevel()
        model = models.BPE({c: b for b, c in enumerate(byte_characters())}, [])
    tokenizer = HFTokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder, tokenizer.normalizer = split, decoder, fold
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
    """Lists of pieces of texts, about `size` characters each: the trainer waits less for Python, and needs less memory."""
    batch, length = [], 0
    for piece in itertools.chain.from_iterable(map(split_long, texts)):
        batch.append(piece)
        length += len(piece)
        if length >= size:
            yield batch
            batch, length = [], 0
    yield batch


def most_frequent(texts, limit):
    """The `limit` most frequent characters of the first 16M, and the texts with a space for every other one."""
    texts, first, counts = iter(texts), [], Counter()
    while counts.total() < 1 << 24 and (text := next(texts, None)) is not None:
        first.append(text)
        counts.update(text)
    alphabet = sorted(counts.keys() - {' ', '\n', '\t'}, key=lambda c: (-counts[c], c))[:limit]
    rare = re.compile(f'[^ \n\t{re.escape("".join(alphabet))}]')
    return alphabet, (rare.sub(' ', text) for text in itertools.chain(first, texts))


def steady_scores(scores):
    """Unigram's [(piece, score), ...], made independent of the random order of the trainer's hash table.

    Random are the last digits of the scores, and the order of the characters that the trainer adds at the end, with
    the lowest score and 0.0001 more for each.
    """
    lowest = min((score for _, score in scores), default=0)
    missing = lowest + 0.0001 * sum(len(piece) == 1 for piece, _ in scores)
    steady = [(p, round(lowest if len(p) == 1 and s <= missing else s, 6)) for p, s in scores]
    return sorted(steady, key=lambda pair: (-pair[1], pair[0]))


def byte_characters():
    """The visible character that stands for each byte 0 to 255 in GPT-2's vocabulary file and all byte-level ones since."""
    visible = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
    others = [b for b in range(256) if b not in visible]
    return [chr(b) if b in visible else chr(256 + others.index(b)) for b in range(256)]


def load(source):
    """Load a vocabulary by its built-in name, or from a directory or file that holds it, or a repository of the hub."""
    path = Path(source).expanduser()
    named = path / 'tokenizer.txt'
    name = named.read_text().strip() if source not in BUILT_IN and named.exists() else source
    if name in BUILT_IN:
        return BuiltIn(name)
    if named.exists():
        fail(f'{named} names {name!r}, which is no built-in vocabulary')
    if path.is_dir():
        path = path / 'tokenizer.json'
    if not path.exists():
        if source.startswith(('.', '/', '~')) or source.count('/') > 1 or path.suffix == '.json':
            fail(f'there is no vocabulary at {path}')
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(source, allow_patterns='tokenizer.json'), 'tokenizer.json')
        except Exception as e:  # the hub's errors and the network's
            choices = f'built in ({", ".join(BUILT_IN)}), learned here ({", ".join(KINDS)}), in a directory'
            fail(f'there is no vocabulary {source!r} {choices} or on the hub: {reason(e)}')
    try:
        return Learned(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as e:
        fail(f'{path} is not a Hugging Face tokenizer: {e}')


# --- the script ------------------------------------------------------------------------


def read_documents(bar):
    """Yield the documents of the settings' source, as prepare.py stores them, up to `max_chars` characters."""
    from corpus import filters, formats, sources  # here, since training imports this file but no filters

    inputs, _ = sources.find_files(files, hub, hub_config, hub_split)
    bar.total = sum(size for _, size in inputs) or None
    left = max_chars
    for unit in sources.units(inputs):
        for _, text in formats.documents(unit, text_field, done=bar.update):
            yield filters.normalize(text[:left], Counter())
            left -= len(text)
            if left <= 0:
                return


def train():
    with progress('reading', 0, 'B') as bar:
        vocabulary = learn(kind, read_documents(bar), vocab_size, normalize)
    try:
        os.makedirs(out_dir, exist_ok=True)
        vocabulary.save(out_dir)
    except OSError as e:
        fail(f'cannot write {out_dir}: {reason(e)}')
    size = f'{vocabulary.vocab_size:,} tokens, special ones included'
    print(f'{out_dir}/tokenizer.json: {kind} vocabulary of {size}')


def compare():
    """Print a row of figures for each vocabulary; kinds are learned on the sample itself."""
    global max_chars
    max_chars = min(max_chars, SAMPLE)
    with progress('reading', 0, 'B') as bar:
        sample = [text for text in read_documents(bar) if text.strip()]
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
            'usage: tokenizer.py train --files=GLOB --out_dir=DIR, or compare --files=GLOB NAME ...; see --help'
        )


if __name__ == '__main__':
    configure(globals(), positional=['command', 'vocabularies'])
    main()
