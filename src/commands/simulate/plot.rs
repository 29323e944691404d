//! The waits of quiet tenants over the day, one line for each policy, as SVG.

use job_router::simulation::PolicyName;
use plotters::prelude::*;

use super::report::{Name, Report};

const SIZE: (u32, u32) = (900, 480);
const HOUR_MS: f64 = 3_600_000.0;
const MINUTE_MS: f64 = 60_000.0;

/// Draws it. The day of a recording begins with its first job, one that is drawn at midnight.
pub(super) fn draw(report: &Report, recorded: bool) -> String {
    let mut svg = String::new();
    draw_on(SVGBackend::with_string(&mut svg, SIZE), report, recorded).expect("a string holds any drawing");
    svg
}

fn draw_on<B: DrawingBackend>(
    backend: B,
    report: &Report,
    recorded: bool,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let over_time = &report.quiet_over_time;
    let hours = |bin: usize| (bin as f64 + 0.5) * over_time.bin_ms as f64 / HOUR_MS;
    let bins = over_time.p99_ms.values().map(Vec::len).max().unwrap_or(0);
    let longest_ms = over_time.p99_ms.values().flatten().flatten().max().copied().unwrap_or(0);
    let (span, most) = ((bins as f64 * over_time.bin_ms as f64 / HOUR_MS), (longest_ms as f64 / MINUTE_MS).max(1.0));

    let area = backend.into_drawing_area();
    area.fill(&WHITE)?;
    let title = format!("How long jobs of {} quiet tenants wait, by policy", report.quiet_tenants());
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(14)
        .margin_right(24)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..span, 0.0..most * 1.05)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .x_labels(13)
        .y_labels(8)
        .x_label_formatter(&|hour| format!("{hour:.0}"))
        .y_label_formatter(&|minutes| if most < 8.0 { format!("{minutes:.1}") } else { format!("{minutes:.0}") })
        .x_desc(if recorded { "queued, hours after the first job" } else { "queued, hour of the day" })
        .y_desc("wait, 99th percentile, minutes")
        .label_style(("sans-serif", 13))
        .axis_desc_style(("sans-serif", 15))
        .draw()?;
    for (policy, bins) in &over_time.p99_ms {
        let style = colour(*policy).stroke_width(2);
        let points = bins.iter().enumerate().filter_map(|(bin, wait)| Some((hours(bin), (*wait)? as f64 / MINUTE_MS)));
        chart
            .draw_series(LineSeries::new(points, style))?
            .label(policy.0.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .margin(16)
        .legend_area_size(28)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 15))
        .draw()?;
    area.present()
}

/// Told apart also by those who see few colours: the palette of Okabe and Ito.
fn colour(policy: Name) -> RGBColor {
    match policy.0 {
        PolicyName::Fifo => RGBColor(213, 94, 0),
        PolicyName::GitLab => RGBColor(230, 159, 0),
        PolicyName::JobRouter => RGBColor(0, 114, 178),
    }
}
