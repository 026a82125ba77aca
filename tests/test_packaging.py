import ast
import configparser
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def requirements(text):
    return [Requirement(line) for line in text.strip().splitlines()]


INSTALLED = requirements(SETUP["options"]["install_requires"])
DEVELOPMENT = requirements(SETUP["options.extras_require"]["dev"])
OPTIONAL = [
    requirement
    for extra in ("cloud", "tensorboard", "formats", "onnx", "serve")
    for requirement in requirements(SETUP["options.extras_require"][extra])
]


def pins():
    """Name -> (version, environment marker, number of hashes), from requirements.txt."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    found = {}
    for entry in re.split(r"\n(?=\S)", text.replace("\\\n", " ")):
        if entry.startswith("#"):
            continue
        line = re.sub(r"\s+#.*", "", entry)
        requirement = Requirement(line.split("--hash")[0].strip())
        found.setdefault(canonicalize_name(requirement.name), []).append(
            (requirement, line.count("--hash=sha256:"))
        )
    return found


def test_every_pin_is_exact_and_hashed():
    found = pins()
    assert len(found) > 30
    for name, entries in found.items():
        assert len(entries) == 1, f"{name} has other versions on other systems"
        requirement, hashes = entries[0]
        assert [s.operator for s in requirement.specifier] == ["=="], name
        assert hashes > 0, name


@pytest.mark.parametrize("requirement", INSTALLED + DEVELOPMENT, ids=str)
def test_pins_satisfy_setup_cfg(requirement):
    pinned, _ = pins()[canonicalize_name(requirement.name)][0]
    (pin,) = pinned.specifier
    assert requirement.specifier.contains(pin.version)
    assert pinned.marker is None


def test_pins_name_no_index_and_no_file():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert re.findall(r"https?:|file:|localhost|--index|--find-links| /|@", text) == []
    assert "make lock" in text.splitlines()[1]


def test_every_import_is_declared():
    providers = importlib.metadata.packages_distributions()
    declared = {canonicalize_name(r.name) for r in [*INSTALLED, *OPTIONAL]}
    for path in (ROOT / "ahl_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert node.level == 0, f"relative import in {path}"
                modules = [node.module]
            else:
                continue
            for top in {module.split(".")[0] for module in modules}:
                if top in sys.stdlib_module_names or top == "ahl_jax":
                    continue
                owners = {canonicalize_name(owner) for owner in providers.get(top, [top])}
                assert owners & declared, f"{path} imports {top}, which setup.cfg does not name"


def test_every_extra_of_jax_exists():
    offered = importlib.metadata.metadata("jax").get_all("Provides-Extra")
    for extra in ("cuda", "tpu", "tpu-compile"):
        (requirement,) = requirements(SETUP["options.extras_require"][extra])
        assert requirement.extras <= set(offered)


def test_the_package_is_marked_as_typed():
    assert (ROOT / "ahl_jax" / "py.typed").is_file()


def test_the_templates_are_shipped():
    patterns = SETUP["options.package_data"]["ahl_jax"].split()
    shipped = {path for pattern in patterns for path in (ROOT / "ahl_jax").glob(pattern)}
    others = {p for p in (ROOT / "ahl_jax").rglob("*") if p.is_file() and p.suffix != ".py"}
    assert {p for p in others if "__pycache__" not in p.parts} == shipped


def test_the_command_exists():
    (line,) = SETUP["options.entry_points"]["console_scripts"].strip().splitlines()
    name, value = (part.strip() for part in line.split("="))
    assert name == "ahl"
    command = importlib.metadata.EntryPoint(name, value, "console_scripts").load()
    assert callable(command)
