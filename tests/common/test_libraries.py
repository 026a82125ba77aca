"""Libraries that are missing or broken, in one sentence."""

from pathlib import Path

import pytest

from ahl_jax.common.errors import UserError
from ahl_jax.common.libraries import library


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "reading needs a_lib, which is not installed; run `pip install a-lib`, or wait"),
        (
            "import a_part_that_is_gone",
            "reading needs a_lib, which cannot be imported (No module named "
            "'a_part_that_is_gone'); mend its installation, or wait",
        ),
        (
            "raise TypeError('Descriptors cannot be created directly.\\nDowngrade protobuf.')",
            "reading needs a_lib, which cannot be imported (Descriptors cannot be created "
            "directly.); mend its installation, or wait",
        ),
    ],
)
def test_a_broken_library_is_told_from_a_missing_one(
    content: str | None, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content:
        (tmp_path / "a_lib.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as refused:
        library("a_lib", "reading", "a-lib", ", or wait")
    assert str(refused.value) == sentence
