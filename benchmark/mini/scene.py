"""Scenes: a room or a table-top corner with one to five objects, a camera and lights, all drawn from one seed.

World axes: z up, the floor at z = 0, metres. Camera axes: x right, y up, z towards the camera (so it looks along -z).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from benchmark.mini.materials import COLOUR_NAMES, DOMAINS, Domain, Materials, pick, pick_texture
from benchmark.mini.rays import Rays
from benchmark.mini.shapes import BUILDERS, CLASSES, FLOOR, SLOTS, TABLETOP
from benchmark.mini.solids import Merged, Solid, box, frustum, merge, rotation_z

SCREENS = ("black", "black", "grey", "white", "blue")
ATTEMPTS = 12  # cameras tried on one scene, before another scene is drawn


@dataclass(frozen=True)
class Placed:
    """An object in the scene: class name, the names of its main colour and texture, its box (2, 3) in world axes, its
    facing (radians) and its half sizes (2,) along its own x and y."""

    name: str
    colour: str
    texture: str
    box: np.ndarray
    yaw: float
    half: np.ndarray


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: position (3,), ``axes`` (3, 3) with rows right, up, backwards in world axes, and tan(fov /
    2)."""

    position: np.ndarray
    axes: np.ndarray
    tangent: float

    def directions(self, plane: np.ndarray) -> np.ndarray:
        """World directions (N, 3), not unit, of image-plane points (N, 2) in [-1, 1], x right and y up; each advances
        one metre of z-depth per unit, so that a ray's parameter *is* the z-depth."""
        axes = self.axes.astype(plane.dtype)
        return plane @ (axes[:2] * plane.dtype.type(self.tangent)) - axes[2]


@dataclass(frozen=True)
class Light:
    """A ball of light: position, radius (m), linear RGB at ``reach`` metres."""

    position: np.ndarray
    radius: float
    colour: np.ndarray
    reach: float

    @property
    def colour32(self) -> np.ndarray:
        return self.colour.astype(np.float32)

    def fall(self, squared: np.ndarray) -> np.ndarray:
        """Strength at squared distances (N,) float32: 1 at ``reach``, softer than the inverse square."""
        near = np.float32(self.reach**2)
        return near / (np.float32(0.35) * near + np.float32(0.65) * squared)


@dataclass
class Scene:
    """All that rendering and captions need.

    Attributes:
        vertices (V, 3) float64, faces (F, 3) int32: one triangle soup.
        owner (F,) int16: 0 for the background, k for ``objects[k - 1]``.
        material (F,) int16: row of ``materials``.
        place: ``room`` or ``counter``.
        floor, wall: names of their colours.
        target: index of the object the camera was aimed at, or -1 in a wide shot.
    """

    domain: Domain
    vertices: np.ndarray
    faces: np.ndarray
    owner: np.ndarray
    material: np.ndarray
    materials: np.ndarray
    objects: list[Placed]
    camera: Camera
    lights: list[Light]
    ambient: float
    place: str
    floor: str
    wall: str
    target: int
    rays: Rays


@dataclass
class _Builder:
    """A scene in the making."""

    domain: Domain
    materials: Materials
    vertices: list[np.ndarray] = field(default_factory=list)
    faces: list[np.ndarray] = field(default_factory=list)
    owner: list[np.ndarray] = field(default_factory=list)
    material: list[np.ndarray] = field(default_factory=list)
    count: int = 0

    def add(self, thing: Merged | Solid, owner: int, material: int | np.ndarray) -> None:
        """Add triangles; ``material`` is one row of the table, or one for each slot of a ``Merged``."""
        rows = material[thing.slot] if isinstance(material, np.ndarray) else np.full(len(thing.faces), material)
        self.vertices.append(thing.vertices)
        self.faces.append(thing.faces + np.int32(self.count))
        self.owner.append(np.full(len(thing.faces), owner, np.int16))
        self.material.append(rows.astype(np.int16))
        self.count += len(thing.vertices)


