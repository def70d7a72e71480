"""The resources of this machine that this process may use.

Reading is separate from interpreting: cgroup limits are a pure function of file contents. Torch is
never imported here, because ``pdqn check`` must answer at once and the launcher must not hold a
CUDA context that its children would inherit.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import psutil

from pdqn.errors import RunError
from pdqn.process import own_host

UNLIMITED = 2**63 - 1
PACKAGES = (
    "torch", "numpy", "gymnasium", "numba", "pyzmq", "msgpack", "zstandard", "rich", "tensorboard",
)  # fmt: skip
OPTIONAL = {
    "atari": "ale-py", "minatar": "MinAtar", "gpu": "nvidia-ml-py", "video": "imageio-ffmpeg",
    "onnx": "onnxscript", "prometheus": "prometheus-client", "wandb": "wandb",
    "dask": "distributed", "geo": "rasterio", "sweep": "optuna",
}  # fmt: skip
# torch.compile needs one of these, on any device.
COMPILERS = ("c++", "g++", "clang++", "cl")

_CGROUP_ROOT = "/sys/fs/cgroup"
# cgroup v1 writes "no limit" as a number close to 2^63.
_NO_MEMORY_LIMIT = 1 << 60
_NVIDIA_DRIVER_FILES = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg")
_TORCH_PROBE = """
import json, torch
count = torch.cuda.device_count()
properties = [torch.cuda.get_device_properties(index) for index in range(count)]
print(json.dumps([
    [p.name, p.total_memory, torch.cuda.mem_get_info(index)[0], [p.major, p.minor]]
    for index, p in enumerate(properties)
]))
"""
_TORCH_PROBE_SECONDS = 120

Read = Callable[[str], str | None]


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process may use.

    Attributes:
        compute_capability: (major, minor); bfloat16 is fast from (8, 0) on.
    """

    name: str
    memory_total_bytes: int
    memory_free_bytes: int
    compute_capability: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Machine:
    """The resources of this host that this process may use.

    Attributes:
        cores: logical cores after CPU affinity and cgroup quota; at least 1.
        ram_total_bytes: installed, or the cgroup's limit if that is lower.
        ram_available_bytes: what can be taken without swapping or hitting the cgroup's limit.
        open_files_soft: the soft limit of this process; ``UNLIMITED`` if it has none.
        open_files_hard: the hard limit, in the same way.
        shm_free_bytes: free space of /dev/shm; 0 if there is no such file system.
        versions: of Python and the packages that matter, by name; "" for one that is missing.
        optional: versions of what ``pdqn[extra]`` installs, by extra; "" for one that is missing.
        compiler: path of a C++ compiler; "" if there is none.
    """

    hostname: str
    system: str
    cores: int
    physical_cores: int
    logical_cores: int
    ram_total_bytes: int
    ram_available_bytes: int
    gpus: tuple[Gpu, ...]
    open_files_soft: int
    open_files_hard: int
    shm_free_bytes: int
    versions: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    compiler: str = ""

    @property
    def torch_has_cuda(self) -> bool:
        """Return whether the installed torch can use a GPU; its version tells without an import."""
        return not self.versions.get("torch", "").endswith("+cpu")

    @property
    def learner_gpu(self) -> Gpu | None:
        """The GPU that the learner would use: the first."""
        return self.gpus[0] if self.gpus and self.torch_has_cuda else None


@dataclass(frozen=True)
class CgroupLimits:
    """The tightest limits of this process's cgroup and those above it; None without a limit."""

    cores: float | None = None
    memory_bytes: int | None = None
    memory_available_bytes: int | None = None


