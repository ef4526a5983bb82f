import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ebbtide_operator.cluster import informer as module
from ebbtide_operator.cluster.informer import PodInformer
from ebbtide_operator.core.model import PodView
from tests.unit.operator.fake_api import FakeApi, a_pod, eventually, pod_path, serving

SINCE = "2026-11-24T12:00:01.250Z"


@asynccontextmanager
async def informing(fake: FakeApi, changes: list[PodView] | None = None) -> AsyncIterator[PodInformer]:
    seen = [] if changes is None else changes
    async with serving(fake) as api:
        informer = PodInformer(api, seen.append)
        task = asyncio.create_task(informer.run())
        try:
            await asyncio.wait_for(informer.synced.wait(), 5)
            yield informer
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def names_of(informer: PodInformer, owner: str = "set-1") -> list[str]:
    return sorted(pod.name for pod in informer.of(owner))


async def test_the_first_list_has_the_labelled_pods_by_owner() -> None:
    fake = FakeApi()
    fake.put(pod_path("a"), a_pod("a"))
    fake.put(pod_path("b"), a_pod("b", owner="set-2"))
    fake.put(pod_path("plain"), a_pod("plain", labels={}))
    async with informing(fake) as informer:
        assert names_of(informer) == ["a"]
        assert names_of(informer, "set-2") == ["b"]
        assert len(informer) == 2


async def test_a_list_of_many_pages_is_read_to_its_end() -> None:
    fake = FakeApi()
    for number in range(1203):
        fake.put(pod_path(f"p{number}"), a_pod(f"p{number}"))
    async with informing(fake) as informer:
        assert len(informer) == 1203


async def test_events_change_the_cache_and_tell_whom_they_concern() -> None:
    fake, changes = FakeApi(), list[PodView]()
    async with informing(fake, changes) as informer:
        fake.put(pod_path("a"), a_pod("a"))
        await eventually(lambda: names_of(informer) == ["a"])
        fake.put(pod_path("a"), a_pod("a", annotations={"ebbtide.dev/draining-since": SINCE}))
        await eventually(lambda: changes[-1].draining_since is not None)
        fake.remove(pod_path("a"))
        await eventually(lambda: len(informer) == 0)
    assert [pod.name for pod in changes] == ["a", "a", "a"]
    assert names_of(informer) == []


async def test_a_pod_that_loses_the_label_leaves_the_cache() -> None:
    # The API server turns that into a deletion for a watch with a selector; the list after it lacks the pod.
    fake = FakeApi()
    fake.put(pod_path("a"), a_pod("a"))
    async with informing(fake) as informer:
        await eventually(lambda: fake.watchers == 1)
        fake.objects[pod_path("a")]["metadata"]["labels"] = {}
        fake.version += 1
        fake.forget_history()
        fake.cut()
        await eventually(lambda: len(informer) == 0)


async def test_a_cut_watch_goes_on_without_a_gap_and_without_a_list() -> None:
    fake = FakeApi()
    async with informing(fake) as informer:
        await eventually(lambda: fake.watchers == 1)
        fake.cut()
        fake.put(pod_path("a"), a_pod("a"))
        fake.put(pod_path("b"), a_pod("b"))
        await eventually(lambda: names_of(informer) == ["a", "b"])
    lists = [path for method, path in fake.requests if path == "/api/v1/pods"]
    assert len(lists) == 3  # one list, two watches


async def test_after_the_history_is_gone_what_was_deleted_meanwhile_is_noticed() -> None:
    fake, changes = FakeApi(), list[PodView]()
    fake.put(pod_path("a"), a_pod("a"))
    fake.put(pod_path("b"), a_pod("b"))
    async with informing(fake, changes) as informer:
        await eventually(lambda: fake.watchers == 1)
        fake.silent = True
        fake.remove(pod_path("a"))
        fake.put(pod_path("c"), a_pod("c"))
        fake.forget_history()
        fake.silent = False
        fake.cut()
        await eventually(lambda: names_of(informer) == ["b", "c"])
    assert "a" in [pod.name for pod in changes[2:]]


