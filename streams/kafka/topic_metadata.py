"""What the cluster says of topics in one answer: cluster id, topic ids (KIP-516), partition counts, errors.

aiokafka 0.14 knows Metadata up to version 5, without topic ids; version 10 (Kafka 2.8) is written out here. Private
names of aiokafka that this relies on, guarded by tests on a real broker: `AIOKafkaAdminClient._client` with
`get_random_node` and `send`; the types of `aiokafka.protocol`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import IncompatibleBrokerVersion, NodeNotReadyError, NoError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

_NO_ID = bytes(16)


class _Uuid:
    """16 bytes, as they are."""

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value


_TAGS = ("tags", TaggedFields)


class _MetadataResponse(Response):  # type: ignore[misc]  # aiokafka is not followed by mypy
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                _TAGS,
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        _TAGS,
                    ),
                ),
                ("authorized_operations", Int32),
                _TAGS,
            ),
        ),
        ("authorized_operations", Int32),
        _TAGS,
    )


class _MetadataRequestStruct(RequestStruct):  # type: ignore[misc]  # aiokafka is not followed by mypy
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), _TAGS)),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        _TAGS,
    )


class _MetadataRequest(Request[_MetadataRequestStruct]):  # type: ignore[misc]  # aiokafka is not followed by mypy
    API_KEY = 3

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def build(self, request_struct_class: type[_MetadataRequestStruct]) -> _MetadataRequestStruct:
        return request_struct_class([(_NO_ID, name, {}) for name in self._names], False, False, False, {})


@dataclass(frozen=True, slots=True)
class TopicMetadata:
    """One topic as the cluster has it. `partitions` 0: it is missing. `error`: why the cluster does not describe it."""

    name: str
    partitions: int
    topic_id: str | None  # as Kafka's own tools print it; None where the broker gives none
    error: str | None


@dataclass(frozen=True, slots=True)
class ClusterMetadata:
    """The cluster's id and the topics that were asked for, by full name."""

    cluster_id: str
    topics: Mapping[str, TopicMetadata]


async def fetch_metadata(admin: AIOKafkaAdminClient, names: Sequence[str]) -> ClusterMetadata:
    """Ask one broker. Raises the `KafkaError` of a broker that does not answer."""
    try:
        answer = await _ask(admin, names)
    except (NotImplementedError, IncompatibleBrokerVersion):  # older than Kafka 2.8
        described = await admin.describe_topics(list(names))
        return ClusterMetadata(
            str((await admin.describe_cluster())["cluster_id"]), {t["topic"]: _topic(t, None) for t in described}
        )
    return ClusterMetadata(
        str(answer["cluster_id"]),
        {topic["topic"]: _topic(topic, _printed(topic["topic_id"])) for topic in answer["topics"]},
    )


async def _ask(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, Any]:
    client = admin._client
    node = client.get_random_node()
    if node is None:
        raise NodeNotReadyError("no broker is known")
    answer: dict[str, Any] = (await client.send(node, _MetadataRequest(names))).to_object()
    return answer


def _topic(topic: Mapping[str, Any], topic_id: str | None) -> TopicMetadata:
    error = for_code(topic["error_code"])
    partitions = len(topic["partitions"]) if error is NoError else 0
    return TopicMetadata(topic["topic"], partitions, topic_id, None if error is NoError else error.__name__)


def _printed(topic_id: bytes) -> str | None:
    return None if topic_id == _NO_ID else base64.urlsafe_b64encode(topic_id).decode().rstrip("=")
