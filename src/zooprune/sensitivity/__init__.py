"""How far a projector's output moves when a visual token changes a little. Knows projectors; no models, no pruners."""

from zooprune.sensitivity.estimators import closed_form, finite_difference, is_linear, jvp, low_rank
from zooprune.sensitivity.jacobian import has_closed_form

__all__ = ["closed_form", "finite_difference", "has_closed_form", "is_linear", "jvp", "low_rank"]
