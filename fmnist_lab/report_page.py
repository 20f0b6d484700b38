"""A study in, one HTML page out: findings, interactive charts by plotly, and sortable tables.

The page holds everything it needs, plotly.js too, so it can be mailed, and read without a network.
Plotly is imported only when a page is made.
"""

import html
from collections.abc import Sequence
from string import Template
from typing import Any

import numpy as np
import pandas as pd

from fmnist_lab import study_plots
from fmnist_lab.page import GREY, INK
from fmnist_lab.study import (
    Study,
    Unused,
    counted,
    findings,
    groups,
    heat_map_pairs,
    mean_text,
    roles,
    settings_table,
)
from fmnist_lab.study_plots import METRICS, grouped, ordered, short_names, shown


def html_page(
    study: Study, sides: Sequence[str], points: pd.DataFrame, title: str, command: str
) -> str:
    """Return the page.

    Args:
        study: What `study.take_apart` returns.
        sides: What `study.heat_map_sides` returns.
        points: What `study.mean_curves` returns of the accuracy gap.
        title: What the study is called.
        command: The command that ran it.

    Returns:
        The text of the file.
    """
    from plotly.offline import get_plotlyjs

    config = {
        "displaylogo": False,
        "responsive": True,
        "showSendToCloud": False,
        "modeBarButtonsToRemove": ["lasso2d", "select2d"],
    }
    sections = []
    for place, (heading, chart) in enumerate(_charts(study, sides, points)):
        # A name of its own choosing would differ from one writing to the next.
        drawn = chart.to_html(
            config=config, include_plotlyjs=False, full_html=False, div_id=f"chart-{place}"
        )
        sections.append(f"<h2>{html.escape(heading)}</h2>{drawn}")
    sections.append(f"<h2>Settings</h2>{_html_table(*settings_table(study))}")
    if study.unused:
        table = _html_table(Unused._fields, study.unused)
        sections.append(f"<h2>Runs that are in no mean</h2>{table}")
    short = short_names(study.parameters)
    metrics = [metric for metric in METRICS if metric in study.runs]
    every = [
        [
            *(str(run[name]) for name in ("name", "status")),
            *(shown(run.get(name)) for name in (*short, "seed")),
            *(mean_text(run[metric]) for metric in metrics),
        ]
        for run in study.runs.to_dict("records")
    ]
    headings = ["run", "status", *short.values(), "seed", *(METRICS[m].lower() for m in metrics)]
    summary = f"<summary>All {counted(len(every), 'run')}</summary>"
    sections.append(f"<details>{summary}{_html_table(headings, every)}</details>")
    return _PAGE.substitute(
        title=html.escape(title),
        command=html.escape(command),
        findings="".join(f"<p>{html.escape(sentence)}</p>" for sentence in findings(study)),
        sections="\n".join(f"<section>{section}</section>" for section in sections),
        plotly=get_plotlyjs(),
        fonts=_FONTS,
    )


def _html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _charts(study: Study, sides: Sequence[str], points: pd.DataFrame) -> list[tuple[str, Any]]:
    """Heading and plotly figure of each chart."""
    charts: list[tuple[str, Any]] = []
    for metric in study_plots.PAIR:
        if len(sides) == 2:
            grids = [
                tuple(sides),
                *(pair for pair in heat_map_pairs(study) if set(pair) != set(sides)),
            ]
            charts.append((METRICS[metric], _heat_maps(study.summary, grids, metric)))
        elif sides:
            charts.append((METRICS[metric], _against(study.summary, sides[0], metric)))
    if len(points):
        charts.append(("Accuracy gap against epoch", _gap_lines(points, groups(study, sides))))
    color = roles(study.summary, sides)[0] if sides else None
    charts.append(("Test accuracy against the gap", _run_points(study, color)))
    return charts


def _chart(note: str, x: str, y: str) -> Any:
    from plotly import graph_objects as go

    axis = {"gridcolor": "#e8e8e8", "zeroline": False, "linecolor": "#999999", "automargin": True}
    small = {"size": 13, "color": GREY, "weight": "normal"}
    return go.Figure(
        layout={
            "template": "none",
            "font": {"family": _FONTS, "size": 14, "color": INK},
            "title": {"text": note, "font": small, "x": 0, "y": 1, "yanchor": "top", "pad_t": 4},
            "height": 460,
            "margin": {"l": 70, "r": 20, "t": 44, "b": 56},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#aaaaaa", "activecolor": "#222222"},
            "legend": {"title": {"font": {"size": 13}}, "font": {"size": 13}},
            "hoverlabel": {"bgcolor": "white", "font": {"family": _FONTS}},
            "xaxis": axis | {"title": {"text": x}},
            "yaxis": axis | {"title": {"text": y, "standoff": 14}},
        }
    )


