"""Code shared by the attacks; it knows no attack."""
