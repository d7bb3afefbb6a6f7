"""Code shared by the attacks; it knows no attack.

Types stand here, topics have folders. No module here reads a clock or writes results.
"""
