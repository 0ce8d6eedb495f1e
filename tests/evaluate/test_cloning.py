"""Which conversions are scored."""

from __future__ import annotations

import dataclasses

import pytest

from data_pipelines.build import build
from data_pipelines.corpus import Corpus
from data_pipelines.manifest import Row
from jaxclone.audio import io
from jaxclone.audio.spec import AudioSpec
from jaxclone.evaluate.cloning import make_pairs
from jaxclone.types import UserError


@pytest.fixture(scope="module")
def make_corpus(speakers, tmp_path_factory):
    """Makes a corpus of (speaker, text, language, role) rows, all of its test split."""

    def make(*rows: tuple[str, str, str, str]) -> Corpus:
        folder = tmp_path_factory.mktemp("pairs")
        waveform = speakers["pitch130"][0]
        listed = []
        for number, (speaker, text, language, role) in enumerate(rows):
            io.write(folder / f"{number}.wav", waveform, 16_000)
            extra = {"role": role} if role else {}
            row = Row(str(folder / f"{number}.wav"), speaker, text, language, split="test")
            listed.append(dataclasses.replace(row, extra=extra))
        build(listed, folder / "corpus", AudioSpec(), shards=1, f0=False, workers=1)
        return Corpus.open(folder / "corpus")

    return make


def told(corpus, pairs):
    """The pairs by what is said: (source's speaker, target, text, has a truth, reference texts)."""
    rows = corpus.table
    return [
        (
            rows[p.source].speaker,
            p.target,
            rows[p.source].text,
            None if p.truth is None else (rows[p.truth].speaker, rows[p.truth].text),
            sorted(rows[i].text for i in p.references),
        )
        for p in pairs
    ]


def test_a_truth_is_preferred_and_never_enrolled_on(make_corpus):
    corpus = make_corpus(
        *(("a", text, "en", "") for text in ("one", "two", "three")),
        *(("b", text, "en", "") for text in ("one", "two", "four")),
    )
    pairs = told(corpus, make_pairs(corpus, count=6))
    assert len(pairs) == 6
    for source, target, text, _, references in pairs:
        assert source != target
        assert text not in references
        assert references
    assert all(truth == (target, text) for _, target, text, truth, _ in pairs[:4])
    assert [truth for *_, truth, _ in pairs[4:]] == [None, None]
    assert {target for _, target, *_ in pairs[:2]} == {"a", "b"}


def test_recordings_set_aside_are_what_is_enrolled_on(make_corpus):
    corpus = make_corpus(
        ("a", "one", "en", "target"),
        ("a", "hello", "en", "reference"),
        ("b", "one", "en", "target"),
        ("b", "hi", "en", "reference"),
    )
    pairs = told(corpus, make_pairs(corpus))
    assert sorted(pairs) == [
        ("a", "b", "one", ("b", "one"), ["hi"]),
        ("b", "a", "one", ("a", "one"), ["hello"]),
    ]


def test_languages_are_not_crossed(make_corpus):
    corpus = make_corpus(
        *(
            (name, text, lang, "")
            for name, lang in (("a", "en"), ("b", "en"), ("c", "de"))
            for text in ("one", "two")
        )
    )
    assert {target for _, target, *_ in told(corpus, make_pairs(corpus))} == {"a", "b"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "one", "en", ""), ("a", "two", "en", "")], "two labelled voices"),
        ([("a", "one", "en", ""), ("b", "one", "en", "")], "no voice of split 'test' can be"),
    ],
)
def test_too_little_to_clone(make_corpus, rows, message):
    with pytest.raises(UserError, match=message):
        make_pairs(make_corpus(*rows))
