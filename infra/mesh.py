"""Mesh: one model on many processes, and which part of it each holds, through torch.distributed.

Processes stand in a mesh of ddp x fsdp x tp, those of one machine side by side:

    ddp    has whole models, and averages their gradients
    fsdp   shards every weight, gradient and optimizer state; the weights of one block after the other are gathered while
           it computes (Rajbhandari et al. 2020, "ZeRO", stage 3; torch's fully_shard)
    tp     splits the work within a block, by heads and by the width of the MLP, and the positions whose loss is computed
           (Shoeybi et al. 2019, "Megatron-LM"; torch's parallelize_module); embeddings and norms are computed by all

The ddp x fsdp data-parallel processes have rows of their own; the processes of a tp group have the same rows. A checkpoint
holds full tensors, whatever the mesh. Parts of torch.distributed are imported where they are used: it takes most of a second.
"""

import collections
import contextlib
import inspect
import warnings
from typing import NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel as DDP

from common import fail


class Layout(NamedTuple):
    """Where this process stands: data-parallel process number dp_rank of dp_size, which sum over dp_group."""

    mesh: 'torch.distributed.DeviceMesh | None' = None  # (ddp, fsdp, tp); None: all have the whole model
    dp_rank: int = 0
    dp_size: int = 1
    dp_group: 'torch.distributed.ProcessGroup | None' = None
    fsdp: int = 1
    tp: int = 1

    @property
    def is_sharded(self):
        return self.fsdp * self.tp > 1

    @property
    def world_size(self):
        return self.dp_size * self.tp

    def __str__(self):
        ddp = self.dp_size // self.fsdp
        sizes = f', ddp {ddp} x fsdp {self.fsdp} x tp {self.tp}' if self.is_sharded else ''
        return f'{self.world_size} process{"es" * (self.world_size > 1)}{sizes}'


def make_layout(device, world_size, fsdp, tp):
    """The mesh of all processes, ddp being what fsdp and tp leave -> Layout. Ends the program if that is no whole number."""
    if fsdp < 1 or tp < 1 or world_size % (fsdp * tp):
        fail(f'fsdp = {fsdp} times tp = {tp} should divide the number of processes, {world_size}')
    if fsdp * tp == 1:
        return Layout(dp_rank=torch.distributed.get_rank() if world_size > 1 else 0, dp_size=world_size)
    from torch.distributed.device_mesh import init_device_mesh

    ddp = world_size // (fsdp * tp)
    mesh = init_device_mesh(device.type, (ddp, fsdp, tp), mesh_dim_names=('ddp', 'fsdp', 'tp'))
    dp = init_device_mesh(device.type, (ddp * fsdp, tp), mesh_dim_names=('dp', 'tp'))['dp']
    return Layout(mesh, dp.get_local_rank(), dp.size(), dp.get_group(), fsdp, tp)


def shard_model(model, mesh, precision):
    """Shard a model over a mesh (ddp, fsdp, tp), in place, of which every process has built the same; its device holds one block at most.

    Weights stay in fp32. Those of the blocks' layers are gathered in `precision`, in which they are multiplied; norms,
    embeddings and head in fp32, as under autocast. Ends the program if tp does not divide the model.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    tp, c = mesh['tp'], model.config
    for name, number in dict(n_head=c.n_head, n_kv_head=c.kv_heads, mlp_width=c.hidden_width).items():
        if number % tp.size():
            fail(f'tp = {tp.size()} should divide {name} = {number}')
    if precision == torch.float16:
        fail("dtype = 'float16' does not go with fsdp and tp: take bfloat16 or float32")
    # of views, which should not be changed in place: we do so nowhere
    warnings.filterwarnings('ignore', 'FSDP2-wrapped module')
    dp = mesh['ddp', 'fsdp'] if mesh['ddp'].size() > 1 else mesh['fsdp']
    policy = MixedPrecisionPolicy(precision, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        if tp.size() > 1:
            apply_tp(block, tp)
        fully_shard([block.attn, block.mlp], mesh=dp, mp_policy=policy)
    fully_shard(model, mesh=dp)
    if tp.size() > 1:
        split_positions(model.summed_loss, tp)


def apply_tp(block, tp):
    """Tensor parallelism: each process has some heads and some of the MLP's width; what they give is summed up.

    Process r of tp has heads r n / tp to (r + 1) n / tp: a value per head, such as a slope, has to be cut the same way.
    """
    from torch.distributed.tensor import Replicate, parallel

    plan = {}
    for name in ('attn', 'mlp'):
        # one DTensor for all matrices that read it: its gradient is summed over the processes once, not once a matrix
        arguments = len(inspect.signature(getattr(block, name).forward).parameters)
        inputs = (Replicate(),) + (None,) * (arguments - 1)
        plan[name] = parallel.PrepareModuleInput(input_layouts=inputs, desired_input_layouts=inputs)
    columns = ['attn.q_proj', 'attn.k_proj', 'attn.v_proj', 'mlp.up_proj']
    columns += ['mlp.gate_proj'] * (block.mlp.gate_proj is not None)
    plan |= {name: parallel.ColwiseParallel() for name in columns}
    plan |= {name: parallel.RowwiseParallel() for name in ('attn.o_proj', 'mlp.down_proj')}
    parallel.parallelize_module(block, tp, plan, src_data_rank=None)  # nothing is sent: all have the weights


def split_positions(summed_loss, tp):
    """Have each process of tp compute loss.SummedCrossEntropy, whose inputs all have, for its part of the positions."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    def own(t):  # its gradient: those of all parts
        t = DTensor.from_local(t, tp, [Replicate()], run_check=False)
        return t.redistribute(placements=[Shard(0)]).to_local()

    def common(t):  # its gradient: the sum of those of the parts
        if t is None:
            return None
        return DTensor.from_local(t, tp, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])

    def before(module, inputs):
        x, weight, bias, pad_logit_bias, targets, softcap = inputs
        return own(x), common(weight), common(bias), pad_logit_bias, own(targets), softcap

    def after(module, inputs, loss):
        loss = DTensor.from_local(loss, tp, [Partial()], run_check=False).full_tensor()
        return loss.clone()  # FSDP wants no view

    summed_loss.register_forward_pre_hook(before)
    summed_loss.register_forward_hook(after)


