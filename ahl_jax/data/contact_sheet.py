"""A picture of a data set: a few images of every class, in rows."""

import io
from pathlib import Path

from ahl_jax.common.errors import BadImageError, UserError
from ahl_jax.common.files import make_folder, replace_file, writing
from ahl_jax.common.text import printable
from ahl_jax.data.frame import Frame
from ahl_jax.data.images import read_image
from ahl_jax.data.records import ImageSource
from ahl_jax.data.types import Dataset

COLUMNS = 6

_FRAME = Frame(160, 160, keep_aspect=True)


def rows(dataset: Dataset) -> dict[str, tuple[ImageSource, ...]]:
    """The images of a data set by what they are: training and test normals, then each class."""
    normals = {"train: good": dataset.train_normals, "test: good": dataset.test_normals}
    labelled = {f"train: {name}": paths for name, paths in dataset.labelled.items()}
    others = {f"test: {name}": paths for name, paths in dataset.anomalies.items()}
    return normals | labelled | others


def draw(dataset: Dataset, out: Path) -> None:
    """Draw up to ``COLUMNS`` images of every row, evenly spaced in it, with their names.

    Raises:
        UserError: if the file cannot be written, or is not to be a PNG.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"`out` {out} must end in .png")
    # Imported late: it takes a second.
    from matplotlib.figure import Figure

    table = rows(dataset)
    figure = Figure(figsize=(1.7 * COLUMNS + 0.3, 2 * len(table)), layout="constrained", dpi=90)
    strips = figure.subfigures(len(table), 1, squeeze=False)[:, 0]
    for (title, paths), strip in zip(table.items(), strips, strict=True):
        # A $ in a name begins no formula.
        strip.suptitle(
            f"{printable(title)} ({len(paths)})",
            x=0.01, ha="left", size="medium", weight="bold", parse_math=False,
        )  # fmt: skip
        line = strip.subplots(1, COLUMNS, squeeze=False)[0]
        chosen = sorted({i * len(paths) // COLUMNS for i in range(COLUMNS)}) if paths else []
        for column, axes in enumerate(line):
            axes.set_axis_off()
            if column < len(chosen):
                path = paths[chosen[column]]
                try:
                    axes.imshow(read_image(path, _FRAME))
                except BadImageError:
                    axes.text(0.5, 0.5, "unreadable", ha="center", va="center")
                name = printable(Path(path.name).name)
                name = name if len(name) <= 24 else f"…{name[-23:]}"
                axes.set_title(name, fontsize=7, parse_math=False)
    with writing(out, "name another file with `out`"):
        make_folder(out.parent)
        content = io.BytesIO()
        figure.savefig(content, format="png")
        replace_file(out, content.getvalue())
