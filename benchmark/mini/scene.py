"""Scenes: a room or a table-top corner with one to five objects, a camera and lights.

A scene is drawn from one seed. World axes: z up, the floor at z = 0, metres. Camera axes: x right,
y up, z towards the camera, which looks along -z.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from benchmark.mini.materials import COLOUR_NAMES, DOMAINS, Domain, Materials, pick, pick_texture
from benchmark.mini.rays import Rays
from benchmark.mini.shapes import CLASSES, FLOOR, SLOTS, TABLETOP, make_object
from benchmark.mini.solids import Solid, box, frustum, merge, rotation_z

SCREENS = ("black", "black", "grey", "white", "blue")
ATTEMPTS = 12  # cameras tried on one scene, before another scene is drawn


@dataclass(frozen=True)
class PlacedObject:
    """An object in the scene.

    ``box`` (2, 3) is in world axes, ``yaw`` its facing in radians, ``half`` (2,) half its size
    along its own x and y; ``colour`` and ``texture`` are those of its main part.
    """

    name: str
    colour: str
    texture: str
    box: np.ndarray
    yaw: float
    half: np.ndarray


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; ``axes`` (3, 3) has rows right, up and backwards in world axes.

    ``position`` is (3,) and ``tangent`` is tan(fov / 2).
    """

    position: np.ndarray
    axes: np.ndarray
    tangent: float

    def directions(self, plane: np.ndarray) -> np.ndarray:
        """World directions (N, 3) of image-plane points (N, 2) in [-1, 1], x right and y up.

        They are not unit: each has a z-depth of one metre, so a ray's parameter is the z-depth.
        """
        axes = self.axes.astype(plane.dtype)
        return plane @ (axes[:2] * plane.dtype.type(self.tangent)) - axes[2]


@dataclass(frozen=True)
class Light:
    """A ball of light; ``colour`` (3,) is its linear RGB at ``reach`` metres, float32."""

    position: np.ndarray
    radius: float
    colour: np.ndarray
    reach: float

    def fall(self, squared: np.ndarray) -> np.ndarray:
        """Strength at squared distances (N,): 1 at ``reach``, softer than the inverse square."""
        reference = np.float32(self.reach**2)
        return reference / (np.float32(0.35) * reference + np.float32(0.65) * squared)


@dataclass
class Scene:
    """All that rendering and captions need."""

    domain: Domain
    vertices: np.ndarray  # (V, 3) float64, with faces (F, 3) int32: one triangle soup
    faces: np.ndarray
    owner: np.ndarray  # (F,) int16: 0 for the background, k for objects[k - 1]
    material: np.ndarray  # (F,) int16: row of ``materials``
    materials: np.ndarray
    objects: list[PlacedObject]
    camera: Camera
    lights: list[Light]
    ambient: float
    location: str  # room or counter
    floor: str  # name of its colour, as of the wall's
    wall: str
    target: int  # index of the object the camera was aimed at, or -1 in a wide shot
    rays: Rays


def make_scene(
    rng: np.random.Generator,
    domain: str = "home",
    *,
    dominant: str | None = None,
    close_ups: float = 0.6,
) -> Scene:
    """Draw a scene from ``rng`` alone.

    Args:
        domain: a name in ``DOMAINS``.
        dominant: class of the one object that must fill the picture (for classification).
        close_ups: share of pictures with a dominant object, where none is given; the rest are wide
            shots.
    """
    while True:
        target = dominant
        if target is None and rng.random() < close_ups:
            target = CLASSES[rng.integers(len(CLASSES))]
        scene = _try_scene(rng, DOMAINS[domain], target, alone=dominant is not None)
        if scene is not None:
            return scene


def _try_scene(
    rng: np.random.Generator, domain: Domain, target: str | None, alone: bool
) -> Scene | None:
    if target is None:
        small = rng.random() >= 0.6
    else:
        options = [small for small, names in ((False, FLOOR), (True, TABLETOP)) if target in names]
        small = options[rng.integers(len(options))]
    names = TABLETOP if small else FLOOR
    number = int(rng.integers(*((1, 4) if alone else (1, 6) if target else (2, 6))))
    classes = [target] if target else []
    classes += [names[rng.integers(len(names))] for _ in range(number - len(classes))]

    half = rng.uniform(1.7, 2.8, 2) * (0.3 * 1.3 if small else 1.0)
    height = rng.uniform(0.9, 1.5) if small else rng.uniform(2.3, 3.0)
    draft = _Draft(rng, domain, small, half, height, Materials(rng, domain))
    floor, wall = draft.add_room()
    objects = draft.place_objects(classes)
    if not objects or (target and objects[0].name != target):
        return None
    draft.add_clutter()

    vertices, faces, material = merge(draft.parts)
    owner = np.repeat(draft.owners, [len(part.faces) for part in draft.parts]).astype(np.int16)
    rays = Rays(vertices, faces)
    for _ in range(ATTEMPTS):
        camera = draft.close_up(objects[0]) if target else draft.wide_shot()
        if camera is not None and _good_view(camera, rays, owner, bool(target), alone, draft.scale):
            break
    else:
        return None
    lights, ambient = draft.lights(camera)
    return Scene(
        domain,
        vertices,
        faces,
        owner,
        np.asarray(material, np.int16),
        draft.materials.table(),
        objects,
        camera,
        lights,
        ambient,
        "counter" if small else "room",
        floor,
        wall,
        0 if target else -1,
        rays,
    )