def make_scene(
    rng: np.random.Generator, domain: str = "home", *, dominant: str | None = None, close_ups: float = 0.6
) -> Scene:
    """Draw a scene.

    Args:
        rng: the only source of randomness.
        domain: a name in ``DOMAINS``.
        dominant: class of the one object that must fill the picture (for classification); None for no such wish.
        close_ups: share of pictures with a dominant object; the rest are wide shots. Ignored when ``dominant`` is
            given.
    """
    while True:
        target = dominant
        if target is None and rng.random() < close_ups:
            target = CLASSES[rng.integers(len(CLASSES))]
        scene = _try_scene(rng, DOMAINS[domain], target, alone=dominant is not None)
        if scene is not None:
            return scene


def _try_scene(rng: np.random.Generator, domain: Domain, target: str | None, alone: bool) -> Scene | None:
    if target is None:
        place = "room" if rng.random() < 0.6 else "counter"
    else:
        options = [place for place, names in (("room", FLOOR), ("counter", TABLETOP)) if target in names]
        place = options[rng.integers(len(options))]
    names = FLOOR if place == "room" else TABLETOP
    number = int(rng.integers(1, 4)) if alone else int(rng.integers(1, 6)) if target else int(rng.integers(2, 6))
    wanted = [target] if target else []
    wanted += [names[rng.integers(len(names))] for _ in range(number - len(wanted))]

    scale = 1.0 if place == "room" else 0.3
    half = rng.uniform(1.7, 2.8, 2) * (scale if place == "room" else scale * 1.3)
    height = rng.uniform(2.3, 3.0) if place == "room" else rng.uniform(0.9, 1.5)
    build = _Builder(domain, Materials(domain))
    floor, wall = _room(rng, build, half, height, scale)
    objects = _place_objects(rng, build, wanted, half, place == "counter")
    if not objects or (target and objects[0].name != target):
        return None
    _clutter(rng, build, objects, half, height, scale)

    vertices, faces = np.concatenate(build.vertices), np.concatenate(build.faces)
    owner = np.concatenate(build.owner)
    rays = Rays(vertices, faces)
    camera = None
    for _ in range(ATTEMPTS):
        if target:
            camera = _close_up(rng, domain, objects[0], half, height, scale)
        else:
            camera = _wide_shot(rng, domain, objects, half, height, scale)
        if camera is not None and _good_view(camera, rays, owner, bool(target), alone, scale):
            break
        camera = None
    if camera is None:
        return None
    lights, ambient = _lights(rng, domain, objects, camera, half, height)
    return Scene(
        domain, vertices, faces, owner, np.concatenate(build.material), build.materials.table(), objects, camera,
        lights, ambient, place, floor, wall, 0 if target else -1, rays,
    )  # fmt: skip


def _room(rng: np.random.Generator, build: _Builder, half: np.ndarray, height: float, scale: float) -> tuple[str, str]:
    """Floor, ceiling and four walls: slabs that overlap at the corners, so that no ray slips out."""
    domain, thick = build.domain, 0.2
    floor, wall = pick(rng, COLOUR_NAMES), pick(rng, COLOUR_NAMES)
    texture = pick_texture(rng, domain.room_textures)
    grain = {"checkered": 0.4, "wooden": 0.16, "striped": 0.3}.get(texture, 0.5) * scale * rng.uniform(0.8, 1.4)
    ground = build.materials.add(
        rng, floor, texture, grain, yaw=float(rng.integers(2)) * np.pi / 2, shine=rng.uniform(0, 0.3)
    )
    wide = (2 * half[0] + 1, 2 * half[1] + 1, thick)
    build.add(box(wide, (0, 0, -thick)), 0, ground)
    paint = build.materials.add(rng, "white", "plain", 1.0, value=(0.75, 0.95), shine=0.0)
    build.add(box(wide, (0, 0, height)), 0, paint)
    texture = pick_texture(rng, domain.room_textures)
    side = build.materials.add(rng, wall, texture, scale * rng.uniform(0.25, 0.6), value=domain.wall_value, shine=0.0)
    for x in (-1, 1):
        build.add(box((thick, 2 * half[1] + 1, height + 0.3), (x * (half[0] + thick / 2), 0, -0.15)), 0, side)
        build.add(box((2 * half[0] + 1, thick, height + 0.3), (0, x * (half[1] + thick / 2), -0.15)), 0, side)
    return floor, wall


