import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("hdrh")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

import fakeredis
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bench import environment, figures, latency, page, plot, results, table
from bench.results import Leg, Result, Skipped, UnreadableResult


def histogram(*values_ms: float) -> str:
    made = latency.new_histogram()
    for value_ms in values_ms:
        made.record_value(round(value_ms * 1000))
    return latency.encode(made)


def leg(side: str, round_: int = 0, subscribers: int = 1, text: str | None = None, **found: float) -> Leg:
    return Leg({"subscribers": subscribers}, side, round_, found, text)


def latency_leg(side: str, round_: int, *values_ms: float, subscribers: int = 1) -> Leg:
    made = histogram(*values_ms)
    return leg(side, round_, subscribers, made, **latency.percentiles(latency.decode(made)))


def latency_result(*legs: Leg, **changes) -> Result:
    return Result("latency", quick=False, rounds=3, legs=list(legs), **changes)


def three_sides() -> Result:
    """Stalecast is ahead of nchan and far from the limit."""
    return latency_result(
        *(
            latency_leg(side, round_, *values_ms, subscribers=subscribers)
            for subscribers in (1, 1000)
            for round_ in range(2)
            for side, values_ms in (("stalecast", (2, 3, 4)), ("limit", (1, 2, 3)), ("nchan", (4, 6, 8)))
        )
    )


def everything() -> dict[str, Result]:
    """Every chart has something to draw."""
    sides = ("stalecast", "limit", "nchan")
    found = {"latency": three_sides()}
    for name, size, figure in (
        ("connect", {"clients": 5000}, "greeted_s"),
        ("resume", {"clients": 5000, "missed": 100}, "caught_up_s"),
        ("memory", {"clients": 5000}, "kb_a_client"),
    ):
        legs = [Leg(size, side, at, {figure: 1.0 + at}) for side in sides for at in range(2)]
        found[name] = Result(name, quick=False, rounds=2, legs=legs)
    legs = [
        Leg({"clients": count, "topics": topics}, side, 0, {"cpu_us_a_delivery": 3.0, "p50_ms": count / 100})
        for count in (625, 1250)
        for topics in (1, count)
        for side in sides
    ]
    found["scale"] = Result("scale", quick=False, rounds=1, legs=legs)
    return found


def row(result: Result, side: str, **size: int) -> figures.Row:
    rows = figures.summarize(result)
    (found,) = [one for one in rows if one.side == side and (not size or one.size == size)]
    return found


# -- figures


def test_percentiles_are_those_of_all_rounds_together():
    # Neither round's own median, and not the median of both.
    result = latency_result(
        latency_leg("stalecast", 0, 1, 1, 1, 1, 1),
        latency_leg("stalecast", 1, 1, 9, 9),
        latency_leg("stalecast", 2, 9),
    )

    found = row(result, "stalecast")

    assert found.figures["p50_ms"] == pytest.approx(1, rel=0.001)
    assert found.figures["max_ms"] == pytest.approx(9, rel=0.001)
    assert found.rounds == 3


def test_other_figures_are_the_median_over_the_rounds():
    result = latency_result(*(leg("stalecast", at, span_ms=span) for at, span in enumerate((5.0, 1.0, 90.0))))

    assert row(result, "stalecast").figures == {"span_ms": 5.0}


def test_a_ratio_is_taken_within_a_round():
    # The machine got ten times slower from round to round; the ratio did not change.
    result = latency_result(
        *(leg("stalecast", at, p50_ms=2.0 * 10**at) for at in range(3)),
        *(leg("limit", at, p50_ms=1.0 * 10**at) for at in reversed(range(3))),
        *(leg("nchan", at, p50_ms=4.0 * 10**at) for at in range(3)),
    )

    assert row(result, "stalecast").over_limit == {"p50_ms": 2.0}
    assert row(result, "nchan").over_limit == {"p50_ms": 4.0}
    assert row(result, "nchan").stalecast_over == {"p50_ms": 0.5}


def test_the_ratio_is_the_median_of_the_rounds():
    result = latency_result(
        *(leg("stalecast", at, p50_ms=ratio) for at, ratio in enumerate((9.0, 1.0, 2.0))),
        *(leg("limit", at, p50_ms=1.0) for at in range(3)),
    )

    assert row(result, "stalecast").over_limit == {"p50_ms": 2.0}


