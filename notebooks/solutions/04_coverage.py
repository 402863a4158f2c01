# Solutions to the exercises of 04_coverage, one block for each exercise cell.

# %% 1
from math import comb


def exact_p(a, b):
    """Return the chance of a split at least as uneven as a to b."""
    n = a + b
    end = sum(comb(n, k) for k in range(min(a, b) + 1)) / 2**n
    return min(1.0, 2 * end)


# %% 2
fewest = 6  # 2 / 2**6 = 0.031, 2 / 2**5 = 0.0625

# %% 3
lost = int(((solved["base"] == 1) & (solved["grpo"] == 0) & (solved["amir_grpo"] == 0)).sum())
