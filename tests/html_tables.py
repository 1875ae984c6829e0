"""What a page says, read from its HTML: the cells of its tables by their keys, and its words."""

from html.parser import HTMLParser

EMPTY = {"meta", "link", "br", "img", "input"}


class Reader(HTMLParser):
    """Tables as rows of cells; a cell of several elements is a list of their texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[list[str]]]] = {}
        self.ids: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self._rows: list[list[list[str]]] | None = None
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.addresses += [values[name] for name in ("src", "href") if name in values]
        assert "style" not in values, "the page's policy lets no style attribute through"
        if tag not in EMPTY:
            self.open.append(tag)
        if tag == "table":
            self._rows = self.tables[values["id"]] = []
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag in ("td", "th") and self._rows is not None:
            self._rows[-1].append([])

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            self._rows = None

    def handle_data(self, data):
        if self._rows and self._rows[-1] and {"td", "th"} & {*self.open} and data.strip():
            self._rows[-1][-1].append(data.strip())


def number(text: str) -> float:
    """What a cell shows; a dash is nan."""
    return float("nan") if text == "–" else float(text.replace("−", "-"))
