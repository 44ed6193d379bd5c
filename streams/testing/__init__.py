"""A test driver that ships with the service: feed records, advance the clock, crash, and read the outputs.

On logs in memory, or with `real="host:port"` on a Kafka cluster; the same calls, and the same results.

    async with Harness(folder) as h:
        await h.push("sensor-readings", "pump-1", {"time": 1_000, "values": {"flow": 3.2}})
        await h.advance(60_000)                 # a minute of quiet: open windows close
        assert [w.stream for w in h.windows()] == ["pump-1"]
        await h.crash()                         # kill -9: everything in memory is gone, committed offsets stay
        await h.settle()                        # records past the committed offsets are read again

`crash(after=n)` dies in the middle of work, when n more writes have reached the store and the output topics.
"""

from streams.testing.harness import Harness
from streams.testing.logs import LogRecord
from streams.testing.outputs import RecordedOutputs, Sent

__all__ = ["Harness", "LogRecord", "RecordedOutputs", "Sent"]
