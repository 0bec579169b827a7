"""Running plans: compilers, disk cache, launching, timing.

Knows nothing of specs, graphs or templates: a ``plan.Plan`` is all it is given, so text edited by
hand runs the same way as generated text.
"""
