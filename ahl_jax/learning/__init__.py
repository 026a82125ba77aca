"""Anomaly Heterogeneity Learning: the paper, as pure functions of arrays.

``hadg`` makes the subsets, ``cdl`` is an epoch (AHL Eq. 1 to 4), ``importance`` gives r_i and w_i
(Eq. 5 to 7), ``problem`` puts a run together.
"""
