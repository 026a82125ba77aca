"""The page to drop photographs on, in a browser without a screen."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from ahl_jax.serving.app import page_of
from tests.reports.browser import measured

# Two files are dropped; the server scores the first.
DROP = """<script>
  const answers = %s;
  window.fetch = async (address, asked) => ({ json: async () => answers[asked.body.name] });
  const dropped = new DataTransfer();
  for (const name of Object.keys(answers)) dropped.items.add(new File(["x"], name));
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: dropped }));
</script></body>"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dropped_photographs_are_shown_with_their_scores(tmp_path: Path, scheme: str) -> None:
    picture = io.BytesIO()
    Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(picture, "PNG")
    scored = {"score": 12.5, "threshold": 3.25, "decision": "anomaly", "probability": 0.97}
    scored["heat_map"] = base64.b64encode(picture.getvalue()).decode()
    answers = {"<img src=x>.png": scored, "b.png": {"error": "<script>alert(1)"}}
    page, policy = page_of(["<i>one", "two"])
    assert "<i>one" not in page
    assert "'sha256-" in policy
    assert "http" not in page
    dropped = DROP % json.dumps(answers).replace("<", "\\u003c")
    for frame in measured([page.replace("</body>", dropped)], scheme, tmp_path):
        assert frame["overflow"] == frame["broken"] == 0
        assert frame["images"] == 1
        assert frame["contrast"] >= 4.5  # WCAG 2.1, level AA.
        assert (frame["page"] > 0.5) == (scheme == "light")
        for words in ("Anomaly", "Score 12.50, threshold 3.250", "Above 97.0 % of normal images",
                      "<img src=x>.png, <i>one", "Not scored", "<script>alert(1)"):  # fmt: skip
            assert words in frame["words"]


def test_a_detectors_name_is_no_markup() -> None:
    name = """</style></title><script>alert("1")</script>' onload='x"""
    page, policy = page_of([name, "two"])
    plain, same = page_of(["one", "two"])
    assert policy == same
    assert page.count("<script") == plain.count("<script") == 1
    assert page.count("</style>") == plain.count("</style>")
    assert escape(name) in page
