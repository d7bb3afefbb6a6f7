"""Measurements of the suite itself and of shipped models, each run as `python -m`.

Nothing else imports them, except the cards that `reroute models --check` recomputes.
"""
