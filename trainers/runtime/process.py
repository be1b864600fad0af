"""How every livetrain process starts: before the heavy libraries are imported."""

import codecs
import ctypes
import io
import locale
import logging
import os
import sys
import warnings
from pathlib import Path

from livetrain.configs.errors import BadInput, shown

# PyTorch on Linux then asks for memory in huge pages: large activations stop costing a page fault every 4 KiB.
# benchmarks/peers.py measures what it brings.
# The locale of a worker may be another than the driver's.
ENVIRONMENT = {"THP_MEM_ALLOC_ENABLE": "1", "PYTHONUTF8": "1"}
# What glibc's malloc is told, by its names: to take arrays of up to 32 MiB, the most it can be told, from memory that
# it keeps, and to give that back only where this much of it lies free. By itself it returns the memory of a step's
# activations to the system at once, which then clears every page anew in the next step. benchmarks/allocator.py.
ALLOCATOR = {"mmap_threshold": 32 << 20, "trim_threshold": 256 << 20}
_MALLOPT = {"trim_threshold": -1, "top_pad": -2, "mmap_threshold": -3, "mmap_max": -4}  # as malloc.h numbers them
_CHATTY = ("torchrec", "torch.fx", "torch.distributed", "ray.train", "ray.data", "fbgemm_gpu", "MethodLogger")
_MOST_THREADS = 4096
# A Unix socket's path has 107 bytes on Linux, and this is the longest that Ray puts below its folder's parent.
_LONGEST_TEMPORARY = 107 - len("/ray/session_2026-11-24_12-00-00_000000_4194304/sockets/plasma_store")


def in_utf8() -> None:
    """Start this command again in Python's UTF-8 mode where the locale has another encoding.

    Recipes, reports and most file names are UTF-8, and Python takes its encoding of file names from the start.
    """
    if not sys.flags.utf8_mode and codecs.lookup(locale.getencoding()).name != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def set_up() -> None:
    """Set what PyTorch reads from the environment, let freed memory be kept, and keep chatter out of the output.

    The libraries' errors still come through, and a variable that is set already stays. Output that the terminal's
    encoding lacks is written as escapes.

    Raises:
        BadInput: a variable holds what it cannot mean.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    threads()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    keep_freed()
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for kind in (FutureWarning, DeprecationWarning, UserWarning):
        for module in ("torch", "torchrec", "fbgemm_gpu", "ray", "google"):
            warnings.filterwarnings("ignore", category=kind, module=rf"{module}(\.|$)")
    # Raised in our modules, on the libraries' account.
    warnings.filterwarnings("ignore", message=".*deprecating ShardedTensor.*")
    warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated.*")


def keep_freed() -> None:
    """Let malloc keep what a training step frees for the next one, as `ALLOCATOR` says.

    Only glibc's has such settings, and another allocator that is preloaded does not ask for them. Where a user has made
    one of them, by a variable MALLOC_..._ or by GLIBC_TUNABLES, all are left as they are.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if any(f"MALLOC_{name.upper()}_" in os.environ or f"glibc.malloc.{name}=" in tunables for name in _MALLOPT):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # neither musl nor macOS has it
        for name, size in ALLOCATOR.items():
            mallopt(_MALLOPT[name], size)


def threads(otherwise: int = 1) -> int:
    """Return how many threads this process computes with: OMP_NUM_THREADS, or `otherwise`.

    One by default, as the workers share a machine.

    OpenMP knows a list there too, of nested levels, whose first number counts here.

    Raises:
        BadInput: it holds no number of threads.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    number = int(first) if first.isascii() and first.isdigit() and len(first) < 9 else 0
    if first and not 1 <= number <= _MOST_THREADS:
        value = shown(os.environ["OMP_NUM_THREADS"])
        raise BadInput(
            f"OMP_NUM_THREADS: {value} is no number of threads; set it from 1 to {_MOST_THREADS:,}, or leave it out"
        )
    return number or otherwise


def ray_folder() -> str:
    """Return where a Ray of this machine's own keeps its files: below RAY_TMPDIR, TMPDIR or /tmp.

    The first of them that can be written to and is short enough for the sockets in it counts.

    Raises:
        BadInput: none is.
    """
    for folder in (os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR"), "/tmp"):
        if not folder or len(os.fsencode(os.path.abspath(folder))) > _LONGEST_TEMPORARY:
            continue
        place = Path(folder).absolute() / "ray"
        if os.access(place if place.exists() else place.parent, os.W_OK | os.X_OK):
            return str(place)
    raise BadInput(
        "RAY_TMPDIR: Ray needs a folder to write to whose path has at most "
        f"{_LONGEST_TEMPORARY} bytes, and /tmp is none either; name one by RAY_TMPDIR"
    )
