"""Model families, weights that come in, and the checkpoints that they come in."""

from __future__ import annotations

from tools.mutations.mutant import Mutant

MUTANTS: list[Mutant] = []
