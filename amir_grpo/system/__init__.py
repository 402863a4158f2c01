"""Files, locks, processes, progress and provenance."""
