"""What the tests of sharding share."""

from __future__ import annotations

from toy import compiled_once as compiled_once
from toy import toy_corpus as toy_corpus
