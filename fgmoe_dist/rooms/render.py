"""Turns a scene and a camera into a photograph and exact labels.

Labels come from one ray through each pixel's centre. The photograph adds area lights, one bounce of indirect light,
mirrors and sheen. Light is sampled sparsely: each pixel of a 4 x 4 tile takes another of 16 samples of every light,
then a 4 x 4 box filter that stays within one patch collects all 16, which leaves no noise on flat surfaces at the price
of one ray per pixel; indirect light does the same on a coarser grid. Outlines are smoothed afterwards, by extra rays at
the edges of patches only.

Shapes: H x W pixels, N = H * W of them row by row (or any set of points), T triangles.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fgmoe_dist.rooms.camera import Camera
from fgmoe_dist.rooms.geometry import cross
from fgmoe_dist.rooms.scene import Scene
from fgmoe_dist.rooms.tracer import Hits, Tracer

_TILE = 4
_LIFT = 1e-3  # metres that secondary rays start above their surface
_AMBIENT = 0.12  # light of the second and later bounces, as a share of the first


@dataclass(frozen=True)
class View:
    """Exact labels of one picture: indices into the scene's things, parts and patches, depth and normals."""

    triangle_HW: np.ndarray
    thing_HW: np.ndarray
    part_HW: np.ndarray
    patch_HW: np.ndarray
    depth_HW: np.ndarray  # metres along the optical axis, float32; 0 = nothing there
    normal_HW3: np.ndarray  # unit, camera frame (x right, y up, z to the viewer), float32; 0 = nothing there


@dataclass(frozen=True)
class _Surface:
    """Points on things, as shading needs them."""

    point_N3: np.ndarray
    normal_N3: np.ndarray
    uv_N2: np.ndarray
    material_N: np.ndarray
    footprint_N: np.ndarray  # metres that a pixel covers


