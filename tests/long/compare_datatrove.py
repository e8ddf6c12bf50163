"""Compare every rule of clean.py with datatrove's on real documents, and print a table.

    pip install datatrove[processing] spacy      # not among this project's requirements
    python tests/compare_datatrove.py DIRECTORY  # of text files, the more kinds the better

Each rule decides on the repaired text of every file (filters.tidy), as datatrove's decides on the same text: once with
datatrove's split into words and sentences replaced by ours, which leaves no reason to differ, and once with its own
(spaCy's English tokenizer). Documents are named where a decision differs, and the texts that C4 and PII leave.
"""

import sys
from collections import Counter
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    c4_filters,
    fineweb_quality_filter,
    gopher_quality_filter,
    gopher_repetition_filter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.utils.text import split_into_sentences, split_into_words

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from corpus import filters  # noqa: E402
from corpus.words import words  # noqa: E402

# datatrove's names of reasons -> ours
REASONS = {
    'dup_para_frac': 'repetition: paragraphs',
    'dup_para_char_frac': 'repetition: characters in paragraphs',
    'dup_line_frac': 'repetition: lines',
    'dup_line_char_frac': 'repetition: characters in lines',
    **{f'top_{n}_gram': f'repetition: top {n}-gram' for n in (2, 3, 4)},
    **{f'duplicated_{n}_n_grams': f'repetition: {n}-grams' for n in range(5, 11)},
    'gopher_short_doc': 'gopher: too few words',
    'gopher_long_doc': 'gopher: too many words',
    'gopher_below_avg_threshold': 'gopher: short words',
    'gopher_above_avg_threshold': 'gopher: long words',
    'gopher_too_many_hashes': 'gopher: hash signs or ellipses',
    'gopher_too_many_ellipsis': 'gopher: hash signs or ellipses',
    'gopher_too_many_bullets': 'gopher: bullets',
    'gopher_too_many_end_ellipsis': 'gopher: lines that end in an ellipsis',
    'gopher_below_alpha_threshold': 'gopher: words without letters',
    'gopher_enough_stop_words': 'gopher: too few stop words',
    'lorem_ipsum': 'c4: lorem ipsum',
    'curly_bracket': 'c4: curly bracket',
    'too_few_sentences': 'c4: too few sentences',
    'line_punct_ratio': 'fineweb: lines without an end',
    'short_line_ratio': 'fineweb: short lines',
    'char_dup_ratio': 'fineweb: repeated lines',
    'list_ratio': 'fineweb: a list',
    'empty': 'empty',
}


def our_words(text, language=None):
    starts, ends, *_ = words(text)
    return [text[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]


def our_sentences(text, language=None):
    return [''] * filters.sentences(text)


def use_splitters(split_words, split_sentences):
    for module in (gopher_quality_filter, gopher_repetition_filter, fineweb_quality_filter):
        module.split_into_words = split_words
    c4_filters.split_into_sentences = split_sentences


def theirs(filter, text):
    """datatrove's decision -> ('' or our name of its reason, the text it leaves)."""
    document = Document(text=text, id='0')
    kept = filter.filter(document)
    return ('', document.text) if kept is True else (REASONS[kept[1]], document.text)


def ours(rule):
    return lambda text: (rule(text), text)


def pairs():
    """(family of rules, our function, datatrove's filter): text -> (reason, text left)."""
    yield (
        'repetition',
        ours(lambda text: filters.gopher_repetition(text, words(text))),
        GopherRepetitionFilter(),
    )
    yield 'gopher', ours(lambda text: filters.gopher_quality(text, words(text))), GopherQualityFilter()
    yield (
        'c4',
        lambda text: filters.c4_quality(text, Counter())[::-1],
        C4QualityFilter(filter_no_terminal_punct=False),
    )
    yield 'fineweb', ours(filters.fineweb_quality), FineWebQualityFilter()


def compare(texts, families):
    """Print a line for each reason: how many documents either drops for it, and how many both do."""
    for family, rule, filter in families:
        same, texts_differ, drops = 0, 0, Counter()
        for name, text in texts.items():
            (our_reason, our_text), (their_reason, their_text) = rule(text), theirs(filter, text)
            same += our_reason == their_reason
            drops[our_reason, their_reason] += 1
            texts_differ += our_reason == their_reason == '' and our_text != their_text
            if (not our_reason) != (not their_reason) and '--differences' in sys.argv:
                print(f'    {name}: ours {our_reason or "kept"}, datatrove {their_reason or "kept"}')
        kept_alike = sum(n for (a, b), n in drops.items() if (not a) == (not b))
        print(
            f'{family}: {len(texts):,} documents, the same decision on {kept_alike:,}, the same reason for {same:,},'
            f' another text left by {texts_differ:,}'
        )
        for reason in sorted({a for a, _ in drops} | {b for _, b in drops} - {''}):
            one = sum(n for (a, _), n in drops.items() if a == reason)
            other = sum(n for (_, b), n in drops.items() if b == reason)
            print(
                f'    {reason or "kept":40} ours {one:6,}  datatrove {other:6,}  both {drops[reason, reason]:6,}'
            )


def main():
    texts = {}
    for path in sorted(Path(sys.argv[1]).rglob('*')):
        text = filters.tidy(path.read_text('utf-8', 'ignore'), Counter()) if path.is_file() else ''
        if text.strip():
            texts[path.name] = text
    print('with our words and sentences')
    use_splitters(our_words, our_sentences)
    compare(texts, pairs())
    masked = sum(filters.masked(t, Counter()) == PIIFormatter().format(t) for t in texts.values())
    print(f'e-mail and IP masking: the same text for {masked:,} of {len(texts):,}')
    print("\nwith datatrove's own (spaCy)")
    use_splitters(split_into_words, split_into_sentences)
    compare(texts, pairs())


main()
