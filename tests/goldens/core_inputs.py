"""Weights and inputs that make_core and the tests of the learning core build alike; NumPy only."""

import numpy as np

CHANNELS = 4
HIDDEN = 6
TOP_K = 0.1
MARGIN = 5.0
PRIOR = (0.02, 1.01)
SIDES = ((8, 7), (4, 5))
"""Height and width of the two scales; 3 divides none of them."""

LABELS = np.array([0, 0, 1, 1, 2, 2])
TIMES = np.array([2, 1, 3, 1, 1, 4])
"""How often a balanced batch repeats each image."""

REFERENCES = 3
PSI = {"subsets": 3, "history": 5, "images": 4}


def maps() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Feature maps of the images and of the reference normals, [n, h, w, c] for each scale."""
    random = np.random.RandomState(0)

    def draw(n: int) -> list[np.ndarray]:
        return [random.normal(0, 1, (n, *side, CHANNELS)).astype(np.float32) for side in SIDES]

    return draw(len(LABELS)), draw(REFERENCES)


def weights(detector: str) -> dict[str, np.ndarray]:
    """Weights in PyTorch's names and layouts."""
    random = np.random.RandomState(1)
    c = CHANNELS
    shapes: dict[str, tuple[int, ...]]
    if detector == "devnet":
        shapes = {"anomaly.weight": (1, c, 1, 1), "anomaly.bias": (1,)}
    else:
        shapes = {
            "seen.weight": (1, c, 1, 1),
            "seen.bias": (1,),
            "pseudo.weight": (1, c, 1, 1),
            "pseudo.bias": (1,),
            "residual.weight": (c, c, 3, 3),
            "norm.weight": (c,),
            "norm.bias": (c,),
            "residual_out.weight": (1, c, 1, 1),
            "residual_out.bias": (1,),
            "normality.weight": (HIDDEN, c),
            "normality.bias": (HIDDEN,),
            "normality_out.weight": (1, HIDDEN),
            "normality_out.bias": (1,),
        }
    return {name: random.normal(0, 0.6, s).astype(np.float32) for name, s in shapes.items()}


def statistics() -> tuple[np.ndarray, np.ndarray]:
    """Running mean and variance of the residual head's batch normalisation."""
    random = np.random.RandomState(2)
    mean = random.normal(0, 1, CHANNELS)
    return mean.astype(np.float32), random.uniform(1, 9, CHANNELS).astype(np.float32)


def psi_weights() -> dict[str, np.ndarray]:
    """A two-layer bidirectional LSTM and two linear layers, in PyTorch's names and layouts."""
    random = np.random.RandomState(3)
    t = PSI["subsets"]
    shapes: dict[str, tuple[int, ...]] = {"out.weight": (t, 2 * t), "out.bias": (t,)}
    for layer, inputs in enumerate((t, 2 * t)):
        for way in ("", "_reverse"):
            shapes[f"lstm.weight_ih_l{layer}{way}"] = (4 * t, inputs)
            shapes[f"lstm.weight_hh_l{layer}{way}"] = (4 * t, t)
            shapes[f"lstm.bias_ih_l{layer}{way}"] = (4 * t,)
            shapes[f"lstm.bias_hh_l{layer}{way}"] = (4 * t,)
    shapes |= {"hidden.weight": (2 * t, 2 * t), "hidden.bias": (2 * t,)}
    return {name: random.normal(0, 0.7, s).astype(np.float32) for name, s in shapes.items()}


def psi_history() -> np.ndarray:
    """Scores of the last K epochs [n, K, T]."""
    shape = (PSI["images"], PSI["history"], PSI["subsets"])
    return np.random.RandomState(4).normal(0, 2, shape).astype(np.float32)
