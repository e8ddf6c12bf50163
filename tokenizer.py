"""Vocabularies: learned from text or built in, one interface for all.

    python tokenizer.py train --files='books/*.txt' --kind=bpe --vocab_size=8192 --out_dir=data/books-bpe
    python prepare.py books --files='books/*.txt' --tokenizer=data/books-bpe

A learned vocabulary is a Hugging Face `tokenizer.json`, which transformers reads; `gpt2`, `cl100k_base` and
`o200k_base` are tiktoken's. Text never becomes a special token by spelling one: only `encode(..., special=True)`
reads `<|endoftext|>` or `[MASK]` as what they stand for.
"""

import hashlib
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

from config import configure, fail, need, progress, reason
from sources import clean, documents, local_files

# -----------------------------------------------------------------------------
command = ''  # what to do: train
files = ''  # what to learn from: a glob of text, .jsonl or .parquet files, as in prepare.py
text_field = 'text'  # the field of .jsonl and .parquet files that holds the text
kind = 'bpe'  # 'bpe' (byte-level, any text round-trips), 'byte' (the 256 bytes) or 'char' (those seen, others are unk)
vocab_size = 8192  # of bpe, special tokens included
out_dir = ''  # the directory that gets tokenizer.json
# -----------------------------------------------------------------------------

# tiktoken's name of each built-in vocabulary; r50k_base has gpt2's ids and is one file instead of two
BUILT_IN = {'gpt2': 'r50k_base', 'cl100k_base': 'cl100k_base', 'o200k_base': 'o200k_base'}
KINDS = ('bpe', 'byte', 'char')
# what each special token may be called, in order of preference; the first is added where a vocabulary has none
SPECIAL = {
    'eot': ('<|endoftext|>', '<|end_of_text|>', '</s>', '[SEP]'),
    'pad': ('[PAD]', '<pad>'),
    'unk': ('[UNK]', '<unk>'),
    'cls': ('[CLS]', '<s>'),
    'sep': ('[SEP]', '</s>'),
    'mask': ('[MASK]', '<mask>'),
}


class Tokenizer:
    """Base of both kinds. `special` maps eot, pad, unk, cls, sep and mask to ids; `spelled` maps their spellings."""

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

    def encode_pieces(self, texts):
        return [self.encoding.encode_to_numpy(text, disallowed_special=()) for text in texts]

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

    def encode_pieces(self, texts):
        ids = []
        for i in range(
            0, len(texts), 64
        ):  # not all at once: in the library's own form a token takes 70 bytes
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


def learn(kind, texts, vocab_size):
    """Learn a vocabulary: kind 'bpe', 'byte' or 'char' from an iterator of texts -> Tokenizer.

    bpe: byte-level byte-pair encoding (Sennrich et al. 2016; bytes and word splits as GPT-2, Radford et al. 2019).
    byte: ids 0 to 255 are the bytes. char: the characters seen, sorted, from id 0. The special tokens come last.
    """
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if kind == 'char':
        seen = set()
        for text in texts:
            seen.update(text)
        unk = SPECIAL['unk'][0]
        vocab = {c: i for i, c in enumerate(sorted(seen))} | {unk: len(seen)}
        tokenizer = HFTokenizer(
            models.BPE(vocab, [], unk_token=unk, fuse_unk=False)
        )  # BPE that merges nothing
        tokenizer.decoder = decoders.Fuse()
    elif kind == 'byte':
        tokenizer = HFTokenizer(models.BPE({c: b for b, c in enumerate(byte_characters())}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
    elif kind == 'bpe':
        smallest = 256 + len(SPECIAL)
        if vocab_size < smallest:
            fail(
                f'vocab_size = {vocab_size} is too small for bpe: {smallest} is the 256 bytes and the special tokens'
            )
        tokenizer = HFTokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL), initial_alphabet=byte_characters(), show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
    else:
        fail(f'there is no kind of vocabulary {kind!r}: choose one of {", ".join(KINDS)}')
    return Learned(tokenizer.to_str())


def byte_characters():
    """The visible character that stands for each byte 0 to 255 in GPT-2's vocabulary file and all byte-level ones since."""
    visible = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
    others = [b for b in range(256) if b not in visible]
    return [chr(b) if b in visible else chr(256 + others.index(b)) for b in range(256)]


def load(source):
    """A vocabulary by its built-in name, by a directory or file that holds it, or by a repository of the hub."""
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
        HfApi().model_info(
            repository, timeout=30
        )  # without network this fails at once, a download after 24 s
        return hf_hub_download(repository, 'tokenizer.json')
    except Exception as e:  # the hub's errors and the network's
        fail(
            f'there is no vocabulary {repository!r}: not built in ({", ".join(BUILT_IN)}), not learned '
            f'({", ".join(KINDS)}), no such directory, and the hub says: {reason(e)}'
        )


def main():
    if command != 'train' or not files or not out_dir:
        fail("usage: python tokenizer.py train --files='GLOB' --out_dir=DIRECTORY; --help lists the settings")
    paths = local_files(files)
    with progress('reading', sum(os.path.getsize(p) for p in paths), 'B') as bar:
        texts = (clean(text, Counter()) for text in documents(paths, text_field, bar.update))
        tokenizer = learn(kind, texts, vocab_size)
    try:
        os.makedirs(out_dir, exist_ok=True)
        tokenizer.save(out_dir)
    except OSError as e:
        fail(f'cannot write {out_dir}: {reason(e)}')
    print(
        f'{kind} vocabulary of {tokenizer.vocab_size:,} tokens, special ones included, in {out_dir}/tokenizer.json'
    )


if __name__ == '__main__':
    configure(globals(), positional=['command'])
    main()
