"""Run folders: training, evaluation, export, and whole reproductions."""
