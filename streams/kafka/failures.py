"""Which Kafka errors waiting mends, and which must end the process with one clear line."""

from __future__ import annotations

from aiokafka import errors

from streams.errors import DependencyError

UNKNOWN_TOPIC_AFTER_S = 60.0

# Errors that aiokafka does not mark as retriable although they pass by themselves: a broker that is starting, moving
# partitions or short of something, a group that is rebalancing, a request that ran into its time limit.
_PASSING = (
    errors.KafkaTimeoutError,
    errors.KafkaUnavailableError,
    errors.BrokerNotAvailableError,
    errors.ReplicaNotAvailableError,
    errors.StaleControllerEpochError,
    errors.StaleLeaderEpochCodeError,
    errors.UnknownError,
    errors.CommitFailedError,
    errors.IllegalGenerationError,
    errors.UnknownMemberIdError,
    errors.RebalanceInProgressError,
    errors.ConcurrentTransactions,
    errors.ReassignmentInProgress,
    errors.FetchSessionIdNotFound,
    errors.InvalidFetchSessionEpoch,
)

_DENIED = (
    errors.TopicAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.TransactionalIdAuthorizationFailed,
    errors.AuthenticationFailedError,
    errors.SaslAuthenticationFailed,
)
_OUT_OF_STEP = (
    errors.OutOfOrderSequenceNumber,
    errors.UnknownProducerId,
    errors.InvalidProducerIdMapping,
    errors.InvalidProducerEpoch,
    errors.ProducerFenced,
    errors.ProducerClosed,
)


class KafkaRefused(DependencyError):
    """Kafka refuses what we ask of it, and would refuse it again; the message names the command that mends it."""


class RecordTooLarge(KafkaRefused):
    """A record that is larger than the cluster takes."""


def passes(error: errors.KafkaError) -> bool:
    """Whether waiting mends the error."""
    return bool(error.retriable) or isinstance(error, _PASSING)


def out_of_step(error: errors.KafkaError) -> bool:
    """Whether the broker refuses a producer for its sequence numbers or epoch: a new producer mends it."""
    return isinstance(error, _OUT_OF_STEP)


def refused(error: errors.KafkaError, action: str) -> KafkaRefused:
    """The error that ends the process. `action`: what was refused, as in `writing to windows`."""
    why = str(error).splitlines()[0]  # begins with the name of the error
    if isinstance(error, _DENIED):
        return KafkaRefused(f"Kafka denies {action} ({why}); grant it to our user, then check with: sensorium doctor")
    if isinstance(error, _OUT_OF_STEP):
        return KafkaRefused(
            f"Kafka refuses {action} ({why}), a new producer too; nothing is lost: look at the brokers' logs, then "
            "start again with: sensorium worker"
        )
    if isinstance(error, errors.UnknownTopicOrPartitionError):
        return KafkaRefused(
            f"Kafka refuses {action}: the topic has been missing for {UNKNOWN_TOPIC_AFTER_S:.0f} s; "
            "create it with: sensorium topics create"
        )
    return KafkaRefused(f"Kafka refuses {action} ({why}); check it with: sensorium doctor")
