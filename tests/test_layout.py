"""Imports point one way, and the native core has one home."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOUSE = {"anomaly", "detector", "parameters", "beautify", "process_output", "production"}

# Who may import whom. beautify and process_output meet the rest only through
# files; detector and production meet only in the exported classifier.
ALLOWED = {
    "anomaly": {"anomaly"},
    "detector": {"anomaly", "detector"},
    "parameters": {"anomaly", "detector", "parameters"},
    "beautify": {"beautify"},
    "process_output": {"process_output"},
    "production": {"anomaly", "production"},
}


def imported_names(path: Path) -> set[str]:
    """Top-level names a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def house_files() -> list[Path]:
    files = [*ROOT.glob("anomaly/**/*.py"), *ROOT.glob("production/**/*.py")]
    return sorted(files + [p for p in ROOT.glob("*.py") if p.stem in HOUSE])


def forbidden(part: str, names: set[str]) -> set[str]:
    return (names & HOUSE) - ALLOWED[part]


@pytest.mark.parametrize("path", house_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert forbidden(part, imported_names(path)) == set()


def test_the_import_rule_rejects_a_culprit():
    assert forbidden("anomaly", {"numpy", "detector"}) == {"detector"}
    assert forbidden("beautify", {"anomaly"}) == {"anomaly"}
    assert forbidden("production", {"detector"}) == {"detector"}


def test_data_folder_holds_no_python():
    assert list((ROOT / "datasets").glob("**/*.py")) == []


def test_optional_libraries_are_not_imported_with_the_package():
    import subprocess

    optional = {
        "torch",
        "dask",
        "distributed",
        "asyncssh",
        "optuna",
        "skops",
        "fastapi",
        "sqlalchemy",
        "paho",
        "onnxruntime",
    }
    code = (
        "import sys, pkgutil, importlib, anomaly\n"
        "for m in pkgutil.walk_packages(anomaly.__path__, 'anomaly.'):\n"
        "    if not m.name.endswith('__main__'): importlib.import_module(m.name)\n"
        f"print(sorted(set(sys.modules) & {optional!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
