"""A leader in a process of its own, which a test stops past its lease and revives.

It prints a line when it leads, writes without a pause, and prints the count of its attempts and successes since it was
refused for the first time. What it remembers is put back before each attempt: etcd itself is to refuse every one.
"""

import asyncio
import json
import sys
from typing import Any

from ebbtide.protocol import Keys
from ebbtide_operator.ports import Deposed, Put, StoreUnavailable
from ebbtide_operator.store.etcd3 import Etcd3
from ebbtide_operator.store.gateway import Gateway
from ebbtide_operator.store.leadership import Leadership

STALE = b"stale"
TTL_S = 2
AT_ONCE = 32


async def main(adapter: str, url: str, attempts: int) -> None:
    store: Any = {"Gateway": Gateway, "Etcd3": Etcd3}[adapter]([url])
    keys = Keys()
    leadership = Leadership(store, keys, TTL_S)
    await leadership.take("stale")
    epoch, lease = leadership.epoch, leadership._lease
    order = keys.order("shop", "uid-1")
    print(json.dumps({"epoch": epoch}), flush=True)
    before = 0
    while True:
        try:
            await leadership.renew()
            await leadership.write([Put(order, STALE)])
            before += 1
        except Deposed:
            break
        except StoreUnavailable:
            continue

    counts = {"before": before, "attempts": 0, "refused": 0, "accepted": 0, "unanswered": 0}

    async def insist() -> None:
        while counts["attempts"] < attempts:
            counts["attempts"] += 1
            leadership.epoch, leadership._lease = epoch, lease
            try:
                await leadership.write([Put(order, STALE)], epoch=epoch)
                counts["accepted"] += 1
            except Deposed as error:
                counts["refused"] += str(error) == "another operator leads"  # what etcd's answer becomes
            except StoreUnavailable:
                counts["unanswered"] += 1

    await asyncio.gather(*(insist() for _ in range(AT_ONCE)))
    print(json.dumps(counts), flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