def test_a_round_that_one_side_missed_gives_no_ratio():
    result = latency_result(
        leg("stalecast", 0, p50_ms=3.0), leg("stalecast", 1, p50_ms=8.0), leg("limit", 1, p50_ms=2.0)
    )

    assert row(result, "stalecast").over_limit == {"p50_ms": 4.0}


def test_no_ratio_where_there_is_nothing_to_divide_by():
    result = latency_result(leg("stalecast", p50_ms=3.0), leg("nchan", p50_ms=0.0))

    assert row(result, "stalecast").over_limit is None
    assert row(result, "stalecast").stalecast_over is None
    assert row(result, "nchan").stalecast_over is None


def test_the_limit_is_no_mark_for_memory_and_counts_are_not_compared():
    result = latency_result(
        leg("stalecast", kb_a_client=20.0, receipts=7.0, p50_ms=1.0),
        leg("limit", kb_a_client=1.0, receipts=7.0, p50_ms=1.0),
        leg("nchan", kb_a_client=10.0, receipts=7.0, p50_ms=1.0),
    )

    assert row(result, "stalecast").over_limit == {"p50_ms": 1.0}
    assert row(result, "nchan").stalecast_over == {"p50_ms": 1.0, "kb_a_client": 2.0}


@pytest.mark.parametrize(("ours", "behind"), [(0.99, []), (1.0, ["p50_ms"]), (1.5, ["p50_ms"])])
def test_not_ahead_begins_at_the_same(ours, behind):
    result = latency_result(leg("stalecast", p50_ms=ours), leg("nchan", p50_ms=1.0))

    assert row(result, "nchan").not_ahead == behind


@pytest.mark.parametrize(("ours", "far"), [(1.15, []), (1.16, ["p50_ms"])])
def test_only_stalecast_is_held_against_the_limit(ours, far):
    result = latency_result(
        leg("stalecast", p50_ms=ours), leg("limit", p50_ms=1.0), leg("nchan", p50_ms=5.0, max_ms=9.0)
    )

    assert row(result, "stalecast").far_from_limit == far
    assert row(result, "nchan").far_from_limit == []


def test_rows_keep_the_order_of_the_run():
    found = [(one.size["subscribers"], one.side) for one in figures.summarize(three_sides())]

    assert found == [(size, side) for size in (1, 1000) for side in ("stalecast", "limit", "nchan")]


def test_every_headline_figure_is_known_and_compared():
    for scenario in figures.SCENARIOS.values():
        assert all(figures.FIGURES[name].compared for name in scenario.headline)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("p50_ms", 0.0, "0 ms"),
        ("p50_ms", 0.00001, "<0.0001 ms"),
        ("p50_ms", 0.0801, "0.080 ms"),
        ("p50_ms", 0.9996, "1.00 ms"),
        ("p50_ms", 9.996, "10.0 ms"),
        ("p50_ms", 99.96, "100 ms"),
        ("p50_ms", 12345.6, "12,346 ms"),
        ("cpu_share", 0.301, "30.1 %"),
        ("receipts", 40000.0, "40,000"),
        ("redis_commands_a_client", 1.0, "1"),
        ("redis_commands_a_client", 0.0024, "0.0024"),
    ],
)
def test_a_figure_in_words(name, value, text):
    assert figures.with_unit(name, value) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (0.0, "0"),
        (0.0002, "<0.001"),
        (0.08, "0.080"),
        (0.995, "0.99"),
        (1.0, "1.00"),
        (35.2, "35.2"),
        (256.0, "256"),
    ],
)
def test_a_ratio_in_words(ratio, text):
    assert figures.ratio_text(ratio) == text


def test_a_size_in_words():
    assert figures.size_words({"clients": 10000, "topics": 1}) == "10,000 clients, 1 topic"


# -- files


def test_a_result_survives_its_file(tmp_path):
    result = three_sides()
    result.skipped.append(Skipped("better-sse", "node is missing", "npm ci"))
    result.write(tmp_path / "new" / "latency.json")

    assert results.read(tmp_path / "new" / "latency.json") == result


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "{}",
        '{"format": 99}',
        '{"format": 1, "scenario": "latency"}',
        '{"format": 1, "legs": 4}',
    ],
)
def test_what_is_no_result_says_so(tmp_path, text):
    path = tmp_path / "latency.json"
    path.write_text(text)

    with pytest.raises(UnreadableResult, match=re.escape(str(path))):
        results.read(path)


