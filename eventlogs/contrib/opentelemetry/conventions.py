"""
Names of attributes and metrics.

Those that begin with ``messaging.`` and ``error.`` are of the semantic conventions
(https://opentelemetry.io/docs/specs/semconv/messaging/), which are in development; the others are
ours.
"""

from __future__ import annotations

from typing import Final

import eventlogs

SCOPE: Final = "eventlogs"
VERSION: Final = eventlogs.__version__

SYSTEM: Final = "messaging.system"
OPERATION_NAME: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
DESTINATION: Final = "messaging.destination.name"
CONSUMER_GROUP: Final = "messaging.consumer.group.name"
MESSAGE_ID: Final = "messaging.message.id"
MESSAGE_COUNT: Final = "messaging.batch.message_count"
ERROR_TYPE: Final = "error.type"

LOG_ID: Final = "eventlogs.log.id"
LOG_TYPE: Final = "eventlogs.log.type"
EVENT_TYPE: Final = "eventlogs.event.type"
EVENT_TYPES: Final = "eventlogs.event.types"
EVENTS: Final = "eventlogs.event.count"
OUTCOME: Final = "eventlogs.outcome"
REASON: Final = "eventlogs.reason"
PROJECTION: Final = "eventlogs.projection"
DATABASE: Final = "eventlogs.database"

EVENTLOGS: Final = {SYSTEM: "eventlogs"}
