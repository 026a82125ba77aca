"""Test metrics from scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.metrics import average_precision_score, roc_auc_score


def image_metrics(scores: Float[np.ndarray, " n"], classes: Sequence[str | None]) -> dict[str, Any]:
    """AUC-ROC and AUC-PR over all images, and of each anomaly class against all normals.

    Args:
        scores: anomaly scores.
        classes: anomaly class of each image, None for normals; both kinds must be there.

    Returns:
        ``auc_roc``, ``auc_pr`` and ``per_class``: class -> ``auc_roc``, ``auc_pr``, ``n``.
    """
    kinds = np.array([name is not None for name in classes])
    names = np.array([name or "" for name in classes])

    def pair(chosen: np.ndarray) -> dict[str, float]:
        return {
            "auc_roc": float(roc_auc_score(kinds[chosen], scores[chosen])),
            "auc_pr": float(average_precision_score(kinds[chosen], scores[chosen])),
        }

    per_class = {
        str(name): pair(~kinds | (names == name)) | {"n": int((names == name).sum())}
        for name in sorted(set(names[kinds].tolist()))
    }
    return pair(np.ones(len(kinds), bool)) | {"per_class": per_class}


def category_metrics(
    scores: Float[np.ndarray, " n"], classes: Sequence[str | None], categories: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """AUC-ROC and AUC-PR of each category's anomalies against its own normals.

    Args:
        scores: as for ``image_metrics``.
        classes: as for ``image_metrics``.
        categories: the category of each image; empty where it has none.

    Returns:
        Category -> ``auc_roc``, ``auc_pr``, ``n_test``; of those that have normals and anomalies.
    """
    kinds, names = np.array([name is not None for name in classes]), np.array(categories)
    found = {}
    for name in sorted({*categories} - {""}):
        chosen = np.flatnonzero(names == name)
        if len({*kinds[chosen].tolist()}) > 1:
            metrics = image_metrics(scores[chosen], [classes[i] for i in chosen.tolist()])
            del metrics["per_class"]
            found[name] = metrics | {"n_test": len(chosen)}
    return found