def _place_objects(
    rng: np.random.Generator, build: _Builder, wanted: list[str], half: np.ndarray, small: bool
) -> list[Placed]:
    """Put the wanted classes down without overlap, as many as fit; on some tables, small things on top."""
    objects: list[Placed] = []
    for name in wanted:
        body = merge(BUILDERS[name](rng, small))
        backs_to_wall = name in ("sofa", "bookshelf", "monitor") and rng.random() < 0.5
        spread = 0.5 if objects else 0.35  # the first, which may be dominant, is kept away from the walls
        for _ in range(8):
            yaw = float(rng.uniform(0, 2 * np.pi)) if not backs_to_wall else float(rng.integers(4)) * np.pi / 2
            low, high = _bounds(body, yaw)
            room = half - (high - low)[:2] / 2 - 0.02
            if (room < 0).any():
                continue
            centre = rng.uniform(-1, 1, 2) * room * (2 * spread if not backs_to_wall else 1.0)
            if backs_to_wall:  # facing -y at yaw 0: the back is towards +y, turned with yaw
                back = rotation_z(yaw)[:2, :2] @ (0.0, 1.0)
                centre = np.where(np.abs(back) > 0.5, np.sign(back) * room, centre)
            at = np.array([*(centre - (low + high)[:2] / 2), 0.0])
            if all(_apart(low + at, high + at, other.box, 0.02 if small else 0.08) for other in objects):
                objects.append(_add_object(rng, build, name, body, at, yaw, len(objects) + 1))
                break
    if not small:
        for table in [thing for thing in objects if thing.name == "table" and rng.random() < 0.7]:
            _lay_table(rng, build, table, objects)
    return objects


def _lay_table(rng: np.random.Generator, build: _Builder, table: Placed, objects: list[Placed]) -> None:
    """One or two small things on top of ``table``, never more than five objects altogether."""
    centre, top = table.box.mean(axis=0)[:2], table.box[1, 2]
    for _ in range(int(rng.integers(1, 3))):
        if len(objects) >= 5:
            return
        name, yaw = TABLETOP[rng.integers(len(TABLETOP))], float(rng.uniform(0, 2 * np.pi))
        body = merge(BUILDERS[name](rng, True))
        low, high = _bounds(body, yaw)
        reach = table.half * 0.75 - np.linalg.norm((high - low)[:2]) / 2
        at = np.array([*(centre + rotation_z(table.yaw)[:2, :2] @ (rng.uniform(-1, 1, 2) * reach)), top])
        others = [thing for thing in objects if thing is not table]
        if (reach > 0).all() and all(_apart(low + at, high + at, other.box, 0.01) for other in others):
            objects.append(_add_object(rng, build, name, body, at, yaw, len(objects) + 1))


def _add_object(
    rng: np.random.Generator, build: _Builder, name: str, body: Merged, at: np.ndarray, yaw: float, owner: int
) -> Placed:
    low, high = _bounds(body, yaw)
    size = float((high - low).max())
    own_low, own_high = _bounds(body, 0.0)
    half = (own_high - own_low)[:2] / 2
    colours = [pick(rng, COLOUR_NAMES) for _ in range(SLOTS)]
    if name == "monitor":
        colours[1] = pick(rng, SCREENS)
    textures = [pick_texture(rng, build.domain.object_textures)]
    textures += [textures[0] if rng.random() < 0.4 else "plain" for _ in range(SLOTS - 1)]
    grain = size * rng.uniform(0.08, 0.2)
    rows = [
        build.materials.add(rng, colour, texture, grain, origin=tuple(at), yaw=yaw)
        for colour, texture in zip(colours, textures, strict=True)
    ]
    build.add(body._replace(vertices=body.vertices @ rotation_z(yaw).T + at), owner, np.array(rows))
    return Placed(name, colours[0], textures[0], np.stack([low + at, high + at]), yaw, half)


