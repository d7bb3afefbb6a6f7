"""Which parts of a model refuse: attribution, heads, experts, the cliff of models that think.

Builds on `reading` and `refusals`; what is found here tells attacks where to aim.
"""
