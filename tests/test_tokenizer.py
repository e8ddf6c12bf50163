"""Vocabularies against tokenizers, transformers and tiktoken; special tokens; what travels with data and models."""

import base64
import json
import re
import string
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tiktoken.load
import tiktoken.registry
import tokenizers
from conftest import ROOT, ends_in_one_line, one_line, run, settings_of
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

import tokenizer as vocabularies

PROSE = (
    'In the beginning there was text; naïve, "quoted", it’s 1,234 words long…  And two spaces.\n\n\tThen a tab, 日本語, '
    "Ελληνικά, e\u0301 and 🙂🙂.\r\nDon't stop -- I'll see you've 3 of them!\n"
)
# what a text may hold to become a special token, were it read as one
SPELLINGS = sorted(
    {s for spellings in vocabularies.SPECIAL.values() for s in spellings} | {'<|endofprompt|>'}
)


def ordinary(vocabulary):
    """Ids of the tokens that text is made of: all but the special ones."""
    return [i for i in range(vocabulary.vocab_size) if i not in vocabulary.spelled.values()]


@pytest.fixture(scope='module')
def code(library):
    return ''.join(path.read_text(encoding='utf-8') for path in sorted(library.glob('*.py')))


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """A small tiktoken vocabulary, read from a file in its own format: the bytes and some merges."""
    merges = [
        b'th',
        b'the',
        b' t',
        b' the',
        b'in',
        b'er',
        b'on',
        b'  ',
        b'    ',
        b'en',
        b'end',
        b'\xc3\xa9',
        b'<|',
    ]
    path = tmp_path_factory.mktemp('tiktoken') / 'small.tiktoken'
    tokens = [bytes([b]) for b in [*range(33, 127), *range(33), *range(127, 256)]] + merges
    path.write_bytes(b''.join(base64.b64encode(t) + f' {i}\n'.encode() for i, t in enumerate(tokens)))
    return tiktoken.load.load_tiktoken_bpe(str(path))


@pytest.fixture(scope='module')
def encoding(ranks):
    from tiktoken_ext.openai_public import r50k_pat_str

    end = {'<|endoftext|>': len(ranks)}
    return tiktoken.Encoding('r50k_base', pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=end)


@pytest.fixture(scope='module')
def bert(code):
    """The text of a tokenizer.json as of a BERT: WordPiece, lower case, its five special tokens first."""
    wordpiece = tokenizers.Tokenizer(models.WordPiece(unk_token='[UNK]'))
    wordpiece.normalizer = normalizers.BertNormalizer(lowercase=True)
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    wordpiece.train_from_iterator(
        [code], trainers.WordPieceTrainer(vocab_size=600, special_tokens=names, show_progress=False)
    )
    wordpiece.post_processor = processors.BertProcessing(('[SEP]', 3), ('[CLS]', 2))
    wordpiece.enable_truncation(16)
    wordpiece.enable_padding(length=16)
    return wordpiece.to_str()


@pytest.fixture(scope='module')
def every(code, encoding):
    """One vocabulary of each kind, by name; gpt2 is the small one."""
    with pytest.MonkeyPatch.context() as patch:
        # tiktoken keeps the encodings that it has loaded here
        patch.setitem(tiktoken.registry.ENCODINGS, 'r50k_base', encoding)
        gpt2 = vocabularies.load('gpt2')
    learned = {kind: vocabularies.learn(kind, [code, PROSE], 600) for kind in vocabularies.KINDS}
    return learned | {'gpt2': gpt2}


KINDS = [*vocabularies.KINDS, 'gpt2']

