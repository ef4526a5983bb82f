"""The operator's secure port over real etcd, as pods reach it.

TokenReview is answered by a server of the tests that speaks the API's JSON and judges audience, expiry and binding as
the API server does.
"""

import asyncio
import contextlib
import datetime as dt
import ssl
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from ebbtide.etcd import EtcdClient
from ebbtide.protocol import Desired, Keys, Order
from ebbtide_operator.cluster.authority import Leaf, make_authority, make_leaf
from ebbtide_operator.cluster.client import KubernetesCluster
from ebbtide_operator.core.model import WorkloadKey
from ebbtide_operator.metrics import Metrics
from ebbtide_operator.serve.app import Server
from ebbtide_operator.serve.relay import Relay
from ebbtide_operator.store.drain_state import MirroredDrainState
from ebbtide_operator.store.gateway import Gateway
from tests.contract.member import Member
from tests.unit.operator.fake_api import FakeApi, serving

REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
NOW = dt.datetime.now(dt.UTC)
AUTHORITY = make_authority("test authority", NOW)
ORDERS = WorkloadKey("shop", "deployment", "orders")


class Tokens:
    """Issue tokens, and answer TokenReviews about them as the API server does."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.reviews = 0
        self._claims: dict[str, dict[str, Any]] = {}

    def issue(
        self, uid: str = "uid-alice", *, namespace: str = "shop", audience: str = "ebbtide", life_s: float = 3600
    ) -> str:
        token = uuid.uuid4().hex
        self._claims[token] = {
            "uid": uid,
            "namespace": namespace,
            "audience": audience,
            "expires_at": self.now + life_s,
        }
        return token

    def review(self, body: dict[str, Any]) -> dict[str, Any]:
        self.reviews += 1
        claims = self._claims.get(body["spec"]["token"])
        if claims is None:
            return {"status": {"authenticated": False, "error": "invalid bearer token"}}
        if claims["expires_at"] <= self.now:
            return {"status": {"authenticated": False, "error": "token has expired"}}
        if claims["audience"] not in body["spec"]["audiences"]:
            return {"status": {"authenticated": False, "error": "token audiences are invalid for the target audiences"}}
        extra = {}
        if claims["uid"]:
            extra = {
                "authentication.kubernetes.io/pod-name": [f"pod-of-{claims['uid']}"],
                "authentication.kubernetes.io/pod-uid": [claims["uid"]],
            }
        user = {"username": f"system:serviceaccount:{claims['namespace']}:default", "extra": extra}
        return {"status": {"authenticated": True, "audiences": [claims["audience"]], "user": user}}


class Scene:
    """One operator's secure port, as pods reach it."""

    def __init__(
        self, etcd: Member, tokens: Tokens, tls: ssl.SSLContext, cluster: KubernetesCluster, prefix: str | None
    ) -> None:
        self.leads = prefix is None
        self.etcd = etcd
        self.tokens = tokens
        self.keys = Keys(prefix or f"/{uuid.uuid4().hex}")
        self.store = Gateway([etcd.url])
        self.state = MirroredDrainState(self.store, prefix=self.keys.prefix)
        self.server = Server(Metrics(), tuple)
        self.tls = tls
        self.relay = Relay(
            self.state,
            self.store,
            cluster.authenticate,
            lambda _namespace, uid: ORDERS if uid in {"uid-alice", "uid-bob"} else None,
            Metrics(),
            clock=lambda: tokens.now,
            look_s=0.05,
        )
        self.trusting = ssl.create_default_context(cadata=AUTHORITY.certificate.decode())
        self.port = 0
        self.session = aiohttp.ClientSession()

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(self.state.run()), asyncio.create_task(self.relay.run())]
        await self.state.synced()
        self.port = await self.server.start_secure(self.relay.routes(), self.tls, 0, "localhost")
        if self.leads:
            await self.state.lead("operator")

    async def close(self) -> None:
        self.relay.close()
        await self.session.close()
        await self.server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.store.close()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def client(self, token: str) -> EtcdClient:
        return EtcdClient([self.url], tls=self.trusting, token=lambda: token)

    async def order(self, namespace: str, uid: str) -> str:
        order = Order(desired=Desired.DRAIN, generation=1, epoch=self.state.epoch, reason="secret")
        await self.state.send_order(namespace, uid, order)
        return self.keys.order(namespace, uid)

    async def post(self, path: str, body: Any, token: str | None = None, **arguments: Any) -> tuple[int, str]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        arguments.setdefault("json", body)
        async with self.session.post(self.url + path, headers=headers, ssl=self.trusting, **arguments) as answer:
            return answer.status, await answer.text()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("localhost", self.port, ssl=self.trusting)

    async def say(self, raw: bytes) -> bytes:
        """Send bytes as they are, and return all that is answered."""
        reader, writer = await self.connect()
        writer.write(raw)
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        return answer

    def held(self) -> Any:
        """Return all that etcd holds of this scene, and the revision of its last change."""
        with EtcdClient([self.etcd.url]) as client:
            return client.range(self.keys.prefix + "/").key_values


@contextlib.asynccontextmanager
async def scene_at(
    etcd: Member, folder: Path, *, prefix: str | None = None, tokens: Tokens | None = None
) -> AsyncIterator[Scene]:
    """Serve; certificates go into the folder. With a prefix, and its tokens, it is another replica of a scene."""
    pair = make_leaf(AUTHORITY, Leaf("ebbtide", ("localhost",)), NOW)
    (folder / "crt").write_bytes(pair.certificate)
    (folder / "key").write_bytes(pair.key)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "crt", folder / "key")
    tokens = tokens or Tokens()
    async with serving(FakeApi(answers={REVIEWS: tokens.review})) as api:
        scene = Scene(etcd, tokens, tls, KubernetesCluster(api), prefix)
        try:
            await scene.start()
            yield scene
        finally:
            await scene.close()
