"""A page as its reader gets it: parsed, with what it shows and what it would load."""

from __future__ import annotations

from html.parser import HTMLParser

_VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})


class Page(HTMLParser):
    """Elements, texts and attributes of a page; fails where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.mismatched: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        self.mismatched += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.mismatched.append(tag)

    def handle_data(self, data: str) -> None:
        if data.strip() and self._open[-1:] != ["style"]:
            self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        """All that is to be read, with spaces between."""
        return " ".join(self.texts)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        """Those of every element of that kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def loaded(self) -> list[str]:
        """Addresses that a browser would ask for."""
        return [
            value or ""
            for _, attributes in self.elements
            for name, value in attributes.items()
            if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href")
        ]
