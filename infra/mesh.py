"""One model, many processes: which part of it each holds, through torch.distributed.

Processes stand in a mesh of ddp x fsdp x tp, those of one machine side by side:

    ddp    has whole models, and averages their gradients
    fsdp   deals out every weight, gradient and optimizer state; the weights of one block after the other are gathered while
           it computes (Rajbhandari et al. 2020, "ZeRO", stage 3; torch's fully_shard)
    tp     deals out the work within a block, by heads and by the width of the MLP, and the positions whose loss is computed
           (Shoeybi et al. 2019, "Megatron-LM"; torch's parallelize_module); embeddings and norms all its processes compute

Rows are dealt to ddp x fsdp; the processes of a tp group have the same ones. What is saved is whole, whatever the mesh.

The parts of torch.distributed are imported where they are used: they take most of a second, and one process needs none.
"""

import contextlib
import functools
import warnings
from typing import NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel as DDP

from common import fail
from loss import cross_entropy


class Layout(NamedTuple):
    """Where this process stands. Of those that have rows of their own it is number `rank` of `ranks`, over which `group` adds."""

    mesh: 'torch.distributed.DeviceMesh | None' = None  # (ddp, fsdp, tp); None: all have whole models
    rank: int = 0
    ranks: int = 1
    group: 'torch.distributed.ProcessGroup | None' = None

    @property
    def shares(self):
        """Whether the model is dealt out. If not, each process has all of it."""
        return self.mesh is not None and self.mesh['fsdp'].size() * self.mesh['tp'].size() > 1

    def __str__(self):
        if self.mesh is None:
            return f'{self.ranks} process{"es" * (self.ranks > 1)}'
        sizes = ' x '.join(
            f'{name} {n}' for name, n in zip(self.mesh.mesh_dim_names, self.mesh.shape, strict=True)
        )
        return f'{self.mesh.size()} processes' + (f', {sizes}' if self.shares else '')


def lay_out(device, world_size, fsdp, tp):
    """The mesh of all processes, ddp being what fsdp and tp leave -> Layout. Ends the program if that does not come out even."""
    if fsdp < 1 or tp < 1 or world_size % (fsdp * tp):
        fail(f'fsdp = {fsdp} times tp = {tp} should divide the number of processes, {world_size}')
    if fsdp * tp == 1:
        return Layout(rank=torch.distributed.get_rank() if world_size > 1 else 0, ranks=world_size)
    from torch.distributed.device_mesh import init_device_mesh

    ddp = world_size // (fsdp * tp)
    mesh = init_device_mesh(device.type, (ddp, fsdp, tp), mesh_dim_names=('ddp', 'fsdp', 'tp'))
    rows = init_device_mesh(device.type, (ddp * fsdp, tp), mesh_dim_names=('rows', 'tp'))['rows']
    return Layout(mesh, rows.get_local_rank(), rows.size(), rows.get_group())


def share(model, layout, device, precision):
    """Leave each process its part of a model that all have built alike, on the device, in place. See `deal_out`."""
    if layout.shares:
        deal_out(model, layout.mesh, precision)
    else:
        model.to(device)


