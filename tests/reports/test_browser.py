"""The pages in a browser without a screen: readable at 400 and 1600 pixels, light and dark."""

import shutil
from pathlib import Path

import pytest

from ahl_jax import compare, report
from tests.reports.browser import measured
from tests.reports.page import Page
from tests.runs import FinishedRun


@pytest.fixture(scope="module")
def written(finished: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Page:
    out = tmp_path_factory.mktemp("reports") / "a.html"
    return Page(report(finished.workdir, out, progress=False))


@pytest.fixture(scope="module")
def compared(finished: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("compared")
    again = shutil.copytree(finished.workdir, folder / "again")
    return Page(compare([finished.workdir, again], folder / "side.html", progress=False))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_readable_in_a_browser(
    written: Page, compared: Page, tmp_path: Path, scheme: str
) -> None:
    found = measured([written.source, compared.source], scheme, tmp_path)
    assert len(found) == 4
    for frame, page in zip(found, (written, written, compared, compared), strict=True):
        assert frame["overflow"] == frame["broken"] == frame["flat"] == 0
        assert frame["images"] == len(page.of("img"))
        assert frame["contrast"] >= 4.5  # WCAG 2.1, level AA.
        assert (frame["page"] > 0.5) == (scheme == "light")
    # One chart above the other, or all side by side.
    assert [frame["columns"] for frame in found] == [1, 3, 1, 2]
