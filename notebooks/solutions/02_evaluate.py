# Solutions to the exercises of 02_evaluate, one block for each exercise cell.

# %% 1
from math import comb


def my_pass_at_k(c, n, k):
    """Return the chance that k of n completions include a right one, if c of the n are right."""
    return 1 - comb(n - c, k) / comb(n, k)


# %% 2
corrected = [0.06, 0.03, 0.06]  # 0.01 × 3 = 0.03, 0.03 × 2 = 0.06; 0.04 × 1 is below that and becomes 0.06

# %% 3
times_as_many = 9
