"""optim.py against torch's own Muon, one matrix at a time, and against an exact decomposition."""

import pytest
import torch

from model import ARCHITECTURES, Config, Transformer
from optim import Muon, muon_groups, orthogonalized, set_rates


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
    assert all(len({p.shape for p in group['params']}) == 1 for group in groups)
    assert len(groups) == len({p.shape for p in expected})


def test_its_steps_are_those_of_torchs_muon():
    torch.manual_seed(0)
    square = [torch.randn(16, 16, requires_grad=True) for _ in range(9)]
    wide = [torch.randn(16, 64, requires_grad=True) for _ in range(3)]
    ours = Muon([dict(params=square), dict(params=wide)], lr=0.02, weight_decay=0.1)
    apart = [p.detach().clone() for p in square + wide]
    theirs = torch.optim.Muon(apart, lr=0.02, weight_decay=0.1, momentum=0.95)
    for _ in range(5):
        for p, q in zip(square + wide, apart, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    for p, q in zip(square + wide, apart, strict=True):
        torch.testing.assert_close(p, q, atol=2e-3, rtol=2e-2)  # bf16 in another order


def test_rates_follow_the_multiplier_and_only_muon_has_a_momentum():
    weights = [torch.nn.Parameter(torch.randn(4, 4)) for _ in range(2)]
    made = [Muon([dict(params=weights[:1])], lr=0.02), torch.optim.AdamW(weights[1:], lr=1e-3)]
    for group in (group for optimizer in made for group in optimizer.param_groups):
        group['initial_lr'] = group['lr']
    for multiplier, momentum in ((1.0, 0.85), (0.25, 0.95)):
        set_rates(made, multiplier, momentum)
        muon, adamw = (optimizer.param_groups[0] for optimizer in made)
        assert (muon['lr'], muon['momentum']) == (0.02 * multiplier, momentum)
        assert adamw['lr'] == 1e-3 * multiplier and 'momentum' not in adamw
