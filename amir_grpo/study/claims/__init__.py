"""The paper's five claims, each as tables and comparisons of arms over the kept results of a study.

Every interval is for new base policies and seeds (`amir_grpo.study.inference`); all units are in the tables.
"""