class Renderer:
    """One scene, ready to be looked at."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self.tracer = Tracer(scene.vertex_T33, scene.casts_T)
        edges_T23 = scene.vertex_T33[:, 1:] - scene.vertex_T33[:, :1]
        flat_T3 = cross(edges_T23[:, 0], edges_T23[:, 1])
        # At the poles of round shapes some triangles are lines; no ray meets those.
        self._flat_T3 = flat_T3 / np.maximum(np.sqrt((flat_T3**2).sum(-1, keepdims=True)), 1e-12)
        self._normal_T33 = scene.normal_T33.astype(np.float32)
        self._uv_T32 = scene.uv_T32.astype(np.float32)
        self._mean_albedo_M3 = scene.paint.mean_albedo()

    # ------------------------------------------------------------------------------------------- labels

    def view(self, camera: Camera, size: tuple[int, int]) -> tuple[View, _Surface]:
        """What each pixel's centre shows, and the surface there."""
        ray_N3 = camera.rays(size)
        hits = self.tracer.cast(np.broadcast_to(camera.at, ray_N3.shape), ray_N3)
        triangle_N, missed_N = np.maximum(hits.triangle_N, 0), hits.triangle_N < 0
        # Embree's distance is single precision; the plane's equation in double gives the label.
        flat_N3 = self._flat_T3[triangle_N]
        towards = np.einsum("ij,ij->i", self.scene.vertex_T33[triangle_N, 0] - camera.at, flat_N3)
        slope = np.einsum("ij,ij->i", ray_N3, flat_N3)
        depth_N = np.where(missed_N, 0, towards / np.where(missed_N, 1, slope))
        point_N3 = camera.at + depth_N[:, None] * ray_N3
        surface = self._surface(hits, triangle_N, point_N3, ray_N3, depth_N / (camera.focal * size[1]))
        normal_N3 = np.einsum("ij,jk->ik", surface.normal_N3, camera.turn.astype(np.float32))
        normal_N3[missed_N] = 0
        scene, triangle_HW = self.scene, triangle_N.reshape(size)
        labels = (scene.thing_T[triangle_HW], scene.part_T[triangle_HW], scene.patch_T[triangle_HW])
        depth_HW = depth_N.astype(np.float32).reshape(size)
        return View(triangle_HW, *labels, depth_HW, normal_N3.reshape(*size, 3)), surface

    def _surface(
        self, hits: Hits, triangle_N: np.ndarray, point_N3: np.ndarray, ray_N3: np.ndarray, footprint_N: np.ndarray
    ) -> _Surface:
        u, v = hits.u_N[:, None], hits.v_N[:, None]
        w = 1 - u - v
        corners = self._normal_T33[triangle_N]
        normal_N3 = corners[:, 0] * w + corners[:, 1] * u + corners[:, 2] * v
        normal_N3 /= np.maximum(np.sqrt(np.einsum("ij,ij->i", normal_N3, normal_N3)), 1e-6)[:, None]
        ray_N3 = ray_N3.astype(np.float32)
        # All surfaces have two sides, and show the one that is looked at.
        facing = np.einsum("ij,ij->i", normal_N3, ray_N3)
        normal_N3 = np.where(facing[:, None] > 0, -normal_N3, normal_N3)
        corners = self._uv_T32[triangle_N]
        uv_N2 = corners[:, 0] * w + corners[:, 1] * u + corners[:, 2] * v
        slant = np.maximum(np.abs(facing) / np.sqrt(np.einsum("ij,ij->i", ray_N3, ray_N3)), 0.15)
        return _Surface(
            point_N3.astype(np.float32),
            normal_N3,
            uv_N2,
            self.scene.material_T[triangle_N],
            (footprint_N / np.sqrt(slant)).astype(np.float32),
        )

    # ------------------------------------------------------------------------------------------- light

    def photograph(self, camera: Camera, view: View, surface: _Surface, rng: np.random.Generator) -> np.ndarray:
        """The picture, uint8 `[H, W, 3]` sRGB."""
        size = view.patch_HW.shape
        paint, material_N = self.scene.paint, surface.material_N
        sample_N = _tile_samples(size)
        light_N3 = self._direct(surface.point_N3, surface.normal_N3, sample_N)
        light_N3 += self._bounced(surface, view.patch_HW)
        light_N3 = _within_patches(light_N3, view.patch_HW, range(-2, 2))
        albedo_N3 = paint.albedo(material_N, surface.uv_N2, surface.footprint_N)
        radiance_N3 = albedo_N3 * (light_N3 + paint.emission_M[material_N][:, None])
        self._add_reflections(radiance_N3, surface, camera, sample_N, view.patch_HW)
        radiance_HW3 = _smooth_outlines(self, camera, view, radiance_N3.reshape(*size, 3))
        return _develop(radiance_HW3, rng)

    def _direct(
        self, point_N3: np.ndarray, normal_N3: np.ndarray, sample_N: np.ndarray, shadows: bool = True
    ) -> np.ndarray:
        """Irradiance from the lights, divided by pi as all light here is. `[N, 3]`"""
        total_N3 = np.zeros_like(point_N3)
        start_N3 = point_N3 + normal_N3 * np.float32(_LIFT)
        for number, light in enumerate(self.scene.lights):
            s, t = _GRID[(sample_N * 5 + 3 * number) % 16].T
            centre, edge_s, edge_t = (np.float32(x) for x in (light.centre, light.edge_s, light.edge_t))
            way_N3 = centre + s[:, None] * edge_s + t[:, None] * edge_t
            if not light.distant:
                way_N3 = way_N3 - start_N3
            square_N = np.einsum("ij,ij->i", way_N3, way_N3)
            gain_N = np.einsum("ij,ij->i", way_N3, normal_N3) / np.sqrt(square_N)
            if light.normal is not None:
                gain_N *= np.maximum(way_N3 @ np.float32(-light.normal), 0) / np.sqrt(square_N)
            if not light.distant:
                gain_N /= np.maximum(square_N, 0.05)
            lit = np.flatnonzero(gain_N > 1e-4)
            if shadows or light.distant:
                reach = None if light.distant else np.full(len(lit), 0.999, np.float32)
                lit = lit[~self.tracer.blocked(start_N3[lit], way_N3[lit], reach)]
            total_N3[lit] += gain_N[lit, None] * np.float32(light.power)
        return total_N3

    def _bounced(self, surface: _Surface, patch_HW: np.ndarray) -> np.ndarray:
        """Light that comes by way of one other surface, sampled by the cosine over the hemisphere. `[N, 3]`

        It changes slowly, so every second pixel of every second row is enough, and those that lie on another patch.
        """
        size = patch_HW.shape
        coarse_HW = np.repeat(np.repeat(patch_HW[::2, ::2], 2, 0), 2, 1)[: size[0], : size[1]]
        chosen_HW = coarse_HW != patch_HW
        chosen_HW[::2, ::2] = True
        pick = np.flatnonzero(chosen_HW)
        # Eight by eight of them share 64 directions: with fewer, sun patches leave ghosts of themselves on the walls.
        sample_N = _tile_samples(size, 8, spacing=2)[pick]
        normal_N3 = surface.normal_N3[pick]
        direction_N3 = _around(normal_N3, *_HEMISPHERE[sample_N].T)
        light_N3 = np.zeros((patch_HW.size, 3), np.float32)
        light_N3[pick] = self._glimpse(surface.point_N3[pick], normal_N3, direction_N3, sample_N)
        return _within_patches(light_N3, patch_HW, range(-8, 8), chosen_HW)

    def _glimpse(
        self,
        point_N3: np.ndarray,
        normal_N3: np.ndarray,
        direction_N3: np.ndarray,
        sample_N: np.ndarray,
        pixel_angle: float | None = None,
        shadows: bool = True,
    ) -> np.ndarray:
        """Radiance met along directions. `[N, 3]`

        For reflections in texture detail, given the angle of a pixel. Else for lighting: in mean colours, and without
        what glows, which is counted among the lights already.
        """
        paint = self.scene.paint
        hits = self.tracer.cast(point_N3 + normal_N3 * np.float32(_LIFT), direction_N3)
        triangle_N, missed_N = np.maximum(hits.triangle_N, 0), hits.triangle_N < 0
        distance_N = np.where(missed_N, 0, hits.distance_N)
        met_N3 = point_N3 + distance_N[:, None] * direction_N3
        met = self._surface(hits, triangle_N, met_N3, direction_N3, distance_N * (pixel_angle or 0))
        light_N3 = self._direct(met.point_N3, met.normal_N3, sample_N, shadows) + np.float32(self._ambient())
        if pixel_angle is None:
            # A few paths that end right beside a lamp would show as sparks.
            light_N3 = np.minimum(light_N3, 2.5 * np.float32(self._ambient()))
            radiance_N3 = self._mean_albedo_M3[met.material_N] * light_N3
        else:
            light_N3 += paint.emission_M[met.material_N][:, None]
            radiance_N3 = paint.albedo(met.material_N, met.uv_N2, met.footprint_N) * light_N3
        radiance_N3[missed_N] = 0
        return radiance_N3

    def _ambient(self) -> np.ndarray:
        return _AMBIENT * sum(light.power * (0.3 if light.distant else 1.0) for light in self.scene.lights)

    def _add_reflections(
        self, radiance_N3: np.ndarray, surface: _Surface, camera: Camera, sample_N: np.ndarray, patch_HW: np.ndarray
    ) -> None:
        """Mirrors and sheen, in place. Sheen is too faint for shadows, and filtered as light is, so a little rough."""
        gloss_N = self.scene.paint.gloss_M[surface.material_N]
        for pick, copies in ((np.flatnonzero(gloss_N >= 0.5), 4), (np.flatnonzero((gloss_N > 0) & (gloss_N < 0.5)), 1)):
            if len(pick) == 0:
                continue
            normal_N3, point_N3 = surface.normal_N3[pick], surface.point_N3[pick]
            ray_N3 = point_N3 - np.float32(camera.at)
            ray_N3 /= np.sqrt(np.einsum("ij,ij->i", ray_N3, ray_N3))[:, None]
            cosine_N = -np.einsum("ij,ij->i", ray_N3, normal_N3)
            # Schlick's Fresnel, held down at grazing angles as rough surfaces do.
            gloss_N1 = gloss_N[pick, None]
            share_N1 = gloss_N1 + np.maximum(0.4 - gloss_N1, 0) * np.clip(1 - cosine_N[:, None], 0, 1) ** 5
            direction_N3 = ray_N3 + 2 * cosine_N[:, None] * normal_N3
            seen_N3 = sum(
                self._glimpse(point_N3, normal_N3, direction_N3, sample_N[pick] + 4 * copy, 1 / 300, copies > 1)
                for copy in range(copies)
            )
            if copies == 1:
                all_N3 = np.zeros((patch_HW.size, 3), np.float32)
                all_N3[pick] = seen_N3
                seen_N3 = _within_patches(all_N3, patch_HW, range(-2, 2))[pick]
            radiance_N3[pick] += share_N1 * (seen_N3 / copies - radiance_N3[pick])


