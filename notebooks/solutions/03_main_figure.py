# Solutions to the exercises of 03_main_figure, one block for each exercise cell.

# %% 1
row = cells[(cells["benchmark"] == "AIME25") & (cells["model"] == "Gemma-3-4B-it")]
points = 1.96 * row["standard_error"].iloc[0]

# %% 2
# The seven gains of a model come from one pair of trainings, so they are not 21 independent coins: there are three pairs.
p_of_signs = stats.binomtest(19, 21).pvalue

# %% 3
mean_of_grpo = 100 * (right["grpo"] / n).groupby("benchmark").mean().mean()
