"""The explorer's page: a Streamlit script, started by `novelsum explore`.

Belongs here: layout, actions on clicks, state kept between reruns. Does not: the data (`pool_map`, `audit_tables`,
`lineage`), the figures (`map_figure`).

Texts, names of sources and messages come from data: they are shown by elements that interpret neither HTML nor Markdown
(st.text, st.code, st.dataframe), or after `_plain`.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb  # noqa: TID253 - This module is only loaded by streamlit.
import numpy as np
import pyarrow as pa
import streamlit as st  # noqa: TID253 - As above.

from novelsum_dagster.audit.attribution import FEW_PAIRS
from novelsum_dagster.audit.difference import Difference, difference
from novelsum_dagster.audit.explain import Explanation, explain
from novelsum_dagster.audit.verified import verified_run
from novelsum_dagster.explore import RUN_VARIABLE
from novelsum_dagster.explore.audit_tables import TABLES, as_csv, finished_runs, read_table
from novelsum_dagster.explore.map_figure import Colour, drift_figure, map_figure, shares_figure
from novelsum_dagster.explore.pool_map import DRAWN, HITS, PoolMap, fitting, load_map, search, thinned
from novelsum_dagster.lineage.runs import Run
from novelsum_dagster.lineage.store import LineageStore
from novelsum_dagster.settings import load_settings, settings_path

# No docstrings below names here: streamlit may show them on the page.
_DAMAGE = (ValueError, OSError, duckdb.Error, pa.ArrowException)
_STYLE = """<style>
    .stMainBlockContainer, .block-container {padding: 1.2rem 2rem 1rem}
    @media (min-width: 700px) {
        .stAppHeader {height: 0; min-height: 0}
        [data-testid="stSidebar"] {min-width: 340px}
    }
    @media (max-width: 700px) {.stMainBlockContainer, .block-container {padding: 3rem 0.8rem 1rem}}
    [data-testid="stSidebarHeader"] {height: 1.5rem; padding: 0.4rem}
    [data-testid="stMetricValue"] {font-size: 1.3rem}
    [data-testid="stText"] {white-space: pre-wrap; overflow-wrap: anywhere}
</style>"""
_SHARES = ("pool_share", "subset_share", "share_of_read", "relative_change")
_RATIOS = ("share_ratio", "median_ratio", "mean_ratio")
# Ids are shortened in tables, but complete in the CSV and when copied.
_NARROW = ("id", "first_id", "run_id", "runner_up_id", "nearest_pick_id", "file", "first_file", "example_file")
_MARKDOWN = re.compile(r"([!-/:-@\[-`{-~])")

# Cache key of the page: storage folder, time of the lineage's last change, run.
_Key = tuple[str, int, str]


def main() -> None:
    """Draw the page."""
    st.set_page_config(page_title="novelsum explore", layout="wide", initial_sidebar_state="auto")
    st.html(_STYLE)
    with _damage_told():
        key = _chosen_run()
        run = _run(key)
        filters = _filters(key)
        _header(key, run)
        views = _views()
        view = st.segmented_control("View", list(views), default="Map", key="view", label_visibility="collapsed")
        st.session_state.sample = st.session_state.get("sample")
        views[view or "Map"](key, filters)


def _views() -> dict[str, Callable[[_Key, dict[str, Any]], None]]:
    return {
        "Map": _map_view,
        "Picks": lambda key, _: _table_with_sample(key, "picks", "id"),
        "Near misses": lambda key, _: _table_with_sample(key, "near misses", "id"),
        "Sources": lambda key, _: _sources_view(key),
        "Lengths": lambda key, _: _table(key, "lengths"),
        "Rejects": lambda key, _: _table(key, "rejects"),
        "Near-duplicates": lambda key, _: _table_with_sample(key, "near-duplicates", "first_id"),
        "Measures": lambda key, _: _measures_view(key),
        "Runs": lambda key, _: _runs_view(key),
        "Compare": lambda key, _: _compare_view(key),
    }


@contextmanager
def _damage_told() -> Iterator[None]:
    """Show a sentence on missing or damaged data; Streamlit's own exceptions pass."""
    try:
        yield
    except _DAMAGE as error:
        st.error(_plain(str(error)))


