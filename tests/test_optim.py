"""optim.py against torch's own Muon, one matrix at a time, and against an exact decomposition."""

import pytest
import torch

from model import ARCHITECTURES, Config, Transformer
from optim import Muon, muon_groups, orthogonalized


@pytest.mark.parametrize('rows, cols', [(24, 24), (16, 48), (60, 12)])
def test_orthogonalized_keeps_the_directions_and_makes_them_equally_long(rows, cols):
    torch.manual_seed(0)
    matrices = torch.randn(5, rows, cols) * torch.tensor([1e-6, 0.1, 1, 10, 1e6])[:, None, None]
    U, sizes, V = torch.linalg.svd(matrices, full_matrices=False)
    along = U.mT @ orthogonalized(matrices).float() @ V.mT  # what it makes of each pair of singular vectors
    lengths = along.diagonal(dim1=1, dim2=2)
    assert lengths.max() < 1.35 and lengths[sizes > 0.1 * sizes[:, :1]].min() > 0.5
    assert (along - torch.diag_embed(lengths)).abs().max() < 0.05  # bf16
    assert orthogonalized(torch.zeros(1, rows, cols)).isfinite().all()


@pytest.mark.parametrize('arch, heads', [('gpt2', 0), ('llama', 1)])
def test_groups_hold_every_matrix_of_the_blocks_once_and_equal_shapes(arch, heads):
    shape = dict(vocab_size=50, block_size=8, n_layer=3, n_head=2, n_embd=12, n_kv_head=heads)
    model = Transformer(Config(**ARCHITECTURES[arch], **shape))
    groups = muon_groups(model)
    held = [p for group in groups for p in group['params']]
    expected = [p for name, p in model.named_parameters() if 'blocks' in name and p.dim() == 2]
    assert sorted(map(id, held)) == sorted(map(id, expected))
    for group in groups:
        assert len({p.shape for p in group['params']}) == 1
        assert sum(group['parts']) == len(group['params'][0])
    assert ([12, 6, 6] if heads else [12, 12, 12]) in [group['parts'] for group in groups]


def test_its_steps_are_those_of_torchs_muon_on_each_matrix_apart():
    torch.manual_seed(0)
    stacked = [
        torch.randn(3 * 16, 16, requires_grad=True) for _ in range(3)
    ]  # queries, keys and values of three layers
    wide = [torch.randn(16, 64, requires_grad=True) for _ in range(3)]
    ours = Muon(
        [dict(params=stacked, parts=[16] * 3), dict(params=wide, parts=[16])], lr=0.02, weight_decay=0.1
    )
    apart = [part.detach().clone() for p in stacked for part in p.split(16)] + [
        p.detach().clone() for p in wide
    ]
    theirs = torch.optim.Muon(apart, lr=0.02, weight_decay=0.1, momentum=0.95)
    for _ in range(5):
        for p in stacked + wide:
            p.grad = torch.randn_like(p)
        for q, g in zip(
            apart, [part for p in stacked for part in p.grad.split(16)] + [p.grad for p in wide], strict=True
        ):
            q.grad = g.clone()
        ours.step()
        theirs.step()
    found = [part for p in stacked for part in p.split(16)] + wide
    for p, q in zip(found, apart, strict=True):
        torch.testing.assert_close(p, q, atol=2e-3, rtol=2e-2)  # bf16 in another order