# words of the scripts that text comes in, one a line, and strings of any characters at all
SCRIPTS = """The quick brown fox, 1,234.5 naïve façade
Съешь ещё этих мягких булок
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία
עטלף אבק נס דרך מזגן
نص حكيم له سر قاطع
ऋषियों को सताने वाले दुष्ट
เป็นมนุษย์สุดประเสริฐเลิศคุณค่า
いろはにほへと ちりぬるを カタカナ
키스의 고유조건은 입술끼리
我能吞下玻璃而不伤身体。
👩‍👩‍👧 🇪🇺 ∀x∈ℝ ⌈x⌉ ≤ ½
Ꭰꮿ ᚠᚢᚦ 𐌰𐌱 𝔄𝔅 ﬁ \u200b\u202e\xa0\t """.split('\n')
ANY = st.one_of(
    st.text(),
    st.lists(st.sampled_from(SCRIPTS)).map(' \n'.join),
    st.lists(st.sampled_from(PROSE.split())).map(' '.join),
)


# --- text and ids -------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['bpe', 'byte', 'gpt2'])
@given(text=st.text())
@example(text='')
@example(text=PROSE)
@example(text=' '.join(SPELLINGS) + ''.join(SPELLINGS))
@example(text='\r\n \x00\x85\xa0\u2028\ufeff\ufffd')
@example(text="'s't're 's\n\n\n  x\n 'll \t\n")
def test_any_text_round_trips(every, kind, text):
    vocabulary = every[kind]
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert not set(ids) & set(vocabulary.special.values())
    assert all(type(i) is int and 0 <= i < vocabulary.vocab_size for i in ids)


@given(data=st.data())
def test_char_round_trips_what_it_saw_and_makes_the_rest_unknown_one_by_one(every, data):
    vocabulary = every['char']
    seen = {vocabulary.decode([i]) for i in ordinary(vocabulary)}
    text = data.draw(st.text(st.one_of(st.sampled_from(sorted(seen)), st.characters(codec='utf-8'))))
    known = [c if c in seen else '[UNK]' for c in text]
    ids = vocabulary.encode(text)
    assert len(ids) == len(text)
    assert [vocabulary.decode([i]) for i in ids] == known and vocabulary.decode(ids) == ''.join(known)


def test_char_ids_are_the_sorted_characters(every, code):
    alphabet = sorted(set(code + PROSE))
    assert every['char'].encode(code) == [alphabet.index(c) for c in code]
    assert every['char'].vocab_size == len(alphabet) + 6


def test_byte_ids_are_the_bytes(every):
    text = PROSE + ''.join(SPELLINGS)
    assert every['byte'].encode(text) == list(text.encode())
    assert every['byte'].decode(range(256)) == bytes(range(256)).decode(errors='replace')


def test_bpe_equals_one_that_tokenizers_learns(every, code):
    reference = tokenizers.ByteLevelBPETokenizer()
    reference.train_from_iterator([code, PROSE], vocab_size=600 - 6, show_progress=False)
    vocabulary = every['bpe']
    assert vocabulary.vocab_size == 600
    assert reference.get_vocab().items() <= vocabulary.hf.get_vocab().items()
    for text in (code, PROSE, 'unseen: ŻÓŁĆ <|endoftext|>\n'):
        assert vocabulary.encode(text) == reference.encode(text).ids


@given(text=st.text())
@example(text=PROSE)
def test_built_in_ids_are_tiktokens(every, encoding, text):
    assert every['gpt2'].encode(text) == encoding.encode_ordinary(text)


def test_transformers_reads_what_is_saved(every, code, tmp_path):
    from transformers import PreTrainedTokenizerFast

    for kind in vocabularies.KINDS:
        every[kind].save(tmp_path)
        reference = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / 'tokenizer.json'))
        assert len(reference) == every[kind].vocab_size
        for text in (code[:5000], PROSE, *SCRIPTS):
            assert every[kind].encode(text) == reference.encode(text, add_special_tokens=False), kind
            assert reference.decode(every[kind].encode(text), clean_up_tokenization_spaces=False) == every[
                kind
            ].decode(every[kind].encode(text)), kind
        for name, i in every[kind].special.items():
            assert reference.convert_ids_to_tokens(i) == vocabularies.SPECIAL[name][0]
            assert i in reference.added_tokens_decoder and reference.added_tokens_decoder[i].special


