"""The machine: device, precision, compiler, processes, and how fast it could be."""

import contextlib
import ctypes
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from common import fail

MAC = sys.platform == 'darwin'

# Dense bf16 (fp16 where there is no bf16) tensor-core peaks in FLOP/s, from the makers' data sheets; the first
# name that occurs in the device's name counts.
GPU_PEAKS = {'GB200': 2500e12, 'B200': 2250e12, 'GH200': 989e12, 'H200': 989e12}
GPU_PEAKS |= {'H100 PCIe': 756e12, 'H100 NVL': 835e12, 'H100': 989e12, 'A100': 312e12}
GPU_PEAKS |= {'L40S': 362e12, 'L4': 121e12, 'A10G': 70e12, 'A10': 125e12}
GPU_PEAKS |= {'RTX 5090': 209e12, 'RTX 4090': 165e12, 'RTX 3090': 71e12}


@contextlib.contextmanager
def user_errors():
    """End the program with one line where a ValueError or OSError is raised, as by code that is no script's."""
    try:
        yield
    except (ValueError, OSError) as e:
        fail(' '.join(str(e).split()))


def choose_device(device):
    """'auto' or torch's name of a device -> torch.device. Under torchrun a CUDA process gets the GPU of its local rank."""
    if device == 'auto':
        mps_or_cpu = 'mps' if torch.backends.mps.is_available() else 'cpu'
        device = 'cuda' if torch.cuda.is_available() else mps_or_cpu
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ('cpu', 'cuda', 'mps'):
        fail(f'device = {device!r} is none of auto, cpu, cuda, cuda:1, mps')
    if chosen.type == 'cuda':
        index = int(os.environ.get('LOCAL_RANK', chosen.index or 0))
        needed, seen = int(os.environ.get('LOCAL_WORLD_SIZE', index + 1)), torch.cuda.device_count()
        if needed > seen:
            fail(f'device = {device!r} needs {needed} GPUs, torch sees {seen}; try --device=cpu')
        chosen = torch.device('cuda', index)
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision('high')  # TF32
    elif chosen.type == 'mps' and not torch.backends.mps.is_available():
        fail("device = 'mps': there is none here; --device=cpu runs anywhere")
    return chosen


def choose_dtype(dtype, device):
    """'auto' or the name of a float type -> torch.dtype; auto is bf16 where the hardware has it."""
    types = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
    if dtype == 'auto':
        if device.type == 'cuda':
            return types['bfloat16' if torch.cuda.is_bf16_supported(including_emulation=False) else 'float16']
        # AVX512-BF16, AMX, Armv8.6: other CPUs emulate bf16, slowly
        cpuinfo = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
        is_fast = device.type == 'cpu' and re.search(r'\b(avx512_bf16|amx_bf16|bf16)\b', cpuinfo)
        return types['bfloat16' if is_fast else 'float32']
    if dtype not in types:
        fail(f'dtype = {dtype!r} is none of auto, {", ".join(types)}')
    return types[dtype]