def deal_out(model, mesh, precision):
    """Deal a model out over a mesh (ddp, fsdp, tp), a block at a time: its device never holds more than one whole.

    Weights stay in fp32. Those of the blocks' layers are gathered in `precision`, in which they are multiplied; norms,
    embeddings and head in fp32, as under autocast. Ends the program if tp does not divide the model.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    tp = mesh['tp']
    c, width = model.config, model.blocks[0].mlp.width
    for name, number in (('n_head', c.n_head), ('n_kv_head', c.kv_heads), ('the width of the MLP', width)):
        if number % tp.size():
            fail(f'tp = {tp.size()} should divide {name} = {number}')
    if precision == torch.float16:
        fail("dtype = 'float16' does not go with fsdp and tp: take bfloat16 or float32")
    # of views, which should not be changed in place: we do so nowhere
    warnings.filterwarnings('ignore', 'FSDP2-wrapped module')
    dealers = mesh['ddp', 'fsdp'] if mesh['ddp'].size() > 1 else mesh['fsdp']
    rounded = MixedPrecisionPolicy(precision, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        if tp.size() > 1:
            share_block(block, tp)
        fully_shard([block.attn, block.mlp], mesh=dealers, mp_policy=rounded)
    fully_shard(model, mesh=dealers)
    if tp.size() > 1:
        model.loss = functools.partial(share_of_loss, tp)
        for linear in (linear for block in model.blocks for linear in (block.attn.qkv, block.mlp.fc)):
            for p in linear.parameters():
                p.parts = linear.parts  # for `whole` and `part`


def share_block(block, tp):
    """Tensor parallelism: each process has some heads and some of the MLP's width; what they give is added up."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    for linear in (block.attn.qkv, block.mlp.fc):
        for p in linear.parameters():
            p.data = dealt(p.data, linear.parts, tp.size())
    block.attn.heads = tuple(n // tp.size() for n in block.attn.heads)
    plan = {'attn.qkv': ColwiseParallel(), 'attn.proj': RowwiseParallel()}
    plan |= {'mlp.fc': ColwiseParallel(), 'mlp.proj': RowwiseParallel()}
    parallelize_module(block, tp, plan, src_data_rank=None)  # nothing is sent: all have the weights


def share_of_loss(tp, x, weight, bias, padding, targets, softcap):
    """`loss.cross_entropy` of positions that all processes of tp have: each computes it for its share of them."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    def own(t):  # its gradient: those of all shares
        t = DTensor.from_local(t, tp, [Replicate()], run_check=False)
        return t.redistribute(placements=[Shard(0)]).to_local()

    def common(t):  # its gradient: the sum of what the shares give
        return DTensor.from_local(t, tp, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])

    bias = None if bias is None else common(bias)
    share = cross_entropy(own(x), common(weight), bias, padding, own(targets), softcap)
    return (
        DTensor.from_local(share, tp, [Partial()], run_check=False).full_tensor().clone()
    )  # FSDP wants no view


def replica(model, layout, device):
    """The model as training calls it: a backward pass averages the gradients of whole models, as it does of dealt out ones."""
    if layout.ranks == 1 or layout.shares:
        return model
    # torch 2.13 has another name for it, which torch 2.11 does not know
    warnings.filterwarnings('ignore', '.broadcast_buffers. is deprecated')
    return DDP(model, [device.index] if device.type == 'cuda' else None, broadcast_buffers=False)


@contextlib.contextmanager
def averaging(model, last):
    """Within it a backward pass is the last of a step or not: the gradients of replicas are averaged once."""
    if hasattr(model, 'set_requires_all_reduce'):
        # over fsdp they are added up each time: those of a whole model are what may not fit into memory
        model.set_requires_all_reduce(last)
    with model.no_sync() if hasattr(model, 'no_sync') and not last else contextlib.nullcontext():
        yield


def clip_grad_norm_(parameters, max_norm):
    """torch.nn.utils' for parameters of which processes may hold parts, on one mesh or another -> the norm of all gradients."""
    parameters = list(parameters)
    if not hasattr(parameters[0], 'device_mesh'):
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    alike = {}
    for p in parameters:
        alike.setdefault((p.device_mesh, p.placements), []).append(p.grad.to_local())
    squares = []
    for (mesh, placements), grads in alike.items():
        squares.append(torch.nn.utils.get_total_norm(grads) ** 2)
        for dim, placement in enumerate(placements):
            if not placement.is_replicate():
                torch.distributed.all_reduce(squares[-1], group=mesh.get_group(dim))
    norm = torch.stack(squares).sum().sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([grad for grads in alike.values() for grad in grads], scale)
    return norm


def complete(tensor):
    """All of a tensor of which processes hold parts; all of them take part."""
    if not hasattr(tensor, 'device_mesh'):
        return tensor
    from torch.distributed.tensor import Replicate

    # first over fsdp, then over tp: torch warns where it has to go two ways at once
    over_fsdp = [Replicate()] * (tensor.device_mesh.ndim - 1) + [tensor.placements[-1]]
    return tensor.redistribute(placements=over_fsdp).full_tensor()


def whole(tensor, p):
    """All of a tensor that is dealt out as the parameter p is, with the rows in their order; all processes take part."""
    tensor = complete(tensor)
    return (
        collected(tensor, p.parts, p.device_mesh.size(-1)) if hasattr(p, 'parts') and tensor.dim() else tensor
    )


def part(tensor, p):
    """Of a tensor that all processes have whole, what this one holds if it is dealt out as the parameter p is."""
    if not hasattr(p, 'device_mesh'):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    tensor = dealt(tensor, p.parts, p.device_mesh.size(-1)) if hasattr(p, 'parts') else tensor
    return distribute_tensor(tensor, p.device_mesh, p.placements, src_data_rank=None)


def dealt(tensor, parts, tp):
    """Its rows in the order in which tp processes take them: some of each part to the first, some of each to the second."""
    shares = zip(*(part.chunk(tp) for part in tensor.split(parts)), strict=True)
    return torch.cat([rows for share in shares for rows in share])


def collected(tensor, parts, tp):
    """The rows of `dealt` in the order they had before."""
    parts = zip(*(share.split([n // tp for n in parts]) for share in tensor.chunk(tp)), strict=True)
    return torch.cat([rows for part in parts for rows in part])


def whole_weights(model):
    """Name -> weight, whole, on the CPU of rank 0; None elsewhere. All processes take part."""
    return {name: on_rank_0(whole(p.detach(), p)) for name, p in model.named_parameters()}


@torch.no_grad()
def load_weights(model, weights):
    """Give a model, dealt out or not, the weights of `whole_weights`, which each process has."""
    for name, p in model.named_parameters():
        p.copy_(part(weights[name], p))


def whole_state(optimizer):
    """The state_dict of one process with all the weights, on the CPU of rank 0. All processes take part."""
    packed, params = optimizer.state_dict(), held(optimizer)
    whole_ones = {
        i: {name: on_rank_0(whole(t, params[i])) for name, t in state.items()}
        for i, state in packed['state'].items()
    }
    return packed | dict(state=whole_ones)


def part_of_state(packed, optimizer):
    """What `load_state_dict` takes of the state_dict of one process with all the weights, as copies."""
    params = held(optimizer)
    parts = {
        i: {name: (part(t, params.get(i)) if t.dim() else t).clone() for name, t in state.items()}
        for i, state in packed['state'].items()
    }
    return packed | dict(state=parts)


def held(optimizer):
    """An optimizer's parameters by their numbers in its state_dict."""
    return dict(enumerate(p for group in optimizer.param_groups for p in group['params']))


def on_rank_0(tensor):
    """A copy of a tensor on the CPU; None in other processes, which need not keep it."""
    others = torch.distributed.is_initialized() and torch.distributed.get_rank()
    return None if others else tensor.to('cpu', copy=True)
