"""What an output folder holds: its model and options, every input, what came of each part."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from anomaly.errors import ParameterError
from production.parts import Part
from production.places import Stored, tree_of
from production.scoring import Scored

__all__ = ["MANIFEST", "Entry", "Manifest"]

MANIFEST = "_scored.json"
FORMAT_VERSION = 1


@dataclass
class Entry:
    """An input and its parts; a part without a result is still to be scored."""

    source: Stored
    parts: list[Part]
    results: dict[str, Scored] = field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        """As plain values."""
        return {
            **asdict(self.source),
            "parts": [
                {
                    **{k: v for k, v in vars(part).items() if k != "source"},
                    "result": asdict(self.results[part.name])
                    if part.name in self.results
                    else None,
                }
                for part in self.parts
            ],
        }

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Entry:
        """From plain values; no part of it leads out of the folder."""
        entry = cls(Stored(*(plain[name] for name in ("address", "name", "size", "mark"))), [])
        for described in plain["parts"]:
            values = {name: value for name, value in described.items() if name != "result"}
            part = Part(source=entry.source, **values)
            if {"", ".", ".."} & set(part.name.split("/")):
                raise ValueError(f"part {part.name!r}")
            entry.parts.append(part)
            if described["result"] is not None:
                entry.results[part.name] = Scored(**described["result"])
        return entry


class Manifest:
    """What an output folder holds, in its file ``_scored.json``.

    Parameters
    ----------
    out : str
        Address of the folder.
    model : str
        SHA-256 of the model file.
    options : dict
        What the bytes of the output depend on.

    Attributes
    ----------
    entries : dict of str to Entry
        By the address of the input.
    owners : dict of str to str
        Address of the input of each part, by the name of the part.
    """

    def __init__(self, out: str, model: str, options: dict[str, Any]) -> None:
        self.out = out
        self.model = model
        self.options = options
        self.entries: dict[str, Entry] = {}
        self.owners: dict[str, str] = {}
        self._saved = 0.0
        self._cost = 0.0

    @classmethod
    def open(
        cls, out: str, model: str, options: dict[str, Any], start_over: bool = False
    ) -> Manifest:
        """Read the manifest of a folder, or begin one.

        Parameters
        ----------
        out, model, options
            See `Manifest`.
        start_over : bool, default=False
            Remove the parts that are listed, and begin anew.

        Raises
        ------
        ParameterError
            It is of another model or of other options, or cannot be read.
        """
        manifest = cls(out, model, options)
        address = f"{out}/{MANIFEST}"
        tree = tree_of(address)
        try:
            with tree.open(address) as file:
                content = file.read()
        except FileNotFoundError:
            return manifest
        try:
            found = json.loads(content)
            if found["format"] != FORMAT_VERSION:
                raise ValueError(f"format {found['format']}")
            entries = [Entry.read(plain) for plain in found["inputs"]]
            then = found["model"], found["options"]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ParameterError(
                f"{address}: no list of scored parts of this version ({error!r}); give another "
                "--out, or remove this folder"
            ) from error
        if start_over:
            for name in [*(part.name for entry in entries for part in entry.parts), MANIFEST]:
                tree.remove(f"{out}/{name}")
            return manifest
        _check_same(out, *then, model, options)
        for entry in entries:
            manifest.put(entry)
        return manifest

    def put(self, entry: Entry) -> None:
        """Enter an input and its parts."""
        self.entries[entry.source.address] = entry
        self.owners.update((part.name, entry.source.address) for part in entry.parts)

    def take(self, address: str) -> list[Part]:
        """Strike an input out; returns the parts it had."""
        entry = self.entries.pop(address, None)
        parts = [] if entry is None else entry.parts
        for part in parts:
            del self.owners[part.name]
        return parts

    def save(self, at_once: bool = True) -> None:
        """Write it, whole or not at all; now and then only, unless at once."""
        begun = time.monotonic()
        if not at_once and begun - self._saved < max(1.0, 20 * self._cost):
            return
        plain = {
            "format": FORMAT_VERSION,
            "model": self.model,
            "options": self.options,
            "inputs": [entry.described() for entry in self.entries.values()],
        }
        address = f"{self.out}/{MANIFEST}"
        with tree_of(address).write_aside(address) as file:
            file.write(json.dumps(plain, indent=1, ensure_ascii=False).encode())
        self._saved = time.monotonic()
        self._cost = self._saved - begun


def _check_same(
    out: str, old_model: str, old: dict[str, Any], model: str, options: dict[str, Any]
) -> None:
    advice = "give another --out, or --start-over to remove these parts and score anew"
    if old_model != model:
        raise ParameterError(
            f"{out} was scored with another model (SHA-256 {str(old_model)[:12]}…, "
            f"now {model[:12]}…); {advice}"
        )
    for name, now in options.items():
        if old.get(name) != now:
            raise ParameterError(
                f"{out} was scored with --{name.replace('_', '-')} {_shown(old.get(name))}, "
                f"now {_shown(now)}; {advice}"
            )


def _shown(value: Any) -> str:
    return "not given" if value is None else repr(value)
