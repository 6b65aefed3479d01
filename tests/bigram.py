"""A model for tests of prepare.py. In a file of its own: see `labs.Later`."""

from __future__ import annotations

import torch


class Model(torch.nn.Module):
    """A bigram model with more columns than tokens, a tied tensor, and a buffer."""

    def __init__(self, columns: int = 320) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(columns, 16)
        self.head = torch.nn.Linear(16, columns, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("shift", torch.zeros(1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(tokens)) + self.shift
