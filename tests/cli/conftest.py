from __future__ import annotations

from toy import toy_corpus as toy_corpus
