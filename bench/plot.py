"""Bar charts as SVG."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

COLORS = ("#2b8a3e", "#f08c00", "#c92a2a")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 900, 320, 60, 40, 50


def stacked_bars(title: str, series: Mapping[str, Sequence[int]], *, unit: str) -> str:
    """One bar for each place, made of the values of all series; at most three series."""
    places = max(len(values) for values in series.values())
    highest = max(max(sum(column) for column in zip(*series.values(), strict=True)), 1)
    bar = (WIDTH - LEFT) / places
    drawn = [f'<text x="{LEFT}" y="20" font-weight="bold">{escape(title)}</text>']
    for number, (name, color) in enumerate(zip(series, COLORS, strict=False)):
        x = LEFT + 180 * number
        drawn.append(f'<rect x="{x}" y="{HEIGHT - 16}" width="12" height="12" fill="{color}"/>')
        drawn.append(f'<text x="{x + 18}" y="{HEIGHT - 6}">{escape(name)}</text>')
    scale = (HEIGHT - TOP - BOTTOM) / highest
    floor = HEIGHT - BOTTOM
    for place in range(places):
        y = float(floor)
        for values, color in zip(series.values(), COLORS, strict=False):
            height = values[place] * scale
            y -= height
            drawn.append(
                f'<rect x="{LEFT + place * bar:.1f}" y="{y:.1f}" '
                f'width="{bar * 0.9:.1f}" height="{height:.1f}" fill="{color}"/>'
            )
    drawn += [
        f'<line x1="{LEFT}" y1="{floor}" x2="{WIDTH}" y2="{floor}" stroke="#555"/>',
        f'<text x="{LEFT - 8}" y="{floor}" text-anchor="end">0</text>',
        f'<text x="{LEFT - 8}" y="{TOP + 8}" text-anchor="end">{highest}</text>',
        f'<text x="{LEFT}" y="{floor + 16}">0 {escape(unit)}</text>',
        f'<text x="{WIDTH}" y="{floor + 16}" text-anchor="end">{places} {escape(unit)}</text>',
    ]
    return _svg(drawn)


def grouped_bars(title: str, places: Sequence[str], series: Mapping[str, Sequence[float]]) -> str:
    """For each place a bar of each series, with its value; at most three series."""
    highest = max(max(values) for values in series.values())
    width = (WIDTH - LEFT) / len(places)
    bar = 0.8 * width / len(series)
    floor = HEIGHT - BOTTOM
    drawn = [f'<text x="{LEFT}" y="20" font-weight="bold">{escape(title)}</text>']
    for number, ((name, values), color) in enumerate(zip(series.items(), COLORS, strict=False)):
        x = LEFT + 180 * number
        drawn.append(f'<rect x="{x}" y="{HEIGHT - 16}" width="12" height="12" fill="{color}"/>')
        drawn.append(f'<text x="{x + 18}" y="{HEIGHT - 6}">{escape(name)}</text>')
        for place, value in enumerate(values):
            height = value / highest * (HEIGHT - TOP - BOTTOM)
            x_of_bar = LEFT + place * width + number * bar
            drawn.append(
                f'<rect x="{x_of_bar:.1f}" y="{floor - height:.1f}" width="{bar:.1f}" height="{height:.1f}" '
                f'fill="{color}"/>'
                f'<text x="{x_of_bar + bar / 2:.1f}" y="{floor - height - 4:.1f}" text-anchor="middle" '
                f'font-size="11">{value:.2f}</text>'
            )
    for place, name in enumerate(places):
        middle = LEFT + place * width + 0.4 * width
        drawn.append(f'<text x="{middle:.1f}" y="{floor + 16}" text-anchor="middle">{escape(name)}</text>')
    return _svg(drawn)


def _svg(drawn: Sequence[str]) -> str:
    style = 'font-family="sans-serif" font-size="13"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 10} {HEIGHT}" {style}>'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(drawn)}</svg>\n'
    )
