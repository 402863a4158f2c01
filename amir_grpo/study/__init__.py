"""The study behind the claims: its arms, its runs, its tables."""