def wrap_ddp(model, layout, device):
    """The model as training calls it: a backward pass averages the gradients of whole models, as it does of sharded ones."""
    if layout.dp_size == 1 or layout.is_sharded:
        return model
    # torch 2.13 has another name for it, which torch 2.11 does not know
    warnings.filterwarnings('ignore', '.broadcast_buffers. is deprecated')
    return DDP(model, [device.index] if device.type == 'cuda' else None, broadcast_buffers=False)


@contextlib.contextmanager
def grad_sync(model, last):
    """Within it a backward pass is the last of a step or not: the gradients of whole models are averaged once."""
    if hasattr(model, 'set_requires_all_reduce'):
        # over fsdp they are summed each time: those of a whole model are what may not fit into memory
        model.set_requires_all_reduce(last)
    with model.no_sync() if hasattr(model, 'no_sync') and not last else contextlib.nullcontext():
        yield


def clip_grad_norm_(parameters, max_norm):
    """torch.nn.utils' for parameters that may be sharded, on one mesh or another -> the norm of all gradients."""
    parameters = list(parameters)
    if not hasattr(parameters[0], 'device_mesh'):
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    alike = collections.defaultdict(list)
    for p in parameters:
        alike[p.device_mesh, p.placements].append(p.grad.to_local())
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


def full_tensor(tensor):
    """All of a tensor that may be sharded; all processes take part."""
    if not hasattr(tensor, 'device_mesh'):
        return tensor
    from torch.distributed.tensor import Replicate

    # first over fsdp, then over tp: torch warns where it has to go two ways at once
    over_fsdp = [Replicate()] * (tensor.device_mesh.ndim - 1) + [tensor.placements[-1]]
    return tensor.redistribute(placements=over_fsdp).full_tensor()


def local_shard(tensor, p):
    """Of a full tensor that all processes have, what this one holds if it is sharded as the parameter p is."""
    if not hasattr(p, 'device_mesh'):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, p.device_mesh, p.placements, src_data_rank=None)


# torch.distributed.checkpoint's get_model_state_dict and its relatives do the following too, but give the tensors of one
# process themselves, not copies: a checkpoint that is written in the background would change under the writer's hands.


def full_weights(model):
    """Name -> full weight, copied to the CPU of rank 0; None elsewhere. All processes take part."""
    return {name: copy_on_rank0(full_tensor(p.detach())) for name, p in model.named_parameters()}


@torch.no_grad()
def load_weights(model, weights):
    """Give a model, sharded or not, the weights of `full_weights`, which each process has."""
    for name, p in model.named_parameters():
        p.copy_(local_shard(weights[name], p))


def full_optimizer_state(optimizer):
    """The state_dict with full tensors, on the CPU of rank 0. All processes take part."""
    packed = optimizer.state_dict()
    states = {}
    for i, state in packed['state'].items():
        states[i] = {name: copy_on_rank0(full_tensor(t)) for name, t in state.items()}
    return packed | dict(state=states)


def sharded_optimizer_state(packed, optimizer):
    """What `load_state_dict` takes, from a state_dict with full tensors, as copies."""
    params = dict(enumerate(p for group in optimizer.param_groups for p in group['params']))
    states = {}
    for i, state in packed['state'].items():
        p = params.get(i)
        states[i] = {k: (local_shard(t, p) if t.dim() else t).clone() for k, t in state.items()}
    return packed | dict(state=states)


def copy_on_rank0(tensor):
    """A copy of a tensor on the CPU; None in other processes, which need not keep it."""
    others = torch.distributed.is_initialized() and torch.distributed.get_rank()
    return None if others else tensor.to('cpu', copy=True)
