"""Training experiments: tasks, the training loop, variants, comparisons and their reports.

Needs ``pip install "conditioned-attention[experiments]"``; importing this package alone needs only torch.
"""

from conditioned_attention.experiments.evidence.comparison import Comparison
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.runs.compare import compare
from conditioned_attention.experiments.runs.own import Run
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.experiments.variants.variant import Variant

__all__ = ["VARIANTS", "Comparison", "Metric", "Run", "Variant", "compare"]
