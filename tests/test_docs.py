"""The documentation: it builds, its links lead somewhere, and its notebook runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ahl_jax

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "experiments").glob("**/README.md")),
    ROOT / "docs/quickstart.ipynb",
]


def _prose(page: Path) -> str:
    """The page without its code."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", _prose(page))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert not missing


def test_the_page_of_the_python_interface_has_every_public_name() -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    missing = [name for name in ahl_jax.__all__ if not re.search(rf"[.`]{name}\b", page)]
    assert not missing


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="Sphinx is not installed")
    # A copy, because the build writes the configuration reference.
    docs = shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("_*ld"))
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", docs, tmp_path / "html"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = (docs / "configuration.md").read_text(encoding="utf-8")
    kept = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert made == kept, "docs/configuration.md is not up to date; run make docs"
    page = (tmp_path / "html/configuration.html").read_text(encoding="utf-8")
    assert "held_out" in page


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    """Its cells one after the other, in a process of their own."""
    notebook = json.loads((ROOT / "docs/quickstart.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in cells[1:]), "save the notebook as it was run"
    code = "\n".join("".join(cell["source"]) for cell in cells)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"AUC-ROC 0\.\d+ on \d+ test images", done.stdout)
