"""Anomaly Heterogeneity Learning: the paper, as pure functions of arrays.

``problem`` puts a run together, ``hadg`` makes the subsets, ``learner`` has the gradient steps of
the base models (AHL Eq. 1), ``cdl`` an epoch with the update of the unified model (Eq. 2 to 4), and
``importance`` r_i and w_i (Eq. 5 to 7).
"""