@pytest.mark.parametrize('kind', KINDS)
def test_a_batch_is_its_texts_one_by_one(every, kind, code):
    texts = ['', PROSE, code[:500], '', ' ']
    batch = every[kind].encode_batch(texts)
    assert [ids.tolist() for ids in batch] == [every[kind].encode(text) for text in texts]
    assert all(ids.dtype == every[kind].dtype and ids.ndim == 1 for ids in batch)
    assert every[kind].encode_batch([]) == []


def test_bytes_that_are_no_text_become_replacement_characters(every):
    for kind in ('bpe', 'byte', 'gpt2'):
        half = [i for i in ordinary(every[kind]) if every[kind].decode([i]) == '\ufffd']
        assert len(half) >= 128, kind  # no byte above 127 is text by itself
        assert (
            every[kind].decode([*every[kind].encode('a'), half[-1], *every[kind].encode('b')]) == 'a\ufffdb'
        )


# --- the kinds -------------------------------------------------------------------------


def test_words_are_the_most_frequent_ones(every, code):
    def sign(c):
        return c in string.punctuation or unicodedata.category(c)[0] == 'P'

    text = code + ' ' + PROSE
    counts = Counter(''.join(f' {c} ' if sign(c) else c for c in text).split())
    frequent = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0].encode()))[: 600 - 6]
    vocabulary = every['word']
    assert [vocabulary.decode([i]) for i in range(600 - 6)] == [word for word, _ in frequent]
    assert vocabulary.decode(vocabulary.encode('def self\n  naïvete.')) == 'def self [UNK] .'


@given(text=ANY)
def test_wordpiece_keeps_what_is_no_space_or_makes_whole_words_unknown(every, text):
    vocabulary = every['wordpiece']
    pieces, rest = [vocabulary.decode([i]) for i in vocabulary.encode(text)], ''.join(text.split())
    for piece in pieces:  # what is left of the text begins with each piece in turn, unk stands for anything
        found = re.match(
            '.+?' if piece == '[UNK]' else re.escape(piece.removeprefix('##') or '##'), rest, re.S
        )
        assert found or '[UNK]' in pieces
        rest = rest[found.end() :] if found else rest
    assert '[UNK]' in pieces or not rest


def test_wordpiece_knows_a_frequent_letter_at_the_start_of_words_and_within(every):
    vocabulary = every['wordpiece']
    for letter in 'abcdefghijklmnopqrstuvwxyz':
        assert vocabulary.special['unk'] not in vocabulary.encode(f'{letter} q{letter}')


@given(data=st.data())
def test_unigram_round_trips_what_it_saw(every, data):
    vocabulary = every['unigram']
    seen = {token for i in ordinary(vocabulary) if len(token := vocabulary.decode([i])) == 1}
    text = data.draw(st.text(st.sampled_from(sorted(seen))))
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.decode(vocabulary.encode(text + '\U0010fffd' + text)) == f'{text}[UNK]{text}'


def test_text_that_spells_unk_is_not_unk(every):
    for kind in KINDS:
        unknown = every[kind].special['unk']
        assert unknown not in every[kind].encode('U N K') or kind == 'word'
        assert every[kind].encode('[UNK]').count(unknown) == every[kind].encode('[ UNK ]').count(unknown)


@pytest.mark.parametrize('kind', vocabularies.KINDS)
@given(text=ANY)
def test_folded_text_has_the_ids_of_what_it_is_folded_to(folded, kind, text):
    def lower(text):
        # no rule for the last letter
        return ''.join(c if c == 'Σ' else c.lower() for c in text).replace('Σ', 'σ')

    def bare(text):
        return ''.join(c for c in unicodedata.normalize('NFD', text) if not '\u0300' <= c <= '\u036f')

    expected = unicodedata.normalize('NFC', bare(lower(text)))
    assume(not any(unicodedata.category(c) == 'Cn' for c in text))  # newer than this Python's tables
    assert folded[kind].encode(text) == folded[kind].encode(expected)
    if kind in ('bpe', 'byte'):
        assert folded[kind].decode(folded[kind].encode(text)) == expected