def _clutter(
    rng: np.random.Generator, build: _Builder, objects: list[Placed], half: np.ndarray, height: float, scale: float
) -> None:
    """Background things that are no class: pictures on walls, a rug, crates and drums."""
    for _ in range(int(rng.integers(0, 4))):
        wide, tall = rng.uniform(0.3, 0.9, 2) * scale
        wall, sign = int(rng.integers(2)), 2 * int(rng.integers(2)) - 1
        size, at = np.array([0.0, 0.0, tall]), np.zeros(3)
        size[wall], size[1 - wall] = 0.04 * scale, wide
        at[wall], at[1 - wall] = sign * half[wall], rng.uniform(-1, 1) * (half[1 - wall] - wide / 2)
        at[2] = height * rng.uniform(0.3, 0.6)
        frame, inside = (_random_material(rng, build, 0.15 * scale) for _ in range(2))
        build.add(box(size, at), 0, frame)
        size[wall] *= 1.3
        size[1 - wall] *= 0.82
        size[2] *= 0.82
        build.add(box(size, at + np.array((0, 0, tall * 0.09))), 0, inside)
    if rng.random() < 0.35:
        rug = (*(rng.uniform(0.4, 0.9, 2) * half), 0.006 * scale)
        build.add(box(rug, (*(rng.uniform(-0.4, 0.4, 2) * half), 0.0)), 0, _random_material(rng, build, 0.15 * scale))
    for _ in range(int(rng.integers(0, 3))):
        size = rng.uniform(0.2, 0.55, 3) * scale
        at = np.array([*(rng.uniform(-0.9, 0.9, 2) * (half - size[:2])), 0.0])
        low, high = at - np.array((*(size[:2] / 2), 0)), at + np.array((*(size[:2] / 2), size[2]))
        if all(_apart(low, high, thing.box, 0.03 * scale) for thing in objects):
            solid = (
                box(size, at) if rng.random() < 0.6 else frustum(size[:2].min() / 2, size[:2].min() / 2, size[2], at)
            )
            build.add(solid, 0, _random_material(rng, build, 0.12 * scale))


def _random_material(rng: np.random.Generator, build: _Builder, grain: float) -> int:
    return build.materials.add(rng, pick(rng, COLOUR_NAMES), pick_texture(rng, build.domain.object_textures), grain)


def _bounds(body: Merged, yaw: float) -> tuple[np.ndarray, np.ndarray]:
    turned = body.vertices @ rotation_z(yaw).T
    return turned.min(axis=0), turned.max(axis=0)


def _apart(low: np.ndarray, high: np.ndarray, other: np.ndarray, gap: float) -> bool:
    """Whether two boxes do not touch, seen from above or (things on a table) from the side."""
    gaps = np.array((gap, gap, -1e-6))
    return bool((low >= other[1] + gaps).any() or (other[0] >= high + gaps).any())


def _look(rng: np.random.Generator, domain: Domain, position: np.ndarray, at: np.ndarray, tangent: float) -> Camera:
    backwards = position - at
    backwards /= np.linalg.norm(backwards)
    right = np.cross((0.0, 0.0, 1.0), backwards)
    right /= np.linalg.norm(right) + 1e-9
    up = np.cross(backwards, right)
    roll = np.radians(rng.normal(0, domain.roll))
    right, up = np.cos(roll) * right + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * right
    return Camera(position, np.stack([right, up, backwards]), tangent)


