"""Optimizers: Muon for the matrices of the blocks, and how learning rates are set.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) steps along the orthogonalized momentum: all directions of a
matrix are learned equally fast. It needs about a third fewer tokens than AdamW to the same loss.
"""

import torch

from infra import mesh


def orthogonalized(matrices, dtype=torch.bfloat16):
    """(n, rows, cols) -> the same in dtype with all singular values near 1, by the Newton-Schulz iteration."""
    X = matrices.to(dtype)
    if tall := X.shape[1] > X.shape[2]:
        X = X.mT
    X = X / (X.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = 3.4445, -4.7750, 2.0315  # for which singular values end between 0.7 and 1.2
    for _ in range(5):
        A = X @ X.mT  # (n, rows, rows)
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, B, X, beta=a)
    return X.mT if tall else X


class Muon(torch.optim.Optimizer):
    """Muon. Each group holds matrices of one shape, (rows, cols), whose steps are computed together, divided among the
    processes, whatever the sharding.

    lr: length of a step, of a matrix whose singular values are 1. momentum: Nesterov's. weight_decay: as of AdamW. dtype: of
    the products of matrices, for which bf16 is exact enough where the hardware has it.
    found_inf: as of torch's fused optimizers, where this tensor holds 1.0 a step leaves everything as it is.
    """

    found_inf = torch.zeros(())

    def __init__(self, groups, lr, momentum=0.95, weight_decay=0.0, dtype=torch.bfloat16):
        super().__init__(groups, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params = group['params']
            momenta = [self.state[p].setdefault('momentum', torch.zeros_like(p)) for p in params]
            bad = (self.found_inf > 0).to(params[0].device)
            # in place of a bad gradient the momentum itself, which their mean then leaves exactly as it is
            grads = [torch.where(bad, momentum, p.grad) for p, momentum in zip(params, momenta, strict=True)]
            torch._foreach_lerp_(momenta, grads, 1 - group['momentum'])
            pairs = zip(grads, momenta, strict=True)
            updates = [g.lerp(m, group['momentum']).to(self.dtype) for g, m in pairs]
            updates = torch.stack([mesh.full_tensor(update) for update in updates])  # (n, rows, cols)
            steps = torch.where(bad, 0, self.directions(updates))
            steps = [mesh.local_shard(step, p).to(p.dtype) for step, p in zip(steps, params, strict=True)]
            torch._foreach_mul_(params, torch.where(bad, 1.0, 1 - group['lr'] * group['weight_decay']))
            torch._foreach_add_(params, steps, alpha=-group['lr'])

    def directions(self, matrices):
        """(n, rows, cols) -> their steps; a matrix of more outputs than inputs steps further, as its gradient is longer."""
        scale = max(1, matrices.shape[1] / matrices.shape[2]) ** 0.5
        if not torch.distributed.is_initialized():
            return scale * orthogonalized(matrices, self.dtype)
        world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        missing = -len(matrices) % world_size
        parts = torch.cat((matrices, matrices[:1].expand(missing, -1, -1))).chunk(world_size)
        own = scale * orthogonalized(parts[rank], self.dtype)
        gathered = [torch.empty_like(own) for _ in range(world_size)]
        torch.distributed.all_gather(gathered, own.contiguous())
        return torch.cat(gathered)[: len(matrices)]


def muon_groups(model):
    """The matrices of the blocks of a model.Transformer as groups for Muon, one for each shape."""
    groups = {}
    for p in model.blocks.parameters():
        if p.dim() == 2:
            groups.setdefault(p.shape, []).append(p)
    return [dict(params=params) for params in groups.values()]


def set_rates(optimizers, multiplier, momentum):
    """Give every group its learning rate, `multiplier` times its initial one, and Muon's groups their momentum."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group['lr'] = group['initial_lr'] * multiplier
            group |= dict(momentum=momentum) if isinstance(optimizer, Muon) else {}