@pytest.fixture(scope='module')
def folded(code):
    texts = [code[:20_000], PROSE, *SCRIPTS]
    return {kind: vocabularies.learn(kind, texts, 400, 'lower,accents') for kind in vocabularies.KINDS}


def test_learning_is_repeatable_in_another_process(every, library, tmp_path):
    """The library's hash tables have another order in each process."""
    learn = (
        'import sys, tokenizer; from pathlib import Path; '
        'texts = ["".join(p.read_text(encoding="utf-8") for p in sorted(Path(sys.argv[1]).glob("*.py"))), sys.argv[2]]; '
        'print(*(tokenizer.learn(kind, texts, 600).hash for kind in tokenizer.KINDS))'
    )
    command = [sys.executable, '-c', learn, str(library), PROSE]
    hashes = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert hashes == [every[kind].hash for kind in vocabularies.KINDS]


# --- the libraries that encode ------------------------------------------------------------


def by_tokenizers(vocabulary, text):
    return vocabulary.hf.encode(text, add_special_tokens=False).ids


@given(text=ANY)
@example(text='^' * 100_000)
@example(text=' ' * 10_000 + 'a' * 10_000)
def test_tiktoken_gives_a_learned_bpe_the_ids_that_tokenizers_gives(every, text):
    assert every['bpe'].encoding
    assert every['bpe'].encode_pieces([text])[0].tolist() == by_tokenizers(every['bpe'], text)


def test_tiktoken_and_tokenizers_agree_on_every_character(every):
    characters = [chr(c) for c in [*range(0xD800), *range(0xE000, 0x34000), *range(0xE0000, 0xE0200)]]
    for first in range(0, len(characters), 1 << 16):  # next to a letter, a digit, a sign and spaces
        text = ''.join(f'a{c}1{c}.{c}  ' for c in characters[first : first + (1 << 16)])
        texts = [text[i : i + 4096] for i in range(0, len(text), 4096)]
        reference = every['bpe'].hf.encode_batch_fast(texts, add_special_tokens=False)
        assert [ids.tolist() for ids in every['bpe'].encode_pieces(texts)] == [e.ids for e in reference]


@pytest.mark.parametrize(
    'change',
    [
        dict(model=dict(ignore_merges=True)),
        dict(model=dict(byte_fallback=True)),
        dict(pre_tokenizer=dict(add_prefix_space=True)),
        dict(pre_tokenizer=dict(use_regex=False)),
        dict(normalizer=dict(type='Lowercase')),
        dict(
            added_tokens=[
                dict(
                    id=0,
                    content='!',
                    special=False,
                    single_word=False,
                    lstrip=False,
                    rstrip=False,
                    normalized=False,
                )
            ]
        ),
    ],
    ids=str,
)
def test_tiktoken_is_left_alone_with_what_it_cannot_do(every, change):
    spec = json.loads(every['bpe'].hf.to_str())
    for key, value in change.items():
        spec[key] = spec[key] | value if isinstance(spec[key], dict) else value
    vocabulary = vocabularies.Learned(json.dumps(spec))
    assert vocabulary.encoding is None
    for text in ('! Hello, World' + PROSE, *SCRIPTS):
        assert vocabulary.encode(text) == by_tokenizers(vocabulary, text)


