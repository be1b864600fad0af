"""What users' and items' vectors say of each other, where a user has one vector or several."""

from torch import Tensor


def of_pairs(users: Tensor, items: Tensor) -> Tensor:
    """Return the score of each row's item, (B,): <u, v>, or the largest of <u_k, v>.

    Args:
        users: (B, d), or (B, K, d) of users with K vectors.
        items: (B, d).

    Example:
        >>> import torch
        >>> of_pairs(torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), torch.tensor([[3.0, 4.0]]))
        tensor([8.])
    """
    if users.dim() == 3:
        return (users * items.unsqueeze(1)).sum(2).amax(1)
    return (users * items).sum(1)


def of_all(users: Tensor, items: Tensor) -> Tensor:
    """Return each user's score of each item, (Q, N).

    Args:
        users: (Q, d), or (Q, K, d).
        items: (N, d).

    Example:
        >>> import torch
        >>> of_all(torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), torch.tensor([[3.0, 4.0], [3.0, 0.0]]))
        tensor([[8., 3.]])
    """
    if users.dim() == 3:
        return (users.flatten(0, 1) @ items.t()).unflatten(0, [users.size(0), users.size(1)]).amax(1)
    return users @ items.t()
