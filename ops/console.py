"""Output of commands: plain lines, tables, and progress bars on a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress as progress_bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPED_WIDTH = 250  # wide enough to fold no line of a table


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, markup=False, highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table without lines; the columns in `right` are right-aligned."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return made


def show(made: Table) -> None:
    """Prints a table."""
    _console(stderr=False).print(made)


class Progress:
    """Call it with each further amount done."""

    def __init__(self, bar: progress_bar.Progress | None = None, task: progress_bar.TaskID | None = None) -> None:
        self._bar = bar
        self._task = task

    def __call__(self, count: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, count)

    def expect(self, total: int) -> None:
        """How much there is to do, once that is known."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=total)


class _Rate(progress_bar.ProgressColumn):
    """How much is done in a second."""

    def render(self, task: progress_bar.Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


@contextmanager
def progress(title: str, total: int | None = None) -> Iterator[Progress]:
    """Shows progress, with rate and time left, on a terminal, and nothing elsewhere."""
    console = _console(stderr=True)
    columns = (
        progress_bar.TextColumn("{task.description}"),
        progress_bar.BarColumn(),
        progress_bar.MofNCompleteColumn(),
        _Rate(),
        progress_bar.TimeElapsedColumn(),
        progress_bar.TimeRemainingColumn(),
    )
    with progress_bar.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Progress(bar, bar.add_task(title, total=total))
