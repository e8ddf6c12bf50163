"""Chat template: conversations and labelled rows -> token ids, and which of them are learned.

Every vocabulary has the same template, of two special tokens that it has already, so no embedding grows. A message is its
role and its content between a token that begins it and the token that ends every text:

    [CLS]user
    What is 2 + 2?<|endoftext|>[CLS]assistant
    4<|endoftext|>

It is ChatML (OpenAI, 2023) with other tokens. Generation of an answer stops where any text ends. Text never becomes a
special token by spelling one, so no content can forge the header of another message.
"""

import json
from pathlib import Path

import numpy as np

# each role as data names it, ShareGPT's names included -> as the template names it
ROLES = {r: r for r in ('system', 'user', 'assistant', 'tool')} | {'human': 'user', 'gpt': 'assistant'}

# The template for transformers, in Jinja. The mask of `render` is 1 for what stands between the generation tags.
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
    be empty or missing. The last two may have a "system" too. Raises ValueError, with a reason in one line, for any
    other row, content that is not text, an unknown role, and a conversation without an answer.
    """
    match row:
        case {'messages': list(turns)} | {'conversations': list(turns)}:
            texts = {}
        case {'prompt': str(question), 'completion': str(answer)}:
            texts = dict(system=row.get('system'), user=question, assistant=answer)
        case {'instruction': str(question), 'output': str(answer)} if isinstance(row.get('input') or '', str):
            question += f'\n\n{row["input"]}' if row.get('input') else ''
            texts = dict(system=row.get('system'), user=question, assistant=answer)
        case _:
            raise ValueError('no messages, prompt and completion, or instruction and output')
    if texts:
        turns = [dict(role=role, content=text) for role, text in texts.items() if text or role != 'system']
    messages = [checked(turn) for turn in turns]
    if not any(message['role'] == 'assistant' and message['content'].strip() for message in messages):
        raise ValueError('the assistant says nothing')
    return messages


def checked(turn):
    """One message of a row, or ValueError."""
    match turn:
        case {'role': str(role), 'content': str(content)} | {'from': str(role), 'value': str(content)}:
            pass
        case _:
            raise ValueError('a message whose role or content is no text')
    if role not in ROLES:
        raise ValueError(f'a message of the unknown role {role!r:.40}')
    content.encode()  # a lone surrogate, which JSON can spell, raises UnicodeError, a ValueError
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

    Learned are the contents of the assistant's messages and the tokens that end them, not the headers. Headers and
    contents are encoded separately, because an answer is generated after a header that is already encoded.
    """
    texts = [text for message in messages for text in (message['role'] + '\n', message['content'].strip())]
    encoded = vocabulary.encode_batch(texts)
    cls, eot = (np.array([vocabulary.special[name]], dtype=vocabulary.dtype) for name in ('cls', 'eot'))
    ids, mask = [], []
    for message, header, content in zip(messages, encoded[::2], encoded[1::2], strict=True):
        ids += [cls, header, content, eot]
        mask += [np.zeros(1 + len(header)), np.full(len(content) + 1, message['role'] == 'assistant')]
    return np.concatenate(ids), np.concatenate(mask, dtype=np.uint8, casting='unsafe')


def prompt(messages, vocabulary):
    """messages -> ids (tokens,) after which the assistant's next answer is generated: theirs and its header."""
    return render([*messages, {'role': 'assistant', 'content': ''}], vocabulary)[0][:-1]


def template(vocabulary):
    """`render` in Jinja, for transformers' apply_chat_template: the same ids, and its assistant mask is the same mask.

    Two differences: there a content that spells a special token becomes one, unless sanitize_control_tokens is set;
    and a vocabulary that puts a space before every text, as SentencePiece's, puts none after the header.
    """
    cls, eot = (spellings(vocabulary)[name] for name in ('cls', 'eot'))
    return f'{{%- set cls, eot = {cls!r}, {eot!r} -%}}' + TEMPLATE.strip()


def spellings(vocabulary):
    """The text of each special token: {'eot': '<|endoftext|>', ...}."""
    spelled = {i: spelling for spelling, i in vocabulary.spelled.items()}
    return {name: spelled[i] for name, i in vocabulary.special.items()}


def save(vocabulary, directory):
    """Write `directory`/tokenizer_config.json, with which transformers reads the tokenizer.json beside it.

    Beside a built-in vocabulary, which has no such file, it records the template and the special tokens.
    """
    config = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'clean_up_tokenization_spaces': False,  # decoding gives back the text as it was
        **{f'{"eos" if n == "eot" else n}_token': spelling for n, spelling in spellings(vocabulary).items()},
        'chat_template': template(vocabulary),
    }
    Path(directory, 'tokenizer_config.json').write_text(json.dumps(config, indent=2) + '\n')
