"""The maintainers' tools; not part of the package."""
