from ebmcore.trace.estimators import TraceEstimate, exact, function_value_and_trace, hutch_plus_plus, hutchinson, xtrace
from ebmcore.trace.probes import draw_probes

__all__ = ["TraceEstimate", "draw_probes", "exact", "function_value_and_trace", "hutch_plus_plus", "hutchinson", "xtrace"]
