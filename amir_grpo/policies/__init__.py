"""Policies: where their weights are, what loads them, and what draws completions from them."""
