"""The paper's claims, each as a test: the study's tables in, tables with intervals, p-values and verdicts out.

The input of every function, `study`, is what `amir_grpo.study.tables.collect` returns: the results of several seeds per arm,
on the same problems. Every interval here is for new seeds and new problems (`metrics.seeds_gain`); shares and pass rates
are in percent, gains in percentage points.
"""
