"""Answers leave in the order in which they were put in, all of them, while who put them in goes on."""

import threading

from serving.package.runtime.outbox import Outbox


def test_who_puts_in_does_not_wait_and_the_order_is_kept():
    outbox, go, sent = Outbox(), threading.Event(), []
    outbox.put(lambda: (go.wait(timeout=10), sent.append(0))[1])
    for number in range(1, 100):
        outbox.put(lambda number=number: sent.append(number))
    assert not sent  # this thread is here although the first one still waits
    go.set()
    outbox.close()
    assert sent == list(range(100))


def test_what_many_threads_put_in_is_sent_once_each():
    outbox, sent = Outbox(), []
    threads = [
        threading.Thread(
            target=lambda first=first: [outbox.put(lambda n=n: sent.append(n)) for n in range(first, first + 50)]
        )
        for first in range(0, 400, 50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outbox.close()
    assert sorted(sent) == list(range(400))
