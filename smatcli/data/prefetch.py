"""Work done ahead by background threads, handed over in order: the same sequence for any number of threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetched(work: Callable[[Item], Result], items: Iterable[Item], workers: int = 1, ahead: int = 4) -> Iterator[Result]:
    """`work(item)` for each item in order, at most `ahead` items early; `items` may be endless.

    An exception of `work` is raised at its item's turn. Leaving the loop early, for whatever reason, waits for the items in hand and ends
    the threads. `ahead` 0 does the work in the caller's thread.
    """
    if ahead < 1:
        yield from map(work, items)
        return
    remaining = iter(items)
    pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="smat-loader")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in remaining:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