# -- the table


def shown(result: Result, **options) -> str:
    out = StringIO()
    if options:
        table.show(result, Console(file=out, highlight=False, **options))
    else:
        table.show(result, table.console_for(out))
    return out.getvalue()


def test_without_a_terminal_nothing_is_coloured_or_cut():
    result = three_sides()
    result.notes.append("a note " * 60)
    result.violations.append("lost 3 " * 60)

    text = shown(result)

    assert "\x1b" not in text
    assert "…" not in text
    assert result.notes[0] in text
    assert result.violations[0] in text
    assert max(map(len, text.splitlines())) > 110


def test_in_a_terminal_of_110_columns_names_and_figures_stay_whole():
    found = {"cpu_us_a_delivery": 1.0, "p50_ms": 1.0, "p99_ms": 1.0, "kb_a_client": 1.0}
    size = {"clients": 10_000, "topics": 10_000}
    legs = [Leg(size, side, 0, found) for side in ("stalecast", "limit", "sse-starlette")]
    result = Result("scale", quick=False, rounds=1, legs=legs)

    text = shown(result, width=110, force_terminal=True, color_system=None)

    assert "…" not in text
    assert re.search(r"sse-starlette +(1\.00 +){7}Stale", text)
    assert max(map(len, text.splitlines())) <= 110


