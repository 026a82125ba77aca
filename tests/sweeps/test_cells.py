from pathlib import Path

from ahl_jax import preset
from ahl_jax.data.open import load_dataset
from ahl_jax.data.splits import make_split
from ahl_jax.features.split import load_split, split_digest
from ahl_jax.sweeps.cells import Cell


def test_a_cell_has_the_images_of_its_run_where_normals_are_held_out_in_turn(weave: Path) -> None:
    # Otherwise a finished cell is trained again, as if its images had changed.
    config = preset("density", str(weave), shots=3)
    cell = Cell(config, Path("cell"))
    split = make_split(load_dataset(cell.data), cell.data, config.seed)
    assert split_digest(split) == split_digest(load_split(config))