async def test_a_bookmark_moves_the_point_from_which_a_watch_goes_on() -> None:
    fake = FakeApi()
    heard: list[int] = []
    async with serving(fake) as api:
        informer = PodInformer(api, lambda _pod: None, lambda: heard.append(1))
        task = asyncio.create_task(informer.run())
        await eventually(lambda: fake.watchers == 1)
        before = len(heard)
        fake.bookmark()
        await eventually(lambda: len(heard) > before)
        fake.forget_history()  # everything before the bookmark is lost
        fake.cut()
        await eventually(lambda: fake.watchers == 1)
        fake.put(pod_path("a"), a_pod("a"))
        await eventually(lambda: len(informer) == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert [path for method, path in fake.requests].count("/api/v1/pods") == 3


async def test_a_silent_connection_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 0.05)
    fake = FakeApi()
    async with informing(fake) as informer:
        await eventually(lambda: fake.watchers == 1)
        fake.silent = True
        fake.put(pod_path("a"), a_pod("a"))
        asyncio.get_running_loop().call_later(0.1, setattr, fake, "silent", False)
        await eventually(lambda: names_of(informer) == ["a"])


async def test_a_server_that_refuses_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_RETRY_S", 0.01)
    fake = FakeApi()
    fake.put(pod_path("a"), a_pod("a"))
    refusals = iter([500, 429, 503])
    fake.refuse = lambda _method, _path: next(refusals, None)
    async with informing(fake) as informer:
        assert names_of(informer) == ["a"]


async def test_our_own_write_is_seen_at_once_and_older_events_do_not_undo_it() -> None:
    fake = FakeApi()
    fake.put(pod_path("a"), a_pod("a"))
    async with informing(fake) as informer:
        old = fake.objects[pod_path("a")]
        fake.silent = True
        answer = fake.put(pod_path("a"), a_pod("a", annotations={"ebbtide.dev/draining-since": SINCE}))
        informer.observe(answer)
        pod = informer.get("uid-a")
        assert pod is not None
        assert pod.draining_since == 1795521601.25
        informer.observe(old)
        assert informer.get("uid-a") == pod


async def test_an_adopted_pod_joins_the_cache_with_our_write() -> None:
    fake = FakeApi()
    async with informing(fake) as informer:
        informer.observe({**a_pod("a", labels={}), "spec": {}})
        assert len(informer) == 0
        fake.silent = True
        informer.observe(fake.put(pod_path("a"), a_pod("a")))
        assert names_of(informer) == ["a"]


async def test_an_answer_that_comes_after_the_pods_end_does_not_bring_it_back() -> None:
    fake = FakeApi()
    fake.put(pod_path("a"), a_pod("a"))
    async with informing(fake) as informer:
        await eventually(lambda: fake.watchers == 1)
        answer = fake.put(pod_path("a"), a_pod("a", annotations={"ebbtide.dev/released": "clean"}))
        fake.remove(pod_path("a"))
        await eventually(lambda: len(informer) == 0)
        informer.observe(answer)
        assert len(informer) == 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"status": {"phase": "Pending"}, "spec": {}}, {"scheduled": False, "started": False, "ready": False}),
        ({"status": {"containerStatuses": [{"state": {"waiting": {"reason": "x"}}}]}}, {"started": False}),
        (
            {"status": {"containerStatuses": [{"state": {"waiting": {}}, "lastState": {"terminated": {}}}]}},
            {"started": True},
        ),
        ({"status": {"phase": "Succeeded"}}, {"finished": True}),
        ({"status": {"phase": "Failed", "message": "evicted"}}, {"finished": True}),
    ],
)
async def test_a_pods_condition_is_read_from_its_status(change: dict[str, object], expected: dict[str, bool]) -> None:
    fake = FakeApi()
    fake.put(pod_path("a"), {**a_pod("a"), **change})
    async with informing(fake) as informer:
        pod = informer.get("uid-a")
        assert {name: getattr(pod, name) for name in expected} == expected


async def test_a_pod_on_its_way_out_is_terminating() -> None:
    fake = FakeApi()
    fake.put(pod_path("a"), a_pod("a", deletionTimestamp="2026-11-24T12:00:00Z"))
    async with informing(fake) as informer:
        pod = informer.get("uid-a")
        assert pod is not None
        assert pod.terminating