def _heat_maps(summary: pd.DataFrame, grids: Sequence[Sequence[str]], metric: str) -> Any:
    """A heat map for each pair of parameters, one to be seen at a time."""
    names = short_names(study_plots.parameters_of(summary))
    depths = np.linspace(0, 1, 21)
    shades = 255 * study_plots.shades(depths, study_plots.PAIR[metric])
    scale = [
        [depth, f"rgb({red:.0f},{green:.0f},{blue:.0f})"]
        for depth, (red, green, blue) in zip(depths.tolist(), shades, strict=True)
    ]
    chart = _chart("", "", "")
    buttons = []
    for place, (x, y) in enumerate(grids):
        means, halves, note = study_plots.cells(summary, x, y, metric)
        low, high = study_plots.span(means, pad=0)
        across, up = ([html.escape(shown(v)) for v in ordered(summary[name])] for name in (x, y))
        texts = np.vectorize(mean_text, otypes=[object])(means, halves, "<br>")
        chart.add_heatmap(
            x=across,
            y=up,
            z=means,
            zmin=low,
            zmax=high,
            text=texts,
            hovertemplate=f"{names[x]} %{{x}}<br>{names[y]} %{{y}}<br>%{{text}}<extra></extra>",
            colorscale=scale,
            colorbar={"thickness": 12, "outlinewidth": 0},
            xgap=2,
            ygap=2,
            hoverongaps=False,
            visible=place == 0,
        )
        # Written by a trace of its own, as plotly's choice of ink is hard to read on middle tones.
        written = max(means.shape) <= study_plots.MOST_CELLS
        inks = study_plots.inks(means, metric)
        chart.add_scatter(
            x=across * len(up),
            y=np.repeat(up, len(across)),
            text=texts.ravel() if written else None,
            textfont={"color": inks.ravel(), "size": 12},
            mode="text",
            hoverinfo="skip",
            showlegend=False,
            visible=place == 0,
        )
        seen = {"visible": [place == index // 2 for index in range(2 * len(grids))]}
        titles = {
            "title.text": note,
            "xaxis.title.text": names[x].capitalize(),
            "yaxis.title.text": names[y].capitalize(),
            "height": max(320, min(900, 150 + 50 * len(up))),
        }
        label = f"{names[x]} and {names[y]}"
        buttons.append({"label": label, "method": "update", "args": [seen, titles]})
    chart.update_layout(buttons[0]["args"][1])
    # Else plotly takes "32" for a number and spaces widths by their size.
    chart.update_xaxes(type="category", showgrid=False)
    chart.update_yaxes(type="category", showgrid=False)
    if len(grids) > 1:
        menu = {"buttons": buttons, "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"}
        chart.update_layout(updatemenus=[menu], margin_t=80)
    return chart


def _against(summary: pd.DataFrame, x: str, metric: str) -> Any:
    """A metric against one parameter."""
    name = short_names(study_plots.parameters_of(summary))[x]
    mean, _, high = study_plots.mean_low_high(summary, metric)
    note = study_plots.interval_note(summary["runs"], study_plots.BARS)
    chart = _chart(note, name.capitalize(), METRICS[metric])
    numeric = all(isinstance(value, int | float) for value in summary[x])
    order = np.argsort(summary[x].to_numpy(float)) if numeric else np.arange(len(summary))
    chart.add_scatter(
        x=[
            summary[x].iloc[i] if numeric else html.escape(shown(summary[x].iloc[i])) for i in order
        ],
        y=mean[order],
        error_y={"array": (high - mean)[order], "thickness": 1.2},
        mode="lines+markers" if summary[x].is_unique and numeric else "markers",
        marker={"color": study_plots.PAIR[metric], "size": 8},
        hovertemplate=f"{name} %{{x}}<br>%{{y:.4f}}<extra></extra>",
    )
    levels = ordered(summary[x])
    if not numeric:
        chart.update_xaxes(type="category")
    elif study_plots.is_geometric(levels):
        chart.update_xaxes(type="log")
        if len(levels) <= study_plots.MOST_GROUPS:
            chart.update_xaxes(tickvals=levels, ticktext=[shown(level) for level in levels])
    return chart


def _gap_lines(points: pd.DataFrame, group: Sequence[str]) -> Any:
    """The accuracy gap against epochs."""
    levels = ordered(points[group[0]]) if group else [None]
    hues = dict(zip(levels, study_plots.palette(levels), strict=True))
    dashes: dict[Any, str] = {}
    note = study_plots.interval_note(points["runs"], study_plots.BANDS)
    chart = _chart(note, "Epoch", "Accuracy gap")
    for setting, line in grouped(points, group).items():
        line = line.sort_values("epoch")
        hue = hues[setting[0] if setting else None]
        label = html.escape(", ".join(map(shown, setting)))
        # Both traces of a setting are hidden together.
        both: dict[str, Any] = {"legendgroup": label, "name": label, "mode": "lines"}
        back = line[::-1]
        chart.add_scatter(
            x=[*line["epoch"], *back["epoch"]],
            y=[*line["high"], *back["low"]],
            fill="toself",
            fillcolor=hue,
            opacity=0.15,
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            **both,
        )
        halves = line["high"] - line["mean"]
        chart.add_scatter(
            x=line["epoch"].tolist(),
            y=line["mean"].tolist(),
            text=[mean_text(*row) for row in zip(line["mean"], halves, strict=True)],
            line={
                "color": hue,
                "width": 2.2,
                "dash": dashes.setdefault(setting[1:], _DASHES[len(dashes) % len(_DASHES)]),
            },
            hovertemplate=f"<b>{label}</b><br>epoch %{{x}}<br>%{{text}}<extra></extra>",
            showlegend=bool(group),
            **both,
        )
    names = short_names(group)
    chart.update_layout(legend_title_text=", ".join(names.values()), yaxis_rangemode="tozero")
    chart.update_layout(legend_traceorder="reversed")
    if points["epoch"].max() <= study_plots.MOST_GROUPS:
        chart.update_xaxes(dtick=1)  # Else there would be ticks at half epochs.
    return chart


def _run_points(study: Study, color: str | None) -> Any:
    """Test accuracy against gap, every run."""
    chart = _chart("Each point is a run.", "Accuracy gap", "Test accuracy")
    parts = grouped(study.used, [color] if color else [])
    levels = ordered(level for (level,) in parts) if color else [None]
    for level, hue in zip(levels, study_plots.palette(levels), strict=True):
        part = parts[(level,) if color else ()]
        chart.add_scatter(
            x=part["accuracy/gap"].tolist(),
            y=part["accuracy/test"].tolist(),
            text=[html.escape(str(name)) for name in part["name"]],
            name=html.escape(shown(level)),
            mode="markers",
            marker={"color": hue, "size": 9, "line": {"color": "white", "width": 0.5}},
            hovertemplate="<b>%{text}</b><br>test %{y:.4f}<br>gap %{x:.4f}<extra></extra>",
        )
    chart.update_layout(
        showlegend=1 < len(levels) <= study_plots.MOST_GROUPS,
        legend_title_text=short_names(study.parameters)[color] if color else "",
        legend_traceorder="reversed",
    )
    return chart


_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { margin: 0; background: #f6f7f9; color: #222;
  font: 16px/1.5 $fonts; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 12px; letter-spacing: -0.01em; }
h2 { font-size: 1.2rem; margin: 0 0 4px; }
p { margin: 6px 0; max-width: 75ch; }
pre { background: #22272e; color: #e6e6e6; padding: 12px 16px; border-radius: 8px;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.85rem; }
section { background: white; border: 1px solid #e2e5e9; border-radius: 10px; padding: 20px;
  margin-top: 20px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; margin-top: 8px;
  font-variant-numeric: tabular-nums; }
th { border-bottom: 2px solid #ccc; cursor: pointer; white-space: nowrap; }
th, td { padding: 5px 14px 5px 0; text-align: left; }
td:not(:last-child) { white-space: nowrap; }
td { border-bottom: 1px solid #eee; }
tbody tr:hover { background: #f2f6fa; }
summary { cursor: pointer; font-weight: 600; }
</style>
<script>$plotly</script>
</head>
<body>
<main>
<h1>$title</h1>
<pre>$command</pre>
$findings
$sections
</main>
<script>
// A click on a heading sorts by its column; another one turns the order round.
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const place = head.cellIndex, body = head.closest("table").tBodies[0];
  const key = row => row.cells[place].textContent;
  const sign = head.dataset.up ? -1 : 1;
  head.dataset.up = sign > 0 ? "1" : "";
  const order = new Intl.Collator("en", {numeric: true});
  body.append(...[...body.rows].sort((a, b) => sign * order.compare(key(a), key(b))));
});
</script>
</body>
</html>
""")