@given(
    pairs=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=12),
    text=st.text('abc', max_size=60),
)
# no text's merges end in abc: b and c merge before a and b
@example(pairs=[(1, 2), (0, 1), (4, 2)], text='abc')
# abc would be merged from another pair than the one learned
@example(pairs=[(0, 1), (1, 2), (0, 4)], text='abc')
def test_merges_that_nothing_learned_get_the_ids_of_tokenizers(pairs, text):
    """tiktoken knows no pairs, only which bytes are tokens; a file may hold merges for which that is not the same."""
    tokens, merges = ['a', 'b', 'c'], []
    for pair in pairs:
        a, b = (tokens[i % len(tokens)] for i in pair)
        if a + b not in tokens:
            tokens.append(a + b)
            merges.append((a, b))
    alphabet = [c for c in vocabularies.byte_characters() if c not in 'abc']
    bpe = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(alphabet + tokens)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary = vocabularies.Learned(bpe.to_str())
    assert vocabulary.encode(text) == by_tokenizers(vocabulary, text)


# --- special tokens -------------------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
def test_special_tokens_exist_are_distinct_and_come_last(every, kind):
    vocabulary = every[kind]
    assert set(vocabulary.special) == {'eot', 'pad', 'unk', 'cls', 'sep', 'mask'}
    assert sorted(vocabulary.special.values()) == [vocabulary.vocab_size - 6 + i for i in range(6)]
    assert sorted([*ordinary(vocabulary), *vocabulary.special.values()]) == list(range(vocabulary.vocab_size))
    for name, i in vocabulary.special.items():
        assert vocabulary.spelled[vocabulary.decode([i])] == i
        assert vocabulary.decode([i]) in vocabularies.SPECIAL[name]


def test_the_end_of_text_of_a_built_in_vocabulary_is_its_own(every, encoding):
    assert every['gpt2'].special['eot'] == encoding.eot_token
    assert min(i for name, i in every['gpt2'].special.items() if name != 'eot') == encoding.n_vocab


@pytest.mark.parametrize('kind', KINDS)
def test_spellings_are_ordinary_text_unless_asked_for(every, kind):
    vocabulary = every[kind]
    text = 'to [MASK] or not<|endoftext|> [MASK][PAD]\n'
    plain, special = vocabulary.encode(text), vocabulary.encode(text, special=True)
    mask, eot, pad = (vocabulary.special[name] for name in ('mask', 'eot', 'pad'))
    assert not {mask, eot, pad} & set(plain)
    assert [i for i in special if i in vocabulary.special.values()] == [mask, eot, mask, pad]
    if kind in ('bpe', 'byte', 'gpt2', 'char'):
        assert vocabulary.decode(special) == vocabulary.decode(plain) == text
    parts = [vocabulary.encode(part) for part in ('to ', ' or not', ' ', '\n')]
    assert special == [*parts[0], mask, *parts[1], eot, *parts[2], mask, pad, *parts[3]]
    assert vocabulary.encode('no such thing', special=True) == vocabulary.encode('no such thing')


# --- long texts -----------------------------------------------------------------------


@given(st.text(st.one_of(st.sampled_from(' \nab_1.é'), st.characters(codec='utf-8'))), st.integers(4, 30))
@example('a' * 100, 10)
def test_pieces_are_the_text_and_never_longer(text, longest):
    parts = list(vocabularies.split_long(text, longest))
    assert ''.join(parts) == text and all(0 < len(part) <= longest for part in parts if text)


# letters, digits, punctuation and white space next to each other in all ways, never long without a gap between words
WORDS = st.lists(st.text(st.sampled_from("aZ_1.'é日 \n\t\r"), max_size=8), max_size=60).map(' the cat '.join)


@pytest.mark.parametrize('kind', KINDS)
@given(text=WORDS)
def test_cutting_a_text_changes_no_id(every, kind, text):
    assert in_pieces(every[kind], text, 96) == in_one_piece(every[kind], text)


@pytest.mark.parametrize('longest', [2000, 4096])
def test_cutting_real_code_and_prose_changes_no_id(every, code, library, longest):
    argparse = (library.parent / 'argparse.py').read_text(encoding='utf-8')
    prose = ' '.join(argparse.split())
    for text in (code, argparse, prose, PROSE * 100):
        for kind in KINDS:
            assert in_pieces(every[kind], text, longest) == in_one_piece(every[kind], text)


