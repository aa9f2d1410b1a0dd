"""Shows what conversion would do to a model, and how well its heads are conditioned now."""

from conditioned_attention.inspection.inputs import load_input, synthetic_input
from conditioned_attention.inspection.inspect import Inspection, InspectionRow, inspect_model
from conditioned_attention.inspection.load import load_model, weights_in_words

__all__ = [
    "Inspection",
    "InspectionRow",
    "inspect_model",
    "load_input",
    "load_model",
    "synthetic_input",
    "weights_in_words",
]
