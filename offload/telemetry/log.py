"""The engine's one logger. It stays silent unless somebody gives it a handler."""

from __future__ import annotations

import logging

logger = logging.getLogger("finemoe")
logger.addHandler(logging.NullHandler())
