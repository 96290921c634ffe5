"""Processes that tokenize, so that a library that ends its process does not end ours."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from types import ModuleType, TracebackType
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_AHEAD = 4  # tasks of a process whose results may wait in memory


class WorkerError(Exception):
    """A process ended in the middle of its work: a failure of the machine, or of a library."""

    def __init__(self) -> None:
        super().__init__(
            "a worker process ended in the middle of its work (no memory? a failure of the tokenizers library?); "
            "nothing was written. Try fewer --workers"
        )


class Workers:
    """A pool of processes; a context manager. Processes start when there is work for them."""

    def __init__(self, count: int) -> None:
        # Fresh processes: a fork would copy the threads' locks of this one in whatever state they are.
        self._pool = ProcessPoolExecutor(count, get_context("spawn"), _start)
        self._most_waiting = count * _AHEAD

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Runs a function to its end.

        Raises:
            WorkerError: the process ended.
        """
        try:
            return self._submit(function, *arguments).result()
        except BrokenProcessPool:
            raise WorkerError from None

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """Each task with its result, in the order of the tasks. A bounded number of them waits in memory.

        Raises:
            WorkerError: a process ended.
        """
        waiting: deque[tuple[Task, Future[Result]]] = deque()
        try:
            for task in tasks:
                waiting.append((task, self._submit(function, task)))
                if len(waiting) >= self._most_waiting:
                    yield waiting[0][0], waiting.popleft()[1].result()
            while waiting:
                yield waiting[0][0], waiting.popleft()[1].result()
        except BrokenProcessPool:
            raise WorkerError from None

    def _submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Hands work over, for which a process may have to be started.

        The process imports what it is given, but does not run the script or notebook that we are called from. SIGINT is
        blocked in it from the start: an interruption is the parent's to handle.
        """
        script = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        handled = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._pool.submit(function, *arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, handled)
            sys.modules["__main__"] = script


def _start() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # no process is left behind when the parent is killed
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # the library's own words; what goes wrong is told by the parent
    os.close(nowhere)
