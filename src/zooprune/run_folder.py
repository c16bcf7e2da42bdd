"""The folder of a run that can be resumed: what made it, and one writer at a time."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from zooprune.environment import describe
from zooprune.files import write_text


class RunFolder:
    """A folder with a file that describes the run, locked for as long as this object lives.

    Parameters
    ----------
    folder : Path
        Made when it is not there.
    configuration : dict
        What the run depends on, as JSON can hold it.
    option : str
        The option of the command line that chooses the folder; error messages name it.
    name : str
        Of the file.

    Attributes
    ----------
    description : dict
        What the file holds: `configuration` and `environment`.

    Raises
    ------
    ValueError
        If the folder holds a run of another configuration, other versions or another commit, or another run writes to
        it.
    """

    def __init__(
        self, folder: Path, configuration: dict[str, Any], option: str = "--out", name: str = "run.json"
    ) -> None:
        self.folder, self._option, self._name = folder, option, name
        if folder.is_file():
            raise ValueError(f"{folder} is a file; choose a folder with {option}")
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / ".lock", timeout=0)
        with ExitStack() as undo:
            try:
                undo.enter_context(self._lock)
            except Timeout:
                raise ValueError(
                    f"another run writes to {folder}; wait for it or choose another folder with {option}"
                ) from None
            self.description = self._describe({"configuration": configuration, "environment": describe()})
            undo.pop_all()

    def _describe(self, current: dict[str, Any]) -> dict[str, Any]:
        path = self.folder / self._name
        if not path.exists():
            write_text(path, json.dumps(current, indent=1) + "\n")
            return current
        try:
            there: dict[str, Any] = json.loads(path.read_text())
            pairs = [
                (run["configuration"], run["environment"]["versions"], {"commit": run["environment"]["commit"]})
                for run in (there, current)
            ]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{path} is damaged; choose another folder with {self._option}") from None
        for old, new in zip(*pairs, strict=True):
            # As text, because 1 == 1.0 and [1] == (1,).
            changed = sorted(name for name in {*old, *new} if json.dumps(old.get(name)) != json.dumps(new.get(name)))
            if changed:
                raise ValueError(
                    f"{self.folder} holds a run with other {', '.join(changed)}; "
                    f"choose another folder with {self._option}"
                )
        return there