def in_pieces(vocabulary, text, longest):
    parts = vocabulary.encode_pieces(list(vocabularies.split_long(text, longest)))
    return [i for part in parts for i in part.tolist()]


def in_one_piece(vocabulary, text):
    return vocabulary.encode_pieces([text])[0].tolist()


def test_a_text_longer_than_a_piece(every, code):
    text = (code + PROSE) * 5
    assert len(text) > 3 << 16
    for kind in KINDS:
        assert every[kind].encode(text) == in_one_piece(every[kind], text)


# --- files ------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', vocabularies.KINDS)
def test_saved_and_loaded_is_the_same(every, kind, tmp_path):
    every[kind].save(tmp_path)
    for source in (tmp_path, tmp_path / 'tokenizer.json'):
        loaded = vocabularies.load(str(source))
        assert (loaded.hash, loaded.vocab_size, loaded.special, loaded.spelled, loaded.dtype) == (
            every[kind].hash,
            every[kind].vocab_size,
            every[kind].special,
            every[kind].spelled,
            every[kind].dtype,
        )
        assert loaded.encode(PROSE + '[MASK]') == every[kind].encode(PROSE + '[MASK]')


def test_a_built_in_one_travels_as_its_name(every, encoding, monkeypatch, tmp_path):
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, 'r50k_base', encoding)
    every['gpt2'].save(tmp_path)
    loaded = vocabularies.load(str(tmp_path))
    assert (
        loaded.name == 'gpt2'
        and loaded.hash == every['gpt2'].hash
        and loaded.special == every['gpt2'].special
    )


def test_hashes_tell_vocabularies_apart(every, code):
    others = [vocabularies.learn('bpe', [code], 601), vocabularies.learn('bpe', [code[:9000]], 600)]
    hashes = [vocabulary.hash for vocabulary in [*every.values(), *others]]
    assert len(set(hashes)) == len(hashes)
    assert vocabularies.learn('bpe', [code, PROSE], 600).hash == every['bpe'].hash  # learning is repeatable


def test_a_foreign_bert_keeps_its_ids_and_special_tokens(bert, tmp_path, code):
    (tmp_path / 'tokenizer.json').write_text(bert, encoding='utf-8')
    vocabulary = vocabularies.load(str(tmp_path))
    assert vocabulary.special == dict(eot=3, pad=0, unk=1, cls=2, sep=3, mask=4)
    reference = tokenizers.Tokenizer.from_str(bert)
    reference.no_truncation()  # the file asks for 16 tokens a text, which is no way to prepare data
    reference.no_padding()
    assert vocabulary.vocab_size == reference.get_vocab_size()
    for text in (code[:3000], PROSE):
        assert vocabulary.encode(text) == reference.encode(text, add_special_tokens=False).ids
    assert not {0, 2, 3, 4} & set(vocabulary.encode('a [MASK] and [SEP] [CLS][PAD]'))
    assert vocabulary.encode('a [MASK]', special=True) == [*vocabulary.encode('a '), 4]
    vocabulary.save(tmp_path)
    assert vocabularies.load(str(tmp_path)).hash == vocabulary.hash


def test_a_foreign_one_with_holes_in_its_ids_is_refused(tmp_path, capfd):
    # the library would give the special tokens ids that other tokens have
    holes = tokenizers.Tokenizer(models.BPE({c: i * 3 for i, c in enumerate('abcdefghij')}, []))
    holes.save(str(tmp_path / 'tokenizer.json'))
    assert str(tmp_path) in refused(capfd, vocabularies.load, str(tmp_path))


