"""Which parts of a model mediate refusal: attribution, heads, experts, the refusal cliff.

Builds on `reading` and `refusals`; attacks use the findings to choose their targets.
"""
