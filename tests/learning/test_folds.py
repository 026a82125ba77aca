import pytest

from ahl_jax.learning.folds import make_folds


@pytest.mark.parametrize(
    ("normals", "share", "parts", "size"),
    [(60, 0.1, 10, 6), (73, 0.1, 10, 8), (19, 0.1, 19, 1), (20, 0.1, 10, 2), (2, 0.5, 2, 1)],
)
def test_every_normal_is_scored_once_by_fits_of_one_size(
    normals: int, share: float, parts: int, size: int
) -> None:
    folds = make_folds(normals, share, 0)
    assert len(folds) == parts
    assert all(len(set(fold.left_out.tolist())) == size for fold in folds)
    scored = [i for fold in folds for i in fold.left_out[: fold.own].tolist()]
    assert sorted(scored) == list(range(normals))
    again, other = make_folds(normals, share, 0), make_folds(normals, share, 1)
    assert all((one.left_out == two.left_out).all() for one, two in zip(folds, again, strict=True))
    if normals > 2:
        assert any((a.left_out != b.left_out).any() for a, b in zip(folds, other, strict=True))
