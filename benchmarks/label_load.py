"""How a MONAI Label server bears its clients: one, many at once, two hundred in a row, and a hundred that hang up.

`monai_label_request.py --load` runs it and prints the table.
"""

from __future__ import annotations

import json
import socket
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import numpy as np
from comparison import verdict
from label_server import Answer, LabelServer

HEADER = ("figure", "value", "goal", "")


def load_rows(
    server: LabelServer, bundle: str, pair: tuple[str, str], at_once: Sequence[int], requests: int, hung_up: int
) -> list[list[str]]:
    """The rows of the table.

    Args:
        server: a running server.
        bundle: which one to ask.
        pair: ids of the fixed and of the moving image, which has a finished label.
        at_once: numbers of clients that ask at the same time.
        requests: number of requests in a row, of which a tenth warms up before the memory is first measured.
        hung_up: number of clients that close the connection as soon as they have sent a request.
    """

    def ask(_: int = 0) -> tuple[float, Answer]:
        start = time.perf_counter()
        answer = server.infer(bundle, pair[0], moving_image=pair[1], moving_label=pair[1])
        return time.perf_counter() - start, answer

    usual = ask()[1]
    if usual.status != 200:
        raise RuntimeError(f"{bundle}: {usual.detail}")
    seconds, memory = [], []
    for number in range(1, requests + 1):
        taken, answer = ask()
        seconds.append(taken)
        if not same(answer, usual):
            raise RuntimeError(f"request {number} has another answer than the first")
        memory.append(server.memory())
    centiles = statistics.quantiles(seconds, n=20)
    rows = [["one client, p50 / p95", f"{statistics.median(seconds):.2f} s / {centiles[-1]:.2f} s", "", ""]]
    for clients in at_once:
        start = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            answers = [answer for _, answer in pool.map(ask, range(clients))]
        taken = time.perf_counter() - start
        lost = sum(answer.status != 200 for answer in answers)
        wrong = sum(answer.status == 200 and not same(answer, usual) for answer in answers)
        value = f"{lost} lost, {wrong} wrong, {taken:.1f} s"
        rows.append([f"{clients} clients at once", value, "0 lost, 0 wrong", verdict(lost + wrong == 0)])
    few = max(requests // 10, 1)
    # One value depends on what the allocator has just returned, so each is the median of up to ten requests.
    before, after = (statistics.median(memory[max(last - 10, 0) : last]) for last in (few, requests))
    growth = after / before - 1
    value = f"{before / 2**20:.0f} MiB, {after / 2**20:.0f} MiB, {growth:+.1%}"
    name = f"memory after {few} and after {requests} requests"
    rows.append([name, value, "within 5 %", verdict(abs(growth) <= 0.05)])
    waited, goal = hang_up(server, bundle, pair, hung_up), statistics.median(seconds) + 2
    name = f"`/info/` after {hung_up} clients that hung up"
    rows.append([name, f"{waited:.1f} s", "one request and 2 s", verdict(waited <= goal)])
    return rows


def same(answer: Answer, usual: Answer) -> bool:
    """Whether two answers have the same voxels and the same measures."""
    if answer.image is None or usual.image is None:
        return False
    equal = np.array_equal(np.asarray(answer.image.dataobj), np.asarray(usual.image.dataobj))
    return equal and answer.params["labels"] == usual.params["labels"]


def hang_up(server: LabelServer, bundle: str, pair: tuple[str, str], clients: int) -> float:
    """Seconds until the server answers ``/info/``, after some clients have sent a request and closed the connection."""
    params = json.dumps({"moving_image": pair[1], "moving_label": pair[1]})
    request = httpx.Request(
        "POST", f"{server.url}/infer/{bundle}", params={"image": pair[0], "output": "all"}, data={"params": params}
    )
    head = [f"POST {request.url.raw_path.decode()} HTTP/1.1"]
    head += [f"{name}: {value}" for name, value in request.headers.items()]
    sent = "\r\n".join([*head, "", ""]).encode() + request.read()
    where = urlsplit(server.url)
    for _ in range(clients):
        with socket.create_connection((where.hostname, where.port), timeout=60) as connection:
            connection.sendall(sent)
    start = time.perf_counter()
    server.get("/info/")
    return time.perf_counter() - start
