"""The bar that a terminal shows while nodes are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class NodeProgress:
    """Called with (nodes done, nodes in all, the node just done); draws from the first call to the last.

    The bar is gone when all is done, or after `stop`.
    """

    def __init__(self, what: str = "reading nodes") -> None:
        self._what = what
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, done: int, total: int, node: str) -> None:
        """Show where the reading has come to."""
        if self._bar is None:
            self._start(total)
        assert self._bar is not None
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total, node=node)
        if done >= total:
            self.stop()

    def stop(self) -> None:
        """Take the bar away and give the terminal its cursor back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _start(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            TextColumn(self._what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[node]}", markup=False),
            console=Console(stderr=True, highlight=False, emoji=False),
            transient=True,
        )
        self._task = self._bar.add_task("", total=total, node="")
        self._bar.start()


def shown_progress(what: str = "reading nodes") -> NodeProgress:
    """A bar that ends with the command, however that ends: rich hides the cursor while it draws."""
    progress = NodeProgress(what)
    click.get_current_context().find_root().call_on_close(progress.stop)
    return progress
