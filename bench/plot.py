"""Line charts as SVG, without a library: a few series of points, axes from zero, a legend."""

import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 420, 70, 20, 40, 60
COLOURS = ["#0b63b0", "#c4451c", "#2a8a3e", "#7a4fa3"]


def steps(largest, count=5):
    """Round numbers from 0 to at least `largest`."""
    if largest <= 0:
        return [0, 1]
    rough = largest / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    return [i * step for i in range(int(largest / step) + 2)]


def chart(path, title, x_label, y_label, series):
    """series: {name: [(x, y), …]}"""
    points = [point for line in series.values() for point in line]
    xs, ys = steps(max(x for x, _ in points)), steps(max(y for _, y in points))

    def place(x, y):
        return (
            LEFT + x / xs[-1] * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - y / ys[-1] * (HEIGHT - TOP - BOTTOM),
        )

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{WIDTH / 2}" y="20" text-anchor="middle" font-size="15">{escape(title)}</text>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
    ]
    for x in xs:
        at, bottom = place(x, 0)
        out.append(f'<line x1="{at}" y1="{TOP}" x2="{at}" y2="{bottom}" stroke="#ddd"/>')
        out.append(f'<text x="{at}" y="{bottom + 16}" text-anchor="middle">{x:g}</text>')
    for y in ys:
        left, at = place(0, y)
        out.append(f'<line x1="{left}" y1="{at}" x2="{WIDTH - RIGHT}" y2="{at}" stroke="#ddd"/>')
        out.append(f'<text x="{left - 6}" y="{at + 4}" text-anchor="end">{y:g}</text>')
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [place(x, y) for x, y in sorted(line)]
        out.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'
        )
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        out.append(f'<text x="{LEFT + 12}" y="{TOP + 16 + 16 * number}" fill="{colour}">{escape(name)}</text>')
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(out + ["</svg>\n"]))
