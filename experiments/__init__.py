"""Experiments over many runs that docs/claims.md reports; see README.md."""
