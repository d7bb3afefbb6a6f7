"""Which parts of a model mediate refusal: attribution, heads, experts, the refusal cliff.

Builds on `reading` and `refusals`; attacks choose their targets by the findings.
It removes nothing from a model (`refusals`).
"""
