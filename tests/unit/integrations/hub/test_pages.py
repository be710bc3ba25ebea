"""The pages as text: what they show, and that nothing in them runs. tests/hub opens them in a browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from urllib.parse import quote

import hypothesis.strategies as st
import numpy as np
import pytest
from fakes.hub_pages import EVIL, EVIL_CARD, EVIL_NAME, hostile, pipeline, weights, write
from fakes.hub_server import hub_server, raw
from hypothesis import given

import casstore
from casstore.integrations.hub.endpoint.card import parse_card
from casstore.integrations.hub.page.comparison import compare_models
from casstore.integrations.hub.page.layout import place
from casstore.integrations.hub.page.lineage_graph import MOST, draw_lineage
from casstore.integrations.hub.page.markdown import TAGS, render_card
from casstore.integrations.hub.page.tensors import tensor_rows
from casstore.ops.lineage import Lineage, Link, ModelNode

QUIET = {
    "a", "bdi", "blockquote", "body", "br", "button", "caption", "code", "datalist", "dd", "defs", "del", "details", "div", "dl",
    "dt", "em", "form", "g", "h1", "h2", "h3", "h4", "h5", "h6", "head", "header", "hr", "html", "i", "img", "input", "label",
    "li", "link", "main", "marker", "meta", "nav", "ol", "option", "p", "path", "pre", "rect", "section", "span", "strong",
    "summary", "svg", "table", "tbody", "td", "text", "th", "thead", "time", "title", "tr", "tspan", "ul",
}  # fmt: skip
"""Elements that the pages are made of. None of them runs anything."""


class Elements(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.text = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def check_quiet(html):
    elements = Elements(html)
    for tag, attributes in elements.found:
        assert tag in QUIET | TAGS, (tag, attributes)
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "style", (tag, value)
            if name in ("href", "src", "action"):
                assert re.match(r"(?:[/?#]|https?:|mailto:|$)", value or ""), (tag, value)
                assert tag != "img" or value.startswith("/"), value
                assert tag != "form" or value.startswith("/"), value
    return elements


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    with casstore.open(folder / "store", create=True, durability="none") as store:
        pipeline(store, folder / "models")
        hostile(store, folder / "hostile")
        with hub_server(store) as app:
            yield app


ALL = [
    "/",
    "/?q=minilm&sort=size&order=down",
    "/?q=%3Cscript%3E",
    "/models/org/minilm-tuned",
    "/models/org/evil",
    f"/models/{quote(EVIL_NAME)}",
    f"/models/{quote(EVIL_NAME)}?tensors=",
    "/models/org/minilm?tensors=encoder",
    "/tags/production",
    "/runs/tune-1",
    "/runs/evil-failed",
    "/evaluations/evil/e",
    "/compare",
    "/compare?a=org/minilm&b=org/minilm-tuned",
    f"/compare?a={quote(EVIL_NAME)}&b=org/minilm",
    "/compare?a=runs/tune-1&b=runs/evil-failed",
    "/compare?a=%3Cscript%3E&b=x",
    "/usage",
    "/nothing/%3Cscript%3Ealert(1)%3C/script%3E",
]


@pytest.mark.parametrize("path", ALL)
def test_nothing_runs(pages, path):
    answer = raw(pages, "GET", path)
    assert answer.status < 500
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script" not in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    html = answer.body.decode()
    elements = check_quiet(html)
    headings = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert headings.count(1) == 1
    # Everything that can be filled in has a label.
    labels = {attributes["for"] for tag, attributes in elements.found if tag == "label"}
    fields = {a["id"] for tag, a in elements.found if tag == "input" and a.get("type") != "hidden"}
    assert fields == labels


def test_hostile_names_are_shown_as_they_are(pages):
    text = "".join(Elements(raw(pages, "GET", f"/models/{quote(EVIL_NAME)}").body.decode()).text)
    assert EVIL_NAME in text
    assert EVIL in text


def test_files_are_not_shown_with_the_rights_of_the_page(pages):
    [name] = [
        item.path for item in pages.context.store.files("models/org/evil") if item.path.endswith(".html")
    ]
    answer = raw(pages, "GET", f"/org/evil/resolve/main/{quote(name)}")
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Security-Policy"].startswith("sandbox;")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    picture = raw(pages, "GET", "/org/evil/resolve/main/picture.png")
    assert picture.headers["Content-Type"] == "image/png"


def test_the_list(pages):
    def names(query=""):
        html = raw(pages, "GET", f"/{query}").body.decode()
        return re.findall(r'<th scope="row"><a href="/models/([^"]+)"', html)

    assert names() == [quote(EVIL_NAME), "org/evil", "org/minilm", "org/minilm-int8", "org/minilm-tuned", "org/minilm-tuned-longer"]  # fmt: skip
    assert names("?q=TUNED") == ["org/minilm-tuned", "org/minilm-tuned-longer"]
    assert names("?q=production") == ["org/minilm-int8"]
    assert names("?sort=time&order=up")[0] == "org/minilm"
    pages.context.repositories.forget()
    text = raw(pages, "GET", "/").body.decode()
    assert "6 of 6 names" in text


def test_a_model(pages):
    html = raw(pages, "GET", "/models/org/minilm-tuned").body.decode()
    for part in (
        "hf download org/minilm-tuned",
        "AutoModel.from_pretrained",
        "casstore get --store",
        "/org/minilm-tuned/resolve/main/README.md",
        "0.874",
        "latency.avg",
        'href="/runs/quantise-4bit"',
        "box-failed",
        "5 min",
        "never in this store",
        "<h2>MiniLM</h2>",
        "<th>task</th>",
        "6 tensors",
    ):
        assert part in html, part
    longer = raw(pages, "GET", "/models/org/minilm-tuned-longer").body.decode()
    assert "box-pruned" in longer


def test_the_address_of_the_hub_leads_to_the_page(pages):
    answer = raw(pages, "GET", "/org/minilm")
    assert (answer.status, answer.headers["Location"]) == (307, "/models/org/minilm")
    assert raw(pages, "GET", "/org/none").status == 404
    assert raw(pages, "GET", "//evil.example").status == 404
    assert raw(pages, "POST", "/").status == 403


def test_comparisons(pages):
    html = raw(pages, "GET", "/compare?a=org/minilm&b=org/minilm-tuned").body.decode()
    assert "5 tensors are the same" in html
    assert "encoder.weight" in html
    assert "+0.064" in html
    runs = raw(pages, "GET", "/compare?a=runs/tune-1&b=runs/tune-2").body.decode()
    assert "config.steps" in runs
    assert raw(pages, "GET", "/compare?a=runs/tune-1&b=org/minilm").status == 400


def test_what_tensors_take(tmp_path):
    with casstore.open(tmp_path / "store", create=True, durability="none") as store:
        store.add(write(tmp_path / "a", weights(1)), ref="models/a")
        store.add(write(tmp_path / "b", weights(1, tuned=0.01)), ref="models/b", base="a")
        rows = tensor_rows(store, store.model("models/a"), None)
        assert [row.name for row in rows] == list(weights(1))
        assert all(row.size == row.dedup + row.codec + row.delta + row.stored for row in rows)
        large = rows[0]
        assert (large.size, large.dedup, large.delta) == (512 * 256 * 4, 0, 0)
        assert 0 < large.codec < large.size
        found = {
            row.name: row for row in tensor_rows(store, store.model("models/b"), store.model("models/a"))
        }
        assert found["embeddings.weight"].dedup == found["embeddings.weight"].size
        assert found["encoder.weight"].dedup == 0
        total = sum(share.bytes_stored for share in store.show("models/a").encodings)
        assert sum(row.stored for row in rows) <= total


def test_models_are_compared_by_their_tensors(tmp_path):
    """The same tensors in two files, in another order and with others between them, are the same."""
    one = weights(1)
    other = dict(reversed(weights(1).items()))
    other["pooler.bias"] = np.arange(64, dtype="<f4")
    other["extra"] = np.zeros(3, "<f4")
    del other["embeddings.bias"]
    other["encoder.bias"] = other["encoder.bias"] + np.float16(1)
    with casstore.open(tmp_path / "store", create=True, durability="none") as store:
        store.add(write(tmp_path / "a", one), ref="models/a")
        store.add(write(tmp_path / "b", other), ref="models/b")
        found = compare_models(store, store.model("models/a"), store.model("models/b"))
    assert {item.name: item.change for item in found.tensors} == {
        "embeddings.bias": "only in A",
        "encoder.bias": "values",
        "extra": "only in B",
        "pooler.bias": "type or shape",
    }
    assert found.same_tensors == 3
    assert found.shared_bytes >= 3 * 512 * 256 * 4


@given(
    st.integers(1, 12).flatmap(
        lambda count: st.tuples(
            st.just([str(number) for number in range(count)]),
            st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=30),
        )
    )
)
def test_every_node_has_a_place_of_its_own(drawn):
    nodes, edges = drawn
    forward = [(str(min(a, b)), str(max(a, b))) for a, b in edges if a != b]
    spots = place(nodes, forward)
    assert all(spots[a][0] < spots[b][0] for a, b in forward)
    for found in (spots, place(nodes, [(str(a), str(b)) for a, b in edges])):  # with cycles, too
        assert sorted(found) == sorted(nodes)
        assert len(set(found.values())) == len(nodes)


def test_a_large_lineage_is_drawn_in_part():
    ids = [f"{number:064x}" for number in range(500)]
    nodes = [ModelNode(key, (f"models/m{at}",), at, ()) for at, key in enumerate(ids)]
    links = tuple(Link(ids[at], ids[at + 1], run=f"r{at}", status="done") for at in range(499))
    drawing = draw_lineage(Lineage(nodes[0], (), tuple(nodes[1:]), links, ()))
    assert (len(drawing.boxes), drawing.left_out) == (MOST, 420)
    assert len(drawing.lines) == MOST - 1


@given(st.text(st.sampled_from("<>/\"'=&;:()[]!#`*_ \n\tabonclickjvsrptimghe"), max_size=200))
def test_cards_are_quiet(text):
    for item in (text, f"<{text}>", f'![a]({text}) <a href="{text}">x</a> <svg>{text}'):
        check_quiet(str(render_card(item, file_url="/m/resolve/main")))


def test_a_card(tmp_path):
    html = str(render_card(parse_card(EVIL_CARD.encode()).text, file_url="/org/evil/resolve/main"))
    check_quiet(html)
    assert '<img src="/org/evil/resolve/main/picture.png"' in html
    assert '<a href="/org/evil/resolve/main/config.json"' in html
    assert "evil.example/pixel" not in html
    assert "usage" not in html
    assert 'rel="noopener noreferrer nofollow"' in html


@pytest.mark.parametrize(
    "text",
    [
        "---\na: &x [1]\nb: *x\n---\n",
        "---\n- 1\n---\n",
        "---\n[\n---\n",
        "---\na: .nan\n---\n",
        "---\n" + "[" * 20000 + "\n---\n",
        "---\na: 1\n",
        "---\na: !!python/object/apply:os.system ['true']\n---\n",
        "\x00",
        "",
    ],
)
def test_cards_that_make_no_sense(text):
    card = parse_card(text.encode())
    assert card.data == {}


def test_what_a_card_says():
    card = parse_card("\ufeff---\nlicense: mit\ndate: 2026-01-01\ntags: [a, 1]\n---\ntext\n".encode())
    assert card.data == {"license": "mit", "date": "2026-01-01", "tags": ["a", 1]}
    assert (card.text, card.words("tags"), card.word("date")) == ("text\n", ["a"], "2026-01-01")


def test_files_that_clients_refuse_are_said_to_be_so(pages, monkeypatch, caplog):
    """huggingface_hub takes no file of more than 50 GB over plain HTTP; here the limit is 1 MB."""
    for module in ("endpoint.content", "page.model_page"):
        monkeypatch.setattr(f"casstore.integrations.hub.{module}.PLAIN_HTTP_LIMIT", 10**6)
    assert "refuse it over HTTP" in raw(pages, "GET", "/models/org/minilm").body.decode()
    for _ in range(2):
        assert raw(pages, "HEAD", "/org/minilm/resolve/main/model.safetensors").status == 200
    warnings = [record.getMessage() for record in caplog.records if "50 GB" in record.getMessage()]
    assert len(warnings) == 1
    assert "model.safetensors of org/minilm" in warnings[0]
