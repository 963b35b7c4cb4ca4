"""Real English passages from the test data of a pinned package: news (Lee et al. 2005) and Wikipedia.

The benchmark of the sentence encoder needs text that anybody can get again, byte for byte, from the package
index alone.
"""

import bz2
import html
import itertools
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

PACKAGE = "gensim==4.4.0"
_FOLDER = "gensim/test/test_data/"
_NEWS = ("lee_background.cor", "lee.cor")
_WIKIPEDIA = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
# A long article may not outweigh the others.
_PASSAGES_PER_ARTICLE = 16
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'])")
_MARKUP = (
    (re.compile(r"<!--.*?-->", re.DOTALL), ""),
    (re.compile(r"<ref[^<>]*/>|<ref[^<>]*>.*?</ref>", re.DOTALL), ""),
    (re.compile(r"\[\[(?:[^\[\]|:]*\|)?([^\[\]|:]*)\]\]"), r"\1"),
    (re.compile(r"\[https?://\S+ ([^\[\]]*)\]"), r"\1"),
    (re.compile(r"'{2,}"), ""),
    (re.compile("&nbsp;|\N{NO-BREAK SPACE}"), " "),
)
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_LEFT_OVER = re.compile(r"[{}\[\]<>|=#]|\(\s*[,;)]")


def download(package: str, folder: Path) -> Path:
    """The wheel of `package` (name==version) in `folder`, fetched with pip when it is not there."""
    name = package.partition("==")[0].replace("-", "_")
    if not (found := sorted(folder.glob(f"{name}-*.whl"))):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), package]
        subprocess.run(command, check=True)
        found = sorted(folder.glob(f"{name}-*.whl"))
    return found[0]


def passages(folder: Path, tokens: Callable[[str], list[int]], length: int, count: int) -> list[list[int]]:
    """`count` passages of exactly `length` tokens that start where a sentence does, in a fixed order.

    `tokens` turns text into token numbers without special ones. Passages do not overlap, and no sentence
    comes twice: the news repeats itself, and a copy's nearest neighbour would be too easy to find.

    Raises:
        ValueError: the text is too short for so many.
    """
    found: list[list[int]] = []
    cut = _Cutter(tokens, length)
    with zipfile.ZipFile(download(PACKAGE, folder)) as wheel:
        for name in _NEWS:
            for document in wheel.read(_FOLDER + name).decode("utf-8", errors="ignore").splitlines():
                found += cut.passages(document)
        for article in _articles(bz2.decompress(wheel.read(_FOLDER + _WIKIPEDIA)).decode("utf-8")):
            prose = itertools.chain.from_iterable(map(cut.passages, article))
            found += itertools.islice(prose, _PASSAGES_PER_ARTICLE)
    if len(found) < count:
        raise ValueError(
            f"{PACKAGE} holds {len(found)} passages of {length} tokens, not {count}; ask for fewer."
        )
    order = np.random.default_rng(8).permutation(len(found))[:count]
    return [found[index] for index in order]


class _Cutter:
    """Cuts passages, leaving out the sentences that it has seen."""

    def __init__(self, tokens: Callable[[str], list[int]], length: int) -> None:
        self._tokens = tokens
        self._length = length
        self._seen: set[str] = set()

    def passages(self, document: str) -> Iterator[list[int]]:
        passage: list[int] = []
        for sentence in _SENTENCE_END.split(document.strip()):
            if sentence in self._seen:
                continue
            self._seen.add(sentence)
            passage += self._tokens(sentence)
            if len(passage) >= self._length:
                yield passage[: self._length]
                passage = []


def _articles(dump: str) -> Iterator[list[str]]:
    """The paragraphs of prose of each page of a MediaWiki dump that is no redirect."""
    for match in re.finditer(r"<text[^>]*>(.*?)</text>", dump, re.DOTALL):
        source = html.unescape(match[1])
        if source.lower().startswith("#redirect"):
            continue
        for pattern, replacement in _MARKUP:
            source = pattern.sub(replacement, source)
        while (shorter := _TEMPLATE.sub("", source)) != source:
            source = shorter
        yield [line for line in source.splitlines() if line[:1].isalpha() and not _LEFT_OVER.search(line)]
