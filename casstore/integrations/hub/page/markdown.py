"""README.md as HTML. Anyone may have written it: nothing in it may run, load from elsewhere or look like the page around it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LONGEST", "TAGS", "render_card"]

_MARKDOWN = MarkdownIt("commonmark", {"html": True, "maxNesting": 40}).enable(["table", "strikethrough"])
LONGEST = 64 << 10
"""Characters of a card that are shown: for some texts the time grows with the square of their length."""

TAGS = {
    "a", "abbr", "b", "blockquote", "br", "center", "code", "dd", "del", "details", "div", "dl", "dt", "em", "h2", "h3", "h4",
    "h5", "h6", "hr", "i", "img", "kbd", "li", "ol", "p", "pre", "q", "s", "small", "span", "strong", "sub", "summary", "sup",
    "table", "tbody", "td", "tfoot", "th", "thead", "tr", "u", "ul",
}  # fmt: skip
_ATTRIBUTES = {
    "a": {"href", "title"},
    "img": {"src", "alt", "title", "width", "height"},
    "td": {"align", "colspan", "rowspan"},
    "th": {"align", "colspan", "rowspan", "scope"},
    "ol": {"start"},
    "details": {"open"},
    "p": {"align"},
    "div": {"align"},
}
_SCHEMES = {"http", "https", "mailto"}
_DEEPEST = 6


@lru_cache(maxsize=128)
def render_card(text: str, *, file_url: str | None) -> Markup:
    """Return the HTML of a card's Markdown.

    Relative links and pictures lead to files of the model, below `file_url`; without one they lead nowhere. Pictures from
    elsewhere are left out, since a page on a store must not tell others who reads it.
    """
    tokens = _MARKDOWN.parse(text[:LONGEST])
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            # The page has a heading of its own.
            token.tag = f"h{min(_DEEPEST, int(token.tag[1]) + 1)}"
    html = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})
    clean = nh3.clean(
        html,
        tags=TAGS,
        attributes=_ATTRIBUTES,
        attribute_filter=_filter(file_url),
        url_schemes=_SCHEMES,
        link_rel="noopener noreferrer nofollow",
    )
    return Markup(clean)  # noqa: S704 - nh3 has made it clean


def _filter(file_url: str | None) -> Callable[[str, str, str], str | None]:
    def keep(tag: str, name: str, value: str) -> str | None:
        if name not in ("href", "src"):
            return value
        try:
            parts = urlsplit(value)
        except ValueError:
            return None  # Not a URL, so it leads nowhere.
        if parts.scheme or parts.netloc:
            return value if name == "href" and tag == "a" else None
        if not parts.path or file_url is None or parts.path.startswith("/"):
            return None
        steps = [step for step in unquote(parts.path).split("/") if step not in ("", ".")]
        return None if ".." in steps else f"{file_url}/{quote('/'.join(steps))}"

    return keep
