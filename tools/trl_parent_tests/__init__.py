"""TRL's own tests of GRPOTrainer with AmirGRPOTrainer in its place; see `__main__`."""
