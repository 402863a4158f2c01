# Solutions to the exercises of 05_margin, one block for each exercise cell.

# %% 1
def my_margin(rows):
    """Return the margin of one problem; rows has the columns logprob, tokens and correct."""
    per_token = rows["logprob"] / rows["tokens"]
    return per_token[rows["correct"]].mean() - per_token[~rows["correct"]].mean()


# %% 2
times_as_likely = 2.718281828 ** (20 * 0.25)  # 148
