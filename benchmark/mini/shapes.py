"""The ten object classes: composite solids, told apart by shape and not by colour.

Each class has a function of a random generator and ``small`` (for a table top, not a floor) that
yields its parts in random proportions and variants. Objects stand on z = 0, are centred on the z
axis and face -y; units are metres. Material slots are 0 (the colour in captions), 1, 2 and 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from numpy.typing import ArrayLike

from benchmark.mini.solids import Solid, box, ellipsoid, frustum, lathe, leaf, rotation_z, tube

SLOTS = 4
CORNERS = tuple(product((-1, 1), repeat=2))


def make_object(name: str, rng: np.random.Generator, small: bool) -> list[Solid]:
    """The parts of a new object of class ``name``."""
    return list(BUILDERS[name](rng, small))


def bookshelf(rng: np.random.Generator, small: bool) -> Iterator[Solid]:
    """A case with boards and books."""
    width, height, depth, board = (
        rng.uniform(0.6, 1.2),
        rng.uniform(0.9, 2.0),
        rng.uniform(0.25, 0.38),
        0.03,
    )
    for x in (-width / 2, width / 2):
        yield box((board, depth, height), (x, 0, 0))
    yield box(
        (width, board, height), (0, depth / 2 - board / 2, 0), slot=0 if rng.random() < 0.7 else 1
    )
    shelves = min(max(round(height / rng.uniform(0.3, 0.42)), 3), 6)
    gap = (height - board) / shelves
    for level in range(shelves + 1):
        yield box((width + board, depth, board), (0, 0, level * gap))
    fill = rng.uniform(0.5, 1.0)
    for level in range(shelves):
        x = -width / 2 + board
        while x < width / 2 - 0.09:
            thick = rng.uniform(0.03, 0.085)
            if rng.random() < fill:
                tall = gap * rng.uniform(0.55, 0.88)
                at = (x + thick / 2, rng.uniform(-0.1, 0.05) * depth, level * gap + board)
                yield box((thick * 0.94, depth * 0.65, tall), at, slot=int(rng.integers(1, SLOTS)))
            else:
                x += rng.uniform(0, 0.12)
            x += thick


def bottle(rng: np.random.Generator, small: bool) -> Iterator[Solid]:
    """A lathed bottle with a label and a cap."""
    height = rng.uniform(0.22, 0.36) if small else rng.uniform(0.5, 0.9)
    radius = height * rng.uniform(0.12, 0.2)
    neck, shoulder, slope = (
        radius * rng.uniform(0.25, 0.42),
        rng.uniform(0.45, 0.68),
        rng.uniform(0.06, 0.22),
    )
    outline = [
        (0.0, 0.0),
        (radius * 0.95, 0.0),
        (radius, 0.03 * height),
        (radius, shoulder * height),
    ]
    if rng.random() < 0.4:  # a waist
        outline[3:3] = [(radius * rng.uniform(0.75, 0.9), shoulder * height * 0.5)]
    arc = np.linspace(0, 1, 5)[1:]
    outline += [
        (neck + (radius - neck) * np.cos(t * np.pi / 2), (shoulder + slope * t) * height)
        for t in arc
    ]
    yield lathe([*outline, (neck, 0.93 * height)])
    yield frustum(neck * 1.25, neck * 1.2, 0.09 * height, (0, 0, 0.91 * height), slot=2)
    if rng.random() < 0.75:
        low, tall = rng.uniform(0.12, 0.25), rng.uniform(0.15, 0.25)
        yield frustum(radius * 1.02, radius * 1.02, tall * height, (0, 0, low * height), slot=1)


def chair(rng: np.random.Generator, small: bool) -> Iterator[Solid]:
    """Seat, back, and legs or a swivel base; sometimes arms."""
    width, depth, seat_height = (
        rng.uniform(0.4, 0.54),
        rng.uniform(0.4, 0.52),
        rng.uniform(0.4, 0.5),
    )
    thick, leg = rng.uniform(0.03, 0.08), rng.uniform(0.014, 0.026)
    yield box((width, depth, thick), (0, 0, seat_height))
    if rng.random() < 0.75:
        splay = rng.choice([0.0, rng.uniform(0.03, 0.08)])
        for sx, sy in CORNERS:
            top = (sx * (width / 2 - leg), sy * (depth / 2 - leg), seat_height)
            foot = (sx * (width / 2 - leg + splay), sy * (depth / 2 - leg + splay), 0)
            yield tube([foot, top], leg, slot=1, segments=8)
    else:
        yield frustum(0.03, 0.03, seat_height - 0.06, (0, 0, 0.06), slot=1)
        for angle in np.arange(5) * 2 * np.pi / 5 + 0.3:
            tip = (0.27 * np.cos(angle), 0.27 * np.sin(angle), 0.03)
            yield tube([(0, 0, 0.09), tip], 0.022, slot=1, segments=8)
    tall, tilt = rng.uniform(0.38, 0.6), -rng.uniform(0.0, 0.2)
    y, z = depth / 2 - 0.02, seat_height + thick
    style = rng.integers(3)
    if style == 0:  # a solid back
        yield box((width * rng.uniform(0.85, 1.0), 0.035, tall), (0, y, z), tilt=tilt)
    elif style == 1:  # slats between posts
        for x in np.linspace(-width / 2 + 0.02, width / 2 - 0.02, int(rng.integers(4, 6))):
            yield box((0.03, 0.025, tall), (x, y, z), tilt=tilt)
        top = z + tall * np.cos(tilt) - 0.08
        yield box((width, 0.035, 0.08), (0, y - np.sin(tilt) * (tall - 0.08), top), tilt=tilt)
    else:  # ladder back
        for x in (-width / 2 + 0.02, width / 2 - 0.02):
            yield box((0.035, 0.03, tall), (x, y, z), slot=1, tilt=tilt)
        for share in (0.3, 0.62, 0.9):
            at = (0, y - np.sin(tilt) * tall * share, z + np.cos(tilt) * tall * share - 0.03)
            yield box((width, 0.025, 0.07), at, tilt=tilt)
    if rng.random() < 0.3:
        for x in (-width / 2, width / 2):
            yield box((0.04, depth * 0.9, 0.03), (x, 0, seat_height + 0.22), slot=1)
            yield box((0.035, 0.035, 0.22), (x, -depth * 0.4, seat_height), slot=1)


def lamp(rng: np.random.Generator, small: bool) -> Iterator[Solid]:
    """A standing lamp with a shade, or a desk lamp with a bent arm."""
    if small and rng.random() < 0.4:
        reach, rise = rng.uniform(0.12, 0.2), rng.uniform(0.25, 0.35)
        elbow, head = (reach * 0.8, 0, rise), (-reach * 0.6, 0, rise + rng.uniform(0.06, 0.16))
        yield frustum(0.085, 0.075, 0.025, (0, 0, 0), slot=1)
        yield tube([(0, 0, 0.02), elbow], 0.011, slot=1, segments=8)
        yield tube([elbow, head], 0.011, slot=1, segments=8)
        yield lathe([(0.025, 0.03), (0.035, 0.0), (rng.uniform(0.075, 0.1), -0.1)], head)
        return
    height = rng.uniform(0.4, 0.62) if small else rng.uniform(1.2, 1.75)
    shade = height * (rng.uniform(0.28, 0.4) if small else rng.uniform(0.18, 0.26))
    wide = shade * rng.uniform(0.5, 0.75)
    base = height * (0.16 if small else 0.1) * rng.uniform(0.8, 1.3)
    if rng.random() < 0.7:
        yield frustum(base, base * rng.uniform(0.6, 1.0), height * 0.03, (0, 0, 0), slot=1)
    else:
        for angle in np.arange(3) * 2 * np.pi / 3 + 0.5:
            foot = (base * 1.5 * np.cos(angle), base * 1.5 * np.sin(angle), 0)
            yield tube([foot, (0, 0, height * 0.45)], height * 0.012, slot=1, segments=8)
    if small and rng.random() < 0.5:  # a vase-like foot
        yield ellipsoid((base * 0.75, base * 0.75, height * 0.2), (0, 0, height * 0.22), slot=2)
    yield frustum(height * 0.013, height * 0.013, height - shade * 0.5, (0, 0, 0), slot=1)
    style = rng.integers(4)
    if style == 0:
        yield ellipsoid((wide * 0.8,) * 3, (0, 0, height - wide * 0.8))
    else:
        top = wide * (0.95 if style == 1 else rng.uniform(0.3, 0.65))
        yield lathe([(wide, height - shade), (top, height), (top * 0.2, height)])


def monitor(rng: np.random.Generator, small: bool) -> Iterator[Solid]:
    """A flat screen on a foot, or on two feet."""
    width = rng.uniform(0.42, 0.72) if small else rng.uniform(0.8, 1.3)
    tall, thick = width * rng.uniform(0.52, 0.66), width * 0.05
    lift, bezel = width * rng.uniform(0.12, 0.28), width * rng.uniform(0.02, 0.045)
    inner = width - 2 * bezel
    yield box((width, thick, tall), (0, 0, lift))
    yield box((inner, thick * 0.2, tall - 2 * bezel), (0, -thick * 0.5, lift + bezel), slot=1)
    if rng.random() < 0.35:  # something on the screen
        for _ in range(int(rng.integers(1, 4))):
            w, h = inner * rng.uniform(0.15, 0.5), tall * rng.uniform(0.1, 0.4)
            x, z = (
                rng.uniform(-0.5, 0.5) * (inner - w),
                lift + bezel + rng.uniform(0, tall - 2 * bezel - h),
            )
            yield box((w, 0.002, h), (x, -thick * 0.62, z), slot=int(rng.integers(2, SLOTS)))
    if rng.random() < 0.7:
        yield box((width * 0.1, thick * 0.8, lift + tall * 0.3), (0, thick * 0.7, 0))
        base = width * rng.uniform(0.32, 0.5)
        if rng.random() < 0.5:
            yield box((base, base * 0.6, width * 0.025), (0, 0, 0))
        else:
            yield frustum(base * 0.5, base * 0.45, width * 0.03, (0, 0, 0))
    else:
        for sx, sy in CORNERS:
            x, y = sx * width * 0.35, sy * width * 0.12
            yield tube([(x, y, 0.01), (x, 0, lift * 1.05)], width * 0.018, segments=8)


def mug(rng: np.random.Generator, small: bool) -> Iterator[Solid]:
    """A hollow cup with a handle."""
    height = rng.uniform(0.085, 0.13)
    radius = height * rng.uniform(0.38, 0.55)
    foot, wall = radius * rng.uniform(0.72, 1.0), radius * 0.09
    outline = [
        (0, 0),
        (foot, 0),
        ((foot + radius) / 2 * rng.uniform(0.98, 1.08), height * 0.5),
        (radius, height),
    ]
    inner = [(radius - wall, height), (foot - wall, height * 0.12), (0, height * 0.12)]
    parts = [lathe(outline), lathe([outline[-1], *inner], slot=1)]
    size, angle = height * rng.uniform(0.26, 0.36), np.linspace(-np.pi / 2, np.pi / 2, 9)
    side, stretch = (foot + radius) / 2 * 0.96, rng.uniform(0.85, 1.25)
    path = [(side + size * stretch * np.cos(a), 0, height * 0.52 + size * np.sin(a)) for a in angle]
    parts.append(tube(path, height * rng.uniform(0.05, 0.075)))
    if rng.random() < 0.35:
        parts.append(
            frustum(radius * 1.015, radius * 1.02, height * 0.14, (0, 0, height * 0.8), slot=2)
        )
    rotation = rotation_z(rng.uniform(-0.9, 0.9)).T
    sides = (-1, -1, 1) if rng.random() < 0.5 else (1, 1, 1)  # the handle shows on either side
    for part in parts:
        yield part._replace(vertices=part.vertices @ rotation * sides * (1.0 if small else 4.0))


def plant(rng: np.random.Generator, small: bool) -> Iterator[Solid]:
    """A pot with long leaves, a bush, or a small tree."""
    height = rng.uniform(0.25, 0.5) if small else rng.uniform(0.7, 1.5)
    pot = height * rng.uniform(0.24, 0.36)
    top = pot * rng.uniform(0.45, 0.6)
    earth = (0, 0, pot * 0.9)
    outline = [
        (0, 0),
        (top * rng.uniform(0.6, 0.95), 0),
        (top, pot),
        (top * 0.88, pot),
        (top * 0.85, pot * 0.9),
    ]
    yield lathe([*outline, (0, pot * 0.9)], slot=1)
    yield frustum(top * 0.86, top * 0.86, 0.004, earth, slot=2)
    crown, style = height - pot, rng.integers(3)
    if style == 0:  # long leaves from the pot
        for index in range(int(rng.integers(9, 16))):
            azimuth, length = index * 2.4 + rng.uniform(-0.3, 0.3), crown * rng.uniform(0.8, 1.25)
            rise, bend = rng.uniform(0.9, 1.5), rng.uniform(0.3, 1.6)
            yield leaf(length, crown * rng.uniform(0.14, 0.24), azimuth, rise, bend, earth)
    elif style == 1:  # stems with broad leaves
        for stem in range(int(rng.integers(3, 6))):
            azimuth, lean = stem * 2.4 + rng.uniform(-0.4, 0.4), crown * rng.uniform(0.05, 0.3)
            tip = np.array(
                [
                    lean * np.cos(azimuth),
                    lean * np.sin(azimuth),
                    pot + crown * rng.uniform(0.55, 0.95),
                ]
            )
            yield tube([earth, tip], crown * 0.014, slot=2, segments=6)
            for index in range(5):
                at = np.array(earth) * (0.55 - index * 0.13) + tip * (0.45 + index * 0.13)
                length, wide = crown * rng.uniform(0.28, 0.45), crown * rng.uniform(0.16, 0.28)
                yield leaf(
                    length,
                    wide,
                    rng.uniform(0, 6.28),
                    rng.uniform(0.1, 0.9),
                    rng.uniform(0.4, 1.3),
                    at,
                )
    else:  # a trunk with leaves all round a crown
        trunk = pot + crown * rng.uniform(0.3, 0.5)
        yield frustum(height * 0.02, height * 0.015, trunk, (0, 0, pot * 0.5), slot=2)
        centre = np.array([0, 0, trunk + pot * 0.5])
        for index in range(26):
            azimuth, rise = index * 2.4, rng.uniform(-0.7, 1.4)
            out = np.array(
                [np.cos(azimuth) * np.cos(rise), np.sin(azimuth) * np.cos(rise), np.sin(rise)]
            )
            at = centre + out * crown * rng.uniform(0.08, 0.22)
            yield leaf(crown * rng.uniform(0.22, 0.34), crown * 0.16, azimuth, rise, 0.5, at)


def sofa(rng: np.random.Generator, small: bool) -> Iterator[Solid]:
    """Base, back, two arms and cushions; for one to three people."""
    seats = int(rng.integers(1, 4))
    width, depth = 0.35 + seats * rng.uniform(0.55, 0.68), rng.uniform(0.75, 0.95)
    seat_height, back, arm = (
        rng.uniform(0.3, 0.42),
        rng.uniform(0.72, 0.95),
        rng.uniform(0.14, 0.22),
    )
    foot, rise = rng.uniform(0.04, 0.12), rng.uniform(0.12, 0.25)
    yield box((width, depth, seat_height - 0.12 - foot), (0, 0, foot))
    for sx, sy in CORNERS:
        yield box((0.06, 0.06, foot), (sx * (width / 2 - 0.08), sy * (depth / 2 - 0.08), 0), slot=2)
    yield box((width - 2 * arm + 0.02, 0.2, back - foot), (0, depth / 2 - 0.1, foot), tilt=-0.08)
    roll, z = rng.random() < 0.5, seat_height + rise
    for x in (-width / 2 + arm / 2, width / 2 - arm / 2):
        yield box((arm, depth, z - foot), (x, 0, foot))
        if roll:
            yield tube([(x, -depth / 2 - 0.01, z), (x, depth / 2, z)], arm * 0.6, segments=16)
            yield ellipsoid((arm * 0.6, 0.02, arm * 0.6), (x, -depth / 2 - 0.01, z))
    inner = (width - 2 * arm) / seats
    for index in range(seats):
        x = -width / 2 + arm + inner * (index + 0.5)
        slot = 1 if rng.random() < 0.3 else 0
        yield box((inner * 0.96, depth * 0.74, 0.14), (x, -depth * 0.12, seat_height - 0.12), slot)
        yield box(
            (inner * 0.92, 0.14, back - seat_height - 0.06),
            (x, depth * 0.27, seat_height + 0.02),
            tilt=-0.2,
        )
    for _ in range(int(rng.integers(0, 3))):
        x = rng.uniform(-1, 1) * (width / 2 - arm - 0.2)
        yield box((0.36, 0.11, 0.36), (x, depth * 0.08, seat_height + 0.03), slot=3, tilt=-0.35)


def table(rng: np.random.Generator, small: bool) -> Iterator[Solid]:
    """A flat top, round or square, on legs, a pedestal or two panels."""
    width, depth = rng.uniform(0.8, 1.6), rng.uniform(0.6, 0.9)
    height = rng.uniform(0.42, 0.55) if rng.random() < 0.25 else rng.uniform(0.66, 0.8)
    thick = rng.uniform(0.03, 0.06)
    if rng.random() < 0.35:
        radius = rng.uniform(0.4, 0.65)
        yield frustum(radius, radius, thick, (0, 0, height - thick))
        if rng.random() < 0.6:
            yield frustum(0.05, 0.04, height - thick, (0, 0, 0), slot=1)
            yield frustum(radius * 0.6, 0.06, 0.05, (0, 0, 0), slot=1)
            return
        width = depth = radius * 1.5
    else:
        yield box((width, depth, thick), (0, 0, height - thick))
    leg = rng.uniform(0.025, 0.05)
    if rng.random() < 0.8 or width == depth:
        splay = rng.choice([0.0, 0.1])
        for sx, sy in CORNERS:
            x, y = sx * (width / 2 - leg * 1.5), sy * (depth / 2 - leg * 1.5)
            foot = (x + sx * (splay - 0.04), y + sy * (splay - 0.04), 0)
            yield tube([foot, (x, y, height - thick)], leg, slot=1)
    else:
        for x in (-width * 0.4, width * 0.4):
            yield box((0.05, depth * 0.85, height - thick), (x, 0, 0), slot=1)
    if rng.random() < 0.25:
        yield box((width * 0.85, depth * 0.8, 0.02), (0, 0, height * 0.3), slot=1)
    elif rng.random() < 0.4:
        yield box((width * 0.9, depth * 0.86, 0.08), (0, 0, height - thick - 0.08), slot=1)


def teddy(rng: np.random.Generator, small: bool) -> Iterator[Solid]:
    """A toy bear, sitting or standing: round body, head, ears, muzzle, arms and legs."""
    height = rng.uniform(0.22, 0.42) if small else rng.uniform(0.7, 1.15)
    head, body = rng.uniform(0.19, 0.24), rng.uniform(0.2, 0.26)
    sitting = rng.random() < 0.65
    waist = body * 1.1 if sitting else 0.22 + body
    z = waist + body * 1.1 + head * 0.7
    parts = [
        ellipsoid((body, body * 0.85, body * 1.2), (0, 0, waist)),
        ellipsoid((body * 0.7, body * 0.3, body * 0.85), (0, -body * 0.62, waist), slot=1),
        ellipsoid((head, head * 0.92, head * 0.92), (0, -0.01, z)),
        ellipsoid(
            (head * 0.45, head * 0.4, head * 0.35), (0, -head * 0.8, z - head * 0.25), slot=1
        ),
        ellipsoid((head * 0.14,) * 3, (0, -head * 1.18, z - head * 0.14), slot=2, coarse=True),
    ]
    ear, lift = head * rng.uniform(0.34, 0.48), rng.uniform(-0.5, 0.9)
    for side in (-1, 1):
        x, top = side * head * 0.78, z + head * 0.72
        hand = (side * body * 1.6, -body * 0.6, waist + body * (0.3 + lift))
        parts += [
            ellipsoid((ear, ear * 0.45, ear), (x, 0, top)),
            ellipsoid((ear * 0.6, ear * 0.2, ear * 0.6), (x, -ear * 0.4, top), slot=1, coarse=True),
            ellipsoid(
                (head * 0.1,) * 3,
                (side * head * 0.38, -head * 0.82, z + head * 0.16),
                slot=2,
                coarse=True,
            ),
            limb((side * body * 0.8, 0, waist + body * 0.75), hand, body * 0.34),
        ]
        if sitting:
            foot, sole = (
                (side * body * 0.95, -body * 1.65, body * 0.35),
                (side * body * 0.97, -body * 1.9, body * 0.42),
            )
            parts.append(limb((side * body * 0.6, 0, body * 0.4), foot, body * 0.4))
            parts.append(ellipsoid((body * 0.38, body * 0.16, body * 0.42), sole, slot=1))
        else:
            hip = (side * body * 0.5, 0, waist - body * 0.5)
            parts.append(limb(hip, (side * body * 0.6, -0.03, 0.07), body * 0.42))
    scale = height / max(float(part.vertices[:, 2].max()) for part in parts)
    for part in parts:
        yield part._replace(vertices=part.vertices * scale)


def limb(start: ArrayLike, end: ArrayLike, radius: float) -> Solid:
    """A sausage from ``start`` to ``end``."""
    a, b = np.array(start), np.array(end)
    axis = b - a
    length = float(np.linalg.norm(axis))
    axis /= length
    side = np.cross(axis, (1.0, 0.0, 0.0) if abs(axis[0]) < 0.9 else (0.0, 1.0, 0.0))
    side /= np.linalg.norm(side)
    frame = np.stack([side, np.cross(axis, side), axis], axis=1)
    ball = ellipsoid((radius, radius, length / 2 + radius), (0, 0, 0))
    return ball._replace(vertices=ball.vertices @ frame.T + (a + b) / 2)


BUILDERS: dict[str, Callable[[np.random.Generator, bool], Iterator[Solid]]] = {
    "bookshelf": bookshelf,
    "bottle": bottle,
    "chair": chair,
    "lamp": lamp,
    "monitor": monitor,
    "mug": mug,
    "plant": plant,
    "sofa": sofa,
    "table": table,
    "teddy": teddy,
}
CLASSES = tuple(BUILDERS)
# where each class is found: furniture on floors, small things on table tops, some in both sizes
FLOOR = ("bookshelf", "chair", "lamp", "monitor", "plant", "sofa", "table", "teddy")
TABLETOP = ("bottle", "lamp", "monitor", "mug", "plant", "teddy")
