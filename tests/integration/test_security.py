"""A cluster that is not ours: TLS and SASL reach every client, from the settings to the worker's consumer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from cryptography.hazmat.primitives import serialization

from streams.kafka.clients import KafkaUnreachable, open_admin
from streams.kafka.embedded import Broker
from streams.settings import Settings, load_settings
from tests.integration.support import QUICK, service, until
from tests.integration.test_kafka import committed, send_readings

pytestmark = [pytest.mark.kafka, pytest.mark.usefixtures("kafka_jars")]
USER, PASSWORD = "plant", "s3cret"


class GuardedBroker(Broker):
    """The embedded Kafka behind TLS and SASL/PLAIN, as a managed cluster would be."""

    def __init__(self, state: Path) -> None:
        super().__init__(state)
        authority = trustme.CA()
        self.ca_file = state / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        self._store = state / "server.pem"
        issued = authority.issue_cert("127.0.0.1")
        key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        # Kafka reads PKCS 8 only
        self._store.write_bytes(key.private_bytes(*form) + b"".join(c.bytes() for c in issued.cert_chain_pems))

    def _write_properties(self, port: int, controller_port: int) -> Path:
        path = super()._write_properties(port, controller_port)
        login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        path.write_text(
            path.read_text().replace("PLAINTEXT://127.0.0.1", "SASL_SSL://127.0.0.1")
            + "listener.security.protocol.map=SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT\n"
            + "inter.broker.listener.name=SASL_SSL\n"
            + "sasl.enabled.mechanisms=PLAIN\nsasl.mechanism.inter.broker.protocol=PLAIN\n"
            + "listener.name.sasl_ssl.plain.sasl.jaas.config="
            + f'{login} username="{USER}" password="{PASSWORD}" user_{USER}="{PASSWORD}";\n'
            + f"ssl.keystore.type=PEM\nssl.keystore.location={self._store}\n"
            + f"ssl.truststore.type=PEM\nssl.truststore.location={self.ca_file}\n"
        )
        return path

    async def _ready(self) -> None:
        settings = self.settings(self.folder)
        assert settings.kafka is not None

        async def answers() -> bool:
            admin: AIOKafkaAdminClient | None = None
            with contextlib.suppress(KafkaError, KafkaUnreachable, OSError):
                admin = await open_admin(settings, settings.kafka or "")
            if admin is not None:
                await admin.close()
            return admin is not None

        await until(answers, f"a guarded Kafka; see {self.log}")

    def settings(self, folder: Path, password: str = PASSWORD) -> Settings:
        security = {
            "protocol": "SASL_SSL",
            "ca_file": self.ca_file,
            "mechanism": "PLAIN",
            "username": USER,
            "password": password,
        }
        return load_settings(state=folder, kafka=self.bootstrap, security=security, window=QUICK)


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[GuardedBroker]:
    async with GuardedBroker(tmp_path) as broker:
        yield broker


async def test_the_service_works_behind_tls_and_sasl_and_tells_a_wrong_password(
    guarded: GuardedBroker, tmp_path: Path
) -> None:
    settings = guarded.settings(tmp_path / "run")
    async with service(settings) as running:
        sent = await send_readings(settings, range(60))
        await until(lambda: running.worker.status.events == sent, "all events in windows")

        async def all_committed() -> bool:
            return sum((await committed(settings, "sensor-readings")).values()) == sent

        await until(all_committed, "every offset committed")
    wrong = guarded.settings(tmp_path / "run", password="guess")
    assert wrong.kafka is not None
    with pytest.raises(KafkaUnreachable, match="sensorium doctor"):
        await open_admin(wrong, wrong.kafka)