def detect() -> Machine:
    """Detect the resources of this machine."""
    limits = cgroup_limits(_read_text)
    memory = psutil.virtual_memory()
    soft, hard = map(_file_limit, resource.getrlimit(resource.RLIMIT_NOFILE))
    logical = psutil.cpu_count() or 1
    return Machine(
        hostname=own_host(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cores=usable_cores(_affinity(logical), limits.cores),
        physical_cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
        ram_total_bytes=_least(memory.total, limits.memory_bytes),
        ram_available_bytes=_least(memory.available, limits.memory_available_bytes),
        gpus=_gpus(),
        open_files_soft=soft,
        open_files_hard=hard,
        shm_free_bytes=_free_bytes("/dev/shm"),
        versions={"python": platform.python_version()}
        | {name: _version(name) for name in PACKAGES},
        optional={extra: _version(name) for extra, name in OPTIONAL.items()},
        compiler=next(filter(None, map(shutil.which, COMPILERS)), ""),
    )


def load() -> tuple[float, int]:
    """Measure this host's load: percent of all its cores since the last call, and bytes in use.

    Both are 0 where they cannot be measured now, as in a process that has no descriptor left.
    """
    try:
        memory = psutil.virtual_memory()
        return psutil.cpu_percent(), memory.total - memory.available
    except OSError:
        return 0.0, 0


def port_error(host: str, port: int) -> str | None:
    """Say why a TCP port cannot be bound; None if it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror
    return None


def raise_open_file_limit(needed: int) -> None:
    """Raise the soft limit of open files of this process and its children, if it is too low.

    Raises:
        RunError: the hard limit is lower than what is needed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _file_limit(soft) >= needed:
        return
    if _file_limit(hard) < needed:
        raise RunError(open_files_error(needed, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def open_files_error(needed: int, hard: int) -> str:
    """Say why the run cannot open its sockets, and what helps."""
    return (
        f"the run needs {needed} open files, the hard limit is {hard}: raise it "
        f"(ulimit -Hn {needed} as root, or LimitNOFILE= of the service), or use fewer actors"
    )


def usable_cores(affinity: int, quota: float | None) -> int:
    """Count the whole cores within CPU affinity and quota: half a core keeps no actor busy."""
    return max(1, affinity if quota is None else min(affinity, int(quota)))


# ---- cgroups ----


def cgroup_limits(read: Read) -> CgroupLimits:
    """Read the CPU and memory limits of this process from cgroup v1 or v2.

    A limit may be set on any level, so every level from the process's own group up to the root is
    read. In a container the path of that group may not be visible; the root is then that group.

    Args:
        read: returns the text of the file at a path, or None if there is no such file.
    """
    groups = _own_groups(read("/proc/self/cgroup") or "")
    quotas = list(_cpu_quotas(read, groups))
    memory = list(_memory_limits(read, groups))
    return CgroupLimits(
        cores=min(quotas, default=None),
        memory_bytes=min((limit for limit, _ in memory), default=None),
        memory_available_bytes=min((available for _, available in memory), default=None),
    )


def _own_groups(text: str) -> dict[str, str]:
    """Map controllers to paths, from /proc/self/cgroup; the controller of version 2 is ``""``."""
    rows = (line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2)
    return {name: path for _, names, path in rows for name in names.split(",")}


def _levels(root: str, path: str) -> Iterator[str]:
    """Yield the directory of a group, then those above it, up to the root."""
    group = PurePosixPath(path.lstrip("/"))
    for level in (group, *group.parents):
        yield str(PurePosixPath(root) / level)


def _cpu_quotas(read: Read, groups: Mapping[str, str]) -> Iterator[float]:
    for level in _levels(_CGROUP_ROOT, groups.get("", "/")):
        quota, period = [*(read(f"{level}/cpu.max") or "").split(), "", ""][:2]
        yield from _quota(quota, period)
    for level in _levels(f"{_CGROUP_ROOT}/cpu", groups.get("cpu", "/")):
        quota = read(f"{level}/cpu.cfs_quota_us") or ""
        yield from _quota(quota, read(f"{level}/cpu.cfs_period_us") or "")


def _quota(quota: str, period: str) -> Iterator[float]:
    """Yield the cores that a quota in microseconds allows; ``max``, -1 and missing files: none."""
    used, whole = _integer(quota), _integer(period)
    if used and whole and used > 0 and whole > 0:
        yield used / whole


def _memory_limits(read: Read, groups: Mapping[str, str]) -> Iterator[tuple[int, int]]:
    """Yield the limit and the available bytes of every level that has a limit."""
    for level in _levels(_CGROUP_ROOT, groups.get("", "/")):
        yield from _memory(read, level, "memory.max", "memory.current", "inactive_file")
    for level in _levels(f"{_CGROUP_ROOT}/memory", groups.get("memory", "/")):
        yield from _memory(
            read, level, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        )


def _memory(
    read: Read, level: str, limit_file: str, usage_file: str, reclaimable: str
) -> Iterator[tuple[int, int]]:
    limit = _integer(read(f"{level}/{limit_file}") or "")
    if limit is None or not 0 < limit < _NO_MEMORY_LIMIT:
        return
    used = _integer(read(f"{level}/{usage_file}") or "") or 0
    # Cached file pages count as used, but the kernel gives them back before the limit hurts.
    statistics = dict(
        line.split(" ", 1) for line in (read(f"{level}/memory.stat") or "").splitlines()
    )
    cached = _integer(statistics.get(reclaimable, "")) or 0
    yield limit, min(limit, max(0, limit - used + cached))


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


# ---- GPUs ----


def visible_gpus(
    gpus: Sequence[tuple[str, Gpu]], cuda_visible_devices: str | None
) -> tuple[Gpu, ...]:
    """Select from (uuid, GPU) pairs what CUDA_VISIBLE_DEVICES leaves visible, in its order.

    As in CUDA, entries are indices or the beginnings of uuids. The first entry that names no GPU
    ends the list.
    """
    if cuda_visible_devices is None:
        return tuple(gpu for _, gpu in gpus)
    chosen = []
    for entry in map(str.strip, cuda_visible_devices.split(",")):
        named = [
            gpu
            for index, (uuid, gpu) in enumerate(gpus)
            if entry == str(index) or (entry.startswith("GPU-") and uuid.startswith(entry))
        ]
        if not named:
            break
        chosen.append(named[0])
    return tuple(chosen)


def _gpus() -> tuple[Gpu, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    known = None if _names_a_part(visible) else _nvml_gpus()
    if known is not None:
        return visible_gpus(known, visible)
    if any(Path(path).exists() for path in _NVIDIA_DRIVER_FILES):
        return _torch_gpus()
    return ()


def _names_a_part(cuda_visible_devices: str | None) -> bool:
    """Tell whether a person chose parts of GPUs (MIG); the management library lists whole GPUs."""
    entries = (cuda_visible_devices or "").split(",")
    return any(entry.strip().startswith("MIG-") for entry in entries)


def _nvml_gpus() -> list[tuple[str, Gpu]] | None:
    """List all GPUs and their uuids from NVIDIA's management library, without a CUDA context.

    None if the package or the driver is missing, or if the driver refuses a query. It refuses that
    for the memory of a GPU if this process has only a part of the GPU.
    """
    if importlib.util.find_spec("pynvml") is None:
        return None
    nvml: Any = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
        try:
            return [_nvml_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError:
        return None


def _nvml_gpu(nvml: Any, index: int) -> tuple[str, Gpu]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    capability = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    name = nvml.nvmlDeviceGetName(handle)
    gpu = Gpu(name, int(memory.total), int(memory.free), (capability[0], capability[1]))
    return nvml.nvmlDeviceGetUUID(handle), gpu


def _torch_gpus() -> tuple[Gpu, ...]:
    """List the GPUs that torch sees, from another process: the answer costs a CUDA context."""
    try:
        answer = subprocess.run(
            [sys.executable, "-P", "-c", _TORCH_PROBE],
            capture_output=True,
            check=True,
            text=True,
            timeout=_TORCH_PROBE_SECONDS,
        )
        rows = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, json.JSONDecodeError):
        return ()
    return tuple(Gpu(name, total, free, (c[0], c[1])) for name, total, free, c in rows)


# ---- reading ----


def _read_text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _affinity(logical: int) -> int:
    # macOS has no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical


def _file_limit(value: int) -> int:
    return UNLIMITED if value == resource.RLIM_INFINITY else value


def _least(value: int, limit: int | None) -> int:
    return value if limit is None else min(value, limit)


def _free_bytes(path: str) -> int:
    with contextlib.suppress(OSError):
        return psutil.disk_usage(path).free
    return 0


def _version(name: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return ""
