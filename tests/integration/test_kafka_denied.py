"""A user whom the cluster denies what we need: one clear line within seconds, and no waiting for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from streams.events.topics import INPUTS
from streams.kafka.clients import new_producer
from streams.kafka.consumer import BatchApp
from streams.kafka.embedded import Broker
from streams.kafka.failures import KafkaRefused
from streams.kafka.ledger import OffsetLedger
from streams.kafka.producer import KafkaOutputs
from streams.metrics import Metrics
from streams.serving.worker import _faust_credentials
from streams.settings import Settings, load_settings
from tests.integration.support import until

pytestmark = [pytest.mark.kafka, pytest.mark.usefixtures("kafka_jars")]


class StrictBroker(Broker):
    """The embedded Kafka with users and an authorizer: `owner` may do everything, `guest` nothing."""

    def _write_properties(self, port: int, controller_port: int) -> Path:
        path = super()._write_properties(port, controller_port)
        login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        path.write_text(
            path.read_text().replace("PLAINTEXT://127.0.0.1", "SASL_PLAINTEXT://127.0.0.1")
            + "listener.security.protocol.map=SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT\n"
            + "inter.broker.listener.name=SASL_PLAINTEXT\n"
            + "sasl.enabled.mechanisms=PLAIN\nsasl.mechanism.inter.broker.protocol=PLAIN\n"
            + "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n"
            + "super.users=User:owner;User:ANONYMOUS\n"
            + "listener.name.sasl_plaintext.plain.sasl.jaas.config="
            + f'{login} username="owner" password="o" user_owner="o" user_guest="g";\n'
        )
        return path

    async def _ready(self) -> None:
        async def answers() -> bool:
            admin = AIOKafkaAdminClient(**self.options("owner"))
            try:
                await admin.start()
                return bool((await admin.describe_cluster())["brokers"])
            except Exception:
                return False
            finally:
                await admin.close()

        await until(answers, f"a Kafka with an authorizer; see {self.log}")

    def options(self, user: str) -> dict[str, Any]:
        return {
            "bootstrap_servers": self.bootstrap,
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": user,
            "sasl_plain_password": user[0],
        }

    def settings(self, user: str) -> Settings:
        security = {"protocol": "SASL_PLAINTEXT", "mechanism": "PLAIN", "username": user, "password": user[0]}
        return load_settings(state=self.folder, kafka=self.bootstrap, security=security)


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[StrictBroker]:
    async with StrictBroker(tmp_path) as broker:
        admin = AIOKafkaAdminClient(**broker.options("owner"))
        await admin.start()
        await admin.create_topics([NewTopic(name, 1, 1) for name in (*INPUTS, "windows")])
        await admin.close()
        yield broker


async def test_writing_that_is_denied_ends_with_one_line(strict: StrictBroker) -> None:
    settings = strict.settings("guest")
    producer = new_producer(settings, strict.bootstrap)
    outputs = KafkaOutputs(producer, settings.topic)

    async def start_and_send() -> None:
        await outputs.start()
        await outputs.send("windows", b"1", key=b"pump")

    try:
        with pytest.raises(KafkaRefused, match=r"Kafka denies writing.* .*sensorium doctor"):
            await asyncio.wait_for(start_and_send(), 60)
    finally:
        await outputs.stop()


async def test_reading_that_is_denied_ends_with_one_line(strict: StrictBroker) -> None:
    settings = strict.settings("guest")
    failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    class Nobody:
        async def assigned(self, starts: Any) -> None: ...

        async def revoked(self) -> None: ...

    app = BatchApp(
        settings.group,
        broker=[f"kafka://{strict.bootstrap}"],
        broker_credentials=_faust_credentials(settings),
        autodiscover=False,
        key_serializer="raw",
        value_serializer="raw",
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=1,
        web_enabled=False,
    )
    app.ledger, app.assignee, app.metrics = OffsetLedger(), Nobody(), Metrics()
    app.fail = lambda error: None if failed.done() else failed.set_result(error)

    async def ingest(stream: Any) -> None:
        async for _ in stream.noack().events():
            pass

    app.agent(app.topic("captions", key_type=bytes, value_type=bytes))(ingest)
    app.finalize()
    starting = asyncio.create_task(app.start())
    try:
        error = await asyncio.wait_for(failed, 60)
        assert isinstance(error, KafkaRefused)
        assert "Kafka denies reading the input topics" in str(error)
        assert "sensorium doctor" in str(error)
    finally:
        starting.cancel()
        await asyncio.wait_for(app.stop(), 20)
