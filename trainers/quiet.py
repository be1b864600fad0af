"""Keep the libraries' chatter out of a run's output; their errors still come through."""

import logging
import warnings

_CHATTY = ("torchrec", "torch.fx", "torch.distributed", "ray.train", "ray.data", "fbgemm_gpu", "MethodLogger")


def hush() -> None:
    """Silence warnings and informational logs of the libraries. Call before they are imported."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for kind in (FutureWarning, DeprecationWarning, UserWarning):
        for module in ("torch", "torchrec", "fbgemm_gpu", "ray", "google"):
            warnings.filterwarnings("ignore", category=kind, module=rf"{module}(\.|$)")
    # Raised in our modules, on the libraries' account.
    warnings.filterwarnings("ignore", message=".*deprecating ShardedTensor.*")
    warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated.*")
