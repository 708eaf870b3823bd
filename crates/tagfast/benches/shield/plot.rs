//! A picture of a run: three graphs over one time axis.

use std::fmt::Write as _;

use crate::drive::Timeline;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 62.0;
const GRAPH: f64 = 110.0;
const GAP: f64 = 34.0;

/// A line's name, its colour, and its points.
type Line<'a> = (&'a str, &'a str, Vec<(f64, f64)>);

struct Graph<'a> {
    title: &'a str,
    max: f64,
    lines: Vec<Line<'a>>,
    limit: Option<(f64, &'a str)>,
}

/// The picture, readable on light and dark ground.
pub(crate) fn svg(what: &str, timeline: &Timeline, capacity: u64) -> String {
    let views = &timeline.seconds[0];
    let end = views.keys().max().map_or(1.0, |s| *s as f64 + 1.0);
    let line = |n: usize, value: &dyn Fn(&crate::drive::Second) -> f64| -> Vec<(f64, f64)> {
        timeline.seconds[n].iter().map(|(s, second)| (*s as f64 + 0.5, value(second))).collect()
    };
    let statements = timeline.by_second();
    let max_of = |lines: &[&Vec<(f64, f64)>], min: f64| {
        lines.iter().flat_map(|line| line.iter()).fold(min, |max, (_, y)| max.max(*y)) * 1.05
    };
    let (p99, shed99) = (line(0, &|s| s.at(0.99)), line(1, &|s| s.at(0.99)));
    let answered = line(0, &|s| s.answered_share() * 100.0);
    let stale = line(0, &|s| s.degraded_share() * 100.0);
    let graphs = [
        Graph {
            title: "views, %",
            max: 105.0,
            lines: vec![("answered", "#2a9d63", answered), ("stale and marked", "#d08a1d", stale)],
            limit: None,
        },
        Graph {
            title: "p99, ms",
            max: max_of(&[&p99, &shed99], 10.0),
            lines: vec![("views", "#3577c9", p99), ("popular, suggestions", "#9a5bc0", shed99)],
            limit: None,
        },
        Graph {
            title: "read statements a second, all nodes",
            max: max_of(&[&statements], capacity as f64 * 1.3),
            lines: vec![("statements", "#c9483b", statements)],
            limit: Some((capacity as f64, "configured capacity")),
        },
    ];
    let height = 40.0 + graphs.len() as f64 * (GRAPH + GAP) + 20.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"11\" \
         fill=\"#7a7f87\">\n<text x=\"{LEFT}\" y=\"18\" font-size=\"13\">{what}</text>\n"
    );
    let x = |second: f64| LEFT + (WIDTH - LEFT - 16.0) * second / end;
    for (n, graph) in graphs.iter().enumerate() {
        let top = 40.0 + n as f64 * (GRAPH + GAP);
        let y = |value: f64| top + GRAPH - GRAPH * (value / graph.max).clamp(0.0, 1.0);
        let (from, to) = (x(timeline.fault_at as f64), x(2.0 * timeline.fault_at as f64));
        let _ = writeln!(
            out,
            "<rect x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{GRAPH}\" fill=\"#c9483b\" opacity=\"0.09\"/>\
             <path d=\"M{LEFT} {top:.1}V{:.1}H{:.1}\" fill=\"none\" stroke=\"#9aa0a8\"/>",
            to - from,
            top + GRAPH,
            WIDTH - 16.0
        );
        for part in [0.0, 0.5, 1.0] {
            let value = graph.max * part;
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                y(value) + 4.0,
                value.round()
            );
        }
        let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"{:.1}\">{}</text>", top - 6.0, graph.title);
        let mut legend = LEFT + 230.0;
        for (name, colour, points) in &graph.lines {
            let path: Vec<String> = points
                .iter()
                .filter(|(s, _)| *s <= end)
                .map(|(s, v)| format!("{:.1} {:.1}", x(*s), y(*v)))
                .collect();
            let _ = writeln!(
                out,
                "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>\
                 <text x=\"{legend:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>",
                path.join("L"),
                top - 6.0
            );
            legend += 140.0;
        }
        if let Some((limit, name)) = graph.limit {
            let _ = writeln!(
                out,
                "<path d=\"M{LEFT} {0:.1}H{1:.1}\" stroke=\"#7a7f87\" stroke-dasharray=\"5 4\"/>\
                 <text x=\"{1:.1}\" y=\"{2:.1}\" text-anchor=\"end\">{name}</text>",
                y(limit),
                WIDTH - 16.0,
                y(limit) - 4.0
            );
        }
    }
    let bottom = height - 22.0;
    for part in 0..=6 {
        let second = end * f64::from(part) / 6.0;
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{bottom:.1}\" text-anchor=\"middle\">{second:.0} s</text>",
            x(second)
        );
    }
    out.push_str("</svg>\n");
    out
}
