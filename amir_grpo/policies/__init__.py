"""Policies: where their weights are, how they are loaded, and how completions are drawn from them."""