@pytest.mark.parametrize(
    'size, dtype', [(65_536, np.uint16), (65_537, np.uint32)], ids=['largest uint16', 'smallest uint32']
)
def test_ids_are_stored_in_the_smallest_type(size, dtype):
    characters = [chr(i) for i in range(0x20, 0x20000) if not 0xD800 <= i < 0xE000][: size - 6]
    vocab = {c: i for i, c in enumerate(characters)}
    vocabulary = vocabularies.Learned(tokenizers.Tokenizer(models.BPE(vocab, [])).to_str())
    assert vocabulary.vocab_size == size and vocabulary.dtype == dtype
    (ids,) = vocabulary.encode_batch([characters[0] + characters[-1]])
    assert ids.dtype == dtype and ids.tolist() == [0, size - 7]


# --- mistakes and the command -------------------------------------------------------------


def refused(capfd, function, *arguments):
    with pytest.raises(SystemExit) as end:
        function(*arguments)
    err = capfd.readouterr().err
    assert end.value.code == 2 and err.startswith('error: ') and err.count('\n') == 1, err
    return err


def test_vocabularies_that_cannot_be(capfd, tmp_path):
    assert '262' in refused(capfd, vocabularies.learn, 'bpe', ['text'], 261)
    assert vocabularies.learn('bpe', ['text'], 262).vocab_size == 262
    assert 'bpe, wordpiece' in refused(capfd, vocabularies.learn, 'words', ['text'], 300)
    for kind in ('wordpiece', 'unigram', 'word'):
        assert kind in refused(capfd, vocabularies.learn, kind, ['text'], 21)
        assert vocabularies.learn(kind, ['text ' * 9], 22).vocab_size <= 22
    assert 'lower,accents' in refused(capfd, vocabularies.learn, 'bpe', ['text'], 300, 'upper')
    assert 'missing.json' in refused(capfd, vocabularies.load, str(tmp_path / 'missing.json'))
    assert str(tmp_path) in refused(capfd, vocabularies.load, str(tmp_path))
    for content in ('', '{}', '{"version": "1.0", "model": {"type": "None"}}', '[1'):
        (tmp_path / 'tokenizer.json').write_text(content)
        assert 'tokenizer.json' in refused(capfd, vocabularies.load, str(tmp_path))
    (tmp_path / 'tokenizer.json').write_bytes(b'\xff\xfe')
    assert 'tokenizer.json' in refused(capfd, vocabularies.load, str(tmp_path))
    (tmp_path / 'tokenizer.txt').write_text('gpt5\n')
    assert 'gpt5' in refused(capfd, vocabularies.load, str(tmp_path))


# an address that refuses connections: what a machine without network sees, on any machine
NO_NETWORK = dict(
    HTTPS_PROXY='http://127.0.0.1:1', https_proxy='http://127.0.0.1:1', no_proxy='', NO_PROXY=''
)


@pytest.mark.parametrize(
    'tokenizer, words',
    [
        ('gpt2', ['gpt2', 'TIKTOKEN_CACHE_DIR', 'r50k_base']),
        ('google-bert/none', ['google-bert/none', 'bpe, wordpiece']),
    ],
)
def test_without_network_a_vocabulary_that_is_not_at_hand_is_one_line(tmp_path, tokenizer, words):
    (tmp_path / 'a.txt').write_text('text ' * 100)
    env = NO_NETWORK | dict(TIKTOKEN_CACHE_DIR=str(tmp_path / 'none'), HF_HOME=str(tmp_path / 'home'))
    one_line(f'prepare.py books --files=a.txt --tokenizer={tokenizer}', tmp_path, *words, timeout=15, **env)
    assert not (tmp_path / 'data' / 'books').exists()


def train(flags):
    with settings_of(vocabularies, f'--command=train {flags}'):
        vocabularies.main()