def autocast(device, dtype):
    """The context in which forward passes run: matrix products in dtype, weights in fp32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def why_not_compile(device):
    """'' where torch.compile works, otherwise the reason."""
    if device.type == 'cpu' and not shutil.which(os.environ.get('CXX', 'clang++' if MAC else 'g++')):
        return 'there is no C++ compiler'
    if device.type == 'cuda' and not any(map(shutil.which, (os.environ.get('CC', 'cc'), 'gcc', 'clang'))):
        return 'there is no C compiler'
    if device.type == 'cuda' and not importlib.util.find_spec('triton'):
        return 'triton is not installed'
    if device.type != 'mps' and not Path(sysconfig.get_path('include'), 'Python.h').exists():
        return "Python's C headers are not installed"
    return 'torch.compile is young on MPS' if device.type == 'mps' else ''


def init_distributed(backend, device, timeout):
    """torch.distributed, if torchrun started this process -> (rank, world_size).

    timeout: seconds that a process waits for another before it says so itself (faults.py); a little later torch ends it.
    """
    if 'RANK' not in os.environ:
        return 0, 1
    backend = backend or ('nccl' if device.type == 'cuda' else 'gloo')
    # gloo beside nccl, for the few numbers that live on the host
    backends = 'cpu:gloo,cuda:nccl' if backend == 'nccl' else backend
    timeout = timedelta(seconds=timeout + 10)
    store, rank, world_size = next(dist.rendezvous('env://', timeout=timeout))
    store = store_of_this_start(store, rank, world_size, timeout)
    dist.init_process_group(backends, store=store, rank=rank, world_size=world_size, timeout=timeout)
    return rank, world_size


def store_of_this_start(store, rank, world_size, timeout):
    """The part of torch.distributed's key-value store that belongs to this start of the processes.

    torchrun keeps one store over restarts, with the addresses of dead processes (pytorch issue 135712). So rank 0 counts the
    starts and answers each other rank under the number of this one with the random call that it finds there: an answer with
    its own call is not of an earlier start. Raises RuntimeError after timeout, a timedelta.
    """
    if rank == 0:
        start = store.add('start', 1)
        for other in range(1, world_size):
            store.set(f'{start}/answer/{other}', store.get(f'{start}/call/{other}'))
    else:
        call, end, answered = os.urandom(8), time.monotonic() + timeout.total_seconds(), False
        while not answered:
            if time.monotonic() > end:
                raise RuntimeError('timed out waiting for rank 0')
            start = store.add('start', 0)
            store.set(f'{start}/call/{rank}', call)
            time.sleep(0.05)
            answer = f'{start}/answer/{rank}'
            answered = store.check([answer]) and store.get(answer) == call
    return dist.PrefixStore(str(start), store)


def all_reduce_sum(tensor, group=None):
    """Add up a tensor over the processes, or a group of them, in place, and return it."""
    if dist.is_initialized():
        dist.all_reduce(tensor, group=group)
    return tensor


def all_reduce_max(number):
    """The highest that any process gives, an int."""
    tensor = torch.tensor(number)
    if dist.is_initialized():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def run_on_rank0(function, *args):
    """Call a function on rank 0 only -> what it returns there, in all processes, which wait for it.

    Where it ends the program, with a line that says why, the others end as well.
    """
    if not dist.is_initialized():
        return function(*args)
    result, ending = [None, False], SystemExit(2)
    if dist.get_rank() == 0:
        try:
            result = [function(*args), True]
        except SystemExit as e:
            ending = e
    dist.broadcast_object_list(result, device=torch.device('cpu'))
    if not result[1]:
        raise ending
    return result[0]


def pin(batch, device):
    """A batch (dict of tensors) in pinned memory if the device is a GPU: copies to it overlap with its work."""
    return {name: t.pin_memory() for name, t in batch.items()} if device.type == 'cuda' else batch


def to_device(batch, device):
    """A batch (dict of tensors) on the device."""
    return {name: t.to(device, non_blocking=True) for name, t in batch.items()}


def peak_flops(device, dtype):
    """Highest FLOP/s of the device in dtype: a GPU's by its data sheet, a CPU's as measured, 0 where unknown."""
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
        peak = next((peak for gpu, peak in GPU_PEAKS.items() if re.search(rf'\b{gpu}\b', name)), 0)
        return peak if dtype != torch.float32 else peak / 2  # TF32 runs at half the rate
    return measured_matmul_flops(dtype) if device.type == 'cpu' else 0


def measured_matmul_flops(dtype, n=1024, seconds=0.2):
    """FLOP/s of the fastest of several (n, n) x (n, n) products on the CPU."""
    a, best, end = torch.randn(n, n, dtype=dtype), float('inf'), time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def keep_freed_memory():
    """Have malloc keep freed memory for the next step; giving pages back and taking them again costs a tenth of one.

    glibc's only (mallopt: M_TRIM_THRESHOLD never, M_MMAP_MAX none); other systems go on as before.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        for parameter, value in ((-1, -1), (-4, 0)):
            ctypes.CDLL(None).mallopt(parameter, value)


def memory_used(device):
    """Peak bytes held so far: of the GPU by torch, or of this process."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if MAC else 1024)
