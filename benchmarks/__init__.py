"""The harness: runs attacks against models, judges the answers, and tabulates."""
