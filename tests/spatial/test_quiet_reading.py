"""Reading in several threads leaves the terminal as it was."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

from regzoo.spatial.itk_files import quiet


def test_threads_that_read_at_once_give_the_terminal_back() -> None:
    def read(turn: int) -> None:
        with quiet():
            time.sleep(0.002 * (turn % 3))

    def terminal() -> list[tuple[int, int]]:
        return [(os.fstat(stream).st_dev, os.fstat(stream).st_ino) for stream in (1, 2)]

    before = terminal()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(24)))
    assert terminal() == before
