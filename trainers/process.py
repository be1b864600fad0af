"""How every livetrain process starts: before the heavy libraries are imported."""

import logging
import os
import warnings

# PyTorch on Linux then asks for memory in huge pages: large activations stop costing a page fault every 4 KiB.
# benchmarks/peers.py measures what it brings.
ENVIRONMENT = {"THP_MEM_ALLOC_ENABLE": "1"}
_CHATTY = ("torchrec", "torch.fx", "torch.distributed", "ray.train", "ray.data", "fbgemm_gpu", "MethodLogger")


def prepare() -> None:
    """Set what PyTorch reads from the environment, and keep the libraries' chatter out of the output.

    Their errors still come through, and a variable that is set already stays.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for kind in (FutureWarning, DeprecationWarning, UserWarning):
        for module in ("torch", "torchrec", "fbgemm_gpu", "ray", "google"):
            warnings.filterwarnings("ignore", category=kind, module=rf"{module}(\.|$)")
    # Raised in our modules, on the libraries' account.
    warnings.filterwarnings("ignore", message=".*deprecating ShardedTensor.*")
    warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated.*")