def _plain(text: str) -> str:
    """Escape Markdown."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


# Data, cached by the lineage's state and the run.


def _store() -> LineageStore:
    return LineageStore(load_settings(settings_path()).storage_path)


@st.cache_data(max_entries=4, show_spinner=False)
def _runs(root: str, changed: int) -> list[dict[str, Any]]:
    with LineageStore(Path(root)).reading() as connection:
        return finished_runs(connection)


@st.cache_data(max_entries=32, show_spinner=False)
def _run(key: _Key) -> Run:
    with LineageStore(Path(key[0])).reading() as connection:
        return verified_run(connection, Path(key[0]), key[2])


# A resource, because data would be copied at every rerun, and the map is never modified.
@st.cache_resource(max_entries=2, show_spinner="Reading the map…")
def _map(key: _Key) -> PoolMap:
    with LineageStore(Path(key[0])).reading() as connection:
        return load_map(connection, Path(key[0]), verified_run(connection, Path(key[0]), key[2]))


@st.cache_data(max_entries=64, show_spinner="Reading the table…")
def _read(key: _Key, name: str) -> pa.Table | None:
    with LineageStore(Path(key[0])).reading() as connection:
        return read_table(connection, Path(key[0]), name, verified_run(connection, Path(key[0]), key[2]))


@st.cache_data(max_entries=256, show_spinner="Querying the lineage…")
def _explained(key: _Key, sample: str) -> Explanation:
    with LineageStore(Path(key[0])).reading() as connection:
        return explain(connection, Path(key[0]), verified_run(connection, Path(key[0]), key[2]), sample)


@st.cache_data(max_entries=64, show_spinner="Searching…")
def _hits(key: _Key, query: str) -> list[dict[str, Any]]:
    with LineageStore(Path(key[0])).reading() as connection:
        return search(connection, verified_run(connection, Path(key[0]), key[2]), query)


@st.cache_data(max_entries=16, show_spinner="Comparing…")
def _compared(key: _Key, a: str, b: str) -> Difference:
    with LineageStore(Path(key[0])).reading() as connection:
        one, other = (verified_run(connection, Path(key[0]), run) for run in (a, b))
        return difference(connection, Path(key[0]), one, other, FEW_PAIRS)


# The frame of the page.


def _chosen_run() -> _Key:
    """Draw the choice of a run; raises InputError without a lineage."""
    store = _store()
    root = str(store.path.parent)
    with st.sidebar:
        st.subheader("novelsum explore")
        changed = store.path.stat().st_mtime_ns if store.path.exists() else 0
        runs = _runs(root, changed)
        if not runs:
            raise ValueError(f"{store.path}: no run has ended with a subset yet; run the pipeline first (novelsum run)")
        labels = {run["run_id"]: _run_label(run) for run in runs}
        first = st.query_params.get("run") or os.environ.get(RUN_VARIABLE, "")
        index = list(labels).index(first) if first in labels else 0
        chosen = st.selectbox("Run", list(labels), index=index, format_func=labels.__getitem__, key="run")
    if chosen != st.session_state.get("shown_run"):
        st.session_state.update(shown_run=chosen, sample=None, found=None)
    return root, changed, chosen


def _run_label(run: dict[str, Any]) -> str:
    return f"{run['run_id'][:8]} · {run['started_at']:%Y-%m-%d %H:%M} · {run['strategy']} k={run['k']:,}"


def _filters(key: _Key) -> dict[str, Any]:
    """Draw the filters of the map, if the run has a map."""
    try:
        pool = _map(key)
    except _DAMAGE:  # The view of the map reports it; the tables still work.
        return {}
    least, most = int(pool.tokens.min(initial=0)), int(pool.tokens.max(initial=0))
    with st.sidebar:
        st.caption("Filters of the map")
        sources = st.multiselect("Sources", pool.sources, placeholder="all sources", key="sources")
        picked = st.radio("Samples", ["all", "picked", "not picked"], horizontal=True, key="picked")
        low, high = st.columns(2)
        # Keys by run, because another run's pool has different bounds.
        from_ = low.number_input("Tokens from", least, most, least, step=10, key=f"from {key[2]}")
        to = high.number_input("to", least, most, most, step=10, key=f"to {key[2]}")
        k = int(pool.rank.max(initial=0))
        after = st.slider("After how many picks", 0, k, k, key=f"after {key[2]}") if k > 1 else k
        colour = st.radio("Colour shows", ["picked or not", "source"], horizontal=True, key="colour")
        amounts = {DRAWN: f"at most {DRAWN:,} of the pool", 4 * DRAWN: f"at most {4 * DRAWN:,}", None: "all"}
        amount = st.selectbox("Points drawn, besides all picks", list(amounts), format_func=amounts.__getitem__)
    return {
        "sources": tuple(sources), "picked": picked, "tokens": (from_, to), "colour": colour, "most": amount,
        "after": after,
    }  # fmt: skip


def _header(key: _Key, run: Run) -> None:
    places = st.container(horizontal=True, gap="large")
    facts = {"Run": run.short, "Picks": f"{run.k:,}", "Seed": str(run.seed), "Strategy": _plain(run.strategy)}
    facts |= {"Snapshot": run.snapshot[:8], "Model": _plain(run.model.rsplit("/", 1)[-1])}
    for label, value in facts.items():
        places.metric(label, value, width="content")


# The map, and the sample that was chosen on it.


def _map_view(key: _Key, filters: dict[str, Any]) -> None:
    left, right = st.columns([3, 2], gap="medium")
    # The search comes first, because the map has a ring around what it finds.
    with right:
        _search(key)
    with left:
        _draw_map(key, filters)
    with right:
        _sample(key)


def _draw_map(key: _Key, filters: dict[str, Any]) -> None:
    pool = _map(key).after_picks(filters["after"])
    mask = fitting(pool, filters["sources"], filters["picked"], filters["tokens"])
    rows = thinned(mask, pool.rank, filters["most"])
    passing, picks = int(mask.sum()), int((mask & (pool.rank > 0)).sum())
    figure, curves = _figure(key, pool, filters, st.session_state.get("found"))
    st.session_state.curves = curves
    words = f"{passing:,} of {len(mask):,} samples pass the filters, {picks:,} of them picked."
    if len(rows) < passing:
        words += f" {len(rows):,} are drawn: all picks, and a random sample of the others."
    st.caption(words + " Drag to move, wheel to zoom, click a point for its text, draw a lasso to download its rows.")
    if not len(rows):
        st.info("No sample passes the filters.")
        return
    st.plotly_chart(
        figure,
        theme="streamlit",
        key="map",
        on_select=_point_chosen,
        selection_mode=("points", "box", "lasso"),
        alt="Map of the pool's samples on its first two principal components; picks are diamonds",
        config={"scrollZoom": True, "displaylogo": False, "modeBarButtonsToRemove": ["toImage"]},
    )
    lassoed = np.unique(_selected())
    chosen, what = (
        (lassoed, "selected on the map") if len(lassoed) > 1 else (np.flatnonzero(mask), "that pass the filters")
    )
    st.download_button(
        f"CSV of the {len(chosen):,} samples {what}",
        lambda: as_csv(pool.rows(chosen)),
        f"samples-{key[2][:8]}.csv",
        "text/csv",
        on_click="ignore",
        type="tertiary",
        icon=":material/download:",
    )


# A resource for the same reason as the map. The ring of a sample looked up is part of the figure.
@st.cache_resource(max_entries=4, show_spinner="Drawing the map…")
def _figure(key: _Key, _pool: PoolMap, filters: dict[str, Any], found: str | None) -> tuple[Any, list[Any]]:
    mask = fitting(_pool, filters["sources"], filters["picked"], filters["tokens"])
    rows = thinned(mask, _pool.rank, filters["most"])
    colour: Colour = filters["colour"]
    return map_figure(_pool, rows, colour, _pool.row_of(found) if found else None)


def _selected() -> list[int]:
    """Return the rows of the points selected on the map."""
    points = st.session_state.get("map", {}).get("selection", {}).get("points", [])
    curves = st.session_state.curves
    return [
        int(curves[point["curve_number"]][point["point_index"]])
        for point in points
        if point["curve_number"] < len(curves) and point["point_index"] < len(curves[point["curve_number"]])
    ]


def _point_chosen() -> None:
    rows = _selected()
    if len(rows) == 1:
        st.session_state.sample = _map(st.session_state.key).ids[rows[0]].as_py()


def _search(key: _Key) -> None:
    st.session_state.key = key
    query = st.text_input("Search", placeholder="start of an id, or part of the text", key="query").strip()
    if not query:
        return
    hits = _hits(key, query)
    if not hits:
        st.caption("No id starts with this, and no text contains it.")
        return
    st.caption(f"{len(hits):,} found" if len(hits) <= HITS else f"The first {HITS:,}, picks first. Click a row.")
    st.session_state.hits = [hit["id"] for hit in hits[:HITS]]
    columns = {name: [hit[name] for hit in hits[:HITS]] for name in ("rank", "source", "tokens", "text", "id")}
    st.dataframe(
        pa.table(columns),
        key=f"hits {query}",
        on_select=lambda: _row_chosen(f"hits {query}", st.session_state.hits),
        selection_mode="single-row",
        hide_index=True,
        height=min(3 + 36 * (len(hits) + 1), 216),
        column_config={
            "rank": st.column_config.NumberColumn("pick", width=60),
            "tokens": st.column_config.NumberColumn(width=60),
        },
    )
    if len(hits) == 1 and st.session_state.get("answered") != query:
        _look_up(hits[0]["id"])
    st.session_state.answered = query


def _row_chosen(widget: str, ids: list[str]) -> None:
    rows = st.session_state[widget]["selection"]["rows"]
    if rows:
        _look_up(ids[rows[0]])


def _look_up(id_: str) -> None:
    """Show a sample that was chosen elsewhere than on the map, and mark it there with a ring."""
    st.session_state.update(sample=id_, found=id_)


def _sample(key: _Key) -> None:
    """Show the chosen sample: its text, and why it was picked or left out."""
    id_ = st.session_state.get("sample")
    if id_ is None:
        st.info("Click a point of the map, or search, to see a sample's text and why it was picked or left out.")
        return
    found = _explained(key, id_)
    heads = {"chosen": "Picked", "left out": "Not picked", "near-duplicate": "Dropped as a near-duplicate"}
    shade = {"chosen": "blue", "left out": "gray"}.get(found.outcome, "orange")
    head = st.container(horizontal=True, vertical_alignment="center")
    head.badge(heads.get(found.outcome, "Rejected"), color=shade)  # type: ignore[arg-type]
    head.text(f"{id_[:16]} · {found.sample['source']} · {found.sample['tokens']:,} tokens")
    text = found.sample["text"]
    lines = sum(1 + len(line) // 45 for line in text.split("\n"))
    st.code(text, language=None, wrap_lines=True, height=250 if lines > 9 else "content")
    st.markdown("**Why**")
    st.text("\n".join(f"• {sentence}" for sentence in found.words))
    _relatives(found)


def _relatives(found: Explanation) -> None:
    """Draw buttons for the samples named in the explanation."""
    facts, named = found.facts, {}
    runner_up, partner = facts.get("runner_up"), facts.get("near_duplicate")
    if runner_up:
        named[runner_up["id"]] = "runner-up"
    if facts.get("nearest_pick_id"):
        named[facts["nearest_pick_id"]] = "nearest earlier pick"
    for one in facts.get("covered_by", ()):
        named.setdefault(one["id"], f"pick {one['rank']:,}")
    for one in (facts.get("covers") or {}).get("examples", ()):
        named.setdefault(one["id"], "nearest to it")
    if partner:
        named.setdefault(partner["partner_id"], "near-duplicate")
    if named:
        row = st.container(horizontal=True)
        for id_, what in named.items():
            row.button(f"{what} {id_[:8]}", key=f"go {id_}", on_click=_look_up, args=(id_,), type="tertiary")


# The tables.


def _table(key: _Key, name: str, **how: Any) -> pa.Table | None:
    """Show one table with its explanation and a download; return it, or None if it does not exist."""
    st.caption(TABLES[name].about)
    table = _read(key, name)
    if table is None:
        st.info(TABLES[name].if_missing)
        return None
    if not len(table):
        st.info("No rows.")
        return table
    _rows(table, f"{name.replace(' ', '-')}-{key[2][:8]}", **how)
    return table


def _rows(table: pa.Table, name: str, **how: Any) -> None:
    st.dataframe(table, hide_index=True, column_config=_columns(table), key=name, **how)
    label, file, key = f"CSV ({len(table):,})", f"{name}.csv", f"csv {name}"
    icon = ":material/download:"
    st.download_button(label, as_csv(table), file, "text/csv", key, on_click="ignore", type="tertiary", icon=icon)


def _columns(table: pa.Table) -> dict[str, Any]:
    configured: dict[str, Any] = {}
    for field in table.schema:
        label = field.name.replace("_", " ")
        if field.name in _NARROW:
            configured[field.name] = st.column_config.Column(label, width=95)
        elif field.name in _SHARES:
            configured[field.name] = st.column_config.NumberColumn(label, format="percent")
        elif field.name in _RATIOS:
            configured[field.name] = st.column_config.NumberColumn(label, format="%.2f")
        elif pa.types.is_timestamp(field.type):
            configured[field.name] = st.column_config.DatetimeColumn(
                f"{label} (UTC)", format="YYYY-MM-DD HH:mm", timezone="UTC"
            )
        elif pa.types.is_floating(field.type):
            configured[field.name] = st.column_config.NumberColumn(label, format="%.5g")
        elif pa.types.is_integer(field.type):
            configured[field.name] = st.column_config.NumberColumn(label, format="localized")
        else:
            configured[field.name] = st.column_config.Column(label)
    return configured


def _table_with_sample(key: _Key, name: str, column: str) -> None:
    """Show a table of samples, and beside it the sample of the chosen row."""
    left, right = st.columns([3, 2], gap="medium")
    widget = f"{name.replace(' ', '-')}-{key[2][:8]}"
    with left:
        table = _read(key, name)
        ids = table[column].to_pylist() if table is not None else []
        _table(
            key, name, on_select=lambda: _row_chosen(widget, ids), selection_mode="single-row", height=620
        )  # fmt: skip
    with right:
        if ids:
            _sample(key)


def _sources_view(key: _Key) -> None:
    table = _table(key, "sources")
    if table is not None and len(table):
        st.plotly_chart(shares_figure(table), theme="streamlit", key="shares", config={"displayModeBar": False})


def _measures_view(key: _Key) -> None:
    table = _read(key, "measures")
    if table is not None and len(table):
        known = sorted(set(table["measure"].to_pylist()), key=lambda name: (name != "novelsum", name))
        measure = st.selectbox("Measure", known, key="measure", width=300)
        st.plotly_chart(drift_figure(table, measure), theme="streamlit", key="drift", config={"displayModeBar": False})
    _table(key, "measures")


def _runs_view(key: _Key) -> None:
    _table(key, "runs")
    _table(key, "steps")


# Two runs.


def _compare_view(key: _Key) -> None:
    known = _runs(key[0], key[1])
    runs = {run["run_id"]: _run_label(run) for run in known}
    ids = list(runs)
    if len(ids) < 2:
        st.info("There is only one run with a subset; a comparison needs two.")
        return
    left, right = st.columns(2)
    now = ids.index(key[2])
    # The newest earlier run with another subset.
    others = (at for at in range(now + 1, len(ids)) if known[at]["selection"] != known[now]["selection"])
    before = next(others, min(now + 1, len(ids) - 1))
    a = left.selectbox("Run A", ids, index=before, format_func=runs.__getitem__)
    b = right.selectbox("Run B, against A", ids, index=ids.index(key[2]), format_func=runs.__getitem__)
    if a == b:
        st.info("Choose two different runs.")
        return
    found = _compared(key, a, b)
    places = st.columns(5)
    counts = {"Entered": len(found.entered), "Left": len(found.left), "Stayed": found.stayed}
    for place, (label, count) in zip(places, counts.items(), strict=False):
        place.metric(label, f"{count:,}")
    places[3].metric("Code", "same" if found.same_code else "changed")
    places[4].metric("Model", "same" if found.same_model else "changed")
    _changes(found)


def _changes(found: Difference) -> None:
    pair = f"{found.a.short}-{found.b.short}"
    left, right = st.columns(2)
    with left:
        st.markdown("**Causes**")
        changes = [("entered", one) for one in found.entered] + [("left", one) for one in found.left]
        causes = Counter((change, one.cause) for change, one in changes).most_common()
        _listed(f"causes-{pair}", [{"change": key[0], "samples": count, "cause": key[1]} for key, count in causes])
    with right:
        st.markdown("**Settings that differ**")
        rows = [{"setting": key, "A": str(a), "B": str(b)} for key, (a, b) in found.settings.items()]
        _listed(f"settings-{pair}", rows)
    st.markdown("**Samples that entered or left**")
    samples = [
        {"change": change, "rank": one.rank, "id": one.id, "source": one.source, "cause": one.cause}
        for change, one in changes
    ]
    _listed(f"changes-{pair}", samples)
    st.markdown("**Measures**")
    if any(row["size_a"] != row["size_b"] for row in found.measures):
        st.caption("The sets differ in size, so their values cannot be compared.")
    _listed(f"measures-{pair}", found.measures)


def _listed(name: str, rows: list[dict[str, Any]]) -> None:
    if rows:
        _rows(pa.Table.from_pylist(rows), name)
    else:
        st.caption("None.")


if __name__ == "__main__":  # When run by Streamlit.
    main()
