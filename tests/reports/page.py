"""What tests need to know of an HTML page."""

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "br", "hr", "input"}
DRAWN = {"path", "circle"}


class Page(HTMLParser):
    """A page, which must nest as it should, refer to nothing, and be accessible."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert self._open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in DRAWN, f"<{tag}/>"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of each such element."""
        return [attributes for name, attributes in self.tags if name == tag]

    def check(self) -> None:
        """It needs no network and no script, and says what its pictures and tables show."""
        assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in self.tags}
        assert not re.search(r"https?://|url\(|@import|javascript:", self.source)
        ids = {a["id"] for _, a in self.tags if "id" in a}
        for tag, attributes in self.tags:
            assert not [name for name in attributes if name.startswith("on")], tag
            if "src" in attributes:
                assert str(attributes["src"]).startswith("data:image/jpeg;base64,")
            if "href" in attributes:
                assert str(attributes["href"])[1:] in ids
        assert all(picture["alt"] for picture in self.of("img"))
        for drawing in self.of("svg"):
            assert drawing.get("aria-label") or drawing.get("aria-hidden") == "true"
        assert all(head["scope"] in ("row", "col") for head in self.of("th"))
        assert len(self.of("caption")) == len(self.of("table"))
        levels = [int(tag[1]) for tag, _ in self.tags if re.fullmatch(r"h\d", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
        assert len(self.source) < 3_000_000