@dataclass
class _Draft:
    """A scene in the making: a room, or a corner for ``small`` objects, ``2 * half`` wide.

    A part's ``slot`` is a row of ``materials`` here; ``owners`` has an entry for each part.
    """

    rng: np.random.Generator
    domain: Domain
    small: bool
    half: np.ndarray
    height: float
    materials: Materials
    parts: list[Solid] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    objects: list[PlacedObject] = field(default_factory=list)

    @property
    def scale(self) -> float:
        return 0.3 if self.small else 1.0

    def add(self, part: Solid, owner: int = 0) -> None:
        self.parts.append(part)
        self.owners.append(owner)

    def add_room(self) -> tuple[str, str]:
        """Add floor, ceiling and walls; returns the colour names of floor and walls.

        The slabs overlap at the corners, so that no ray escapes.
        """
        rng, thick, (x, y) = self.rng, 0.2, self.half
        floor, wall = pick(rng, COLOUR_NAMES), pick(rng, COLOUR_NAMES)
        texture = pick_texture(rng, self.domain.room_textures)
        grain = (
            {"checkered": 0.4, "wooden": 0.16, "striped": 0.3}.get(texture, 0.5)
            * self.scale
            * rng.uniform(0.8, 1.4)
        )
        yaw = float(rng.integers(2)) * np.pi / 2
        ground = self.materials.add(floor, texture, grain, yaw=yaw, shine=rng.uniform(0, 0.3))
        wide = (2 * x + 1, 2 * y + 1, thick)
        self.add(box(wide, (0, 0, -thick), ground))
        self.add(
            box(
                wide,
                (0, 0, self.height),
                self.materials.add("white", "plain", 1.0, value=(0.75, 0.95), shine=0.0),
            )
        )
        texture, grain = (
            pick_texture(rng, self.domain.room_textures),
            self.scale * rng.uniform(0.25, 0.6),
        )
        side = self.materials.add(wall, texture, grain, value=self.domain.wall_value, shine=0.0)
        for sign in (-1, 1):
            self.add(
                box((thick, 2 * y + 1, self.height + 0.3), (sign * (x + thick / 2), 0, -0.15), side)
            )
            self.add(
                box((2 * x + 1, thick, self.height + 0.3), (0, sign * (y + thick / 2), -0.15), side)
            )
        return floor, wall

    def place_objects(self, classes: list[str]) -> list[PlacedObject]:
        """Place the classes without overlap, as many as fit; on some tables, small objects."""
        for name in classes:
            self._put_down(name)
        if not self.small:
            for table in [
                placed
                for placed in self.objects
                if placed.name == "table" and self.rng.random() < 0.7
            ]:
                self._lay_table(table)
        return self.objects

    def _put_down(self, name: str) -> None:
        rng = self.rng
        body = merge(make_object(name, rng, self.small))
        backs_to_wall = name in ("sofa", "bookshelf", "monitor") and rng.random() < 0.5
        # the first, which may be dominant, is kept away from the walls
        spread = 1.0 if backs_to_wall or self.objects else 0.7
        for _ in range(8):
            yaw = (
                float(rng.integers(4)) * np.pi / 2
                if backs_to_wall
                else float(rng.uniform(0, 2 * np.pi))
            )
            low, high = _bounds(body, yaw)
            room = self.half - (high - low)[:2] / 2 - 0.02
            if (room < 0).any():
                continue
            centre = rng.uniform(-1, 1, 2) * room * spread
            if backs_to_wall:  # facing -y at yaw 0: the back is towards +y, turned with yaw
                back = rotation_z(yaw)[:2, :2] @ (0.0, 1.0)
                centre = np.where(np.abs(back) > 0.5, np.sign(back) * room, centre)
            at = np.array([*(centre - (low + high)[:2] / 2), 0.0])
            if self._is_free(low + at, high + at, 0.02 if self.small else 0.08):
                self._add_object(name, body, at, yaw)
                return

    def _lay_table(self, table: PlacedObject) -> None:
        """One or two small things on top of ``table``, never more than five objects altogether."""
        rng, centre, top = self.rng, table.box.mean(axis=0)[:2], table.box[1, 2]
        for _ in range(int(rng.integers(1, 3))):
            if len(self.objects) >= 5:
                return
            name, yaw = TABLETOP[rng.integers(len(TABLETOP))], float(rng.uniform(0, 2 * np.pi))
            body = merge(make_object(name, rng, True))
            low, high = _bounds(body, yaw)
            reach = table.half * 0.75 - np.linalg.norm((high - low)[:2]) / 2
            at = np.array(
                [*(centre + rotation_z(table.yaw)[:2, :2] @ (rng.uniform(-1, 1, 2) * reach)), top]
            )
            if (reach > 0).all() and self._is_free(low + at, high + at, 0.01, below=table):
                self._add_object(name, body, at, yaw)

    def _add_object(self, name: str, body: Solid, at: np.ndarray, yaw: float) -> None:
        rng, (low, high) = self.rng, _bounds(body, yaw)
        colours = [pick(rng, COLOUR_NAMES) for _ in range(SLOTS)]
        if name == "monitor":
            colours[1] = pick(rng, SCREENS)
        textures = [pick_texture(rng, self.domain.object_textures)]
        textures += [textures[0] if rng.random() < 0.4 else "plain" for _ in range(SLOTS - 1)]
        grain = float((high - low).max()) * rng.uniform(0.08, 0.2)
        looks = zip(colours, textures, strict=True)
        rows = np.array(
            [self.materials.add(*look, grain, origin=tuple(at), yaw=yaw) for look in looks]
        )
        turned = Solid(body.vertices @ rotation_z(yaw).T + at, body.faces, rows[body.slot])
        half = np.ptp(body.vertices, axis=0)[:2] / 2
        self.objects.append(
            PlacedObject(name, colours[0], textures[0], np.stack([low + at, high + at]), yaw, half)
        )
        self.add(turned, owner=len(self.objects))

    def add_clutter(self) -> None:
        """Background things that are no class: pictures on walls, a rug, crates and drums."""
        rng, half, scale = self.rng, self.half, self.scale
        for _ in range(int(rng.integers(0, 4))):
            wide, tall = rng.uniform(0.3, 0.9, 2) * scale
            wall, sign = int(rng.integers(2)), 2 * int(rng.integers(2)) - 1
            size, at = np.array([0.0, 0.0, tall]), np.zeros(3)
            size[wall], size[1 - wall] = 0.04 * scale, wide
            at[wall], at[1 - wall] = (
                sign * half[wall],
                rng.uniform(-1, 1) * (half[1 - wall] - wide / 2),
            )
            at[2] = self.height * rng.uniform(0.3, 0.6)
            frame, inside = self._any_material(0.15), self._any_material(0.15)
            self.add(box(size, at, frame))
            size *= np.where(np.arange(3) == wall, 1.3, 0.82)
            self.add(box(size, at + np.array((0, 0, tall * 0.09)), inside))
        if rng.random() < 0.35:
            size, at = (
                np.array([*(rng.uniform(0.4, 0.9, 2) * half), 0.006 * scale]),
                rng.uniform(-0.4, 0.4, 2) * half,
            )
            self.add(box(size, (*at, 0.0), self._any_material(0.15)))
        for _ in range(int(rng.integers(0, 3))):
            size = rng.uniform(0.2, 0.55, 3) * scale
            at = np.array([*(rng.uniform(-0.9, 0.9, 2) * (half - size[:2])), 0.0])
            if self._is_free(at - size / 2 * (1, 1, 0), at + size / (2, 2, 1), 0.03 * scale):
                radius = size[:2].min() / 2
                solid = (
                    box(size, at) if rng.random() < 0.6 else frustum(radius, radius, size[2], at)
                )
                self.add(solid._replace(slot=self._any_material(0.12)))

    def _any_material(self, grain: float) -> int:
        colour, texture = (
            pick(self.rng, COLOUR_NAMES),
            pick_texture(self.rng, self.domain.object_textures),
        )
        return self.materials.add(colour, texture, grain * self.scale)

    def _is_free(
        self, low: np.ndarray, high: np.ndarray, gap: float, below: PlacedObject | None = None
    ) -> bool:
        """Whether a box touches no object except ``below``."""
        gaps = np.array((gap, gap, -1e-6))
        return all(
            (low >= placed.box[1] + gaps).any() or (placed.box[0] >= high + gaps).any()
            for placed in self.objects
            if placed is not below
        )

    def close_up(self, placed: PlacedObject) -> Camera | None:
        """A camera that sees an object large, mostly from its front; None if outside the room."""
        rng = self.rng
        tangent = float(np.tan(np.radians(rng.uniform(*self.domain.fov)) / 2))
        low, high = placed.box
        centre, radius = (low + high) / 2, float(np.linalg.norm(high - low)) / 2
        side = rng.uniform(-1.2, 1.2) if rng.random() < 0.85 else rng.uniform(-np.pi, np.pi)
        azimuth = placed.yaw - np.pi / 2 + side
        elevation = np.radians(rng.uniform(*self.domain.elevation))
        distance = radius / np.sin(np.arctan(tangent)) * rng.uniform(0.72, 1.15)
        aim = centre + rng.uniform(-0.22, 0.22, 3) * radius
        out = np.array(
            [
                np.cos(azimuth) * np.cos(elevation),
                np.sin(azimuth) * np.cos(elevation),
                np.sin(elevation),
            ]
        )
        position, margin = aim + out * distance, 0.05 * self.scale
        inside = (np.abs(position[:2]) < self.half - margin).all()
        inside = inside and 0.06 * self.scale < position[2] < self.height - margin
        return self._look(position, aim, tangent) if inside else None

    def wide_shot(self) -> Camera:
        """A camera near the walls that looks at the middle of the objects."""
        rng = self.rng
        tangent = float(np.tan(np.radians(rng.uniform(*self.domain.fov) * 1.1) / 2))
        middle = np.mean([placed.box.mean(axis=0) for placed in self.objects], axis=0)
        angle = rng.uniform(0, 2 * np.pi)
        out = np.array([np.cos(angle), np.sin(angle)])
        reach = np.min((self.half - 0.08 * self.scale) / (np.abs(out) + 1e-9)) * rng.uniform(
            0.8, 1.0
        )
        level = rng.uniform(0.18, 0.7) if self.small else rng.uniform(0.8, 2.1)
        position = np.array([*(out * reach), min(level, self.height - 0.1)])
        return self._look(position, middle + rng.normal(0, 0.15, 3) * self.scale, tangent)

    def _look(self, position: np.ndarray, at: np.ndarray, tangent: float) -> Camera:
        backwards = position - at
        backwards /= np.linalg.norm(backwards)
        right = np.cross((0.0, 0.0, 1.0), backwards)
        right /= np.linalg.norm(right) + 1e-9
        up = np.cross(backwards, right)
        roll = np.radians(self.rng.normal(0, self.domain.roll))
        right, up = (
            np.cos(roll) * right + np.sin(roll) * up,
            np.cos(roll) * up - np.sin(roll) * right,
        )
        return Camera(position, np.stack([right, up, backwards]), tangent)

    def lights(self, camera: Camera) -> tuple[list[Light], float]:
        """A main light on the camera's side, a weaker one anywhere; and the ambient share."""
        rng, domain, middle = self.rng, self.domain, self.objects[0].box.mean(axis=0)
        ambient = float(rng.uniform(*domain.ambient))
        lights = []
        for strength in (1.0, rng.uniform(0.1, 0.35)):
            radius = float(rng.uniform(*domain.light_radius)) * self.height / 2.5
            # the whole ball stays inside the room: what sticks out would be seen as noise
            location = rng.uniform(-1, 1, 2) * (self.half - 1.05 * radius)
            level = self.height * rng.uniform(0.8, 0.99) - radius
            if strength == 1.0:
                limit = self.half - 1.1 * radius
                location = 0.5 * location + 0.5 * np.clip(camera.position[:2], -limit, limit)
            position, warmth = np.array([*location, level]), rng.uniform(*domain.warmth)
            colour = (
                np.array([1 + 0.35 * warmth, 1.0, 1 - 0.55 * warmth])
                * rng.uniform(*domain.exposure)
                * strength
            )
            reach = float(np.linalg.norm(position - middle))
            lights.append(
                Light(position.astype(np.float32), radius, colour.astype(np.float32), reach)
            )
        return lights, ambient


def _bounds(body: Solid, yaw: float) -> tuple[np.ndarray, np.ndarray]:
    turned = body.vertices @ rotation_z(yaw).T
    return turned.min(axis=0), turned.max(axis=0)


def _good_view(
    camera: Camera, rays: Rays, owner: np.ndarray, target: bool, alone: bool, scale: float
) -> bool:
    """Whether a coarse view shows the subject and nothing is right in front of the camera."""
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