# A 4 x 4 stratified set over [-0.5, 0.5)^2; consecutive members lie far apart.
_ORDER = np.array([0, 10, 2, 8, 5, 15, 7, 13, 1, 11, 3, 9, 4, 14, 6, 12])
_GRID = (np.stack([_ORDER % 4, _ORDER // 4], -1).astype(np.float32) + 0.5 + _ORDER[:, None] % 3 * 0.2 - 0.2) / 4 - 0.5


# 64 points of Roberts' R2 sequence, whose every run is spread evenly.
_HEMISPHERE = (np.arange(64)[:, None] * (0.7548776662466927, 0.5698402909980532) % 1).astype(np.float32)


def _tile_samples(size: tuple[int, int], side: int = _TILE, spacing: int = 1) -> np.ndarray:
    """Which sample each pixel takes, in tiles of side x side pixels that are `spacing` apart. `[N]`"""
    y, x = np.mgrid[: size[0], : size[1]] // spacing
    return ((y % side) * side + x % side).ravel()


def _around(normal_N3: np.ndarray, s_N: np.ndarray, t_N: np.ndarray) -> np.ndarray:
    """Cosine-distributed directions about normals."""
    angle, radius = 2 * np.pi * s_N, np.sqrt(t_N)
    # The frame without branches of Duff et al., "Building an Orthonormal Basis, Revisited", 2017.
    x, y, z = normal_N3.T
    sign = np.where(z >= 0, np.float32(1), np.float32(-1))
    a = -1 / (sign + z)
    b = x * y * a
    along_s = np.stack([1 + sign * x * x * a, sign * b, -sign * x], -1)
    along_t = np.stack([b, sign + y * y * a, -y], -1)
    up = np.sqrt(1 - t_N)[:, None] * normal_N3
    return (radius * np.cos(angle))[:, None] * along_s + (radius * np.sin(angle))[:, None] * along_t + up


def _within_patches(
    light_N3: np.ndarray, patch_HW: np.ndarray, reach: Iterable[int], weight_HW: np.ndarray | None = None
) -> np.ndarray:
    """The box filter over pixels of the same patch, one axis after the other; `weight` is 0 where there is no light."""
    # Weights ride along as a fourth channel; channels first, so that masks broadcast along whole rows.
    total_4HW = np.ones((4, *patch_HW.shape), np.float32)
    total_4HW[:3] = light_N3.T.reshape(3, *patch_HW.shape)
    if weight_HW is not None:
        total_4HW[3] = weight_HW
    for axis in (0, 1):
        light_4HW = total_4HW.copy()
        for shift in reach:
            if shift:
                here, there = _overlap(axis, shift)
                same = (patch_HW[here] == patch_HW[there]).astype(np.float32)
                total_4HW[(slice(None), *here)] += light_4HW[(slice(None), *there)] * same
    return (total_4HW[:3] / np.maximum(total_4HW[3], 1e-6)).reshape(3, -1).T


def _overlap(axis: int, shift: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of pixels that have a neighbour `shift` further along an axis, and of those neighbours."""
    here, there = [slice(None), slice(None)], [slice(None), slice(None)]
    here[axis] = slice(max(0, -shift), -shift if shift > 0 else None)
    there[axis] = slice(max(0, shift), shift if shift < 0 else None)
    return tuple(here), tuple(there)


_SUBPIXELS = ((-0.375, -0.125), (0.125, -0.375), (0.375, 0.125), (-0.125, 0.375))


def _smooth_outlines(renderer: Renderer, camera: Camera, view: View, radiance_HW3: np.ndarray) -> np.ndarray:
    """At edges of patches the mean of four rays, each coloured as the nearest pixel of the patch it meets."""
    patch_HW = view.patch_HW
    height, width = patch_HW.shape
    edge_HW = np.zeros(patch_HW.shape, bool)
    for axis in (0, 1):
        here, there = _overlap(axis, 1)
        differs = patch_HW[here] != patch_HW[there]
        edge_HW[here] |= differs
        edge_HW[there] |= differs
    y, x = np.nonzero(edge_HW)
    total = np.zeros((len(y), 3), np.float32)
    scale = 1 / (camera.focal * width)
    # Light beyond what the picture can show would make outlines of windows jagged: clip first.
    radiance_HW3 = np.minimum(radiance_HW3, 6 * np.median(radiance_HW3) + 1e-6)
    for dx, dy in _SUBPIXELS:
        ray = camera.through((x + 0.5 + dx - width / 2) * scale, (height / 2 - y - 0.5 - dy) * scale)
        hits = renderer.tracer.cast(np.broadcast_to(camera.at, ray.shape), ray)
        patch = renderer.scene.patch_T[np.maximum(hits.triangle_N, 0)]
        step_y, step_x = (1 if dy > 0 else -1), (1 if dx > 0 else -1)
        beside = (np.clip(y + step_y, 0, height - 1), np.clip(x + step_x, 0, width - 1))
        colour = radiance_HW3[y, x]
        done = patch_HW[y, x] == patch
        nearer = ((y, beside[1]), (beside[0], x)) if abs(dx) > abs(dy) else ((beside[0], x), (y, beside[1]))
        for place in (*nearer, (beside[0], beside[1])):
            found = ~done & (patch_HW[place] == patch)
            colour[found] = radiance_HW3[place][found]
            done |= found
        total += colour
    out = radiance_HW3.copy()
    out[y, x] = total / len(_SUBPIXELS)
    return out


def _develop(radiance_HW3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, white balance, film curve, vignette and sensor noise; sRGB bytes."""
    height, width = radiance_HW3.shape[:2]
    bright = np.exp(np.log(radiance_HW3.mean(-1) + 1e-3).mean())
    exposure = 0.21 / max(bright, 1e-3) * np.exp(rng.normal(0, 0.12))
    balance = np.exp(rng.normal(0, 0.05, 3))
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    falloff = 1 - rng.uniform(0, 0.12) * (x * x + y * y)
    light = radiance_HW3 * (exposure * balance * falloff[..., None]).astype(np.float32)
    # Narkowicz's fit of the ACES film curve, 2015: soft shoulder for lamps and windows.
    film = np.clip(light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14), 0, 1)
    display = _DISPLAY[(film * (len(_DISPLAY) - 1)).astype(np.int32)]
    display += rng.standard_normal(display.shape, np.float32) * np.float32(rng.uniform(0.3, 1.5))
    return np.clip(np.rint(display), 0, 255).astype(np.uint8)


def _display_curve() -> np.ndarray:
    light = np.linspace(0, 1, 8192)
    return (255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)).astype(np.float32)


_DISPLAY = _display_curve()  # sRGB by table: a power per pixel costs more than a ray
