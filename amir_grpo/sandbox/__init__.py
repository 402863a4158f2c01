"""The sandbox: problems that are made on the spot, and base policies that come with the package."""
