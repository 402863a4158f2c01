"""The sandbox: problems and a base policy that are made on the spot."""
