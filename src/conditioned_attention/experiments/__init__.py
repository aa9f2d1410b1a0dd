"""Everything that trains: tasks, the training loop, variants, comparisons and their reports.

Needs ``pip install "conditioned-attention[experiments]"``; importing this package alone needs only torch.
"""

from conditioned_attention.experiments.compare import compare
from conditioned_attention.experiments.comparison import Comparison
from conditioned_attention.experiments.variants import VARIANTS, Variant

__all__ = ["VARIANTS", "Comparison", "Variant", "compare"]
