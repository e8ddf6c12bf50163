"""Rows of fine-tuning data -> token ids, and which of them are learned.

Every vocabulary has the same chat template, made of two special tokens that it has already, so that no embedding
grows. A message is its role and its content between a token that begins it and the token that ends every text:

    [CLS]user
    What is 2 + 2?<|endoftext|>[CLS]assistant
    4<|endoftext|>

It is ChatML (OpenAI, 2023) with other tokens. An answer ends by itself where any text ends, and since text never
becomes a special token by spelling one, no content can forge the header of another message.
"""

import json
from pathlib import Path

import numpy as np

# each role as it is named in data, ShareGPT's names included -> as the template names it
ROLES = {r: r for r in ('system', 'user', 'assistant', 'tool')} | {'human': 'user', 'gpt': 'assistant'}

# The template for transformers, in Jinja. What is between the generation tags is what render's mask covers.
TEMPLATE = r"""
{%- for message in messages -%}
{{ cls + message.role + '\n' }}
{%- if message.role == 'assistant' -%}
{% generation %}{{ message.content | trim + eot }}{% endgeneration %}
{%- else -%}
{{ message.content | trim + eot }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ cls + 'assistant\n' }}{%- endif -%}
"""


def conversation(row):
    """A row in one of four forms -> its messages, a list of {'role', 'content'}.

    {"messages": [{"role", "content"}, ...]} of OpenAI and its ShareGPT form {"conversations": [{"from", "value"},
    ...]}; {"prompt", "completion"}; {"instruction", "input", "output"} of Alpaca (Taori et al. 2023), whose input may
    be empty or missing. The last two may have a "system" too. Raises ValueError, with a reason of one line, for
    what is none of these, for content that is no text, an unknown role, and where the assistant says nothing.
    """
    match row:
        case {'messages': list(turns)} | {'conversations': list(turns)}:
            messages = [checked(turn) for turn in turns]
        case {'prompt': str(asked), 'completion': str(answer)}:
            messages = exchange(row, asked, answer)
        case {'instruction': str(asked), 'input': str(given), 'output': str(answer)} if given:
            messages = exchange(row, f'{asked}\n\n{given}', answer)
        case {'instruction': str(asked), 'output': str(answer)} if not row.get('input'):
            messages = exchange(row, asked, answer)
        case _:
            raise ValueError('no messages, prompt and completion, or instruction and output')
    if not any(message['role'] == 'assistant' and message['content'].strip() for message in messages):
        raise ValueError('the assistant says nothing')
    return messages


def exchange(row, asked, answer):
    """The messages of one question and its answer, after the row's "system" where it has one."""
    said = [('system', row['system'])] if row.get('system') else []
    said += [('user', asked), ('assistant', answer)]
    return [checked({'role': role, 'content': content}) for role, content in said]


def checked(turn):
    """One message of a row, or ValueError."""
    match turn:
        case {'role': str(role), 'content': str(content)} | {'from': str(role), 'value': str(content)}:
            pass
        case _:
            raise ValueError('a message whose role or content is no text')
    if role not in ROLES:
        raise ValueError(f'a message of the unknown role {role!r:.40}')
    content.encode()  # JSON can spell half a character, which no vocabulary can: UnicodeError is a ValueError
    return {'role': ROLES[role], 'content': content}


def classification(row, text_field):
    """A row {text_field, "label"} -> (text, label): an int from 0 or a name. ValueError, as above, for any other row."""
    text, label = (row.get(text_field), row.get('label')) if isinstance(row, dict) else (None, None)
    if not isinstance(text, str):
        raise ValueError(f'no text in the field {text_field!r}')
    if not (isinstance(label, str) and label or type(label) is int and label >= 0):  # True is an int too
        raise ValueError('no label that is a name or a number from 0')
    f'{text}{label}'.encode()  # as in checked
    return text, label


def render(messages, vocabulary):
    """messages -> (ids, mask), both (tokens,): the ids in `vocabulary.dtype`; uint8, 1 where an id is to be learned.

    Learned are the contents of the assistant's messages and the tokens that end them, not the headers. A header and
    a content are encoded each by itself: an answer that is generated follows a header that is already encoded.
    """
    texts = [text for message in messages for text in (message['role'] + '\n', message['content'].strip())]
    encoded = vocabulary.encode_batch(texts)
    cls, eot = (np.array([vocabulary.special[name]], dtype=vocabulary.dtype) for name in ('cls', 'eot'))
    ids, learned, lengths = [], [], []
    for message, header, content in zip(messages, encoded[::2], encoded[1::2], strict=True):
        ids += [cls, header, content, eot]
        learned += [0, message['role'] == 'assistant']
        lengths += [1 + len(header), len(content) + 1]
    return np.concatenate(ids), np.repeat(np.array(learned, dtype=np.uint8), lengths)


def prompt(messages, vocabulary):
    """messages -> ids (tokens,) after which the assistant's next answer is generated: theirs and its header."""
    return render([*messages, {'role': 'assistant', 'content': ''}], vocabulary)[0][:-1]


def template(vocabulary):
    """`render` in Jinja, for transformers' apply_chat_template: the same ids, and its assistant mask is the same mask.

    But there a content that spells a special token becomes one, unless sanitize_control_tokens asks that it does
    not; and a vocabulary that puts a space before every text, as SentencePiece's, puts none after the header.
    """
    spelling = spellings(vocabulary)
    return f'{{%- set cls, eot = {spelling["cls"]!r}, {spelling["eot"]!r} -%}}' + TEMPLATE.strip()


def spellings(vocabulary):
    """What each special token is called: {'eot': '<|endoftext|>', ...}."""
    spelled = {i: spelling for spelling, i in vocabulary.spelled.items()}
    return {name: spelled[i] for name, i in vocabulary.special.items()}


def save(vocabulary, directory):
    """Write `directory`/tokenizer_config.json, with which transformers reads the tokenizer.json beside it.

    A built-in vocabulary has no such file there: then it is a record of the template and the special tokens, for
    whoever brings the tokenizer from elsewhere.
    """
    config = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'clean_up_tokenization_spaces': False,  # decoding gives back the text as it was
        **{f'{"eos" if n == "eot" else n}_token': spelling for n, spelling in spellings(vocabulary).items()},
        'chat_template': template(vocabulary),
    }
    Path(directory, 'tokenizer_config.json').write_text(json.dumps(config, indent=2) + '\n')
