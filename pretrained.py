"""Weights from elsewhere: a model directory of the Hugging Face hub or of ours -> settings and weights by our names.

GPT-2 and BERT as transformers saves them are converted here, in one place; the rest of the project never sees their
layout. Only safetensors are read: no pickle.
"""

import json
from pathlib import Path

import torch

# Pretrained weights by name -> repository on the hub
PRETRAINED = {
    'gpt2': 'openai-community/gpt2',
    'gpt2-medium': 'openai-community/gpt2-medium',
    'gpt2-large': 'openai-community/gpt2-large',
    'gpt2-xl': 'openai-community/gpt2-xl',
    'bert-base-uncased': 'google-bert/bert-base-uncased',
}


def read(source):
    """Settings of model.Config and weights by the names of model.Transformer, without the padding rows if foreign.

    source: a name of PRETRAINED, another repository of the hub, or a directory that transformers or
    `Transformer.save` wrote. Foreign settings name their flags by `arch`, a key of model.ARCHITECTURES.
    Raises ValueError for what is no model of ours, OSError where it cannot be read or downloaded.
    """
    directory = Path(source) if Path(source, 'config.json').exists() else Path(download(source))
    try:
        settings = json.loads((directory / 'config.json').read_text())
        model_type = settings.get('model_type', '')  # only transformers writes that
    except (ValueError, AttributeError):
        raise ValueError(f'{directory}/config.json is damaged') from None
    weights = read_safetensors(directory)
    if not model_type:
        return settings, weights
    if model_type not in ('gpt2', 'bert'):
        raise ValueError(f'{source} is a {model_type} model: gpt2 and bert are what can be read')
    try:
        return (from_gpt2 if model_type == 'gpt2' else from_bert)(settings, weights)
    except KeyError as e:
        raise ValueError(f'{source} lacks {e}') from None


def download(name):
    """Fetch config.json and the safetensors of a model of the hub -> the directory that holds them."""
    from huggingface_hub import snapshot_download

    name = str(name)
    if name not in PRETRAINED and '/' not in name:
        raise ValueError(
            f'there is no model {name!r}: not a directory with a config.json, nor {", ".join(PRETRAINED)}'
        )
    try:
        files = ['config.json', 'model*.safetensors', 'model.safetensors.index.json']
        return snapshot_download(PRETRAINED.get(name, name), allow_patterns=files)
    except Exception as e:  # the hub's errors and the network's
        raise OSError(f'cannot download {name}: {e}') from None


def read_safetensors(directory):
    """name -> tensor, from all .safetensors files of a directory, in fp32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    paths = sorted(directory.glob('*.safetensors'))
    if not paths:
        raise ValueError(f'{directory} holds no .safetensors weights')
    weights = {}
    for path in paths:
        try:
            weights |= load_file(path)
        except SafetensorError as e:
            raise ValueError(f'{path} is damaged: {e}') from None
    return {name: w.float() for name, w in weights.items()}


def demand(settings, **expected):
    """Raise ValueError where a foreign config asks for what this Transformer does not do."""
    for name, value in expected.items():
        if settings.get(name, value) != value:
            raise ValueError(f'{name} = {settings[name]!r} cannot be read, only {value!r}')


def from_gpt2(settings, weights):
    """transformers' GPT-2 config and weights -> ours. It stores linear layers transposed."""
    C = settings['n_embd']
    demand(settings, activation_function='gelu_new', scale_attn_weights=True, tie_word_embeddings=True)
    demand(settings, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    if settings.get('n_inner') not in (None, 4 * C):
        raise ValueError(f'n_inner = {settings["n_inner"]} cannot be read, only {4 * C}')
    config = {k: settings[k] for k in ('vocab_size', 'n_layer', 'n_head', 'n_embd')}
    config |= dict(
        arch='gpt2',
        block_size=settings['n_positions'],
        norm_eps=settings.get('layer_norm_epsilon', 1e-5),
        bias=True,
    )
    theirs = {name.removeprefix('transformer.'): w for name, w in weights.items()}
    ours = {'tokens.weight': theirs['wte.weight'], 'positions.weight': theirs['wpe.weight']}
    names = {'norm_out': 'ln_f'}
    for i in range(config['n_layer']):
        pairs = dict(norm1='ln_1', norm2='ln_2')
        pairs |= {
            'attn.qkv': 'attn.c_attn',
            'attn.proj': 'attn.c_proj',
            'mlp.fc': 'mlp.c_fc',
            'mlp.proj': 'mlp.c_proj',
        }
        names |= {f'blocks.{i}.{our}': f'h.{i}.{their}' for our, their in pairs.items()}
    for our, their in names.items():
        # norms have one dimension: t() leaves them alone
        ours[f'{our}.weight'] = theirs[f'{their}.weight'].t()
        ours[f'{our}.bias'] = theirs[f'{their}.bias']
    return config, ours


def from_bert(settings, weights):
    """transformers' BERT config and weights -> ours. Older checkpoints say gamma and beta for a norm's weight and bias."""
    C = settings['hidden_size']
    demand(settings, hidden_act='gelu', position_embedding_type='absolute', intermediate_size=4 * C)
    demand(settings, tie_word_embeddings=True, is_decoder=False)
    config = dict(
        arch='bert',
        vocab_size=settings['vocab_size'],
        block_size=settings['max_position_embeddings'],
        n_layer=settings['num_hidden_layers'],
        n_head=settings['num_attention_heads'],
        n_embd=C,
        token_types=settings['type_vocab_size'],
        norm_eps=settings.get('layer_norm_eps', 1e-12),
        bias=True,
    )
    endings = {'gamma': 'weight', 'beta': 'bias'}
    theirs = {}
    for name, w in weights.items():
        stem, _, ending = name.removeprefix('bert.').rpartition('.')
        theirs[f'{stem}.{endings.get(ending, ending)}'] = w
    if 'cls.predictions.bias' not in theirs:
        raise ValueError(
            'the weights lack the masked language modelling head: save them from BertForMaskedLM'
        )
    ours = {
        'tokens.weight': theirs['embeddings.word_embeddings.weight'],
        'positions.weight': theirs['embeddings.position_embeddings.weight'],
        'types.weight': theirs['embeddings.token_type_embeddings.weight'],
        'head.bias': theirs['cls.predictions.bias'],
    }
    names = {
        'norm_in': 'embeddings.LayerNorm',
        'head.dense': 'cls.predictions.transform.dense',
        'head.norm': 'cls.predictions.transform.LayerNorm',
    }
    for i in range(config['n_layer']):
        layer = f'encoder.layer.{i}'
        names |= {
            f'blocks.{i}.attn.proj': f'{layer}.attention.output.dense',
            f'blocks.{i}.norm1': f'{layer}.attention.output.LayerNorm',
            f'blocks.{i}.mlp.fc': f'{layer}.intermediate.dense',
            f'blocks.{i}.mlp.proj': f'{layer}.output.dense',
            f'blocks.{i}.norm2': f'{layer}.output.LayerNorm',
        }
        for part in ('weight', 'bias'):
            qkv = [theirs[f'{layer}.attention.self.{which}.{part}'] for which in ('query', 'key', 'value')]
            ours[f'blocks.{i}.attn.qkv.{part}'] = torch.cat(qkv)
    for our, their in names.items():
        for part in ('weight', 'bias'):
            ours[f'{our}.{part}'] = theirs[f'{their}.{part}']
    return config, ours
