"""The native core is called from typed wrappers; its own names are not typed."""

from typing import Any

def __getattr__(name: str) -> Any: ...