def _close_up(
    rng: np.random.Generator, domain: Domain, thing: Placed, half: np.ndarray, height: float, scale: float
) -> Camera | None:
    """A camera that sees ``thing`` large, mostly from its front half."""
    tangent = float(np.tan(np.radians(rng.uniform(*domain.fov)) / 2))
    low, high = thing.box
    centre, radius = (low + high) / 2, float(np.linalg.norm(high - low)) / 2
    side = rng.uniform(-1.2, 1.2) if rng.random() < 0.85 else rng.uniform(-np.pi, np.pi)
    azimuth = thing.yaw - np.pi / 2 + side
    elevation = np.radians(rng.uniform(*domain.elevation))
    distance = radius / np.sin(np.arctan(tangent)) * rng.uniform(0.72, 1.15)
    aim = centre + rng.uniform(-0.22, 0.22, 3) * radius
    out = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    position = aim + out * distance
    inside = (np.abs(position[:2]) < half - 0.05 * scale).all() and 0.06 * scale < position[2] < height - 0.05 * scale
    return _look(rng, domain, position, aim, tangent) if inside else None


def _wide_shot(
    rng: np.random.Generator, domain: Domain, objects: list[Placed], half: np.ndarray, height: float, scale: float
) -> Camera | None:
    """A camera near the walls that looks at the middle of the objects."""
    tangent = float(np.tan(np.radians(rng.uniform(*domain.fov) * 1.1) / 2))
    middle = np.mean([thing.box.mean(axis=0) for thing in objects], axis=0)
    angle = rng.uniform(0, 2 * np.pi)
    out = np.array([np.cos(angle), np.sin(angle)])
    reach = np.min((half - 0.08 * scale) / (np.abs(out) + 1e-9)) * rng.uniform(0.8, 1.0)
    low, high = (0.8, 2.1) if scale == 1.0 else (0.18, 0.7)
    position = np.array([*(out * reach), min(rng.uniform(low, high), height - 0.1)])
    aim = middle + rng.normal(0, 0.15, 3) * scale
    return _look(rng, domain, position, aim, tangent)


def _good_view(camera: Camera, rays: Rays, owner: np.ndarray, target: bool, alone: bool, scale: float) -> bool:
    """Whether a coarse look shows what the picture is about, and nothing sits right before the lens."""
    grid = (np.arange(20) + 0.5) / 10 - 1
    plane = np.stack(np.meshgrid(grid, -grid), axis=-1).reshape(-1, 2)
    triangle, depth = rays.first_hit(camera.position, camera.directions(plane))
    if (triangle < 0).any() or depth.min() < (0.12 if target else 0.35) * scale:
        return False
    share = np.bincount(owner[triangle], minlength=2) / len(triangle)
    if not target:
        return bool(0.03 < share[1:].max() < 0.5)
    rest = share[2:].max() if len(share) > 2 else 0.0
    return bool(share[1] > 0.12 and share[1] > rest * (2.5 if alone else 1.2))


def _lights(
    rng: np.random.Generator, domain: Domain, objects: list[Placed], camera: Camera, half: np.ndarray, height: float
) -> tuple[list[Light], float]:
    """A main light on the camera's side of the room and a weaker one anywhere."""
    middle = objects[0].box.mean(axis=0)
    ambient = float(rng.uniform(*domain.ambient))
    lights = []
    for strength in (1.0, rng.uniform(0.1, 0.35)):
        radius = float(rng.uniform(*domain.light_radius)) * height / 2.5
        # the whole ball stays inside the room: what sticks out would be seen as noise
        place = np.array([*(rng.uniform(-1, 1, 2) * (half - 1.05 * radius)), height * rng.uniform(0.8, 0.99) - radius])
        if strength == 1.0:
            place[:2] = 0.5 * place[:2] + 0.5 * np.clip(camera.position[:2], 1.1 * radius - half, half - 1.1 * radius)
        warmth = rng.uniform(*domain.warmth)
        colour = np.array([1 + 0.35 * warmth, 1.0, 1 - 0.55 * warmth]) * rng.uniform(*domain.exposure) * strength
        reach = float(np.linalg.norm(place - middle))
        lights.append(Light(place, radius, colour, reach))
    return lights, ambient