def test_a_terminal_is_never_taken_for_narrower_than_that(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")

    assert table.console_for(Terminal()).width == 110


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_ratios_come_first_and_violations_last():
    result = three_sides()
    result.skipped.append(Skipped("better-sse", "node is missing", "npm ci --prefix x"))
    result.notes.append("something to know")
    result.violations.append("nchan, 1 subscribers, round 1: lost 3")
    text = shown(result)

    parts = ["x limit", "p50 ", "skipped: better-sse: node is missing (to install it: npm ci --prefix x)"]
    parts += ["note: something to know", "VIOLATION nchan, 1 subscribers, round 1: lost 3"]
    places = [text.index(part) for part in parts]
    assert text.index("ratios") < text.index("absolute") < places[2]
    assert places[2:] == sorted(places[2:])
    assert text.rstrip().endswith("lost 3")


def test_what_is_not_as_one_would_wish_is_said_in_words():
    result = latency_result(
        leg("stalecast", p50_ms=1.2, p99_ms=1.0),
        leg("limit", p50_ms=1.0, p99_ms=1.0),
        leg("nchan", p50_ms=2.0, p99_ms=0.9),
    )
    lines = [line.rstrip() for line in shown(result).splitlines()]

    assert [line for line in lines if line.endswith("far from the limit: p50")]
    assert [line for line in lines if " nchan " in line and line.endswith("Stalecast is not ahead: p99")]


def test_markup_in_a_result_is_text():
    result = three_sides()
    result.notes.append("[bold]not a style[/bold] [/]")

    assert "[bold]not a style[/bold] [/]" in shown(result)


def test_quick_figures_are_called_that():
    assert "says nothing about speed" in shown(replace(three_sides(), quick=True))
    assert "says nothing about speed" not in shown(three_sides())


def test_a_scenario_without_ratios_lists_its_counts():
    result = Result(
        "drain", quick=False, rounds=1, legs=[Leg({"clients": 2000}, "stalecast", 0, {"lost": 0.0})]
    )

    assert re.search(r"lost +0\n", shown(result))


def test_markdown_is_a_table_of_ratios():
    lines = table.as_markdown({"latency": three_sides()}).splitlines()

    assert lines[0] == "| Stalecast over |  | limit | nchan | Stalecast |"
    assert (
        lines[2]
        == "| Latency of one event: p50 / p99 | 1 subscriber | 1.50 / 1.33 | 0.50 / 0.50 | 3.00 / 4.00 ms |"
    )
    assert lines[3].startswith("|  | 1,000 subscribers |")
    assert len({line.count("|") for line in lines}) == 1


def test_a_side_that_was_not_measured_at_one_size_leaves_its_cell_empty():
    result = three_sides()
    result.legs = [one for one in result.legs if (one.side, one.size["subscribers"]) != ("nchan", 1000)]

    first, second = table.as_markdown({"latency": result}).splitlines()[2:]

    assert "| 0.50 / 0.50 |" in first
    assert "|  | 3.00 / 4.00 ms |" in second


def test_progress_without_a_terminal_is_a_line_for_each_leg():
    out = StringIO()
    with table.Progress(out) as progress:
        progress.expect(2)
        for text in (
            "latency: [1] subscriber, nchan, round 1 of 3",
            "latency: 1 subscriber, limit, round 1 of 3",
        ):
            progress.begin(text)
            progress.end()

    first, second = out.getvalue().splitlines()
    assert first == "[1/2 0:00] latency: [1] subscriber, nchan, round 1 of 3"
    assert second.startswith("[2/2 ")


def test_progress_in_a_terminal_shows_the_leg_under_way(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    out = Terminal()
    with table.Progress(out) as progress:
        progress.expect(3)
        progress.begin("latency: [bold] subscriber, nchan")
        assert "latency: [bold] subscriber, nchan" in out.getvalue()
        progress.end()
        assert "1/3" in out.getvalue()


# -- plots


def test_every_chart_in_both_schemes_and_formats(tmp_path):
    paths = plot.plot_all(everything(), tmp_path)

    assert sorted(paths) == sorted(tmp_path.iterdir())
    assert {path.name for path in paths} == {
        f"{name}-{scheme}.{ending}"
        for name in ("latency", "scale", "arrival", "memory")
        for scheme in ("light", "dark")
        for ending in ("svg", "png")
    }


def test_missing_scenarios_are_left_out(tmp_path):
    nothing = Result("resume", quick=False, rounds=1)
    found = {"resume": nothing, "connect": everything()["connect"], "latency": Result("latency", False, 1)}

    assert {path.stem for path in plot.plot_all(found, tmp_path)} == {"arrival-light", "arrival-dark"}
    assert plot.plot_all({}, tmp_path) == []


def test_the_same_results_give_the_same_bytes():
    (scheme, _) = plot.SCHEMES
    once, again = (plot.render(plot.SCALE, everything(), scheme) for _ in range(2))

    assert once == again
    assert b"<dc:date>" not in once["svg"]


@pytest.mark.parametrize("scheme", plot.SCHEMES, ids=lambda scheme: scheme.name)
def test_every_side_can_be_seen_on_its_background(scheme):
    assert set(scheme.sides) == set(figures.SIDES)
    assert len(set(scheme.sides.values())) == len(figures.SIDES)
    assert all(contrast(colour, scheme.background) >= 3 for colour in scheme.sides.values())
    assert contrast(scheme.text, scheme.background) >= 7
    assert contrast(scheme.muted, scheme.background) >= 4.5


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, 1.4.3."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@given(st.lists(st.floats(0, 1), max_size=8).map(sorted), st.floats(0.01, 0.3))
def test_names_beside_lines_never_touch(wanted, gap):
    placed = plot._apart(wanted, gap)

    assert len(placed) == len(wanted)
    assert all(after - before >= gap - 1e-9 for before, after in pairwise(placed))
    if all(after - before >= gap for before, after in pairwise(wanted)):
        assert placed == pytest.approx(wanted)


# -- the page


class Outline(HTMLParser):
    """What the page refers to, and whether every element is closed."""

    VOID = ("meta", "source", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.references += [
            value for name, value in attrs if name in ("src", "srcset", "href", "data", "action")
        ]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_and_fetches_nothing(tmp_path):
    path = page.write_page(everything(), tmp_path / "new" / "report.html")
    text = path.read_text()
    outline = Outline(text)

    assert outline.open == []
    assert len(outline.references) == 8  # four charts in two schemes
    assert all(reference.startswith("data:image/svg+xml;base64,") for reference in outline.references)
    assert "script" not in outline.tags
    assert "@import" not in text
    assert not re.search(r"url\(", text)


def test_everything_from_a_result_is_escaped():
    evil = '<script>alert("1")</script>&'
    result = three_sides()
    result.legs.append(Leg({evil: evil}, evil, 0, {evil: 1.0, "p50_ms": 1.0}))
    result.legs.append(Leg({evil: evil}, "stalecast", 0, {"p50_ms": 1.0}))
    result.legs.append(leg(evil, subscribers=1000, p50_ms=1.0))
    result.notes.append(evil)
    result.violations.append(evil)
    result.skipped.append(Skipped(evil, evil, evil))
    result.machine, result.versions, result.command = {evil: evil}, {evil: evil}, evil
    result = replace(result, started_at=evil)

    outline = Outline(page.page({"latency": result, evil: replace(result, scenario=evil)}))

    assert "script" not in outline.tags
    assert outline.text.count("<script>") > 10


def test_the_page_says_what_does_not_speak_for_stalecast():
    result = latency_result(
        leg("stalecast", p50_ms=3.0),
        leg("limit", p50_ms=2.0),
        leg("nchan", p50_ms=2.0),
        leg("better-sse", p50_ms=6.0),
        violations=["lost 3"],
        notes=["a note"],
        skipped=[Skipped("quart-trio", "not there", "pip install it")],
    )
    text = Outline(page.page({"latency": result})).text

    assert "Of 2 figures beside a peer's, Stalecast is ahead in 1." in text
    assert "Latency of one event, beside nchan: p50 1.50 times" in text
    assert "1.50 times the limit's" in text
    assert "0.50 of better-sse's" in text
    assert text.count("lost 3") == 2  # at the top, and where it happened
    assert "a note" in text
    assert "quart-trio: not there (to install it: pip install it)" in text


def test_a_page_of_nothing():
    assert "Nothing was measured." in Outline(page.page({})).text


def test_machines_that_differ_stand_apart():
    one = replace(three_sides(), machine={"cpu": "A"}, versions={"python": "3.11"})
    other = replace(everything()["connect"], machine={"cpu": "B"}, versions={"python": "3.11"})

    text = page.page({"latency": one, "connect": other})

    assert text.count("<dt>cpu</dt>") == 2
    assert "<dd>connect</dd>" in text


@pytest.mark.parametrize("name", [scheme.name for scheme in plot.SCHEMES])
def test_text_of_the_page_is_readable(name):
    css = page.TEMPLATE.read_text()
    (light, dark) = re.findall(r":root \{([^}]*--page[^}]*)\}", css)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", light if name == "light" else dark))
    scheme = next(scheme for scheme in plot.SCHEMES if scheme.name == name)

    assert colours["page"] == scheme.background  # the charts have no visible edge
    for text in ("text", "muted", "accent", "mark"):
        assert contrast(colours[text], colours["page"]) >= 4.5
        assert contrast(colours[text], colours["soft"]) >= 4.5
    assert contrast(colours["alarm"], colours["alarm-soft"]) >= 4.5


def test_a_chart_is_well_formed_xml():
    ElementTree.fromstring(plot.render(plot.MEMORY, everything(), plot.SCHEMES[1], ("svg",))["svg"])


# -- the environment


def described(monkeypatch, info: dict[str, str]):
    client = fakeredis.FakeRedis()
    monkeypatch.setattr(client, "info", lambda section: info)
    monkeypatch.setattr(environment.Redis, "from_url", lambda url: client)
    return environment.describe("redis://nowhere", {"trio": "0.35.0"})


def test_the_machine_can_be_written_down(monkeypatch):
    machine, versions = described(monkeypatch, {"redis_version": "7.0.15"})

    assert json.loads(json.dumps(machine)) == machine
    assert set(machine) == {"cpu", "cores", "system", "server_cpu", "load_cpu", "open_files"}
    assert versions["trio"] == "0.35.0"
    assert versions["redis-server"] == "7.0.15"
    assert "python" in versions


def test_valkey_is_not_called_redis(monkeypatch):
    _, versions = described(monkeypatch, {"redis_version": "7.2.4", "valkey_version": "9.1.2"})

    assert versions["valkey-server"] == "9.1.2"
    assert "redis-server" not in versions


def test_a_machine_without_cpuinfo_has_its_architecture(monkeypatch):
    monkeypatch.setattr(environment, "CPU_INFO", Path("/nowhere"))
    monkeypatch.setattr(environment.platform, "machine", lambda: "riscv64")

    assert environment._cpu_model() == "riscv64"
