"""The pages in a browser without a screen: readable at 400 and 1600 pixels, light and dark."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ahl_jax import compare, report
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


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


# Measures each frame: what sticks out, what is missing, and the least contrast of a text.
SCRIPT = """
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = colour => numbers(colour).slice(0, 3)
    .map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (view, e) => {
    const colour = view.getComputedStyle(e).backgroundColor;
    return numbers(colour)[3] === 0 ? behind(view, e.parentElement) : luminance(colour);
  };
  const contrast = (view, e) => {
    const style = view.getComputedStyle(e);
    const one = luminance(e.closest("svg") ? style.fill : style.color), two = behind(view, e);
    return (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
  };
  const measure = view => {
    const d = view.document;
    const texts = [...d.querySelectorAll("main *")].filter(
      e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
    return {
      overflow: d.documentElement.scrollWidth - d.documentElement.clientWidth,
      broken: [...d.images].filter(i => !i.naturalWidth).length,
      flat: [...d.querySelectorAll("svg")].filter(s => s.getBoundingClientRect().height < 5).length,
      columns: new Set([...d.querySelectorAll("#curves figure")].map(
        f => f.getBoundingClientRect().left)).size,
      images: d.images.length,
      page: behind(view, d.body),
      contrast: Math.min(...texts.map(e => contrast(view, e))),
    };
  };
  onload = () => document.title = JSON.stringify(Array.from(frames, measure));
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_readable_in_a_browser(
    written: Page, compared: Page, tmp_path: Path, scheme: str
) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"needs a browser that renders without a screen: {', '.join(BROWSERS)}")
    pages, widths = (written, compared), (400, 1600)
    frames = "".join(
        f'<iframe srcdoc="{html.escape(page.source)}" style="width:{width}px"></iframe>'
        for page in pages
        for width in widths
    )
    wrapper = tmp_path / "frames.html"
    wrapper.write_text(f"<!DOCTYPE html>{frames}<script>{SCRIPT}</script>", encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    options += [f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"]
    command = [browser, *options, f"--user-data-dir={tmp_path / 'profile'}", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(re.findall("<title>(.*?)</title>", done.stdout)[-1])
    assert len(found) == 4
    for frame, page in zip(found, (written, written, compared, compared), strict=True):
        assert frame["overflow"] == frame["broken"] == frame["flat"] == 0
        assert frame["images"] == len(page.of("img"))
        assert frame["contrast"] >= 4.5  # WCAG 2.1, level AA.
        assert (frame["page"] > 0.5) == (scheme == "light")
    # One chart above the other, or all side by side.
    assert [frame["columns"] for frame in found] == [1, 3, 1, 2]