def test_train_command(tmp_path, library):
    files = f'--files={library}/*.py'
    out, _ = run(['tokenizer.py', 'train', files, '--vocab_size=400', '--out_dir=new/vocabulary'], tmp_path)
    assert '400' in out and 'new/vocabulary/tokenizer.json' in out
    vocabulary = vocabularies.load(str(tmp_path / 'new' / 'vocabulary'))
    reference = tokenizers.ByteLevelBPETokenizer()
    texts = [path.read_text(encoding='utf-8') for path in sorted(library.glob('*.py'))]
    reference.train_from_iterator(texts, vocab_size=394, show_progress=False)
    assert vocabulary.vocab_size == 400 and vocabulary.encode(texts[0]) == reference.encode(texts[0]).ids


def test_train_command_learns_from_the_text_that_prepare_will_encode(tmp_path):
    # not NFC; a control character; a lone surrogate
    rows = ['e\u0301 e\u0301\x00', 'half a pair: \ud83d', 'é']
    (tmp_path / 'a.jsonl').write_text('\n'.join(json.dumps({'text': row}) for row in rows))
    train(f'--files={tmp_path}/a.jsonl --kind=char --out_dir={tmp_path}/characters')
    vocabulary = vocabularies.load(str(tmp_path / 'characters'))
    assert ''.join(vocabulary.decode([i]) for i in ordinary(vocabulary)) == ''.join(
        sorted(set('half a pair: é'))
    )


def test_train_command_stops_at_max_chars_and_reads_a_hub_directory(tmp_path):
    (tmp_path / 'books').mkdir()
    for i, letter in enumerate('abc'):
        (tmp_path / 'books' / f'train-{i}.jsonl').write_text(json.dumps({'body': letter * 100}))
    source = f'--hub={tmp_path}/books --hub_split=train --text_field=body --kind=char'
    train(f'{source} --max_chars=150 --out_dir={tmp_path}/half')
    assert ordinary(vocabularies.load(str(tmp_path / 'half'))) == [0, 1]
    train(f'{source} --out_dir={tmp_path}/all')
    assert ordinary(vocabularies.load(str(tmp_path / 'all'))) == [0, 1, 2]


def test_compare_command(tmp_path):
    (tmp_path / 'a.txt').write_text('a b a b 1, 2')
    (tmp_path / 'b.txt').write_text('aa')
    vocabularies.learn('char', ['ab 12'], 0).save(tmp_path)
    out, _ = run(
        ['tokenizer.py', 'compare', '--files=[ab].txt', 'byte', '.', 'word', '--vocab_size=99'], tmp_path
    )
    first, _, *rows = out.splitlines()
    assert first == '2 documents, 14 bytes, 7 words'
    rows = [row.split() for row in rows]
    for row in rows:
        assert float(row.pop(5)) > 0  # MB/s
    assert rows == [
        # tokens, bytes per token, tokens per word, share of unk, share of documents that come back
        ['byte', '262', '1.00', '2.00', '0.00%', '100.00%'],
        ['.', '11', '1.00', '2.00', '7.14%', '50.00%'],  # the comma is unk
        ['word', '12', '1.75', '1.14', '0.00%', '50.00%'],  # the comma gets a space before it
    ]


@pytest.mark.parametrize(
    'flags, words',
    [
        ('--command=compare --files=blank.txt', ['usage', 'compare']),
        ("--command=compare --vocabularies=('byte',)", ['usage', 'compare']),
        ("--command=compare --files=blank.txt --vocabularies=('byte',)", ['blank.txt', 'no text']),
        ("--command=train --files=a.txt --out_dir=x --vocabularies=('gpt2',)", ['usage']),
        ('--command=train --files=a.txt', ['usage', '--out_dir']),
        ('--command=train --files=a.txt --out_dir=a.txt', ['a.txt']),
        ('--command=train --files=a.txt --out_dir=x --kind=words', ['words']),
        ('--command=train --files=a.txt --out_dir=x --vocab_size=9', ['262']),
    ],
)
def test_command_mistakes(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    Path('a.txt').write_text('text')
    Path('blank.txt').write_text(' ')
    with settings_of(vocabularies, flags), ends_in_one_line(capsys, *words):
        vocabularies.main()
    assert not Path('x').exists()
