"""Boosted trees as tensors: what makes numbers of a row's features, and what scores them."""
