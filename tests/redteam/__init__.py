"""Cheats that were seen or thought of, each tried on a harness of the usual kind and on ours."""
