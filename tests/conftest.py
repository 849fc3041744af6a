"""Shared fixtures, and the rule that CI skips nothing it could install."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = Path(os.environ.get("ANOMALY_TEST_DATA", ROOT.parent / "shared" / "data"))

# The only reasons for which CI may skip a test: parts that no package brings.
ALLOWED_SKIPS = ("real data is absent:",)


@pytest.fixture(scope="session")
def shared_data():
    """Folder of real data; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data is absent: {SHARED_DATA.name} (set ANOMALY_TEST_DATA)")
    return SHARED_DATA


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """List the skips that CI refuses."""
    refused = refused_skips(terminalreporter)
    if refused:
        terminalreporter.section("skips that CI refuses")
        for reason in refused:
            terminalreporter.write_line(reason)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and refused_skips(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def refused_skips(reporter) -> list[str]:
    """Reasons of skipped tests that are not on the list of allowed ones."""
    found = []
    for report in reporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(ALLOWED_SKIPS):
            found.append(f"{report.nodeid}: {reason}")
    return found
