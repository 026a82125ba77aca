"""What a browser without a screen makes of pages."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

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
      words: d.querySelector("main").innerText,
      page: behind(view, d.body),
      contrast: Math.min(...texts.map(e => contrast(view, e))),
    };
  };
  onload = () => document.title = JSON.stringify(Array.from(frames, measure));
"""


def measured(pages: Sequence[str], scheme: str, folder: Path) -> list[dict[str, Any]]:
    """Each page at 400 and at 1600 pixels, measured.

    Args:
        pages: their HTML.
        scheme: light or dark.
        folder: an empty one, for files on the way.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"needs a browser that renders without a screen: {', '.join(BROWSERS)}")
    frames = "".join(
        f'<iframe srcdoc="{html.escape(page)}" style="width:{width}px"></iframe>'
        for page in pages
        for width in (400, 1600)
    )
    wrapper = folder / "frames.html"
    wrapper.write_text(f"<!DOCTYPE html>{frames}<script>{SCRIPT}</script>", encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    options += [f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"]
    command = [browser, *options, f"--user-data-dir={folder / 'profile'}", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(html.unescape(re.findall("<title>(.*?)</title>", done.stdout)[-1]))
