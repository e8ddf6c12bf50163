"""Pretrained weights: a model directory of the Hugging Face hub or of ours -> settings and weights by our names.

GPT-2 and BERT as transformers saves them are converted here, in one place; the rest of the project never sees their
layout. Only safetensors are read: no pickle.
"""

import json
from pathlib import Path

# Pretrained weights by name -> repository on the hub
PRETRAINED = {n: f'openai-community/{n}' for n in ('gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl')}
PRETRAINED['bert-base-uncased'] = 'google-bert/bert-base-uncased'


def read(source):
    """Settings of model.Config and weights by the names of model.Transformer, without the padding rows if foreign.

    source: a name of PRETRAINED, another repository of the hub, or a directory that transformers or `Transformer.save` wrote.
    Foreign settings name their flags by `arch`. Raises ValueError for what is no model of ours, OSError where it cannot be read.
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
        raise ValueError(f'{name!r} is no directory with a config.json, nor one of {", ".join(PRETRAINED)}')
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
    try:
        return {name: w.float() for path in paths for name, w in load_file(path).items()}
    except SafetensorError as e:
        raise ValueError(f'the .safetensors weights in {directory} are damaged: {e}') from None


def demand(settings, **expected):
    """Raise ValueError where a foreign config asks for what this Transformer does not do."""
    for name, value in expected.items():
        if settings.get(name, value) != value:
            raise ValueError(f'{name} = {settings[name]!r} cannot be read, only {value!r}')


def from_gpt2(settings, weights):
    """transformers' GPT-2 config and weights -> ours. It stores linear layers transposed, queries, keys and values in one."""
    C = settings['n_embd']
    demand(settings, activation_function='gelu_new', scale_attn_weights=True, tie_word_embeddings=True)
    demand(settings, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    config = {k: settings[k] for k in ('vocab_size', 'n_layer', 'n_head', 'n_embd')}
    config |= dict(arch='gpt2', block_size=settings['n_positions'], bias=True)
    config |= dict(mlp_width=settings.get('n_inner') or 0, norm_eps=settings.get('layer_norm_epsilon', 1e-5))
    theirs = {name.removeprefix('transformer.'): w for name, w in weights.items()}
    ours = {
        'token_embedding.weight': theirs['wte.weight'],
        'position_embedding.weight': theirs['wpe.weight'],
    }
    names = {'final_norm': 'ln_f'}
    layer = {'norm1': 'ln_1', 'norm2': 'ln_2', 'attn.o_proj': 'attn.c_proj'}
    layer |= {'mlp.up_proj': 'mlp.c_fc', 'mlp.down_proj': 'mlp.c_proj'}
    for i in range(config['n_layer']):
        names |= {f'blocks.{i}.{our}': f'h.{i}.{their}' for our, their in layer.items()}
        for part in ('weight', 'bias'):
            qkv = theirs[f'h.{i}.attn.c_attn.{part}'].t().split(C)
            ours |= {f'blocks.{i}.attn.{q}_proj.{part}': w for q, w in zip('qkv', qkv, strict=True)}
    for our, their in names.items():
        # norms have one dimension: t() leaves them alone
        ours[f'{our}.weight'] = theirs[f'{their}.weight'].t()
        ours[f'{our}.bias'] = theirs[f'{their}.bias']
    return config, ours


def from_bert(settings, weights):
    """transformers' BERT config and weights -> ours. Older checkpoints say gamma and beta for a norm's weight and bias."""
    demand(settings, hidden_act='gelu', position_embedding_type='absolute')
    demand(settings, tie_word_embeddings=True, is_decoder=False)
    fields = dict(
        vocab_size='vocab_size', block_size='max_position_embeddings', token_types='type_vocab_size'
    )
    fields |= dict(n_layer='num_hidden_layers', n_head='num_attention_heads', n_embd='hidden_size')
    fields |= dict(mlp_width='intermediate_size')
    config = {our: settings[their] for our, their in fields.items()}
    config |= dict(arch='bert', norm_eps=settings.get('layer_norm_eps', 1e-12), bias=True)
    theirs = {}
    for name, w in weights.items():
        theirs[name.removeprefix('bert.').replace('gamma', 'weight').replace('beta', 'bias')] = w
    if 'cls.predictions.bias' not in theirs:
        raise ValueError('the weights lack the masked language modelling head of BertForMaskedLM')
    ours = {
        'token_embedding.weight': theirs['embeddings.word_embeddings.weight'],
        'position_embedding.weight': theirs['embeddings.position_embeddings.weight'],
        'type_embedding.weight': theirs['embeddings.token_type_embeddings.weight'],
        'lm_head.bias': theirs['cls.predictions.bias'],
    }
    names = {
        'embedding_norm': 'embeddings.LayerNorm',
        'mlm_head.dense': 'cls.predictions.transform.dense',
        'mlm_head.norm': 'cls.predictions.transform.LayerNorm',
    }
    layer = {f'attn.{name[0]}_proj': f'attention.self.{name}' for name in ('query', 'key', 'value')}
    layer |= {'attn.o_proj': 'attention.output.dense', 'norm1': 'attention.output.LayerNorm'}
    layer |= {'mlp.up_proj': 'intermediate.dense', 'mlp.down_proj': 'output.dense'}
    layer |= {'norm2': 'output.LayerNorm'}
    for i in range(config['n_layer']):
        names |= {f'blocks.{i}.{our}': f'encoder.layer.{i}.{their}' for our, their in layer.items()}
    for our, their in names.items():
        for part in ('weight', 'bias'):
            ours[f'{our}.{part}'] = theirs[f'{their}.{part}']
    return config, ours
